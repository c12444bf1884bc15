"""MLD: cross-attention from the class embeddings to an image's tokens, and a logit for each class."""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from mlclip_jax.adapters.layers import (
    DTYPES,
    FEATURES,
    Batch,
    DecoderBlock,
    Keys,
    Logits,
    fold_in,
    image_tokens,
    standardised_cosines,
)
from mlclip_jax.nnx_boundary import Frozen
from mlclip_jax.ranges import AT_LEAST_1, BELOW_1, one_of
from mlclip_jax.zero_shot import l2_normalize

READOUTS = ("projection", "mean")


class MLDAdapter(nnx.Module):
    """A decoder without self-attention whose queries are the class embeddings.

    Source: the MLD adapter of MMM-CLIP. No parameter belongs to a class, so other class embeddings may take
    the place of those that were trained with: zero-shot transfer to other labels.

    As published (`features="pooled", readout="mean"`) the one key is the image's embedding, and the logit is
    the mean over the channels of a layer norm's result. With one key, attention gives every class the
    same; and a mean after a layer norm is 0 at the start, with next to no gradient but that of the last norm.
    The paper has one block and a dropout of 0.4, its code three blocks (of which the second and third attend
    to the result of the one before) and no dropout.

    In the default the keys are the image's local features. The logit is the cosine of the image's embedding
    with the class text, standardised over the labels of training, times one learnt weight that begins at 1;
    plus what a projection, which all classes share and which begins at 0, reads off the decoder. So it begins
    as zero-shot CLIP with standardised scores.

    Args:
      class_embeddings: of the labels, `(K, D)`; scaled to length 1, or √D in the default.
      features: what the queries attend to, one of `layers.FEATURES`.
      readout: of the logits, one of `READOUTS`.
      blocks: how many, at least 1.
      num_heads: of the attention; divides D.
      hidden: width of the perceptrons.
      dropout: probability of zeroing a unit within them during training, in [0, 1).
      dtype: of the products, `"float32"` or `"bfloat16"`.
      rngs: where the initial weights are drawn from.
    """

    TITLE = "MLD"
    RANGES: ClassVar = {
        "features": one_of(FEATURES),
        "readout": one_of(READOUTS),
        "blocks": AT_LEAST_1,
        "num_heads": AT_LEAST_1,
        "hidden": AT_LEAST_1,
        "dropout": BELOW_1,
        "dtype": one_of(DTYPES),
    }

    open_vocabulary = True

    @staticmethod
    def reads(settings: Mapping) -> tuple[str, ...]:
        """See `methods`. The cosine of the default is that of the embedding."""
        return ("image", "image_local") if settings["features"] == "local" else ("image",)

    def __init__(
        self,
        class_embeddings: Float[Array | np.ndarray, "K D"],
        *,
        features: str = "local",
        readout: str = "projection",
        blocks: int = 1,
        num_heads: int = 4,
        hidden: int = 2048,
        dropout: float = 0.4,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        width, products = class_embeddings.shape[1], jnp.dtype(dtype)
        self.class_embeddings = Frozen(jnp.asarray(class_embeddings))
        self.reference_embeddings = Frozen(jnp.asarray(class_embeddings))
        self.blocks = nnx.List(
            [
                DecoderBlock(width, num_heads, hidden, dropout=dropout, dtype=products, rngs=rngs)
                for _ in range(blocks)
            ]
        )
        if readout == "projection":
            self.projection = Logits(width, 1, dtype=products, rngs=rngs)
            self.projection.kernel[...] = jnp.zeros((width, 1))
            self.cosine_weight = nnx.Param(jnp.ones(()))
        self.features, self.readout = features, readout
        self.scale = 1.0 if readout == "mean" else width**0.5

    def label_axes(self) -> dict[str, int]:
        """See `methods`."""
        return {"class_embeddings": 0, "reference_embeddings": 0}

    def __call__(self, batch: Batch, keys: Keys = None) -> Float32[Array, "B K"]:
        """Logits, of `image` (b, D) and perhaps `image_local` (b, T, D); see `methods`."""
        tokens = self.scale * l2_normalize(image_tokens(self.features, batch))
        texts = self.scale * l2_normalize(self.class_embeddings[...])
        texts = jnp.broadcast_to(texts, (len(tokens), *texts.shape))
        for place, block in enumerate(self.blocks):
            tokens = block(texts, tokens, fold_in(keys, place))
        if self.readout == "mean":
            return tokens.mean(axis=-1)
        cosines = standardised_cosines(
            batch["image"], self.class_embeddings[...], self.reference_embeddings[...]
        )
        return self.projection(tokens)[..., 0] + self.cosine_weight[...] * cosines
