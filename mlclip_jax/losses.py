"""Losses of (logits, labels): 1 present, 0 absent, -1 unknown; unknown entries take no part.

Each loss has two forms: `*_sum` returns a sum and the count it is to be divided by, which a training step
adds up over all devices before it divides; the plain name divides at once.
"""

import jax
import jax.numpy as jnp

from mlclip_jax.parallel import AXIS
from mlclip_jax.zero_shot import unit


def binary_cross_entropy_sum(logits, labels):
    """Sum over known entries of -y log p - (1 - y) log(1 - p), where p = sigmoid(logit).

    Args:
      logits: float `(..., K)`.
      labels: `(..., K)`, integers in {1, 0, -1} or soft labels in [0, 1]; negative means unknown.

    Returns:
      The sum and the number of known entries, both float32 scalars.
    """
    known = labels >= 0
    logits = logits.astype(jnp.float32)
    # -y log p - (1-y) log(1-p) = softplus(x) - x y, which overflows for no finite x.
    losses = jax.nn.softplus(logits) - logits * labels.astype(jnp.float32)
    return jnp.sum(jnp.where(known, losses, 0)), jnp.sum(known, dtype=jnp.float32)


def binary_cross_entropy(logits, labels):
    """Mean of `binary_cross_entropy_sum` over known entries (TaI-Adapter, equation 3); 0 if none is."""
    total, count = binary_cross_entropy_sum(logits, labels)
    return total / jnp.maximum(count, 1)


def contrastive_sum(image_embeddings, text_embeddings, scale):
    """CLIP's symmetric loss: each image is to find its text among all texts, and each text its image.

    Runs on every device of the axis `"data"`; candidates are gathered from all of them (Radford et al. 2021,
    figure 3).

    Args:
      image_embeddings, text_embeddings: float32 `(B / devices, D)`, un-normalised; row i of one belongs to
        row i of the other.
      scale: factor of the cosines, the inverse temperature.

    Returns:
      The sum over this device's pairs of the mean of both cross entropies, and the number of pairs.
    """
    images, texts = unit(image_embeddings), unit(text_embeddings)
    own = jax.lax.axis_index(AXIS) * len(images) + jnp.arange(len(images))
    all_images, all_texts = jax.lax.all_gather((images, texts), AXIS, tiled=True)

    def cross_entropy(queries, candidates):
        logits = scale * jnp.matmul(queries, candidates.T, precision="highest")
        matching = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - matching

    losses = (cross_entropy(images, all_texts) + cross_entropy(texts, all_images)) / 2
    return jnp.sum(losses), jnp.array(len(losses), jnp.float32)
