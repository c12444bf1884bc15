"""Random perturbation of embeddings within a hypersphere, and the shift before it (TaI-Adapter).

Source: arXiv 2312.04160, sections 3.4 to 3.6. A text embedding t becomes t + noise during training, so that
an adapter that only ever sees texts also learns the region around them, where the images of the same labels
lie (plain). Images that are trained on beside the texts move too, less far (mixed). With images at hand
whose labels are known in part, texts are moved towards the images of their labels first (shifted).
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int8, Key, Shaped
from ml_collections import ConfigDict

from mlclip_jax.ranges import NOT_NEGATIVE, one_of

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
    direction, uniform = _direction_and_uniform(key, shape)
    return jnp.asarray(radius) * LENGTHS[sampling](uniform, shape[-1]) * direction


def _direction_and_uniform(key, shape):
    direction_key, length_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, shape)
    direction /= jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return direction, jax.random.uniform(length_key, (*shape[:-1], 1))


def make_perturbation(settings: Mapping | ConfigDict) -> Callable[[Key[Array, " B"], Batch, Mapping], Batch]:
    """The perturbation of a recipe: `perturb(keys, batch, hyper) -> batch`.

    It moves what a method reads as `image`, each row by a key of its own, `keys` (b,): texts by up to
    `hyper["radius"]` (equation 5), images by up to `hyper["image_radius"]` (equation 6). Which rows are
    texts, `is_text` (b,) in the batch says. Local features stay.

    Args:
      settings: its `perturbation`: `sampling`, of texts, and `image_sampling`, keys of `LENGTHS`.
    """
    of_text, of_image = LENGTHS[settings["sampling"]], LENGTHS[settings["image_sampling"]]

    def perturb_batch(keys, batch, hyper):
        if "image" not in batch:
            return batch

        def perturb_one(key, embedding, is_text):
            direction, uniform = _direction_and_uniform(key, embedding.shape)
            dimension = len(embedding)
            text_length = hyper["radius"] * of_text(uniform, dimension)
            image_length = hyper["image_radius"] * of_image(uniform, dimension)
            noise = jnp.where(is_text, text_length, image_length) * direction
            return embedding + noise.astype(embedding.dtype)

        return batch | {"image": jax.vmap(perturb_one)(keys, batch["image"], batch["is_text"])}

    return perturb_batch


def ranges(reads: Sequence[str]) -> dict[str, tuple[Callable, str]]:
    """What the settings may be, see `ranges.py`, for a method that reads these features."""
    radius, shift = NOT_NEGATIVE, one_of(("", *EXPECTED))
    if "image_local" in reads:
        radius = (lambda r: r == 0, "0 with local features, which no noise is added to")
        shift = (lambda where: where == "", "empty with local features, which are not shifted")
    sampling = one_of(LENGTHS)
    return {
        "radius": radius,
        "sampling": sampling,
        "image_radius": radius,
        "image_sampling": sampling,
        "shift": shift,
    }


def perturb(
    key: Key[Array, ""], embeddings: Float[Array, "... D"], radius: Scalar, sampling: str = "surface"
) -> Float[Array, "... D"]:
    """Adds `hypersphere_noise` to embeddings `(..., d)`: equation 5, t' = t + noise."""
    noise = hypersphere_noise(key, embeddings.shape, radius, sampling)
    return embeddings + noise.astype(embeddings.dtype)


def shift_texts(
    texts: Float[np.ndarray, "N D"],
    text_labels: Int8[np.ndarray, "N K"],
    images: Float[np.ndarray, "M D"],
    image_labels: Int8[np.ndarray, "M K"],
    where: str = "regression",
) -> tuple[Float32[np.ndarray, "N D"], Bool[np.ndarray, " N"]]:
    """Moves texts towards the images of their labels: equations 8 to 10.

    The texts of one combination of labels are moved together, so that their mean comes to lie where images of
    these labels are expected. A text that stands alone in its combination is hence replaced by that point,
    which is why a combination should have two texts or more.

    A label that no image is known to have says nothing of that place: the others of the combination then
    decide alone, and a combination of only such labels stays where it is.

    Args:
      texts: embeddings, un-normalised.
      text_labels: 1 where a text has a label.
      images: embeddings, un-normalised.
      image_labels: in {1, 0, -1}.
      where: images of some labels are expected, a key of `EXPECTED`.

    Returns:
      The texts, and which of them were moved.
    """
    combinations, which = np.unique(text_labels == 1, axis=0, return_inverse=True)
    which = which.reshape(-1)
    text_centroids = np.zeros((len(combinations), texts.shape[1]))
    np.add.at(text_centroids, which, texts)
    text_centroids /= np.bincount(which)[:, None]
    seen = combinations & (image_labels == 1).any(axis=0)
    is_seen = seen.any(axis=1)
    offsets = np.zeros_like(text_centroids)
    known = (texts, text_labels), (images.astype(np.float64), image_labels)
    expected = EXPECTED[where](*known, seen[is_seen])
    offsets[is_seen] = expected - text_centroids[is_seen]
    return (texts + offsets[which]).astype(np.float32), is_seen[which]


def _mean_of_means(_, known_images, combinations):
    """Equation 7 and the mean of equation 9: the mean image known to have a label, averaged over labels."""
    images, image_labels = known_images
    known = (image_labels == 1).astype(np.float64)
    means = known.T @ images / np.maximum(known.sum(axis=0), 1)[:, None]
    return combinations @ means / combinations.sum(axis=1, keepdims=True)


def _regression(known_texts, known_images, combinations):
    """Ridge regression of images on all of their labels at once, an unknown one at its known frequency.

    The mean of equation 7 also holds what else these images show, so that the means of all labels lie close
    together: where images have several labels each, the noise then drowns what sets them apart.

    What a label adds is shrunk towards what it adds to texts, not towards nothing: few known labels then
    move the texts by the modality gap, and many to where the images are.
    """
    texts, text_labels = known_texts
    _, prior, _ = _effects(texts, text_labels, np.zeros((text_labels.shape[1], texts.shape[1])))
    mean, effects, frequency = _effects(*known_images, prior)
    return mean + (combinations - frequency) @ effects


def _effects(embeddings, labels, prior):
    """The mean embedding, what each label adds to it (K, D), shrunk towards `prior`, and the mean labels."""
    known = labels >= 0
    frequency = np.where(known, labels, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, labels, frequency) - frequency
    mean = embeddings.mean(axis=0)
    unexplained = embeddings - mean - centred @ prior
    penalty = RIDGE * np.eye(labels.shape[1])
    effects = prior + np.linalg.solve(centred.T @ centred + penalty, centred.T @ unexplained)
    return mean, effects, frequency


RIDGE = 10.0
EXPECTED = {"mean": _mean_of_means, "regression": _regression}
