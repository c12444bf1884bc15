"""What the transformers of CLIP and BLIP share: attention, a pre-norm layer, position embeddings of any grid.

In shapes, `width` is that of a tower, H and W are rows and columns of pixels or of patches.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from mlclip_jax.backbones.configs import ImageConfig, TowerConfig

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's checkpoints
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class Patches(nnx.Module):
    """Pixels to tokens: a class token, and patches in row order, all with their position embeddings."""

    def __init__(
        self,
        config: ImageConfig,
        positions: Float32[Array, "T width"],
        *,
        use_bias: bool,
        antialias: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        width, patch = config.hidden_size, config.patch_size
        self.antialias = antialias
        self.embedding = nnx.Conv(
            3,
            width,
            kernel_size=(patch, patch),
            strides=(patch, patch),
            padding="VALID",
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.class_embedding = nnx.Param(small_normal(rngs, width))
        self.position_embedding = nnx.Param(positions)

    def __call__(self, pixels: Float[Array | np.ndarray, "B H W 3"]) -> Float32[Array, "B T width"]:
        """Normalised pixels of any size to tokens, T being 1 more than there are patches."""
        patches = self.embedding(jnp.asarray(pixels)).astype(jnp.float32)
        _, rows, columns, _ = patches.shape
        positions = resize_positions(self.position_embedding[...], (rows, columns), antialias=self.antialias)
        patches = patches.reshape(len(pixels), -1, patches.shape[-1])
        class_token = jnp.broadcast_to(self.class_embedding[...], (len(pixels), 1, patches.shape[-1]))
        return jnp.concatenate([class_token, patches], axis=1) + positions[None]


class Layer(nnx.Module):
    """Attention, then a two-layer perceptron, each behind a layer norm and added to its input."""

    def __init__(
        self,
        config: TowerConfig,
        *,
        causal: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width, inner = config.hidden_size, config.intermediate_size
        self.norm1 = layer_norm(config, rngs)
        self.attention = Attention(width, config.num_attention_heads, causal=causal, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(config, rngs)
        self.fc1 = linear(width, inner, dtype, rngs)
        self.fc2 = linear(inner, width, dtype, rngs)
        self.activation = config.hidden_act

    def __call__(self, tokens: Float32[Array, "B T width"]) -> Float32[Array, "B T width"]:
        # As rows: on CPUs, XLA takes twice as long for the gradient of a product with three dimensions.
        rows = tokens.reshape(-1, tokens.shape[-1])
        rows = add(rows, self.attention(self.norm1(rows), tokens.shape[1]))
        rows = add(rows, self.fc2(ACTIVATIONS[self.activation](self.fc1(self.norm2(rows)))))
        return rows.reshape(tokens.shape)


class Attention(nnx.Module):
    """Multi-head attention, of the tokens to one another or to those of a context; its softmax is in float32.

    Args:
      width: of the tokens that ask.
      num_heads: divides `width`.
      context_width: of the tokens that answer, where it is another.
      out_width: of the result, where it is another.
      causal: no token sees those behind it.
      dtype: of the products.
      param_dtype: of the parameters, where it is another.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        context_width: int | None = None,
        out_width: int | None = None,
        causal: bool = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        context_width = context_width or width
        self.query = linear(width, width, dtype, rngs, param_dtype=param_dtype)
        self.key = linear(context_width, width, dtype, rngs, param_dtype=param_dtype)
        self.value = linear(context_width, width, dtype, rngs, param_dtype=param_dtype)
        self.out = linear(width, out_width or width, dtype, rngs, param_dtype=param_dtype)
        self.num_heads = num_heads
        self.causal = causal
        self.implementation = attention_implementation(dtype, width // num_heads)

    def __call__(
        self,
        rows: Float[Array, "rows width"],
        num_tokens: int,
        context: Float[Array | np.ndarray, "B M context"] | None = None,
        mask: Bool[Array | np.ndarray, "B M"] | None = None,
    ) -> Float[Array, "rows out"]:
        """The tokens of all examples to what they attend to.

        Args:
          rows: the T tokens of the first example, those of the second, and so on.
          num_tokens: T.
          context: M tokens that answer, for each example; by default the rows themselves.
          mask: which of them may be attended to; by default all.

        Returns:
          As many rows, in the dtype of the products.
        """
        num_answers = num_tokens if context is None else context.shape[1]
        answers = rows if context is None else jnp.reshape(context, (-1, context.shape[-1]))
        if mask is not None:  # cuDNN takes no shorter form
            mask = jnp.broadcast_to(mask[:, None, None, :], (len(mask), 1, num_tokens, num_answers))
        with jax.numpy_dtype_promotion("standard"):  # it asks what bfloat16 and float32 promote to
            attended = jax.nn.dot_product_attention(
                self._heads(self.query(rows), num_tokens),
                self._heads(self.key(answers), num_answers),
                self._heads(self.value(answers), num_answers),
                mask=mask,
                is_causal=self.causal,
                implementation=self.implementation,
            )
        return self.out(attended.reshape(len(rows), -1))

    def _heads(self, rows: Array, num_tokens: int) -> Array:
        return rows.reshape(-1, num_tokens, self.num_heads, rows.shape[-1] // self.num_heads)


def attention_implementation(
    dtype: DTypeLike, head_width: int, device: Any = None
) -> Literal["cudnn"] | None:
    """What computes attention on a device, by default the first: "cudnn", or None, which is plain XLA.

    cuDNN's flash attention takes 16 bits, a head width that is a multiple of 8 and at most 128 (those of CLIP
    and BLIP are), and an NVIDIA GPU since Ampere.
    """
    device = device or jax.devices()[0]
    sixteen_bits = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    fits = head_width % 8 == 0 and head_width <= 128
    try:
        recent = device.platform == "gpu" and float(device.compute_capability) >= 8
    except (AttributeError, ValueError):  # AMD's have no such number
        recent = False
    return "cudnn" if recent and sixteen_bits and fits else None


def linear(
    width_in: int,
    width_out: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    use_bias: bool = True,
    param_dtype: DTypeLike | None = None,
) -> nnx.Linear:
    """A linear layer that multiplies and answers in `dtype`, and keeps its parameters so or in another."""
    return nnx.Linear(
        width_in, width_out, use_bias=use_bias, dtype=dtype, param_dtype=param_dtype or dtype, rngs=rngs
    )


def layer_norm(config: TowerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm in float32, whatever it is given."""
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        dtype=jnp.float32,
        use_fast_variance=False,  # E[x²] - E[x]² cancels where the mean is large
        rngs=rngs,
    )


def add(rows: Float[Array, "*shape"], change: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A residual sum, in the dtype of `rows`."""
    return rows + change.astype(rows.dtype)


def small_normal(rngs: nnx.Rngs, *shape: int) -> Float32[Array, "..."]:
    """Where embeddings begin: N(0, 0.02²)."""
    return 0.02 * jax.random.normal(rngs.params(), shape)


def resize_positions(
    positions: Float32[Array, "T width"], grid: tuple[int, int], *, antialias: bool = False
) -> Float32[Array, "tokens width"]:
    """Position embeddings for another grid of patches than they were learnt on, by bicubic interpolation.

    As `interpolate_pos_encoding` of transformers' CLIP and BLIP, that is torch's `interpolate(size=grid,
    mode="bicubic", align_corners=False)`; or, with `antialias=True` there, as open_clip's `resize_pos_embed`,
    which is another cubic when it enlarges too. Others differ a little: TaI-DPT and DINO ask for a grid
    larger by 0.1 and cut it.

    Args:
      positions: the class token's before those of a square grid in row order; T is 1 + side².
      grid: (H, W), its rows and columns.
      antialias: whether a smaller grid is made of smoothed positions.

    Returns:
      The same for 1 + H W tokens.
    """
    side = math.isqrt(len(positions) - 1)
    if grid == (side, side):
        return positions
    patches = positions[1:].reshape(side, side, -1)
    if antialias:
        shape = (*grid, patches.shape[-1])
        patches = jax.image.resize(
            patches, shape, "cubic", antialias=True, precision=jax.lax.Precision.HIGHEST
        )
    else:
        rows, columns = (_bicubic(side, size) for size in grid)
        patches = jnp.einsum("hr,wc,rcd->hwd", rows, columns, patches, precision="highest")
    return jnp.concatenate([positions[:1], patches.reshape(-1, positions.shape[-1])])


def _bicubic(size: int, new_size: int) -> Float32[np.ndarray, "new_size size"]:
    """What each of `size` samples contributes to each of `new_size`: float32 (new_size, size)."""
    places = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    nearest = np.floor(places).astype(int)
    weights = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        distance = np.abs(places - nearest - offset)
        near = (1.25 * distance - 2.25) * distance**2 + 1  # Keys (1981) with a = -0.75, which torch takes
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        neighbour = np.clip(nearest + offset, 0, size - 1)
        np.add.at(weights, (np.arange(new_size), neighbour), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)
