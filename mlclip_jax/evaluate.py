"""Scores trained adapters against plain cosine: `mlclip evaluate --workdir=RUN[,RUN...]`."""

import functools
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax import nnx

from mlclip_jax import metrics, recipes
from mlclip_jax.adapters import ADAPTERS, TITLES, make_adapter, reads_local, takes_other_labels
from mlclip_jax.calibration import apply, read_calibration
from mlclip_jax.checkpoints import Checkpoints, abstract, describe
from mlclip_jax.data.sources import read_embeddings, read_labels, read_lines
from mlclip_jax.errors import InputError
from mlclip_jax.features import embed_images, embed_names
from mlclip_jax.files import replacing
from mlclip_jax.metrics import bootstrap_mean_average_precision, mean_average_precision
from mlclip_jax.modules import merge_module, split_trainable
from mlclip_jax.parallel import make_mesh, replicated
from mlclip_jax.progress import progress_bar
from mlclip_jax.report import markdown_table
from mlclip_jax.zero_shot import cosine_scores, standardise

# What is ranked, given an adapter's scores and plain cosine, both (N, K): the scores as they come;
# standardised over the classes of each image; or that, averaged with cosine treated the same.
SCORINGS = {
    "raw": lambda scores, _: scores,
    "standardised": lambda scores, _: standardise(scores),
    "fused": lambda scores, cosine: (standardise(scores) + standardise(cosine)) / 2,
}

TRAINED_ON = "trained_on.npy"
_mean_average_precision = jax.jit(mean_average_precision, static_argnums=2)
_bootstrap = jax.jit(bootstrap_mean_average_precision, static_argnums=(3, 4))


def main(values):
    """mlclip evaluate --workdir=RUN[,RUN...] [--embeddings=FILE | --images=FOLDER] [--labels=FILE] ..."""
    if values.embeddings and values.images:
        raise InputError("give either --embeddings=FILE or --images=FOLDER")
    workdirs = [workdir for given in values.workdir for workdir in given.split(",")]
    runs = [read_run(workdir) for workdir in workdirs]
    config = runs[0]["config"]
    load_backbone = functools.cache(lambda: load_backbone_of(config))
    if values.classes:
        runs = carry_over(runs, read_lines(values.classes), load_backbone)
    source = {"embeddings": values.embeddings, "images": values.images, "labels": values.labels}
    if not (values.embeddings or values.images):  # the images of the run, perhaps with other labels
        source = {**config.evaluation, "labels": values.labels or config.evaluation.labels}
    local = any(reads_local(run["config"].adapter) for run in runs)
    images = read_images(source, runs[0]["class_texts"], load_backbone, local=local)
    print_comparison(compare(runs, images, values.bootstrap, values.protocol))


def compare(runs, images, num_samples=1000, protocol="ap"):
    """Scores runs on the same images, and compares them with plain cosine and with one another.

    Runs whose configs differ in nothing but the seed are one method. Each run's own figures are also
    written to `evaluation.json` in its folder.

    Args:
      runs: from `read_run`; finished, and trained on the same class texts.
      images: from `read_images`.
      num_samples: resamples of the paired bootstrap.
      protocol: of average precision, a key of `metrics.PROTOCOLS`.

    Returns:
      A dict of `protocol`, what the figures mean, and `rows`: for each method and scoring its number of
      `seeds`, mean `mAP` and `spread` (standard deviation) over seeds in percent, and the differences
      `over_cosine` and `over_first` (method among the runs) as [difference, lower, upper] bounds of the 95%
      interval.

    Raises:
      InputError: the runs do not belong together, or one of them is not finished.
    """
    class_texts = runs[0]["class_texts"]
    trained = {}
    for run in runs:
        if any(run["class_texts"].origin[key] != class_texts.origin[key] for key in ("sha256", "labels")):
            raise InputError(
                f"{runs[0]['workdir']} and {run['workdir']} were trained on different class texts"
            )
        if run["step"] < run["config"].train.steps:
            steps = f"step {run['step']} of {run['config'].train.steps}"
            raise InputError(f"{run['workdir']} stopped at {steps}; start its command again to finish it")
        twin = trained.setdefault(json.dumps(_settings(run), sort_keys=True), run["workdir"])
        if twin is not run["workdir"]:
            raise InputError(f"{twin} and {run['workdir']} are the same run twice; leave one out")

    cosine = np.asarray(cosine_scores(images.vectors, class_texts.vectors))
    described = _describe_protocol(images, class_texts, num_samples, protocol)
    methods = {"cosine zero-shot": [cosine]}
    for run in runs:
        scores = np.asarray(scores_of(run, images))
        methods.setdefault(_method_name(run, runs), []).append(scores)
        _write_evaluation(run, scores, cosine, images.labels, described, protocol)
    return {"protocol": described, "rows": _rows(methods, images.labels, num_samples, protocol)}


