"""Scoring rules that need no training."""

import jax.numpy as jnp


def cosine_scores(image_embeddings, class_embeddings):
    """Cosine of every image with every class text: `(N, D)` and `(K, D)` to `(N, K)`; 0 for a zero vector."""
    return jnp.matmul(l2_normalize(image_embeddings), l2_normalize(class_embeddings).T, precision="highest")


def modality_gap(image_embeddings, text_embeddings):
    """Distance between the mean unit vectors of images `(N, D)` and texts `(M, D)` (Liang et al. 2022)."""
    means = [jnp.mean(l2_normalize(vectors), axis=0) for vectors in (image_embeddings, text_embeddings)]
    return jnp.linalg.norm(means[0] - means[1])


def standardise(scores):
    """Each image's scores `(N, K)` less their mean, over their standard deviation.

    It makes scores of different images comparable, which is what a ranking of images by one class needs
    (SPARC, CVPR 2025, reads 5.8 to 10.2 mAP from this alone). The standard deviation is over K; an image
    whose scores are all equal gets zeros.
    """
    centred = scores - jnp.mean(scores, axis=1, keepdims=True)
    deviation = jnp.std(scores, axis=1, keepdims=True)
    return centred / jnp.where(deviation > 0, deviation, 1)


def l2_normalize(vectors):
    """Vectors `(..., D)` over their lengths; a zero vector stays."""
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(length > 0, length, 1)
