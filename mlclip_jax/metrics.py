"""Metrics of (scores, labels), jittable: labels are 1 present, 0 absent, -1 unknown (left out)."""

import jax
import jax.numpy as jnp

# Said beside every figure: "mAP" alone names at least four different numbers.
PROTOCOL = "mAP: average precision as in scikit-learn, averaged over classes"


def average_precision(scores, labels, weights=None):
    """Average precision of every class: the sum over thresholds of precision x increase in recall.

    A threshold is a distinct score: tied examples enter together, so their order cannot matter. This is
    scikit-learn's `average_precision_score`, not the interpolated VOC07 or VOC10 protocols.

    Args:
      scores: float `(N, K)`, larger means more present; no NaN.
      labels: int `(N, K)` in {1, 0, -1}.
      weights: non-negative `(N,)`, how often each example counts; 1 by default, 0 for padding.

    Returns:
      float32 `(K,)`; NaN for a class without a positive.
    """
    weights = jnp.ones(scores.shape[0]) if weights is None else weights.astype(jnp.float32)
    order, last = _ranking(scores)
    return _average_precision(order, last, labels, weights)


def mean_average_precision(scores, labels, weights=None):
    """Mean of `average_precision` over the classes that have a positive.

    Returns:
      The mean, float32, and the number of classes it was taken over, int32; NaN and 0 where there is none.
    """
    return _mean_over_classes(average_precision(scores, labels, weights))


def bootstrap_mean_average_precision(key, scores, labels, num_samples=1000):
    """mAP of `num_samples` resamples of the examples, drawn with replacement.

    The draws depend on `key`, N and `num_samples` alone. Two methods scored with the same key are compared
    on the same resamples, so the quantiles of their difference are a paired interval.

    Returns:
      float32 `(num_samples,)`.
    """
    num_examples = scores.shape[0]
    order, last = _ranking(scores)

    def resample(key):
        drawn = jax.random.randint(key, (num_examples,), 0, num_examples)
        weights = jnp.zeros(num_examples).at[drawn].add(1)
        return _mean_over_classes(_average_precision(order, last, labels, weights))[0]

    return jax.lax.map(resample, jax.random.split(key, num_samples))


def _ranking(scores):
    """Each class's examples from highest to lowest score, and the last rank of each one's group of ties."""
    order = jnp.argsort(scores, axis=0, descending=True)
    ranked = jnp.take_along_axis(scores, order, axis=0)
    num_examples = scores.shape[0]
    ranks = jnp.arange(num_examples)[:, None]
    ends_group = jnp.concatenate([ranked[1:] != ranked[:-1], jnp.ones_like(ranked[:1], bool)])
    return order, jax.lax.cummin(jnp.where(ends_group, ranks, num_examples), axis=0, reverse=True)


def _average_precision(order, last, labels, weights):
    ranked_labels = jnp.take_along_axis(labels, order, axis=0)
    ranked_weights = jnp.where(ranked_labels >= 0, weights[order], 0)
    positives = jnp.where(ranked_labels == 1, ranked_weights, 0)
    retrieved = jnp.cumsum(ranked_weights, axis=0)
    precision = jnp.cumsum(positives, axis=0) / jnp.where(retrieved > 0, retrieved, 1)
    precision = jnp.take_along_axis(precision, last, axis=0)
    return jnp.sum(positives * precision, axis=0) / jnp.sum(positives, axis=0)


def _mean_over_classes(per_class):
    counted = ~jnp.isnan(per_class)
    count = jnp.sum(counted, dtype=jnp.int32)
    return jnp.sum(jnp.where(counted, per_class, 0)) / count.astype(jnp.float32), count
