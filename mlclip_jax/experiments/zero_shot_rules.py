"""Every rule of the recipe `zero_shot` on the same images, in one table."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mlclip_jax import methods, recipes
from mlclip_jax.backbones import load_backbone_of
from mlclip_jax.comparison import compare, describe_gain
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.pipeline import Skipped
from mlclip_jax.distributed.processes import is_first
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import PIXELS, Embeddings, read_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.evaluation import describe_protocol
from mlclip_jax.files import write_rows
from mlclip_jax.report import markdown_table
from mlclip_jax.runs import Run, untrained_run
from mlclip_jax.training.inputs import read_class_embeddings
from mlclip_jax.untrained import check_untrained
from mlclip_jax.zero_shot import cosine_scores
from mlclip_jax.zero_shot.published import published_map

COSINE = "plain cosine"
LOCAL_BYTES = 2 << 30  # of local features, which are not written again at each call beyond it


def compare_rules(
    config: ConfigDict,
    *,
    num_samples: int = 1000,
    protocol: str = "ap",
    output: str | os.PathLike | None = None,
    report: Callable[[str], object] | None = None,
) -> list[dict]:
    """Scores images by every rule that a config names, and compares them with plain cosine.

    Args:
      config: of the recipe `zero_shot`: one variant of it, or `all`, whose `rules` are the variants.
      num_samples, protocol: see `comparison.compare`.
      output: CSV file to write; None: none.
      report: called with the table, as `print`.

    Returns:
      Rows, dicts: the `rule`; what it `uses`; `mAP`, in percent, with its `lower` and `upper` bounds;
      `over_cosine`, its difference from plain cosine with theirs; `published_mAP` of its decisions, see
      `zero_shot.published`, if it makes any; `ms_an_image`, of scoring embeddings that are there, texts of
      its own included; and `left_out`, why there is none of these.

    Raises:
      InputError: the recipe, or what it names, cannot be used.
    """
    rules = {rule: _config_of(config, rule) for rule in _rules_of(config)}
    backbone = load_backbone_of(config)
    class_embeddings = read_class_embeddings(config, lambda: backbone)
    with tempfile.TemporaryDirectory() as folder:
        images = _read(config, rules, class_embeddings, backbone, Path(folder))
        images = images.replace(labels=np.asarray(images.labels))
        scored, left_out = {}, {}
        for rule, own in rules.items():
            try:
                check_untrained(own)
                run = untrained_run(own, class_embeddings).with_backbone(backbone)
                scored[rule] = run, *_timed(run, images, config.evaluation.images, config.max_skipped)
            except InputError as error:  # such as too many labels for all combinations of them
                left_out[rule] = str(error)
        cosine = np.asarray(cosine_scores(np.asarray(images.vectors), np.asarray(class_embeddings.vectors)))
    if not scored:
        raise InputError("; ".join(left_out.values()))
    compared = compare(
        {rule: decided.scores for rule, (_, decided, _) in scored.items()},
        images.labels,
        cosine=cosine,
        num_samples=num_samples,
        protocol=protocol,
        scorings=("raw",),
    )
    plain, *of_rules = compared
    rows = [_row(COSINE, "names", plain)]
    for row, (rule, (run, decided, milliseconds)) in zip(of_rules, scored.items()):
        labels = decided.labels
        published = None if labels is None else 100 * published_map(labels, images.labels)
        rows.append(_row(rule, run.method.uses, row, published, milliseconds))
    rows += [dict.fromkeys(rows[0]) | {"rule": rule, "left_out": why} for rule, why in left_out.items()]
    if output and is_first():
        write_rows(output, [_flat(row) for row in rows])
    if report is not None:
        described = describe_protocol([next(iter(scored.values()))[0]], images, num_samples, protocol)
        report(describe_rules(described, rows))
    return rows


def describe_rules(described: dict[str, str], rows: Sequence[dict]) -> str:
    """What figures mean, a dict, in lines, and below it the rows of `compare_rules` as a Markdown table."""
    lines = [f"{name:<12}{value}" for name, value in described.items()]
    lines.append(f"{'published':<12}area under decisions, by which whoever predicts nothing reads over 50")
    header = ["rule", "uses", "mAP", "over cosine", "published", "ms an image"]
    cells = [
        [
            row["rule"],
            row["uses"],
            f"{row['mAP']:.1f} [{row['lower']:.1f}, {row['upper']:.1f}]",
            describe_gain(row["over_cosine"]),
            _number(row["published_mAP"], 1),
            _number(row["ms_an_image"], 3),
        ]
        for row in rows
        if not row["left_out"]
    ]
    left_out = [f"{row['rule']} is left out: {row['left_out']}" for row in rows if row["left_out"]]
    return "\n".join(
        [*lines, "", markdown_table(header, cells, "llrrrr"), *([""] if left_out else []), *left_out]
    )


def _rules_of(config):
    return config.get("rules") or [config.recipe.partition(":")[2].split(",")[0]]


def _config_of(config, rule):
    """The config of one rule, with what the config of all says of the rest."""
    if "method" in config:
        return config
    own = recipes.read(f"zero_shot:{rule}")
    for key in ("max_skipped", "backbone", "encoding", "texts", "evaluation"):
        own[key] = config[key]
    for key, value in config.options.items():
        if value and key in own.method:
            own.method[key] = value
    return own


def _read(config, rules, class_embeddings, backbone, folder):
    """Images, with the features that some rule reads and that can be had."""
    wanted = {name for own in rules.values() for name in methods.find(own.method).reads} - {PIXELS}
    given = config.evaluation.embeddings
    if given:
        wanted &= read_embeddings(given, reads=tuple(wanted)).features.keys()
    elif backbone.local_width != backbone.embedding_width or _local_bytes(config, backbone) > LOCAL_BYTES:
        wanted -= {"image_local"}
    return read_images(
        config.evaluation,
        class_embeddings,
        lambda: backbone,
        folder,
        reads=tuple(sorted(wanted)),
        max_skipped=config.max_skipped,
    )


def _local_bytes(config, backbone):
    images = config.evaluation.images
    rows, columns = backbone.grid_size
    return 4 * len(open_images(images)) * rows * columns * backbone.local_width if images else 0


def _timed(run: Run, images: Embeddings, source: str | None, max_skipped: float):
    """What a run makes of images, and milliseconds for each."""
    if PIXELS in run.method.reads:
        if not source:
            raise InputError("it reads images, and these are embeddings")
        begin = time.perf_counter()
        opened = open_images(source)  # it skips what was skipped when the others were embedded
        _, decided = run.score_source(opened, Skipped(opened.names, None, max_skipped))
        return decided, 1000 * (time.perf_counter() - begin) / len(images)
    missing = [name for name in run.method.reads if name not in images.features]
    if missing:
        raise InputError(
            f"the images have no {missing[0]}, which it reads; embed them by `mlclip embed "
            f"--features=image,{missing[0]}`, and give --embeddings"
        )
    if not run.method.at_once:
        run.decide(images)  # which compiles
    begin = time.perf_counter()
    decided = run.decide(images)
    return decided, 1000 * (time.perf_counter() - begin) / len(images)


def _row(rule, uses, compared, published=None, milliseconds=None):
    return {
        "rule": rule,
        "uses": uses,
        **{key: compared[key] for key in ("mAP", "lower", "upper", "over_cosine")},
        "published_mAP": published,
        "ms_an_image": milliseconds,
        "left_out": "",
    }


def _number(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


def _flat(row):
    bounds = dict(
        zip(("over_cosine", "over_cosine_lower", "over_cosine_upper"), row["over_cosine"] or (None,) * 3)
    )
    return {**{key: value for key, value in row.items() if key != "over_cosine"}, **bounds}
