"""Scoring rules that need no training."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cosine_scores(
    image_embeddings: Float[Array | np.ndarray, "N D"], class_embeddings: Float[Array | np.ndarray, "K D"]
) -> Float[Array, "N K"]:
    """Cosine of every image with every class; 0 for a zero vector."""
    return jnp.matmul(l2_normalize(image_embeddings), l2_normalize(class_embeddings).T, precision="highest")


def ridge_scores(
    image_embeddings: Float[Array | np.ndarray, "N D"],
    class_embeddings: Float[Array | np.ndarray, "K D"],
    penalty: float = 3.0,
) -> Float[Array, "N K"]:
    """How much of each class an image is made of: the weights of a ridge regression on class embeddings.

    An image x and the class embeddings T are L2-normalised; its scores a minimise
    |x - T^T a|^2 + penalty |a|^2. Where cosine counts what classes share for each of them, this explains it
    once. An image's scores are comparable with those of another after `standardise`.

    Args:
      penalty: at least 0; as it grows, the order within an image becomes that of cosine.
    """
    images, classes = map(l2_normalize, (image_embeddings, class_embeddings))
    with jax.default_matmul_precision("highest"):
        covariance = classes.T @ classes + penalty * jnp.eye(classes.shape[1], dtype=classes.dtype)
        return jax.scipy.linalg.solve(covariance, images.T, assume_a="pos").T @ classes.T


def modality_gap(
    image_embeddings: Float[Array | np.ndarray, "N D"], text_embeddings: Float[Array | np.ndarray, "M D"]
) -> Float[Array, ""]:
    """Distance between the mean unit vectors of images and texts (Liang et al. 2022)."""
    means = [jnp.mean(l2_normalize(vectors), axis=0) for vectors in (image_embeddings, text_embeddings)]
    return jnp.linalg.norm(means[0] - means[1])


def standardise(scores: Float[Array | np.ndarray, "N K"]) -> Float[Array, "N K"]:
    """Each image's scores `(N, K)` less their mean, over their standard deviation.

    It makes scores of different images comparable, which is what a ranking of images by one class needs
    (SPARC, CVPR 2025, reads 5.8 to 10.2 mAP from this alone). The standard deviation is over K; an image
    whose scores are all equal gets zeros.
    """
    centred = scores - jnp.mean(scores, axis=1, keepdims=True)
    deviation = jnp.std(scores, axis=1, keepdims=True)
    return centred / jnp.where(deviation > 0, deviation, 1)


def l2_normalize(vectors: Float[Array | np.ndarray, "... D"]) -> Float[Array, "... D"]:
    """Vectors `(..., D)` over their lengths; a zero vector stays."""
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(length > 0, length, 1)