def print_comparison(comparison):
    """Prints `compare`'s result: the protocol in lines, the rows as a Markdown table."""
    for name, value in comparison["protocol"].items():
        print(f"{name:<12}{value}")
    several = any(row["over_first"] for row in comparison["rows"])
    header = ["method", "scores", "seeds", "mAP", "over cosine"] + ["over first"] * several
    rows = []
    for row in comparison["rows"]:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.1f}"
        cells = [row["method"], row["scoring"], str(row["seeds"]), f"{row['mAP']:.1f}{spread}"]
        cells += [_interval(row["over_cosine"])] + [_interval(row["over_first"])] * several
        rows.append(cells)
    print(f"\n{markdown_table(header, rows)}")


def read_run(workdir):
    """A trained run: `workdir`, `config`, `class_texts`, adapter `graph`, `parameters`, `frozen`, and `step`.

    Raises:
      InputError: the folder holds no run, or one without a checkpoint.
    """
    if not str(workdir):
        raise InputError("an empty name among the folders of runs")
    workdir = Path(workdir)
    config = recipes.read_config(workdir)
    if config.get("adapter", {}).get("name") not in ADAPTERS:
        raise InputError(f"{workdir} holds no run of an adapter")
    if not (workdir / "classes.npz").is_file():
        raise InputError(f"{workdir} holds a run without a checkpoint; train it first")
    class_texts = read_embeddings(workdir / "classes.npz")
    # The seed draws what is frozen again; parameters are read.
    adapter = make_adapter(config.adapter, class_texts.vectors, rngs=nnx.Rngs(config.seed))
    graph, parameters, frozen = split_trainable(adapter)
    with Checkpoints(workdir / "checkpoints", class_texts.origin, read_only=True) as checkpoints:
        wanted = {"parameters": abstract(parameters, replicated(make_mesh()))}
        parameters = checkpoints.restore(wanted)["parameters"]
        step = checkpoints.latest_step
    return {
        "workdir": workdir,
        "config": config,
        "class_texts": class_texts,
        "graph": graph,
        "parameters": parameters,
        "frozen": frozen,
        "step": step,
        "calibration": read_calibration(workdir, step, len(class_texts.names)),
    }


def carry_over(runs, label_names, load_backbone):
    """Runs with other labels than they were trained on: zero-shot transfer.

    Args:
      runs: from `read_run`; of adapters that read class texts, trained with one backbone and one template.
      label_names: K names.
      load_backbone: called without arguments.

    Returns:
      Runs alike, uncalibrated, whose class texts are those of `label_names`.

    Raises:
      InputError: an adapter has an output for each label that it was trained on, and no other.
    """
    origin = runs[0]["class_texts"].origin
    origin = origin.get("backbone") or origin
    template = origin.get("template")
    for run in runs:
        settings = run["config"].adapter
        if not takes_other_labels(settings):
            raise InputError(
                f"{run['workdir']} holds {TITLES[settings['name']]}, which knows no labels but those it was "
                "trained on; MLD does, and ML-Decoder with --config.adapter.queries=text"
            )
    if not template:
        raise InputError(f"{runs[0]['workdir']} does not record the sentence that its labels were put into")
    backbone = load_backbone()
    if origin["sha256"] != backbone.fingerprint["sha256"]:
        raise InputError(
            f"{runs[0]['workdir']} was trained on {describe(origin)}, not on {describe(backbone.fingerprint)}"
        )
    class_texts = embed_names(backbone, label_names, template)
    labels = hashlib.sha256("\n".join(label_names).encode()).hexdigest()
    class_texts = class_texts._replace(origin=class_texts.origin | {"labels": labels})
    carried = []
    for run in runs:
        # No shape of a parameter depends on the labels.
        graph, _, frozen = split_trainable(
            make_adapter(run["config"].adapter, class_texts.vectors, rngs=nnx.Rngs(0))
        )
        changed = {"graph": graph, "frozen": frozen, "class_texts": class_texts, "calibration": None}
        carried.append(run | changed)
    return carried


