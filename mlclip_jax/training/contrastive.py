"""CLIP's contrastive loss, over the batch of all devices."""

import jax
import jax.numpy as jnp

from mlclip_jax.distributed.sharding import AXIS
from mlclip_jax.zero_shot import l2_normalize


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
    images, texts = l2_normalize(image_embeddings), l2_normalize(text_embeddings)
    own = jax.lax.axis_index(AXIS) * len(images) + jnp.arange(len(images))
    all_images, all_texts = jax.lax.all_gather((images, texts), AXIS, tiled=True)

    def cross_entropy(queries, candidates):
        logits = scale * jnp.matmul(queries, candidates.T, precision="highest")
        matching = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - matching

    losses = (cross_entropy(images, all_texts) + cross_entropy(texts, all_images)) / 2
    return jnp.sum(losses), jnp.array(len(losses), jnp.float32)
