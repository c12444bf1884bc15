"""Probabilities that are frequencies, and a threshold for each label, from (logits, labels).

Both are to be fitted on images that the adapter was not trained on; `calibrate.py` sees to it. They are plain
arrays, and are kept with the run.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt64
from scipy.special import expit, logit

from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing
from mlclip_jax.metrics import decision_figures, expected_calibration_error

Scores = Float[np.ndarray, "N K"]
Labels = Int[np.ndarray, "N K"]
Thresholds = Float64[np.ndarray, " K"]
FILE = "calibration.npz"
PLAIN = 0.5  # the threshold of a label that cannot be fitted
FOLDS = 5


class Calibration(NamedTuple):
    """From logits to probabilities and decisions, for K labels; float64 arrays.

    Attributes:
      slopes, intercepts: `(K,)`; a probability is sigmoid(slope x logit + intercept), unless there are knots.
      knots: `(K, 2, M)`, logits in rising order and their probabilities, between which it is interpolated;
        NaN where a label has fewer, or none.
      thresholds: `(K,)`, the probabilities from which labels are predicted; infinite for never.
      fitted_on: uint64, a hash of each embedding that it was fitted on, where they are known.
    """

    slopes: Float64[np.ndarray, " K"]
    intercepts: Float64[np.ndarray, " K"]
    knots: Float64[np.ndarray, "K 2 M"]
    thresholds: Float64[np.ndarray, " K"]
    fitted_on: UInt64[np.ndarray, " N"]


def fit(
    logits: Scores, labels: Labels, method: str = "platt", rule: str = "f1", target: float | None = None
) -> Calibration:
    """Fits probabilities to labels, and thresholds to those probabilities.

    Args:
      logits: float `(N, K)`, of images that were not trained on.
      labels: int `(N, K)` in {1, 0, -1}; unknown entries are left out.
      method: a key of `METHODS`.
      rule: a key of `RULES`.
      target: in (0, 1], what the rules `"precision"` and `"recall"` are to reach.

    Returns:
      A `Calibration`. Labels that are not `fittable` keep the plain sigmoid and the threshold 0.5.
    """
    logits = np.asarray(logits, np.float64)
    calibration = METHODS[method](logits, labels)
    probabilities = apply(calibration, logits)
    return calibration._replace(thresholds=RULES[rule](probabilities, labels, target))


def apply(calibration: Calibration, logits: Scores) -> Float64[np.ndarray, "N K"]:
    """Probabilities, float64 `(N, K)`, of logits `(N, K)`."""
    logits = np.asarray(logits, np.float64)
    probabilities = expit(logits * calibration.slopes + calibration.intercepts)
    for k, (x, y) in enumerate(calibration.knots):
        given = np.isfinite(x)
        if given.any():
            probabilities[:, k] = np.interp(logits[:, k], x[given], y[given])
    return probabilities


def fittable(labels: Labels) -> Bool[np.ndarray, " K"]:
    """Which labels have both a known positive and a known negative: bool `(K,)`."""
    return (labels == 1).any(axis=0) & (labels == 0).any(axis=0)


def no_change(logits: Scores, labels: Labels) -> Calibration:
    """The plain sigmoid of every logit."""
    del logits
    return _plain(labels.shape[1])


def platt(logits: Scores, labels: Labels) -> Calibration:
    """A slope that is not negative and an intercept for each label, by maximum likelihood (Platt 1999).

    With Platt's targets: of n positives each is (n + 1) / (n + 2) present, of n negatives each 1 / (n + 2),
    so that labels which the logits tell apart perfectly keep a finite slope.
    """
    return _logistic(logits, labels, fit_intercept=True)


def temperature(logits: Scores, labels: Labels) -> Calibration:
    """A slope for each label, the inverse temperature (Guo et al. 2017), fitted as in `platt`."""
    return _logistic(logits, labels, fit_intercept=False)


def isotonic(logits: Scores, labels: Labels) -> Calibration:
    """A rising step-and-line function for each label (Zadrozny and Elkan 2002); scikit-learn's."""
    from sklearn.isotonic import IsotonicRegression  # scikit-learn takes a second, and is for fitting alone

    curves = {}
    for k in np.flatnonzero(fittable(labels)):
        known = labels[:, k] >= 0
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        regression.fit(logits[known, k], labels[known, k])
        curves[k] = regression.X_thresholds_, regression.y_thresholds_
    knots = np.full((labels.shape[1], 2, max((len(x) for x, _ in curves.values()), default=0)), np.nan)
    for k, (x, y) in curves.items():
        knots[k, :, : len(x)] = x, y
    return _plain(labels.shape[1])._replace(knots=knots)


