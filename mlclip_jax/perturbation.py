"""Random perturbation of embeddings within a hypersphere (TaI-Adapter, arXiv 2312.04160, section 3.4).

A text embedding t becomes t + noise during training, so that an adapter that only ever sees texts also
learns the region around them, where the images of the same labels lie.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped
from ml_collections import ConfigDict

from mlclip_jax.ranges import NOT_NEGATIVE, one_of

ROWS = ("all", "texts", "images")
Scalar = float | Float[Array | np.ndarray | np.generic, ""]
Batch = Mapping[str, Shaped[Array | np.ndarray, "B ..."]]
# How long the noise is, as a fraction of the radius, given u uniform in [0, 1) and the dimension d.
LENGTHS = {
    "surface": lambda u, _: jnp.ones_like(u),
    "interior": lambda u, d: u ** (1 / d),
    "interior_by_radius": lambda u, _: u,
}


def hypersphere_noise(
    key: Key[Array, ""], shape: tuple[int, ...], radius: Scalar, sampling: str = "surface"
) -> Float[Array, "..."]:
    """Draws noise vectors from a hypersphere around the origin.

    Directions are uniform (a normalised Gaussian). Lengths follow `sampling`:

    - `"surface"`: every vector has length `radius`.
    - `"interior"`: uniform by volume. In d dimensions a length is `radius * u ** (1 / d)`, which for
      CLIP's 512 is within 1% of the radius 99% of the time: all but the surface.
    - `"interior_by_radius"`: lengths uniform in [0, `radius`], hence dense near the centre. The paper
      names that density as the reason why interior sampling scored below surface sampling, so this is
      the law its figure 6a must have used.

    Args:
      key: a typed PRNG key.
      shape: `(..., d)`, one vector per leading index.
      radius: a scalar >= 0, in the units of the embeddings (CLIP's have norms near 10).
      sampling: a key of `LENGTHS`.

    Returns:
      float32 noise of that shape.
    """
    direction_key, length_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, shape)
    direction /= jnp.linalg.norm(direction, axis=-1, keepdims=True)
    uniform = jax.random.uniform(length_key, (*shape[:-1], 1))
    return jnp.asarray(radius) * LENGTHS[sampling](uniform, shape[-1]) * direction


def make_perturbation(settings: Mapping | ConfigDict) -> Callable[[Key[Array, " B"], Batch, Mapping], Batch]:
    """The perturbation of a recipe: `perturb(keys, batch, hyper) -> batch`.

    It moves what a method reads as `image` by up to `hyper["radius"]`, each row by a key of its own, `keys`
    (b,). Which rows are texts, `is_text` (b,) in the batch says. Local features stay.

    Args:
      settings: its `perturbation`: `sampling`, a key of `LENGTHS`, and which rows are moved, `rows`, one of
        `ROWS`.
    """

    def perturb_batch(keys, batch, hyper):
        if "image" not in batch:
            return batch

        def perturb_one(key, embedding):
            return perturb(key, embedding, hyper["radius"], settings["sampling"])

        moved = jax.vmap(perturb_one)(keys, batch["image"])
        if settings["rows"] != "all":
            is_moved = batch["is_text"] == (settings["rows"] == "texts")
            moved = jnp.where(is_moved[:, None], moved, batch["image"])
        return batch | {"image": moved}

    return perturb_batch


def ranges(reads: Sequence[str]) -> dict[str, tuple[Callable, str]]:
    """What the settings may be, see `ranges.py`, for a method that reads these features."""
    radius = NOT_NEGATIVE
    if "image_local" in reads:
        radius = (lambda r: r == 0, "0 with local features, which no noise is added to")
    return {"radius": radius, "sampling": one_of(LENGTHS), "rows": one_of(ROWS)}


def perturb(
    key: Key[Array, ""], embeddings: Float[Array, "... D"], radius: Scalar, sampling: str = "surface"
) -> Float[Array, "... D"]:
    """Adds `hypersphere_noise` to embeddings `(..., d)`: equation 5, t' = t + noise."""
    noise = hypersphere_noise(key, embeddings.shape, radius, sampling)
    return embeddings + noise.astype(embeddings.dtype)
