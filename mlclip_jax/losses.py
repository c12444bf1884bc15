"""Losses of (logits, labels), each with the constants and the reduction of the work that it comes from.

`logits` are `(..., K)`, float32 or bfloat16; arithmetic is float32, and the gradient has their dtype.
`labels` have the same shape: 1 present, 0 absent, negative unknown, which leaves an entry out of everything.
Soft labels in [0, 1] are allowed where a loss does not say otherwise.

`loss(logits, labels, **constants)` is a float32 scalar. `loss.sum_and_count(logits, labels, **constants)` is
the pair of float32 scalars that it divides, as sum / max(count, 1): a training step adds both up over all
devices first. `reduction` chooses the count:

- "mean": the number of known entries.
- "samples": the number of samples with a known entry. Losses of whole samples have no "mean" beside it.
- "sum": nothing is divided, and the count is 0.

Values and gradients are finite for all logits within ±10,000, for samples without a positive, without a
negative, or without a known label.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Num
from optax.losses import sigmoid_binary_cross_entropy

from mlclip_jax.ranges import BELOW_1, FRACTION, NOT_NEGATIVE, POSITIVE

Logits = Float[Array | np.ndarray, "..."]
Labels = Num[Array | np.ndarray, "..."]
SumAndCount = tuple[Float32[Array, ""], Float32[Array, ""]]


@runtime_checkable
class Loss(Protocol):
    """A loss as a scalar, and as what that divides."""

    __name__: str
    sum_and_count: Callable[..., SumAndCount]

    def __call__(self, logits: Logits, labels: Labels, **constants: Any) -> Float32[Array, ""]: ...


def _loss(sum_and_count: Callable[..., SumAndCount]) -> Loss:
    """The scalar form of a loss written as its sum and count, which stays reachable as `.sum_and_count`."""

    @functools.wraps(sum_and_count)
    def loss(logits, labels, **constants):
        total, count = sum_and_count(logits, labels, **constants)
        return total / jnp.maximum(count, 1)

    whole: Any = loss
    whole.sum_and_count = sum_and_count
    return whole


@_loss
def binary_cross_entropy(logits: Logits, labels: Labels, *, reduction: str = "mean") -> SumAndCount:
    """-y log p - (1 - y) log(1 - p), where p = sigmoid(logit) (TaI-Adapter, equation 3)."""
    logits, labels, known = _known(logits, labels)
    return _elementwise(sigmoid_binary_cross_entropy(logits, labels), known, reduction)


@_loss
def mean_squared_error(logits: Logits, labels: Labels, *, reduction: str = "mean") -> SumAndCount:
    """(p - y)², where p = sigmoid(logit) (MMM-CLIP, Kaggle/fc-adapter.py)."""
    logits, labels, known = _known(logits, labels)
    return _elementwise(jnp.square(_difference(logits, labels)), known, reduction)


@_loss
def smoothed_binary_cross_entropy(
    logits: Logits, labels: Labels, *, smoothing: float = 0.0, reduction: str = "mean"
) -> SumAndCount:
    """Binary cross entropy with y (1 - smoothing) + smoothing / 2 for y (MultiCLIP, utils/losses.py)."""
    logits, labels, known = _known(logits, labels)
    labels = labels * (1 - smoothing) + smoothing / 2
    return _elementwise(sigmoid_binary_cross_entropy(logits, labels), known, reduction)


@_loss
def focal(
    logits: Logits, labels: Labels, *, gamma: float = 2.0, alpha: float = 0.25, reduction: str = "mean"
) -> SumAndCount:
    """α_t |y - p|^γ times binary cross entropy, where α_t = α y + (1 - α)(1 - y).

    With hard labels it is the focal loss of Lin et al. 2017, equation 5, and its constants; with soft ones it
    is that of TaI-DPT (trainers/utils.py). The mean is TaI-DPT's and MultiCLIP's.

    Args:
      gamma: focusing exponent: down-weights easy entries; 0 for none.
      alpha: weight of positives against negatives; a negative number switches it off.
    """
    logits, labels, known = _known(logits, labels)
    losses = _power(jnp.abs(_difference(logits, labels)), gamma) * sigmoid_binary_cross_entropy(
        logits, labels
    )
    if alpha >= 0:
        losses *= alpha * labels + (1 - alpha) * (1 - labels)
    return _elementwise(losses, known, reduction)


@_loss
def additive_margin(
    logits: Logits, labels: Labels, *, scale: float = 30.0, margin: float = 0.5, reduction: str = "mean"
) -> SumAndCount:
    """Binary cross entropy of scale (logit - margin y), MultiCLIP's "AAM" (utils/losses.py).

    The source applies it to unbounded logits; its constants come from losses of cosines (CosFace).
    """
    logits, labels, known = _known(logits, labels)
    return _elementwise(
        sigmoid_binary_cross_entropy(scale * (logits - margin * labels), labels), known, reduction
    )


@_loss
def arc_face(
    logits: Logits, labels: Labels, *, scale: float = 64.0, margin: float = 0.5, reduction: str = "mean"
) -> SumAndCount:
    """Binary cross entropy of scale cos(θ + margin) for positives and scale cos θ for negatives.

    Logits are the cosines, clipped into [-1, 1]; labels are hard: anything between 0 and 1 is left out. The
    margin and the constants are those of Deng et al. 2019 (ArcFace), equation 3, there within a softmax over
    classes. Where θ + margin > π, cos θ - margin sin(margin) takes over, which keeps falling as θ grows
    (deepinsight/insightface, recognition/arcface_torch/losses.py).

    Args:
      scale: factor of the cosines.
      margin: angle in radians that is added for positives.
    """
    logits, positive, negative = _hard(logits, labels)
    cosines = jnp.clip(logits, -1, 1)
    squared_sines = (1 - cosines) * (1 + cosines)
    # The slope of the root at 0 is infinite.
    sines = jnp.where(squared_sines > 0, jnp.sqrt(jnp.where(squared_sines > 0, squared_sines, 1)), 0)
    moved = cosines * math.cos(margin) - sines * math.sin(margin)
    moved = jnp.where(cosines > math.cos(math.pi - margin), moved, cosines - margin * math.sin(margin))
    cosines = jnp.where(positive, moved, cosines)
    losses = sigmoid_binary_cross_entropy(scale * cosines, positive.astype(jnp.float32))
    return _elementwise(losses, positive | negative, reduction)


@_loss
def zlpr(logits: Logits, labels: Labels, *, reduction: str = "samples") -> SumAndCount:
    """Per sample log(1 + Σ (1 - y) e^s) + log(1 + Σ y e^-s) over its logits s (Su et al. 2022, ZLPR).

    It ranks positives above 0, and 0 above negatives. Soft labels and the mean over samples are those of
    bojone/bert4keras (backend.py). `reduction` is "samples" or "sum".
    """
    logits, labels, known = _known(logits, labels)
    return _samplewise(_rank_around_zero(logits, labels, known, axis=-1), known, reduction)


@_loss
def zlpr_batch(logits: Logits, labels: Labels, *, reduction: str = "sum") -> SumAndCount:
    """`zlpr` with both sums taken over the whole batch at once (MultiCLIP, utils/losses.py).

    There is nothing to divide, so "sum" is the only `reduction`; the value depends on the batch as a whole.
    """
    _check_reduction(reduction, ["sum"])
    logits, labels, known = _known(logits, labels)
    return _rank_around_zero(logits, labels, known, axis=None), jnp.float32(0)


@_loss
def asymmetric(
    logits: Logits,
    labels: Labels,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    focus_gradient: bool = False,
    reduction: str = "sum",
) -> SumAndCount:
    """Asymmetric loss: -y (1 - p)^γ+ log p - (1 - y) q^γ- log(1 - q), where q = max(p - clip, 0).

    Ridnik et al. 2021 (ASL); all defaults are those of Alibaba-MIIL/ASL, class AsymmetricLoss. So is the
    arithmetic of soft labels, for which both powers become (y (1 - p) + (1 - y) q)^(y γ+ + (1 - y) γ-).

    Args:
      gamma_negative, gamma_positive: how much less an entry counts that is already right.
      clip: probability by which negatives are shifted; those below it count nothing.
      eps: smallest argument of the logarithms, beyond which an entry has no gradient.
      focus_gradient: whether the gradient passes through the weight, as in that repository's
        AsymmetricLossOptimized.
    """
    logits, labels, known = _known(logits, labels)
    log_eps, log_clip = (math.log(x) if x > 0 else -math.inf for x in (eps, clip))
    log_absent = jnp.minimum(jnp.logaddexp(jax.nn.log_sigmoid(-logits), log_clip), 0)
    likelihood = labels * jnp.maximum(jax.nn.log_sigmoid(logits), log_eps)
    likelihood += (1 - labels) * jnp.maximum(log_absent, log_eps)
    shifted = jnp.maximum(jax.nn.sigmoid(logits) - clip, 0)
    errors = labels * jax.nn.sigmoid(-logits) + (1 - labels) * shifted
    weights = _power(errors, gamma_positive * labels + gamma_negative * (1 - labels))
    if not focus_gradient:
        weights = jax.lax.stop_gradient(weights)
    return _elementwise(-weights * likelihood, known, reduction)


@_loss
def two_way(
    logits: Logits,
    labels: Labels,
    *,
    temperature_positive: float = 4.0,
    temperature_negative: float = 1.0,
    reduction: str = "mean",
) -> SumAndCount:
    """softplus(Tn log Σ_negatives e^(s / Tn) + Tp log Σ_positives e^(-s / Tp)), by class and by sample.

    Kobayashi 2023, with the constants of tk1980/TwoWayMultiLabelLoss. Logits are `(B, K)`; labels are hard:
    anything between 0 and 1 is left out. A class or sample without a positive is left out; one without a
    negative contributes 0. The value depends on the batch as a whole.

    Args:
      temperature_positive, temperature_negative: the lower, the more the hardest entry alone counts.
      reduction: "mean", the source's, is the mean over classes plus the mean over samples; "sum" is the sum
        of both. The count is 0 either way.
    """
    _check_reduction(reduction, ["mean", "sum"])
    logits, positive, negative = _hard(logits, labels)

    def one_way(axis):
        negatives = _log_sum_exp(logits / temperature_negative, negative.astype(jnp.float32), axis)
        positives = _log_sum_exp(-logits / temperature_positive, positive.astype(jnp.float32), axis)
        # Without positives or negatives this is softplus(-inf) = 0.
        losses = jax.nn.softplus(temperature_negative * negatives + temperature_positive * positives)
        number = jnp.sum(jnp.any(positive, axis), dtype=jnp.float32)
        return jnp.sum(losses) / (jnp.maximum(number, 1) if reduction == "mean" else 1)

    return one_way(0) + one_way(1), jnp.float32(0)


@_loss
def hill(
    logits: Logits,
    labels: Labels,
    *,
    lamb: float = 1.5,
    margin: float = 1.0,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> SumAndCount:
    """-y (1 - p_m)^γ log p_m + (1 - y)(λ - p) p², where p = sigmoid(logit), p_m = sigmoid(logit - margin).

    Zhang et al. 2021 (Hill); all defaults are those of xinyu1205/robust-loss-mlml. So is the arithmetic of
    soft labels, for which the power becomes (y (1 - p_m) + 1 - y)^γ and multiplies both terms.

    Args:
      lamb: λ; at 1.5 the loss of a negative is flat at p = 1, so a likely missed positive pulls little.
      margin: amount by which positives must exceed 0 further.
      gamma: how much less a positive counts that is already right.
    """
    logits, labels, known = _known(logits, labels)
    p = jax.nn.sigmoid(logits)
    losses = labels * jax.nn.softplus(margin - logits) + (1 - labels) * (lamb - p) * jnp.square(p)
    weights = _power(labels * jax.nn.sigmoid(margin - logits) + (1 - labels), gamma)
    return _elementwise(weights * losses, known, reduction)


@_loss
def pairwise_ranking(
    logits: Logits, labels: Labels, *, scale: float = 1.0, margin: float = 1.0, reduction: str = "samples"
) -> SumAndCount:
    """Per sample Σ max(0, margin - s_p + s_n) over its positives p and negatives n, where s = scale logit.

    TaI-DPT (trainers/utils.py, constants of its configuration), computed in O(K log K). Labels are hard:
    anything between 0 and 1 is left out. The mean over samples is the source's; `reduction` is "samples" or
    "sum".
    """
    logits, positive, negative = _hard(logits, labels)
    known = positive | negative
    # A pair contributes the difference of its keys if the negative's key is the larger.
    keys = scale * logits - jnp.where(positive, margin, 0)
    # Every pair's keys enter with opposite signs, so a common shift changes nothing but the rounding.
    number = jnp.sum(known, axis=-1, keepdims=True, dtype=jnp.float32)
    centre = jnp.sum(jnp.where(known, keys, 0), axis=-1, keepdims=True) / jnp.maximum(number, 1)
    keys -= jax.lax.stop_gradient(centre)

    order = jnp.argsort(jax.lax.stop_gradient(keys), axis=-1, descending=True)
    keys, positive, negative = (jnp.take_along_axis(x, order, axis=-1) for x in (keys, positive, negative))
    negatives_above = jnp.cumsum(negative, axis=-1, dtype=jnp.int32)
    positives_up_to = jnp.cumsum(positive, axis=-1, dtype=jnp.int32)
    positives_below = positives_up_to[..., -1:] - positives_up_to
    times = jnp.where(negative, positives_below, jnp.where(positive, -negatives_above, 0))
    return _samplewise(jnp.sum(keys * times.astype(jnp.float32), axis=-1), known, reduction)


LOSSES = {
    loss.__name__: loss
    for loss in (
        binary_cross_entropy,
        mean_squared_error,
        smoothed_binary_cross_entropy,
        focal,
        additive_margin,
        arc_face,
        zlpr,
        zlpr_batch,
        asymmetric,
        two_way,
        hill,
        pairwise_ranking,
    )
}

# No sums over samples: a data-parallel step must compute these on the batch gathered from all devices.
COUPLED = ("zlpr_batch", "two_way")


# What these train is no sigmoid of the logits: they scale them first, or rank them alone.
UNCALIBRATED = ("additive_margin", "arc_face", "zlpr", "zlpr_batch", "two_way", "pairwise_ranking")

# What constants may be, by their names: a test, and what is wanted, in words.
RANGES = {
    **dict.fromkeys(("gamma", "gamma_negative", "gamma_positive", "margin", "lamb"), NOT_NEGATIVE),
    **dict.fromkeys(("scale", "temperature_positive", "temperature_negative"), POSITIVE),
    **dict.fromkeys(("clip", "eps"), BELOW_1),
    "smoothing": FRACTION,
    "alpha": (lambda x: -math.inf < x <= 1, "at most 1, and negative for none"),
    "focus_gradient": (lambda x: isinstance(x, bool), "True or False"),
}


def constants(name: str) -> dict[str, float | str | bool]:
    """The keyword arguments of the loss `name` and their defaults."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _known(logits, labels):
    """Float32 logits and labels, both 0 where the label is unknown, and the mask of the known ones."""
    logits, labels = _float32(logits, labels)
    known = labels >= 0
    return jnp.where(known, logits, 0), jnp.where(known, labels, 0), known


