"""Several templates for each class, made into one: of their embeddings, or of their scores.

Each takes one template after another, so that 80 of them need no more memory than two. Ranks are among the
classes of an image, not among images, so an image is scored by itself.
"""

import functools
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Array, Float, Float32

from mlclip_jax.errors import InputError
from mlclip_jax.options import nearest
from mlclip_jax.zero_shot.rules import cosine_scores

Vectors = Float[Array | np.ndarray, "K D"]  # of one template
Scores = Float[Array | np.ndarray, "N K"]


def mean_embeddings(per_template: Iterable[Vectors]) -> Float32[np.ndarray, "K D"]:
    """The mean direction of a class's embeddings over templates, as long as they are on average.

    Its direction is CLIP's: the mean of unit vectors. Its length keeps the meaning of a perturbation's
    radius, which is in units of the un-normalised embedding.
    """
    directions = lengths = number = 0
    for vectors in per_template:
        vectors = np.asarray(vectors, np.float64)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        directions = directions + vectors / np.where(length > 0, length, 1)
        lengths, number = lengths + length, number + 1
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions / np.where(length > 0, length, 1) * (lengths / number)).astype(np.float32)


def mean_scores(per_template: Iterable[Scores]) -> Float32[np.ndarray, "N K"]:
    """The mean of scores (N, K) over templates."""
    total, number = 0, 0
    for scores in per_template:
        total, number = total + np.asarray(scores), number + 1
    return np.asarray(total / number, np.float32)


def mean_ranks(per_template: Iterable[Scores]) -> Float32[np.ndarray, "N K"]:
    """The mean over templates of each class's rank in its image, 1 the lowest; ties share theirs."""
    from scipy.stats import rankdata  # only here, as it is slow to import

    return mean_scores(rankdata(scores, axis=1) for scores in per_template)


def highest_scores(per_template: Iterable[Scores]) -> Float32[np.ndarray, "N K"]:
    """The score of each class by the template that fits best."""
    return functools.reduce(np.maximum, map(np.asarray, per_template)).astype(np.float32)


AGGREGATIONS: dict[str, Callable[[Iterable[Scores]], Float32[np.ndarray, "N K"]]] = {
    "scores": mean_scores,
    "ranks": mean_ranks,
    "maximum": highest_scores,
}


def score_by_templates(
    image_embeddings: Float[Array | np.ndarray, "N D"],
    per_template: Iterable[Vectors],
    by: str = "embeddings",
    rule: Callable[[Float[Array | np.ndarray, "N D"], Vectors], Scores] = cosine_scores,
) -> Scores:
    """Scores of images where each class has an embedding by every template.

    Args:
      image_embeddings: (N, D).
      per_template: class embeddings (K, D), one array a template.
      by: what is aggregated, "embeddings" before they are scored, or one of `AGGREGATIONS` of their scores.
      rule: from embeddings of images and of classes to scores.

    Raises:
      InputError: there is no such aggregation.
    """
    if by == "embeddings":
        return rule(image_embeddings, mean_embeddings(per_template))
    if by not in AGGREGATIONS:
        known = ["embeddings", *AGGREGATIONS]
        raise InputError(f"no aggregation {by!r}{nearest(by, known)}; there are {', '.join(known)}")
    return AGGREGATIONS[by](rule(image_embeddings, vectors) for vectors in per_template)
