"""ML-Decoder: cross-attention from a few queries to an image's tokens; each serves a group of labels."""

import math
from collections.abc import Mapping
from typing import ClassVar

import jax
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
    dropout,
    fold_in,
    image_tokens,
    layer_norm,
    linear,
)
from mlclip_jax.nnx_boundary import Frozen
from mlclip_jax.ranges import AT_LEAST_1, BELOW_1, one_of

QUERIES = ("frozen", "learnt", "text")


class MLDecoder(nnx.Module):
    """One decoder block without self-attention, and a fully connected layer for each group of labels.

    Source: ML-Decoder (Ridnik et al., WACV 2023) and its code: with the same weights this gives the same
    logits. E queries serve K labels, ceil(K / E) each.

    Args:
      class_embeddings: of the labels, `(K, D)`; `queries="text"` alone reads more than K off it.
      features: what the queries attend to: `"local"` features, or the `"pooled"` embedding as one token.
      queries: `"frozen"` random vectors, as published; the same, `"learnt"`; or `"text"`, a projection of
        each label's text with one query and the same output layer for every label, as the paper has it for
        zero-shot learning: other class embeddings may then take the place of those that were trained with.
      groups: the number E of queries, if there are more labels than that.
      width: of queries and tokens.
      num_heads: of the attention; divides the width.
      hidden: width of the perceptron.
      dropout: probability of zeroing a unit during training, in [0, 1).
      dtype: of the products, `"float32"` or `"bfloat16"`.
      rngs: where the initial weights are drawn from.
    """

    TITLE = "ML-Decoder"
    RANGES: ClassVar = {
        "features": one_of(FEATURES),
        "queries": one_of(QUERIES),
        "groups": AT_LEAST_1,
        "width": AT_LEAST_1,
        "num_heads": AT_LEAST_1,
        "hidden": AT_LEAST_1,
        "dropout": BELOW_1,
        "dtype": one_of(DTYPES),
    }

    @staticmethod
    def reads(settings: Mapping) -> tuple[str, ...]:
        """See `methods`."""
        return ("image_local",) if settings["features"] == "local" else ("image",)

    @staticmethod
    def open_vocabulary(settings: Mapping) -> bool:
        """See `methods`."""
        return settings["queries"] == "text"

    def __init__(
        self,
        class_embeddings: Float[Array | np.ndarray, "K D"],
        *,
        features: str = "local",
        queries: str = "frozen",
        groups: int = 100,
        width: int = 768,
        num_heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        num_labels, image_width = class_embeddings.shape
        products = jnp.dtype(dtype)
        num_queries = num_labels if queries == "text" else min(num_labels, groups)
        if queries == "text":
            self.class_embeddings = Frozen(jnp.asarray(class_embeddings))
            self.text_projection = linear(image_width, width, products, rngs)
            self.projection = Logits(width, 1, dtype=products, rngs=rngs)
        else:
            kind = Frozen if queries == "frozen" else nnx.Param
            self.queries = kind(jax.random.normal(rngs.params(), (num_queries, width)))
            size = math.ceil(num_labels / num_queries)
            # The original's Xavier rule, as torch counts the dimensions of its three-dimensional kernel.
            deviation = math.sqrt(2 / (size * (width + num_queries)))
            self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), (num_queries, width, size)))
            self.bias = nnx.Param(jnp.zeros(num_labels))
        self.image_projection = linear(image_width, width, products, rngs)
        self.norm = layer_norm(width, rngs)
        self.block = DecoderBlock(
            width, num_heads, hidden, dropout=dropout, residual_dropout=dropout, dtype=products, rngs=rngs
        )
        self.features, self.query_kind, self.dropout = features, queries, dropout

    def label_axes(self) -> dict[str, int]:
        """See `methods`; queries and kernels go over groups of labels."""
        if self.query_kind == "text":
            return {"class_embeddings": 0}
        return {"queries": 0, "kernel": 0, "bias": 0}

    def __call__(self, batch: Batch, keys: Keys = None) -> Float32[Array, "B K"]:
        """Logits, of `image_local` (b, T, D) or `image` (b, D); see `methods`."""
        tokens = image_tokens(self.features, batch)
        b, t, _ = tokens.shape
        tokens = jax.nn.relu(self.image_projection(tokens.reshape(b * t, -1))).reshape(b, t, -1)
        if self.query_kind == "text":
            queries = jax.nn.relu(self.text_projection(self.class_embeddings[...])).astype(jnp.float32)
        else:
            queries = self.queries[...]
        queries = jnp.broadcast_to(queries, (b, *queries.shape))
        # Added to themselves: in the original, what is left of a self-attention.
        queries = self.norm(queries + dropout(queries, self.dropout, fold_in(keys, 0), 0))
        states = self.block(queries, tokens, fold_in(keys, 1))
        if self.query_kind == "text":
            return self.projection(states)[..., 0]
        dtype, num_labels = self.image_projection.dtype, len(self.bias[...])
        states, kernel = states.astype(dtype), self.kernel[...].astype(dtype)
        logits = jnp.einsum("bed,edf->bef", states, kernel, preferred_element_type=jnp.float32)
        return logits.reshape(b, -1)[:, :num_labels] + self.bias[...][None]