def read_images(source, class_texts, load_backbone, section="evaluation", local=False):
    """The images to score, or to train on, as `Embeddings` whose labels have the columns of `class_texts`.

    Args:
      source: a mapping with `embeddings` (a file) or `images` (a folder), and `labels` (a CSV, where the
        embeddings' file holds none).
      class_texts: `Embeddings` of the classes.
      load_backbone: called without arguments where a folder has to be embedded.
      section: of the recipe, which errors name.
      local: whether local features are needed too.

    Raises:
      InputError: these embeddings were made by another backbone, have another width or lack local features;
        or the images have no labels, or labels of other classes.
    """
    split = source.get("embeddings") or source.get("images")
    if not split:
        purpose = "score" if section == "evaluation" else "train on"
        raise InputError(
            f"no images to {purpose}: give embeddings=FILE or images=FOLDER (for train, --config.{section}.)"
        )
    if source.get("embeddings"):
        images = read_embeddings(split)
    else:
        images = embed_images(load_backbone, split, local=local)
    if local and images.local is None:
        raise InputError(f"{split} holds no local features, which this adapter reads; embed with --local")
    if not local:
        images = images._replace(local=None)
    expected_width = class_texts.vectors.shape[1]
    for what, array in (("embeddings", images.vectors), ("local features", images.local)):
        if array is not None and array.shape[-1] != expected_width:
            raise InputError(
                f"{split}: {what} are {array.shape[-1]} wide, the class texts {expected_width}; "
                "both must come from one backbone"
            )
    backbones = [backbone_of(embeddings.origin) for embeddings in (images, class_texts)]
    if all(backbones) and backbones[0]["sha256"] != backbones[1]["sha256"]:
        raise InputError(
            f"{split} was made by {describe(backbones[0])}, the class texts by {describe(backbones[1])}; "
            "both must come from one backbone"
        )
    labels = _aligned_labels(source.get("labels"), split, images, class_texts.names, section)
    if not np.any(labels == 1):
        raise InputError(
            f"{split}: no image has any of the {len(class_texts.names)} labels, so no mAP exists"
        )
    origin = (images.origin or {}) | {"split": str(split)}
    return images._replace(labels=labels, label_names=class_texts.names, origin=origin)


@functools.partial(jax.jit, static_argnums=0)
def adapter_scores(graph, parameters, frozen, vectors, local=None):
    """Logits (N, K) of an adapter for embeddings (N, D) and, if it reads them, local features (N, T, D)."""
    adapter = merge_module(graph, parameters, frozen)

    def score(vector, local):
        return adapter(vector[None], None if local is None else local[None])[0]

    # In batches: an adapter may need K x hidden numbers for each image.
    return jax.lax.map(lambda image: score(*image), (vectors, local), batch_size=256)


def scores_of(run, images):
    """`adapter_scores` of a run, from `read_run`, for `Embeddings` of images."""
    return adapter_scores(run["graph"], run["parameters"], run["frozen"], images.vectors, images.local)


def figures_of(run, logits, labels):
    """Every metric of a run's scores, as floats in [0, 1]; mAP in percent, `coverage_error` in labels.

    Decisions and probabilities are those of the run's calibration, where it has one; otherwise a sigmoid, and
    present from 0.5.
    """
    probabilities = probabilities_of(run, logits)
    predicted = probabilities >= thresholds_of(run)
    figures = {p: 100 * _mean_average_precision(logits, labels, p)[0] for p in metrics.PROTOCOLS}
    figures |= metrics.decision_figures(predicted, labels)
    for metric in (metrics.hamming_loss, metrics.exact_match):
        figures[metric.__name__] = metric(predicted, labels)
    for metric in (metrics.label_ranking_average_precision, metrics.coverage_error, metrics.one_error):
        figures[metric.__name__] = metric(logits, labels)
    figures["expected_calibration_error"] = metrics.expected_calibration_error(probabilities, labels)
    calibrated = run["calibration"] is not None
    return {"calibrated": calibrated, **{name: float(figure) for name, figure in figures.items()}}


