"""Trained runs on the same images: every metric of each, and all beside plain cosine and one another."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int8

from mlclip_jax import metrics, recipes
from mlclip_jax.comparison import SCORINGS, compare
from mlclip_jax.distributed.processes import is_first
from mlclip_jax.embeddings.store import Embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.files import write_json, write_rows
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.runs import Run
from mlclip_jax.scores import Scores, write_scores
from mlclip_jax.texts.templates import describe_templates
from mlclip_jax.zero_shot import cosine_scores
from mlclip_jax.zero_shot.prompts import Decided

PER_CLASS = "per_class.csv"  # as evaluation.json has it
IN_LABELS = ("coverage_error",)  # figures that are no fractions
SCORES = "scores.npz"  # in a run's folder, of the images that it was evaluated on last


def evaluate(
    runs: Sequence[Run], images: Embeddings, num_samples: int = 1000, protocol: str = "ap"
) -> tuple[dict[str, str], list[dict]]:
    """Scores runs on the same images, and compares them with plain cosine and with one another.

    Runs whose configs differ in nothing but the seed are one method. Each run's own figures and scores are
    written to `evaluation.json`, `per_class.csv` and `scores.npz` in its folder, unless it has none, or other
    labels than its own.

    Args:
      runs: from `read_run`; finished, and trained on the same class embeddings.
      images: from `read_images`.
      num_samples, protocol: see `compare`.

    Returns:
      What the figures mean, a dict of lines; and the rows of `compare`.

    Raises:
      InputError: the runs do not belong together, or one of them is not finished.
    """
    _check(runs)
    labels = np.asarray(images.labels)
    images = images.replace(labels=labels)
    cosine = _cosines(runs[0], images)
    described = describe_protocol(runs, images, num_samples, protocol)
    methods = {}
    for run in runs:
        decided = _finite(run, images)
        methods.setdefault(_method_name(run, runs), []).append(decided.scores)
        if run.own_labels:
            _write_evaluation(run, decided, cosine, images, described, protocol)
    compared = compare(methods, labels, cosine=cosine, num_samples=num_samples, protocol=protocol)
    return described, compared


def write_evaluation(run: Run, images: Embeddings, protocol: str = "ap") -> None:
    """Scores one run, and writes `evaluation.json`, `per_class.csv` and `scores.npz` to its folder.

    Args:
      run: from `read_run`; finished.
      images: from `read_images`.
      protocol: of average precision, a key of `metrics.PROTOCOLS`.

    Raises:
      InputError: a score is not finite.
    """
    images = images.replace(labels=np.asarray(images.labels))
    described = describe_protocol([run], images, None, protocol)
    _write_evaluation(run, _finite(run, images), _cosines(run, images), images, described, protocol)


def evaluate_scores(
    known: Sequence[Scores],
    labels: Int8[np.ndarray, "N K"],
    names: Sequence[str],
    num_samples: int = 1000,
    protocol: str = "ap",
) -> tuple[dict[str, str], list[dict]]:
    """The same for scores from files, without plain cosine, which they do not hold.

    Args:
      known: from `read_together`, as `labels`.
      labels: int8 (N, K).
      names: what to call each.
      num_samples, protocol: see `compare`.
    """
    positive = int(np.any(labels == 1, axis=0).sum())
    described = {
        "metric": metrics.PROTOCOLS[protocol],
        "classes": f"{positive} of {labels.shape[1]} have a positive and are counted",
        "images": f"{len(labels)}, {known[0].origin or 'not recorded'}",
        "interval": f"95%, basic paired bootstrap over images, {num_samples} resamples",
    }
    methods = {name: scores.scores for name, scores in zip(names, known)}
    return described, compare(methods, labels, num_samples=num_samples, protocol=protocol)


def _cosines(run, images):
    """Plain cosine of the images with a run's class embeddings; None where images have no embedding."""
    if "image" not in images.features:
        return None
    return np.asarray(
        cosine_scores(np.asarray(images.features["image"]), np.asarray(run.class_embeddings.vectors))
    )


def _finite(run, images):
    decided = run.decide(images)
    bad = np.flatnonzero(~np.isfinite(decided.scores).all(axis=1))
    if bad.size:
        image = images.names[bad[0]] if images.names else f"row {bad[0]}"
        raise InputError(
            f"{run.name} gives scores that are NaN or infinite, first for {image}; "
            "its embedding, or the run, is damaged"
        )
    return decided


def _check(runs):
    class_embeddings, trained = runs[0].class_embeddings, {}
    for run in runs:
        own = run.class_embeddings.origin
        first = class_embeddings.origin
        if (own.sha256, own.labels, own.prompt) != (first.sha256, first.labels, first.prompt):
            raise InputError(
                f"{runs[0].name} and {run.name} have different class embeddings; evaluate them one by one"
            )
        if not run.finished and run.checkpoint == "latest":
            steps = f"step {run.step} of {run.config.train.steps}"
            raise InputError(f"{run.name} stopped at {steps}; start its command again to finish it")
        twin = trained.setdefault(json.dumps(_settings(run), sort_keys=True), run)
        if twin is not run:
            raise InputError(f"{twin.name} and {run.name} are the same run twice; leave one out")


