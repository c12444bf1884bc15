"""Methods beside one another on the same images, with intervals of their differences."""

import json

import jax
import numpy as np

from mlclip_jax import metrics, recipes
from mlclip_jax.distributed.processes import is_first
from mlclip_jax.embeddings.labelled import backbone_of
from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing
from mlclip_jax.metrics import bootstrap_mean_average_precision, mean_average_precision
from mlclip_jax.progress import progress_bar
from mlclip_jax.report import markdown_table
from mlclip_jax.training.checkpoints import describe
from mlclip_jax.zero_shot import cosine_scores, standardise

# What is ranked, given an adapter's scores and plain cosine, both (N, K): the scores as they come;
# standardised over the classes of each image; or that, averaged with cosine treated the same.
SCORINGS = {
    "raw": lambda scores, _: scores,
    "standardised": lambda scores, _: standardise(scores),
    "fused": lambda scores, cosine: (standardise(scores) + standardise(cosine)) / 2,
}
_bootstrap = jax.jit(bootstrap_mean_average_precision, static_argnums=(3, 4))


def compare(runs, images, num_samples=1000, protocol="ap"):
    """Scores runs on the same images, and compares them with plain cosine and with one another.

    Runs whose configs differ in nothing but the seed are one method. Each run's own figures are also
    written to `evaluation.json` in its folder, unless it was carried over to other labels.

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
    class_embeddings = runs[0].class_embeddings
    trained = {}
    for run in runs:
        if any(
            run.class_embeddings.origin[key] != class_embeddings.origin[key] for key in ("sha256", "labels")
        ):
            raise InputError(
                f"{runs[0]['workdir']} and {run['workdir']} were trained on different class texts"
            )
        if not run.finished and run.checkpoint == "latest":
            steps = f"step {run['step']} of {run['config'].train.steps}"
            raise InputError(f"{run['workdir']} stopped at {steps}; start its command again to finish it")
        twin = trained.setdefault(json.dumps(_settings(run), sort_keys=True), run.workdir)
        if twin is not run.workdir:
            raise InputError(f"{twin} and {run['workdir']} are the same run twice; leave one out")

    images = images._replace(vectors=np.asarray(images.vectors), labels=np.asarray(images.labels))
    cosine = np.asarray(cosine_scores(images.vectors, class_embeddings.vectors))
    described = _describe_protocol(runs, images, num_samples, protocol)
    methods = {"cosine zero-shot": [cosine]}
    for run in runs:
        scores = np.asarray(run.score(images))
        methods.setdefault(_method_name(run, runs), []).append(scores)
        if run.own_labels:
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
        figures.append(mean_average_precision(scores, labels, protocol)[0])
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


def figures_of(run, logits, labels):
    """Every metric of a run's scores, as floats in [0, 1]; mAP in percent, `coverage_error` in labels.

    Decisions and probabilities are those of the run's calibration, where it has one; otherwise a sigmoid, and
    present from 0.5.
    """
    probabilities = run.probabilities(logits)
    predicted = probabilities >= run.thresholds
    figures = {p: 100 * mean_average_precision(logits, labels, p)[0] for p in metrics.PROTOCOLS}
    figures |= metrics.decision_figures(predicted, labels)
    for metric in (metrics.hamming_loss, metrics.exact_match):
        figures[metric.__name__] = metric(predicted, labels)
    for metric in (metrics.label_ranking_average_precision, metrics.coverage_error, metrics.one_error):
        figures[metric.__name__] = metric(logits, labels)
    figures["expected_calibration_error"] = metrics.expected_calibration_error(probabilities, labels)
    calibrated = run.calibration is not None
    return {"calibrated": calibrated, **{name: float(figure) for name, figure in figures.items()}}


def _write_evaluation(run, scores, cosine, labels, described, protocol):
    ranked = {scoring: rule(scores, cosine) for scoring, rule in SCORINGS.items()}
    figures = {
        scoring: 100 * float(mean_average_precision(s, labels, protocol)[0]) for scoring, s in ranked.items()
    }
    if not is_first():
        return
    content = {
        "step": run.step,
        "mAP": figures,
        "protocol": described,
        "raw": figures_of(run, scores, labels),
    }
    with replacing(run.workdir / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _settings(run):
    """A run's config without what changes nothing of its result."""
    flat = recipes.flat_config(run.config)
    return {key: value for key, value in flat.items() if not key.startswith(("evaluation.", "recipe"))}


def _method_name(run, runs):
    """The method, and what sets a run apart from the others of its method, its seed aside."""
    own = _settings(run)
    name = own["method.name"]
    same = [other for other in map(_settings, runs) if other["method.name"] == name]
    differing = [key for key in own if key != "seed" and len({str(other.get(key)) for other in same}) > 1]
    title = run.method.title
    return ", ".join([title, *(f"{key.split('.')[-1]}={own[key]}" for key in differing)])


def _describe_protocol(runs, images, num_samples, protocol):
    class_embeddings = runs[0].class_embeddings
    counted = int(np.any(images.labels == 1, axis=0).sum())
    image_size = images.origin.get("image_size")
    backbone = backbone_of(class_embeddings.origin)
    template = (class_embeddings.origin.get("backbone") or class_embeddings.origin).get("template")
    described = {
        "metric": metrics.PROTOCOLS[protocol],
        "classes": f"{counted} of {len(class_embeddings.names)} have a positive and are counted",
        "images": f"{len(images.vectors)}, {images.origin['split']}",
        "image size": "not recorded" if image_size is None else "x".join(map(str, image_size)),
        "class texts": f"{template!r}"
        if template
        else f"{class_embeddings.origin['name']}, prompt not recorded",
        "backbone": describe(backbone) if backbone else "not recorded",
        "interval": f"95%, basic paired bootstrap over images, {num_samples} resamples",
    }
    seen = {
        "trained on": max(run.count_trained_on(images) for run in runs),
        "calibrated on": max(run.count_calibrated_on(images) for run in runs),
    }
    if any(seen.values()):
        counts = " and ".join(f"{count} were {what}" for what, count in seen.items() if count)
        described["beware"] = f"of exactly these images {counts}: the figures are too good"
    return described


def _interval(difference):
    return "" if difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference)
