"""What adapters are made of: layers with float32 parameters that multiply in a precision of choice.

Shape letters: b batch, k queries, t tokens, d width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Key

from mlclip_jax.backbones import transformer
from mlclip_jax.errors import InputError
from mlclip_jax.zero_shot import cosine_scores

Values = Float[Array | np.ndarray, "B ..."]
Batch = Mapping[str, Values]  # features by name
Keys = Key[Array, " B"] | None  # one for each example, in training
DTYPES = ("float32", "bfloat16")
FEATURES = ("local", "pooled")  # of an image: what queries attend to


class DecoderBlock(nnx.Module):
    """Cross-attention from the queries to an image's tokens, then an MLP of two layers; no self-attention.

    Both steps add to the queries and normalise the sum (post-norm, Vaswani et al. 2017, without the
    self-attention): `q = norm1(q + attention(q, tokens)); q = norm2(q + fc2(relu(fc1(q))))`.

    Args:
      width: d, of queries and tokens.
      num_heads: divides d.
      hidden: width of the perceptron.
      dropout: probability of zeroing a unit within the perceptron, in [0, 1).
      residual_dropout: and in what attention and perceptron add.
      dtype: of the products; norms and sums are in float32.
      rngs: where the initial weights are drawn from.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        *,
        dropout: float,
        residual_dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if width % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide the width {width}")
        self.attention = transformer.Attention(
            width, num_heads, dtype=dtype, param_dtype=jnp.float32, rngs=rngs
        )
        self.norm1, self.norm2 = layer_norm(width, rngs), layer_norm(width, rngs)
        self.fc1, self.fc2 = linear(width, hidden, dtype, rngs), linear(hidden, width, dtype, rngs)
        self.dropout, self.residual_dropout = dropout, residual_dropout

    def __call__(
        self, queries: Float[Array, "B Q D"], tokens: Float[Array | np.ndarray, "B T D"], keys: Keys = None
    ) -> Float32[Array, "B Q D"]:
        """The queries after their attention to the tokens; with keys, dropped out."""
        b, k, d = queries.shape
        # As rows: on CPUs, XLA takes twice as long for the gradient of a product with three dimensions.
        attended = self.attention(queries.reshape(b * k, d), k, context=tokens).reshape(b, k, d)
        queries = self.norm1(queries + dropout(attended, self.residual_dropout, keys, 0).astype(jnp.float32))
        hidden = jax.nn.relu(self.fc1(queries.reshape(b * k, d))).reshape(b, k, -1)
        hidden = dropout(hidden, self.dropout, keys, 1)
        change = self.fc2(hidden.reshape(b * k, -1)).reshape(b, k, d)
        return self.norm2(queries + dropout(change, self.residual_dropout, keys, 2).astype(jnp.float32))


class Logits(nnx.Linear):
    """The last layer of an adapter: multiplies in `dtype` as `linear` does, and answers in float32.

    Rounded to bfloat16, many logits would be equal, and ties change a ranking.
    """

    def __call__(
        self, inputs: Float[Array | np.ndarray, "... D"], out_sharding: Any = None
    ) -> Float32[Array, "... K"]:
        """Logits of rows; see `nnx.Linear`."""
        factors = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        product = jnp.matmul(*factors, preferred_element_type=jnp.float32, out_sharding=out_sharding)
        bias: Any = self.bias
        return product + jnp.broadcast_to(bias[...], product.shape)


def linear(width_in: int, width_out: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with float32 parameters that multiplies and answers in `dtype`."""
    return transformer.linear(width_in, width_out, dtype, rngs, param_dtype=jnp.float32)


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm in float32, whatever it is given."""
    # E[x²] - E[x]², which is fast, cancels where the mean is large.
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


def dropout(values: Values, rate: float, keys: Keys, place: int) -> Float[Array, "B ..."]:
    """Zeroes each value with a probability, and scales the others so that the mean stays.

    Args:
      values: (b, ...).
      rate: the probability, in [0, 1).
      keys: (b,) typed PRNG keys, one for each example, so that a mask follows from the example's place in the
        batch alone; None drops nothing.
      place: an integer, different for each place of an adapter that drops out.
    """
    if keys is None or rate == 0:
        return jnp.asarray(values)

    def keep(key):
        return jax.random.bernoulli(key, 1 - rate, values.shape[1:])

    kept = jax.vmap(keep)(fold_in(keys, place))
    return jnp.where(kept, values / jnp.asarray(1 - rate, values.dtype), 0)


def fold_in(keys: Keys, place: int) -> Keys:
    """Keys (b,) of another place of an adapter, see `dropout`; None stays."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, place)


def standardised_cosines(
    embeddings: Float[Array | np.ndarray, "B D"],
    class_embeddings: Float[Array, "K D"],
    reference_embeddings: Float[Array, "M D"],
) -> Float[Array, "B K"]:
    """Cosines of embeddings with class embeddings, in the units of an image's own.

    Less their mean over reference texts, the labels of training, over their standard deviation: so a label's
    figure does not depend on which others are asked for. 0 where there is one reference alone.
    """
    references = cosine_scores(embeddings, reference_embeddings)
    mean, deviation = (f(references, axis=1, keepdims=True) for f in (jnp.mean, jnp.std))
    centred = cosine_scores(embeddings, class_embeddings) - mean
    return jnp.where(deviation > 0, centred / jnp.where(deviation > 0, deviation, 1), 0)


def image_tokens(features: str, batch: Batch) -> Float[Array, "B T D"]:
    """The keys of cross-attention: local features, or the embedding as one token."""
    return jnp.asarray(batch["image_local"] if features == "local" else batch["image"][:, None])
