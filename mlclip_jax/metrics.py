"""Metrics of (scores, labels), jittable and exact: labels are 1 present, 0 absent, -1 unknown (left out).

Shapes: N examples, K classes. `weights` are non-negative integers `(N,)`, how often each example counts: 1 by
default, 0 for the rows that pad a batch. Inputs may be split over devices; the figures are the same.

Scores are compared in float32, to which bfloat16 and float16 convert exactly; NumPy arrays of float64 in
float64, so that scores which differ there are no ties. A figure for which a score that is NaN counts is NaN:
where its label is known, and its weight not 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, Shaped

from mlclip_jax.choices import PROTOCOLS

Scores = Float[Array | np.ndarray, "N K"]
Ranked = Float[Array, "N K"] | Int32[Array, "N K"]  # scores, or their ranks
Labels = Int[Array | np.ndarray, "N K"]
Decisions = Bool[Array | np.ndarray, "N K"]
Weights = Shaped[Array | np.ndarray, " N"]
Ratio = Float32[Array, "..."]


NAN_RANK = np.int32(np.iinfo(np.int32).min)  # of a score that is NaN, among ranks
# Tenths whose threshold in `numpy.arange(0, 1.1, 0.1)` is a rounding above the nearest float: 3, 6 and 7.
ROUNDED_UP = tuple(tenths for tenths in range(11) if np.arange(0, 1.1, 0.1)[tenths] > tenths / 10)


class Counts(NamedTuple):
    """Of yes-or-no decisions: how many were right and wrong, int32 `(K,)`."""

    true_positives: Int[Array | np.ndarray, "..."]
    false_positives: Int[Array | np.ndarray, "..."]
    false_negatives: Int[Array | np.ndarray, "..."]


def average_precision(
    scores: Scores, labels: Labels, protocol: str = "ap", weights: Weights | None = None
) -> Float32[Array, " K"]:
    """Average precision of every class.

    The curve has a point for each distinct score: tied examples enter together, so their order cannot matter.
    With recall R and precision P at those points, from the highest score down, and R0 = 0:

    - `"ap"`: the sum of (R - previous R) P; scikit-learn's `average_precision_score`.
    - `"voc10"`: the same, P being the highest precision at this or any greater recall (VOC 2010 to 2012).
    - `"voc07"`: the mean over the recalls 0, 0.1, ..., 1 of the highest precision there or beyond (VOC 2007).
    - `"voc07_devkit"`: the same over `numpy.arange(0, 1.1, 0.1)`, as in TaI-DPT and DualCoOp, whose fourth,
      seventh and eighth thresholds are a rounding above 0.3, 0.6 and 0.7, and missed by recalls of just that.
    - `"trapezoid"`: the sum of (R - previous R) (P + previous P) / 2, beginning at P = 1; what MMM-CLIP
      calls mAP, scikit-learn's `auc` of its `precision_recall_curve`. It flatters ties: scores that are all
      equal read (1 + prevalence) / 2.

    Args:
      scores: float `(N, K)`, larger means more present.
      labels: int `(N, K)` in {1, 0, -1}.
      protocol: a key of `PROTOCOLS`.
      weights: integers `(N,)`, see above.

    Returns:
      float32 `(K,)`; NaN for a class without a positive, and for one with a score that is NaN.
    """
    return _average_precision(_rankable(scores), labels, protocol, weights)


@functools.partial(jax.jit, static_argnames="protocol")
def _average_precision(
    scores: Ranked, labels: Labels, protocol: str = "ap", weights: Weights | None = None
) -> Float32[Array, " K"]:
    return jnp.where(
        jnp.any(_spoilt(scores, labels, weights), axis=0),
        jnp.nan,
        _areas(scores, labels, protocol, weights),
    )


def _areas(scores, labels, protocol, weights):
    order, ends = _ranking(scores)
    weights = None if weights is None else _counted(weights)[order]
    return _area(_ranked(labels, order), ends, weights, protocol)


def mean_average_precision(
    scores: Scores, labels: Labels, protocol: str = "ap", weights: Weights | None = None
) -> tuple[Float32[Array, ""], Int32[Array, ""]]:
    """Mean of `average_precision` over the classes that have a positive.

    Returns:
      The mean, float32, and the number of classes it was taken over, int32; NaN and 0 where there is none.
    """
    return _mean_average_precision(_rankable(scores), labels, protocol, weights)


@functools.partial(jax.jit, static_argnames="protocol")
def _mean_average_precision(scores, labels, protocol, weights):
    per_class = _areas(scores, labels, protocol, weights)
    return _mean_over_classes(per_class, _spoilt(scores, labels, weights))


def bootstrap_mean_average_precision(
    key: Key[Array, ""], scores: Scores, labels: Labels, num_samples: int = 1000, protocol: str = "ap"
) -> Float32[Array, " S"]:
    """mAP of `num_samples` resamples of the examples, drawn with replacement.

    The draws depend on `key`, N and `num_samples` alone. Two methods scored with the same key are compared
    on the same resamples, so the quantiles of their difference are a paired interval.

    Returns:
      float32 `(num_samples,)`.
    """
    return _bootstrap(key, _rankable(scores), labels, num_samples, protocol)


@functools.partial(jax.jit, static_argnames=("num_samples", "protocol"))
def _bootstrap(key, scores, labels, num_samples, protocol):
    num_examples = scores.shape[0]
    order, ends = _ranking(scores)
    ranked_labels = _ranked(labels, order)

    def resample(key):
        drawn = jax.random.randint(key, (num_examples,), 0, num_examples)
        weights = jnp.zeros(num_examples, jnp.int32).at[drawn].add(1)
        per_class = _area(ranked_labels, ends, weights[order], protocol)
        return _mean_over_classes(per_class, _spoilt(scores, labels, weights))[0]

    return jax.lax.map(resample, jax.random.split(key, num_samples))


def top_k(scores: Scores, k: int) -> Bool[Array, "N K"]:
    """The k highest scores of each row as decisions, bool `(N, K)`; of equal ones, the first. No NaN."""
    _, columns = jax.lax.top_k(scores, k)
    rows = jnp.arange(len(scores))[:, None]
    return jnp.zeros(scores.shape, bool).at[jnp.broadcast_to(rows, columns.shape), columns].set(True)


def count_decisions(predicted: Decisions, labels: Labels, weights: Weights | None = None) -> Counts:
    """`Counts` of every class, for decisions bool `(N, K)` such as `scores >= thresholds` or `top_k`."""
    times = _times(labels, weights)
    present = labels == 1

    def count(entries):
        return jnp.sum(jnp.where(entries, times, 0), axis=0)

    return Counts(count(predicted & present), count(predicted & ~present), count(~predicted & present))


def precision_recall_f1(counts: Counts) -> tuple[Ratio, Ratio, Ratio]:
    """Precision, recall and F1 of `Counts` of any shape, float32; 0 / 0 is 0, as in scikit-learn.

    Of each class as they are; micro-averaged, for the sums over classes.
    """
    hits, false_alarms, missed = counts
    precision, recall = _ratio(hits, hits + false_alarms), _ratio(hits, hits + missed)
    return precision, recall, _ratio(2 * hits, 2 * hits + false_alarms + missed)


@jax.jit
def decision_figures(
    predicted: Decisions, labels: Labels, weights: Weights | None = None
) -> dict[str, Float32[Array, ""]]:
    """What papers report of decisions, each a float32 scalar in [0, 1].

    Returns:
      A dict of `OP`, `OR`, `OF1` (overall, that is micro-averaged), `CP`, `CR` (means over classes), and both
      of what is called CF1: `CF1`, the harmonic mean of CP and CR (TaI-DPT, DualCoOp, HCP), and
      `mean_F1`, the mean of the classes' F1 (ASL, ML-Decoder, scikit-learn's macro average). A class that is
      neither present nor predicted counts as 0; one of which nothing is known is left out.
    """
    counts = count_decisions(predicted, labels, weights)
    overall = precision_recall_f1(Counts(*map(jnp.sum, counts)))
    known = jnp.any(_times(labels, weights) > 0, axis=0)
    per_class = precision_recall_f1(counts)
    cp, cr, mean_f1 = (_ratio(jnp.sum(jnp.where(known, f, 0)), jnp.sum(known)) for f in per_class)
    cf1 = _ratio(2 * cp * cr, cp + cr)
    return dict(zip(("OP", "OR", "OF1"), overall)) | {"CP": cp, "CR": cr, "CF1": cf1, "mean_F1": mean_f1}


@jax.jit
def hamming_loss(predicted: Decisions, labels: Labels, weights: Weights | None = None) -> Float32[Array, ""]:
    """The fraction of known entries on which decisions `(N, K)` are wrong."""
    times = _times(labels, weights)
    wrong = predicted != (labels == 1)
    return _ratio(jnp.sum(jnp.where(wrong, times, 0)), jnp.sum(times))


@jax.jit
def exact_match(predicted: Decisions, labels: Labels, weights: Weights | None = None) -> Float32[Array, ""]:
    """The fraction of examples whose known entries are all decided rightly; those with none are left out."""
    known = labels >= 0
    right = jnp.all(~known | (predicted == (labels == 1)), axis=1)
    return _mean_over_rows(right.astype(jnp.float32), labels, weights)


def label_ranking_average_precision(
    scores: Scores, labels: Labels, weights: Weights | None = None
) -> Float32[Array, ""]:
    """Mean over examples of the average precision of its labels' ranking.

    scikit-learn's `label_ranking_average_precision_score`: an example without a positive counts as 1.
    """
    return _label_ranking_average_precision(_rankable(scores, axis=1), labels, weights)


@jax.jit
def _label_ranking_average_precision(scores, labels, weights):
    per_example = _average_precision(scores.T, labels.T)
    per_example = jnp.where(jnp.any(labels == 1, axis=1), per_example, 1)
    return _mean_over_rows(per_example, labels, weights, scores)


def coverage_error(scores: Scores, labels: Labels, weights: Weights | None = None) -> Float32[Array, ""]:
    """How far down each example's ranking the last of its positives is, in labels, on average.

    scikit-learn's `coverage_error`: ties count in full, and an example without a positive as 0.
    """
    return _coverage_error(_rankable(scores, axis=1), labels, weights)


@jax.jit
def _coverage_error(scores, labels, weights):
    known = labels >= 0
    keys = _keys(scores)
    lowest = jnp.min(jnp.where(labels == 1, keys, jnp.iinfo(jnp.int32).max), axis=1, keepdims=True)
    depth = jnp.sum(known & (keys >= lowest), axis=1).astype(jnp.float32)
    return _mean_over_rows(depth, labels, weights, scores)


def one_error(scores: Scores, labels: Labels, weights: Weights | None = None) -> Float32[Array, ""]:
    """The fraction of examples whose highest label is absent (Schapire and Singer 2000).

    Where several are highest, the fraction of them that are absent. Examples without a positive are left out.
    """
    return _one_error(_rankable(scores, axis=1), labels, weights)


@jax.jit
def _one_error(scores, labels, weights):
    known = labels >= 0
    keys = _keys(scores)
    highest = jnp.max(jnp.where(known, keys, jnp.iinfo(jnp.int32).min), axis=1, keepdims=True)
    top = known & (keys == highest)
    absent = jnp.sum(top & (labels == 0), axis=1) / jnp.maximum(jnp.sum(top, axis=1), 1)
    labels = jnp.where(jnp.any(labels == 1, axis=1, keepdims=True), labels, -1)
    return _mean_over_rows(absent, labels, weights, scores)


@functools.partial(jax.jit, static_argnames=("num_bins", "per_class"))
def expected_calibration_error(
    probabilities: Scores,
    labels: Labels,
    weights: Weights | None = None,
    *,
    num_bins: int = 15,
    per_class: bool = False,
) -> Float32[Array, "..."]:
    """How far probabilities are from frequencies, over bins of equal width (Guo et al. 2017, per label).

    The sum over bins of |sum of (probability - label)|, over the number of entries: torchmetrics'
    `BinaryCalibrationError` with the l1 norm. Bins hold their lower bound; 1 has a bin of its own, as there.

    Args:
      probabilities: float `(N, K)` in [0, 1].
      labels: int `(N, K)` in {1, 0, -1}.
      weights: integers `(N,)`, see above.
      num_bins: of the interval [0, 1].
      per_class: each class by itself, `(K,)`, instead of all entries together.

    Returns:
      float32; 0 where no entry is known.
    """
    probabilities = probabilities.astype(jnp.float32)
    times = _times(labels, weights).astype(jnp.float32)
    excess = jnp.where(times > 0, times * (probabilities - (labels == 1).astype(jnp.float32)), 0)
    bounds = np.linspace(0, 1, num_bins + 1, dtype=np.float32)  # each rounded once, in NumPy
    bins = jnp.searchsorted(bounds, probabilities, side="right") - 1

    def bin_excess(number):
        per_label = jnp.sum(jnp.where(bins == number, excess, 0), axis=0)
        return jnp.abs(per_label if per_class else jnp.sum(per_label))

    totals = jnp.sum(times, axis=0)
    totals = totals if per_class else jnp.sum(totals)
    return jnp.sum(jax.lax.map(bin_excess, jnp.arange(num_bins + 1)), axis=0) / jnp.maximum(totals, 1)


def _rankable(scores, axis=0):
    """Scores as they are; those of NumPy in float64 as int32 that compare as they do, along an axis."""
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float64:
        return scores
    order = np.argsort(scores, axis=axis)
    ranked = np.take_along_axis(scores, order, axis)
    ranks = np.cumsum(ranked != np.roll(ranked, 1, axis), axis, np.int32)
    back = np.empty_like(ranks)
    np.put_along_axis(back, order, ranks, axis)
    return np.where(np.isnan(scores), NAN_RANK, back)


def _spoilt(scores, labels, weights):
    """Which of the entries `(N, K)` that count are NaN."""
    nan = scores == NAN_RANK if scores.dtype == jnp.int32 else jnp.isnan(scores)
    return nan & (_times(labels, weights) > 0)


def _ranking(scores):
    """Each class's examples from the highest score to the lowest.

    Returns:
      int32 `(K, N)`, which example is at each rank, and bool `(K, N)`, whether a group of ties ends there.
    """
    keys = ~_keys(scores.T)
    # XLA's sort of floats, or with values, takes longer than all of scikit-learn; that of plain integers a
    # sixth of it. So key and index share one, which also keeps ties in order.
    with jax.enable_x64(True):
        indices = jax.lax.broadcasted_iota(jnp.int64, keys.shape, 1)
        packed = jax.lax.shift_left(keys.astype(jnp.int64), jnp.int64(32)) | indices
        packed = jax.lax.sort(packed, dimension=1)
        order = packed.astype(jnp.int32)
        keys = jax.lax.shift_right_arithmetic(packed, jnp.int64(32)).astype(jnp.int32)
    ends = jnp.concatenate([keys[:, 1:] != keys[:, :-1], jnp.ones_like(keys[:, :1], bool)], axis=1)
    return order, ends


def _keys(scores):
    """int32 that compare as scores do; floats would not always, for XLA takes the smallest of them for 0."""
    if scores.dtype == jnp.int32:
        return scores
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    bits = jnp.where(bits == jnp.int32(-(2**31)), 0, bits)  # -0 is 0
    # A float's sign and magnitude, as an integer in two's complement.
    return jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)


def _ranked(labels, order):
    return jnp.take_along_axis(labels.T, order, axis=1)


def _area(ranked_labels, ends, weights, protocol):
    """The area under a precision-recall curve, by a protocol: arrays `(K, N)` in order of rank, to `(K,)`."""
    times = _times(ranked_labels, None) if weights is None else jnp.where(ranked_labels >= 0, weights, 0)
    positives = jnp.cumsum(jnp.where(ranked_labels == 1, times, 0), axis=1)
    retrieved = jnp.cumsum(times, axis=1)
    total = positives[:, -1:]
    precision = _ratio(positives, retrieved)
    if protocol in ("voc07", "voc07_devkit"):
        # In integers: recall 3/10 is to reach 0.3, which in floating point it may not.
        least = [10 * positives - tenths * total for tenths in range(11)]
        missed = ROUNDED_UP if protocol == "voc07_devkit" else ()
        reaches = [ends & (excess > 0 if t in missed else excess >= 0) for t, excess in enumerate(least)]
        highest = [jnp.max(jnp.where(reached, precision, 0), axis=1) for reached in reaches]
        return jnp.where(total[:, 0] > 0, sum(highest) / 11, jnp.nan)
    positives_before = _before(positives, ends)
    if protocol == "voc10":
        precision = jax.lax.cummax(jnp.where(ends, precision, 0), axis=1, reverse=True)
    elif protocol == "trapezoid":
        retrieved_before = _before(retrieved, ends)
        precision_before = jnp.where(retrieved_before > 0, _ratio(positives_before, retrieved_before), 1)
        precision = (precision + precision_before) / 2
    elif protocol != "ap":
        raise ValueError(f"protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    steps = jnp.where(ends, positives - positives_before, 0).astype(jnp.float32)
    return jnp.sum(steps * precision, axis=1) / total[:, 0].astype(jnp.float32)


def _before(cumulated, ends):
    """What had been cumulated at the end of the group of ties before, and 0 before the first."""
    at_ends = jax.lax.cummax(jnp.where(ends, cumulated, 0), axis=1)
    return jnp.pad(at_ends[:, :-1], ((0, 0), (1, 0)))


def _times(labels, weights):
    """How often each entry counts, int32 `(N, K)`."""
    if weights is None:
        return (labels >= 0).astype(jnp.int32)
    return jnp.where(labels >= 0, _counted(weights)[:, None], 0)


def _counted(weights):
    if not jnp.issubdtype(weights.dtype, jnp.integer) and weights.dtype != bool:
        raise TypeError(f"weights count examples, and must be integers or bool; got {weights.dtype}")
    return weights.astype(jnp.int32)


def _ratio(part, whole):
    """part / whole in float32, and 0 where the whole is 0."""
    part, whole = jnp.asarray(part, jnp.float32), jnp.asarray(whole, jnp.float32)
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _mean_over_classes(per_class, spoilt):
    """Over the classes that have a positive, and their number; NaN where an entry `(N, K)` is spoilt."""
    counted = ~jnp.isnan(per_class)
    count = jnp.sum(counted, dtype=jnp.int32)
    mean = jnp.sum(jnp.where(counted, per_class, 0)) / count.astype(jnp.float32)
    return jnp.where(jnp.any(spoilt), jnp.nan, mean), count


def _mean_over_rows(per_row, labels, weights, scores=None):
    """Over the rows of which anything is known; NaN where one of their scores is."""
    counted = jnp.any(labels >= 0, axis=1)
    times = counted.astype(jnp.int32) if weights is None else jnp.where(counted, _counted(weights), 0)
    mean = _ratio(jnp.sum(jnp.where(times > 0, per_row, 0) * times.astype(jnp.float32)), jnp.sum(times))
    return mean if scores is None else jnp.where(jnp.any(_spoilt(scores, labels, weights)), jnp.nan, mean)