def probabilities_of(run, logits):
    """Probabilities, float32 (N, K), of a run's logits: by its calibration, if it has one; else a sigmoid."""
    if run["calibration"] is None:
        return np.asarray(jax.nn.sigmoid(logits))
    return apply(run["calibration"], logits).astype(np.float32)


def thresholds_of(run):
    """The probability from which a run predicts each label, `(K,)`; 0.5 unless it is calibrated."""
    if run["calibration"] is None:
        return np.full(len(run["class_texts"].names), 0.5)
    return run["calibration"].thresholds


def digest(images):
    """SHA-256 of what a run learns from `Embeddings` with labels."""
    parts = (images.vectors, images.labels, images.local)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts if part is not None)).hexdigest()


def write_trained_on(workdir, images):
    """Notes which embeddings a run learns from, as 64-bit hashes of their bytes."""
    with replacing(Path(workdir) / TRAINED_ON) as temporary, temporary.open("wb") as file:
        np.save(file, _row_hashes(images.vectors))


def count_trained_on(run, images):
    """How many of these very embeddings a run learnt from; those that were rounded anew pass unseen."""
    path = Path(run["workdir"]) / TRAINED_ON
    return int(np.isin(_row_hashes(images.vectors), np.load(path)).sum()) if path.is_file() else 0


def _row_hashes(vectors):
    hashes = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in vectors)
    return np.frombuffer(b"".join(hashes), np.uint64)


def _aligned_labels(path, split, images, label_names, section):
    if path:
        if images.names is None:
            raise InputError(f"{split} does not name its images, so {path} cannot be matched with them")
        return read_labels(path, images.names, label_names)
    if images.labels is None:
        raise InputError(
            f"{split} holds no labels: give a CSV of them, --labels=FILE "
            f"(for train, --config.{section}.labels=FILE)"
        )
    if images.label_names is None:
        if images.labels.shape[1] != len(label_names):
            raise InputError(
                f"{split} has {images.labels.shape[1]} columns of labels for {len(label_names)} classes, "
                "and no label_names to match them by"
            )
        return images.labels
    missing = sorted(set(label_names) ^ set(images.label_names))
    if missing:
        raise InputError(
            f"{split} and the class texts name different classes: {len(missing)} are in only one of them, "
            f"such as {missing[0]!r}"
        )
    column = {name: k for k, name in enumerate(images.label_names)}
    return images.labels[:, [column[name] for name in label_names]]


def _rows(methods, labels, num_samples, protocol="ap"):
    """Every method's figures under every scoring; `methods` maps names to a list of scores, one per seed."""
    reference, *adapters = methods
    cosine = methods[reference][0]
    rows = []
    total = len(SCORINGS) * sum(len(scores) for scores in methods.values())
    with progress_bar(total, "bootstrap", "scores") as bar:
        for scoring, rule in SCORINGS.items():
            measured = {}
            for name, scores in methods.items():
                ranked = [rule(s, cosine) for s in scores]
                measured[name] = _measure(ranked, labels, num_samples, protocol, bar)
            for name, (figures, _) in measured.items():
                several = len(figures) > 1
                over_first = name in adapters[1:]
                rows.append(
                    {
                        "method": name,
                        "scoring": scoring,
                        "seeds": len(figures),
                        "mAP": float(figures.mean()),
                        "spread": float(figures.std(ddof=1)) if several else None,
                        "over_cosine": _difference(measured, name, reference) if name in adapters else None,
                        "over_first": _difference(measured, name, adapters[0]) if over_first else None,
                    }
                )
    return rows


def _measure(all_scores, labels, num_samples, protocol, bar):
    """mAP in percent of each seed's scores, and of every resample the mean over seeds."""
    figures, resampled = [], []
    for scores in all_scores:
        figures.append(_mean_average_precision(scores, labels, protocol)[0])
        # One key for all: every method is resampled alike, which is what pairs the differences.
        resampled.append(_bootstrap(jax.random.key(0), scores, labels, num_samples, protocol))
        bar.update()
    return 100 * np.array(figures), 100 * np.mean(resampled, axis=0)


