"""Scores of parts of an image: patches, which see one object each, and crops."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Key

from mlclip_jax.nnx_boundary import Frozen
from mlclip_jax.ranges import FRACTION, NOT_NEGATIVE
from mlclip_jax.zero_shot.prompts import check_several
from mlclip_jax.zero_shot.rules import cosine_scores, l2_normalize, standardise

Classes = Float[Array | np.ndarray, "K D"]


class LocalZeroShot(nnx.Module):
    """`merged_scores` of an image and its local features, standardised over the labels.

    Args:
      class_embeddings: of the labels, `(K, D)`.
      sharpness, weight: see `merged_scores`.
      rngs: not used, as nothing is drawn.

    Raises:
      InputError: there is one label alone.
    """

    TITLE = "Zero-shot, with patches"
    USES = "names, and patches of the image"
    RANGES: ClassVar = {"sharpness": NOT_NEGATIVE, "weight": FRACTION}
    TRAINABLE = ()
    reads = ("image", "image_local")
    open_vocabulary = True

    def __init__(
        self, class_embeddings: Classes, *, sharpness: float = 100.0, weight: float = 0.5, rngs: nnx.Rngs
    ) -> None:
        del rngs
        check_several(self.TITLE, len(class_embeddings))
        self.sharpness, self.weight = sharpness, weight
        self.class_embeddings = Frozen(jnp.asarray(class_embeddings))

    def label_axes(self) -> dict[str, int]:
        """See `methods`."""
        return {"class_embeddings": 0}

    def __call__(
        self, batch: Mapping[str, Float[Array | np.ndarray, "B ..."]], keys: Key[Array, " B"] | None = None
    ) -> Float32[Array, "B K"]:
        """Scores, of `image` (b, D) and `image_local` (b, T, D); see `methods`."""
        del keys
        image, local = (jnp.asarray(batch[name], jnp.float32) for name in self.reads)
        classes = self.class_embeddings[...]
        merged = merged_scores(image, local, classes, sharpness=self.sharpness, weight=self.weight)
        return standardise(merged)


def local_scores(
    local_features: Float[Array | np.ndarray, "N T D"], class_embeddings: Classes, sharpness: float = 100.0
) -> Float[Array, "N K"]:
    """Cosines of an image's patches with each class, averaged with the weights of their softmax.

    Source: TaI-DPT's zero-shot baseline, `trainers/zsclip.py`, which multiplies cosines by 100 for it; its
    own method takes 40 or 50. Patches must lie in the space of texts, as those of CLIP's ResNets do.

    Args:
      sharpness: what cosines are multiplied by in the softmax; 0 is their mean, infinity their maximum.
    """
    patches, classes = l2_normalize(local_features), l2_normalize(class_embeddings)
    cosines = jnp.einsum("ntd,kd->ntk", patches, classes, precision="highest")
    return jnp.sum(jax.nn.softmax(sharpness * cosines, axis=1) * cosines, axis=1)


def merged_scores(
    image_embeddings: Float[Array | np.ndarray, "N D"],
    local_features: Float[Array | np.ndarray, "N T D"],
    class_embeddings: Classes,
    *,
    sharpness: float = 100.0,
    weight: float = 0.5,
) -> Float[Array, "N K"]:
    """Cosine of the whole image and `local_scores`, of which the latter weigh `weight`: TaI-DPT has 0.5."""
    whole = cosine_scores(image_embeddings, class_embeddings)
    return (1 - weight) * whole + weight * local_scores(local_features, class_embeddings, sharpness)


def crop_scores(
    crop_embeddings: Float[Array | np.ndarray, "N crops D"], class_embeddings: Classes
) -> Float[Array, "N K"]:
    """Cosine of each class with the crop of an image that resembles it most.

    It is the class-wise maximum of PuRF (2026, table 6), whose 50 crops give 1.8 mAP on COCO. The whole image
    should be among the crops.
    """
    crops, classes = l2_normalize(crop_embeddings), l2_normalize(class_embeddings)
    return jnp.max(jnp.einsum("ncd,kd->nck", crops, classes, precision="highest"), axis=1)