def figures_of(run: Run, decided: Decided, labels: Int8[np.ndarray, "N K"]) -> dict[str, float]:
    """Every metric of a run's scores in percent, but `coverage_error` in labels.

    Decisions and probabilities are those of the run's calibration, where it has one; otherwise a sigmoid, and
    present from 0.5. What is never trained has no probabilities before it is calibrated, and no figures of
    them; nor of decisions, unless it makes them.
    """
    logits, predicted = decided.scores, decided.labels
    figures = {p: mean_average_precision(logits, labels, p)[0] for p in metrics.PROTOCOLS}
    if predicted is not None:
        figures |= metrics.decision_figures(predicted, labels)
        figures["hamming_loss"] = metrics.hamming_loss(predicted, labels)
        figures["exact_match"] = metrics.exact_match(predicted, labels)
    figures |= {
        "label_ranking_average_precision": metrics.label_ranking_average_precision(logits, labels),
        "coverage_error": metrics.coverage_error(logits, labels),
        "one_error": metrics.one_error(logits, labels),
    }
    if run.gives_probabilities:
        error = metrics.expected_calibration_error(run.probabilities(logits), labels)
        figures["expected_calibration_error"] = error
    calibrated = run.calibration is not None
    units = {name: 1 if name in IN_LABELS else 100 for name in figures}
    figures = {name: units[name] * float(figure) for name, figure in figures.items()}
    return {"calibrated": calibrated, **figures}


def figures_by_class(run: Run, decided: Decided, labels: Int8[np.ndarray, "N K"]) -> list[dict[str, Any]]:
    """What is measured of each class: a dict of each, with figures in percent.

    `label`; `support`, how many images have it, and `known`, of how many that is known; its average precision
    under each of `metrics.PROTOCOLS`, None without support; `precision`, `recall` and `F1`, where labels are
    decided, and the `threshold` that decides them, a probability.
    """
    figures = {p: metrics.average_precision(decided.scores, labels, p) for p in metrics.PROTOCOLS}
    if decided.labels is not None:
        counts = metrics.count_decisions(decided.labels, labels)
        figures |= dict(zip(("precision", "recall", "F1"), metrics.precision_recall_f1(counts)))
    thresholds = run.thresholds if run.gives_probabilities else None
    figures = {name: [_percent(figure) for figure in np.asarray(own)] for name, own in figures.items()}
    return [
        {
            "label": label,
            "support": int(np.sum(labels[:, k] == 1)),
            "known": int(np.sum(labels[:, k] >= 0)),
            **{name: own[k] for name, own in figures.items()},
            **({} if thresholds is None else {"threshold": float(thresholds[k])}),
        }
        for k, label in enumerate(run.label_names)
    ]


def _percent(fraction):
    return None if np.isnan(fraction) else round(100 * float(fraction), 4)


def _write_evaluation(run, decided, cosine, images, described, protocol):
    if run.workdir is None:
        return
    scores, labels = decided.scores, images.labels
    scorings = {name: rule for name, rule in SCORINGS.items() if name != "fused" or cosine is not None}
    ranked = {scoring: rule(scores, cosine) for scoring, rule in scorings.items()}
    figures = {
        scoring: 100 * float(mean_average_precision(s, labels, protocol)[0]) for scoring, s in ranked.items()
    }
    if not is_first():
        return
    content = {
        "step": run.step,
        "mAP": figures,
        "unit": f"percent; {', '.join(IN_LABELS)} in labels; thresholds are probabilities",
        "protocol": described,
        "raw": figures_of(run, decided, labels),
        "per_class": (by_class := figures_by_class(run, decided, labels)),
    }
    origin = f"{run.method.title}, {images.origin.split}"
    known = Scores(scores, run.label_names, images.names and tuple(images.names), labels, origin)
    write_scores(run.workdir / SCORES, known)
    write_json(run.workdir / "evaluation.json", content)
    write_rows(run.workdir / PER_CLASS, by_class)


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


def describe_protocol(
    runs: Sequence[Run], images: Embeddings, num_samples: int | None, protocol: str
) -> dict[str, str]:
    """What figures of runs on these images mean, a dict of lines; see `evaluate`."""
    class_embeddings = runs[0].class_embeddings
    positive = int(np.any(images.labels == 1, axis=0).sum())
    origin, image_size = class_embeddings.origin, images.origin.image_size
    described = {
        "metric": metrics.PROTOCOLS[protocol],
        "classes": f"{positive} of {len(runs[0].label_names)} have a positive and are counted",
        "images": f"{len(images)}, {images.origin.split}",
        "image size": "x".join(map(str, image_size)) or "not recorded",
        "class texts": describe_templates(origin.prompt)
        if origin.prompt
        else f"{origin.name}, prompt not recorded",
        "backbone": str(origin.encoder or "not recorded"),
    }
    if num_samples:
        described["interval"] = f"95%, basic paired bootstrap over images, {num_samples} resamples"
    seen = {
        "trained on": max(run.count_trained_on(images) for run in runs),
        "calibrated on": max(run.count_calibrated_on(images) for run in runs),
    }
    if any(seen.values()):
        counts = " and ".join(f"{count} were {what}" for what, count in seen.items() if count)
        described["beware"] = f"of exactly these images {counts}: the figures are too good"
    return described