def _difference(measured, name, reference):
    """Difference of two methods' mean figures, and the bounds of its 95% interval.

    The basic bootstrap: a resample repeats images, which shifts average precision upwards, and the basic
    interval takes that shift out where the percentile interval would keep it.
    """
    (figures, resampled), (reference_figures, reference_resampled) = measured[name], measured[reference]
    difference = float(figures.mean() - reference_figures.mean())
    lower, upper = np.nanquantile(resampled - reference_resampled, (0.025, 0.975))
    return [difference, 2 * difference - float(upper), 2 * difference - float(lower)]


def _write_evaluation(run, scores, cosine, labels, described, protocol):
    ranked = {scoring: rule(scores, cosine) for scoring, rule in SCORINGS.items()}
    figures = {
        scoring: 100 * float(_mean_average_precision(s, labels, protocol)[0]) for scoring, s in ranked.items()
    }
    content = {
        "step": run["step"],
        "mAP": figures,
        "protocol": described,
        "raw": figures_of(run, scores, labels),
    }
    with replacing(run["workdir"] / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _settings(run):
    """A run's config without what changes nothing of its result."""
    flat = recipes.flat_config(run["config"])
    return {key: value for key, value in flat.items() if not key.startswith("evaluation.")}


def _method_name(run, runs):
    """The adapter, and what sets a run apart from the others of its adapter, its seed aside."""
    own = _settings(run)
    name = own["adapter.name"]
    same = [other for other in map(_settings, runs) if other["adapter.name"] == name]
    differing = [key for key in own if key != "seed" and len({str(other.get(key)) for other in same}) > 1]
    return ", ".join([TITLES[name], *(f"{key.split('.')[-1]}={own[key]}" for key in differing)])


def _describe_protocol(images, class_texts, num_samples, protocol):
    counted = int(np.any(images.labels == 1, axis=0).sum())
    image_size = images.origin.get("image_size")
    backbone = backbone_of(class_texts.origin)
    template = (class_texts.origin.get("backbone") or class_texts.origin).get("template")
    return {
        "metric": metrics.PROTOCOLS[protocol],
        "classes": f"{counted} of {len(class_texts.names)} have a positive and are counted",
        "images": f"{len(images.vectors)}, {images.origin['split']}",
        "image size": "not recorded" if image_size is None else "x".join(map(str, image_size)),
        "class texts": f"{template!r}" if template else f"{class_texts.origin['name']}, prompt not recorded",
        "backbone": describe(backbone) if backbone else "not recorded",
        "interval": f"95%, basic paired bootstrap over images, {num_samples} resamples",
    }


def backbone_of(origin):
    """The fingerprint of the backbone behind embeddings of this origin, or None where it was not recorded."""
    backbone = None if origin is None else origin.get("backbone", origin)
    return backbone and {key: value for key, value in backbone.items() if key != "labels"}


def _interval(difference):
    return "" if difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference)


def load_backbone_of(config):
    """The backbone that a config names.

    Raises:
      InputError: it names none, or one that cannot be loaded.
    """
    from mlclip_jax.backbones import load_backbone, read_encoding

    if not config.get("backbone"):
        raise InputError(
            "this run names no backbone to embed images with; run `mlclip embed`, give embeddings=FILE"
        )
    return load_backbone(config.backbone, **read_encoding(config.get("encoding", {})))


def define_flags(values, _):
    flags.DEFINE_multi_string("workdir", None, "folders of runs, separated by commas", flag_values=values)
    flags.DEFINE_string("embeddings", None, ".npz or .npy of image embeddings", flag_values=values)
    flags.DEFINE_string("images", None, "or a folder of images", flag_values=values)
    flags.DEFINE_string("labels", None, ".csv of labels", flag_values=values)
    flags.DEFINE_string(
        "classes",
        None,
        "text file, a label per line: score these labels, not the run's own, with an adapter that reads them",
        flag_values=values,
    )
    flags.DEFINE_enum("protocol", "ap", list(metrics.PROTOCOLS), "of average precision", flag_values=values)
    flags.DEFINE_integer("bootstrap", 1000, "resamples of the intervals", lower_bound=1, flag_values=values)
    flags.mark_flag_as_required("workdir", values)
