"""Losses of (logits, labels): 1 present, 0 absent, -1 unknown; unknown entries take no part.

Each loss has two forms: `*_sum` returns a sum and the count it is to be divided by, which a training step
adds up over all devices before it divides; the plain name divides at once.
"""

import jax
import jax.numpy as jnp


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