METHODS = {"none": no_change, "platt": platt, "temperature": temperature, "isotonic": isotonic}


def half(probabilities: Scores, labels: Labels, target: float | None = None) -> Thresholds:
    """0.5 for every label."""
    del labels, target
    return np.full(probabilities.shape[1], PLAIN)


def best_f1(probabilities: Scores, labels: Labels, target: float | None = None) -> Thresholds:
    """For each label the threshold of the highest F1."""
    del target

    def choose(precision, recall):
        return np.argmax(2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny))

    return _by_curve(probabilities, labels, choose)


def best_micro_f1(
    probabilities: Scores,
    labels: Labels,
    target: float | None = None,
    grid: Float[np.ndarray, " S"] | None = None,
    passes: int = 1,
) -> Thresholds:
    """Thresholds that raise the F1 over all entries, one label after the other (MultiCLIP, inference_func).

    Beginning at 0.5, each label in turn takes the value of the grid with the highest micro-averaged F1, the
    others being as they are; it keeps its own where none is higher.

    Args:
      grid: candidate thresholds; 0.01, 0.02, ..., 0.80 by default, as in the source.
      passes: how many times over all labels; 1 in the source.
    """
    del target
    grid = np.linspace(0.01, 0.80, 80) if grid is None else np.asarray(grid)
    known, present = labels >= 0, labels == 1
    candidates = np.concatenate([[PLAIN], grid])
    # (candidates, K): how many each label would retrieve, and rightly.
    retrieved = np.stack([np.sum(known & (probabilities >= t), axis=0) for t in candidates])
    hits = np.stack([np.sum(present & (probabilities >= t), axis=0) for t in candidates])
    positives = present.sum()
    chosen, columns = np.zeros(labels.shape[1], int), np.arange(labels.shape[1])
    for _ in range(passes):
        for k in np.flatnonzero(fittable(labels)):
            others = columns != k
            all_hits = hits[chosen[others], columns[others]].sum() + hits[:, k]
            all_retrieved = retrieved[chosen[others], columns[others]].sum() + retrieved[:, k]
            f1 = 2 * all_hits / np.maximum(all_retrieved + positives, 1)
            if f1.max() > f1[chosen[k]]:
                chosen[k] = np.argmax(f1)
    return candidates[chosen]


def by_precision(probabilities: Scores, labels: Labels, target: float | None = None) -> Thresholds:
    """For each label the threshold of highest recall whose precision reaches the target; else infinite."""

    def choose(precision, recall):
        enough = precision >= target
        return np.argmax(np.where(enough, recall, -1)) if enough.any() else None

    return _by_curve(probabilities, labels, choose)


def by_recall(probabilities: Scores, labels: Labels, target: float | None = None) -> Thresholds:
    """For each label the threshold of the highest precision whose recall reaches the target."""
    return _by_curve(
        probabilities, labels, lambda precision, recall: np.argmax(np.where(recall >= target, precision, -1))
    )


RULES = {
    "half": half,
    "f1": best_f1,
    "micro_f1": best_micro_f1,
    "precision": by_precision,
    "recall": by_recall,
}