def _hard(logits, labels):
    """Float32 logits, 0 where the label is neither 1 nor 0, and the masks of ones and zeros."""
    logits, labels = _float32(logits, labels)
    positive, negative = labels == 1, labels == 0
    return jnp.where(positive | negative, logits, 0), positive, negative


def _float32(logits, labels):
    if logits.shape != labels.shape:  # one would be repeated, and the count be wrong
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must have the same shape")
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.float32)


def _difference(logits, labels):
    """sigmoid(logits) - labels, without cancellation where the label is 0 or 1."""
    return (1 - labels) * jax.nn.sigmoid(logits) - labels * jax.nn.sigmoid(-logits)


def _power(bases, exponents):
    """`bases ** exponents` for both non-negative, 0 ** 0 being 1, with gradient 0 where the base is 0."""
    # Not > 0: a base too small to be a normal number may become 0 on its way through the power.
    positive = bases >= jnp.finfo(jnp.float32).tiny
    at_zero = jnp.equal(exponents, 0).astype(jnp.float32)
    return jnp.where(positive, jnp.where(positive, bases, 1) ** exponents, at_zero)


def _rank_around_zero(logits, labels, known, axis):
    negatives = _log_sum_exp(logits, jnp.where(known, 1 - labels, 0), axis)
    positives = _log_sum_exp(-logits, labels, axis)
    return jax.nn.softplus(negatives) + jax.nn.softplus(positives)


def _log_sum_exp(exponents, weights, axis):
    """log Σ weights e^exponents; -inf with gradient 0 where no weight is positive."""
    return jax.nn.logsumexp(exponents, axis, b=weights, where=weights > 0)


def _elementwise(losses, known, reduction):
    """Sum and count of losses `(..., K)` of single entries."""
    _check_reduction(reduction, ["mean", "samples", "sum"])
    counted = known if reduction == "mean" else jnp.any(known, axis=-1)
    return jnp.sum(jnp.where(known, losses, 0)), _count(counted, reduction)


def _samplewise(losses, known, reduction):
    """Sum and count of losses `(...)` of whole samples, which are 0 where no label is known."""
    _check_reduction(reduction, ["samples", "sum"])
    return jnp.sum(losses), _count(jnp.any(known, axis=-1), reduction)


def _count(counted, reduction):
    return jnp.float32(0) if reduction == "sum" else jnp.sum(counted, dtype=jnp.float32)


def _check_reduction(reduction, allowed):
    if reduction not in allowed:
        raise ValueError(f"reduction must be one of {', '.join(allowed)} for this loss, not {reduction!r}")
