"""FC: one fully connected layer on image embeddings, with what the class embeddings say of them."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from mlclip_jax.adapters.layers import DTYPES, Batch, Keys, Logits, standardised_cosines
from mlclip_jax.nnx_boundary import Frozen
from mlclip_jax.ranges import one_of

TEXTS = ("cosine", "first", "none")


class FCAdapter(nnx.Module):
    """A linear layer from an embedding to a logit for each label.

    Source: the FC adapter of MMM-CLIP, which "fuses text information":

    - `text="cosine"`: each label's logit has a second summand, the cosine of the image with the label's text,
      standardised over the labels, times a weight of the label's own that begins at 1.
    - `text="first"`: as published. The layer reads the embedding beside the text of the *first* class, which
      is the same for every image: a bias, and no information.
    - `text="none"`: the image alone.

    Args:
      class_embeddings: of the labels, `(K, D)`.
      text: one of `TEXTS`.
      dtype: of the products, `"float32"` or `"bfloat16"`.
      rngs: where the initial weights are drawn from.
    """

    TITLE = "FC"
    RANGES: ClassVar = {"text": one_of(TEXTS), "dtype": one_of(DTYPES)}
    reads = ("image",)
    open_vocabulary = False

    def __init__(
        self,
        class_embeddings: Float[Array | np.ndarray, "K D"],
        *,
        text: str = "cosine",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        num_labels, width = class_embeddings.shape
        self.text = text
        width *= 2 if text == "first" else 1
        self.linear = Logits(width, num_labels, dtype=jnp.dtype(dtype), rngs=rngs)
        if text != "none":
            self.class_embeddings = Frozen(
                jnp.asarray(class_embeddings[:1] if text == "first" else class_embeddings)
            )
        if text == "cosine":
            self.cosine_weight = nnx.Param(jnp.ones(num_labels))

    def label_axes(self) -> dict[str, int]:
        """See `methods`."""
        own = {"linear.kernel": 1, "linear.bias": 0}
        return own | {"class_embeddings": 0, "cosine_weight": 0} if self.text == "cosine" else own

    def __call__(self, batch: Batch, keys: Keys = None) -> Float32[Array, "B K"]:
        """Logits, of `image` (b, D); see `methods`."""
        del keys
        embeddings = batch["image"]
        if self.text == "first":
            first = jnp.broadcast_to(self.class_embeddings[...], embeddings.shape)
            embeddings = jnp.concatenate([embeddings, first], axis=1)
        logits = self.linear(embeddings)
        if self.text == "cosine":
            cosines = standardised_cosines(embeddings, self.class_embeddings[...], self.class_embeddings[...])
            logits += self.cosine_weight[...][None] * cosines
        return logits