def cross_validated(
    logits: Scores, labels: Labels, method: str, rule: str, target: float | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """What a calibration gains on images that it was not fitted on.

    Args:
      logits, labels, method, rule, target: as for `fit`.

    Returns:
      Two dicts, before (plain sigmoid, 0.5) and after, of `ECE`, the expected calibration error over all
      entries; `Brier`, the mean squared error of probabilities; and `decision_figures`. After is measured
      over five folds, each with what was fitted on the other four.
    """
    from sklearn.model_selection import KFold

    before, after = expit(np.asarray(logits, np.float64)), np.empty(labels.shape)
    predicted = np.empty(labels.shape, bool)
    folds = KFold(min(FOLDS, len(labels)), shuffle=True, random_state=0)
    for others, fold in folds.split(labels):
        calibration = fit(logits[others], labels[others], method, rule, target)
        after[fold] = apply(calibration, logits[fold])
        predicted[fold] = after[fold] >= calibration.thresholds
    return _figures(before, before >= PLAIN, labels), _figures(after, predicted, labels)


def write_calibration(workdir: str | os.PathLike, calibration: Calibration, origin: dict) -> None:
    """Writes `calibration.npz` into a run's folder.

    Args:
      workdir: the folder.
      calibration: a `Calibration`.
      origin: a dict of how and on what it was fitted, and to which `parameters`.
    """
    with replacing(Path(workdir) / FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, **calibration._asdict(), origin=json.dumps(origin))


def read_calibration(workdir: str | os.PathLike, parameters: str) -> Calibration | None:
    """The `Calibration` in the folder of a run, or None where it has none.

    Args:
      workdir: the folder.
      parameters: what identifies the run's parameters and labels, `runs.Run.digest`.

    Raises:
      InputError: the file is damaged, or was fitted to other parameters or labels.
    """
    path = Path(workdir) / FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            calibration = Calibration(*(stored[name] for name in Calibration._fields))
            origin = json.loads(str(stored["origin"]))
            fits = origin["parameters"] == parameters
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot read {path} ({reason}); remove it, or run `mlclip calibrate` again"
        ) from error
    if not fits:
        raise InputError(
            f"{path} was fitted to other parameters or labels than this run has; remove it, or run "
            "`mlclip calibrate` again"
        )
    return calibration


def _plain(num_labels):
    return Calibration(
        slopes=np.ones(num_labels),
        intercepts=np.zeros(num_labels),
        knots=np.empty((num_labels, 2, 0)),
        thresholds=np.full(num_labels, PLAIN),
        fitted_on=np.empty(0, np.uint64),
    )


def _logistic(logits, labels, fit_intercept):
    from sklearn.linear_model import LogisticRegression

    calibration = _plain(labels.shape[1])
    for k in np.flatnonzero(fittable(labels)):
        known = labels[:, k] >= 0
        x, present = logits[known, k, None], labels[known, k] == 1
        targets = np.where(present, (present.sum() + 1) / (present.sum() + 2), 1 / ((~present).sum() + 2))
        # A soft target is both a positive and a negative, each with its weight.
        regression = LogisticRegression(C=np.inf, fit_intercept=fit_intercept, max_iter=1000)
        regression.fit(
            np.concatenate([x, x]),
            np.repeat([1, 0], len(x)),
            sample_weight=np.concatenate([targets, 1 - targets]),
        )
        slope, intercept = regression.coef_[0, 0], regression.intercept_[0] if fit_intercept else 0.0
        if slope < 0:  # the best that does not turn the ranking round
            slope, intercept = 0.0, logit(targets.mean()) if fit_intercept else 0.0
        calibration.slopes[k], calibration.intercepts[k] = slope, intercept
    return calibration


def _by_curve(probabilities, labels, choose):
    """A threshold for each label; `choose` picks a point off precisions and recalls, or None for never."""
    from sklearn.metrics import precision_recall_curve

    thresholds = np.full(labels.shape[1], PLAIN)
    for k in np.flatnonzero(fittable(labels)):
        known = labels[:, k] >= 0
        precision, recall, values = precision_recall_curve(labels[known, k], probabilities[known, k])
        point = choose(precision[:-1], recall[:-1])  # the last is that of no threshold
        if point is None:
            thresholds[k] = np.inf
        else:
            # Halfway to the next lower probability: what is computed a little differently stays on its side.
            lower = values[point - 1] if point else 0.0
            thresholds[k] = (values[point] + lower) / 2
    return thresholds


def _figures(probabilities, predicted, labels):
    known = labels >= 0
    probabilities = probabilities.astype(np.float32)
    figures = {
        "ECE": expected_calibration_error(probabilities, labels),
        "Brier": np.mean((probabilities[known] - labels[known]) ** 2),
        **decision_figures(predicted, labels),
    }
    return {name: float(figure) for name, figure in figures.items()}
