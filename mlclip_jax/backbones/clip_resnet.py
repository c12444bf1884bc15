"""CLIP with a modified ResNet for an image tower: RN50, RN101, RN50x4, RN50x16, RN50x64.

Unlike torchvision's, it has a stem of three convolutions, averages instead of striding, and pools by
attention (Radford et al. 2021, arXiv 2103.00020). The hub holds these as open_clip keeps them:
timm/resnet50_clip.openai.

In shapes, D is the width of the joint space, `width` that of a grid, H and W are rows and columns of
pixels or of a grid.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from mlclip_jax.backbones import convolution
from mlclip_jax.backbones.clip import OPEN_CLIP_IGNORED_KEYS, OPEN_CLIP_TEXT_KEYS, TextTower
from mlclip_jax.backbones.configs import TextConfig
from mlclip_jax.backbones.convolution import ConvNorm, conv_norm_rows, stage_rows
from mlclip_jax.backbones.transformer import Attention, add, resize_positions, small_normal
from mlclip_jax.backbones.weights import KeyTable, identity, linear_rows

EXPANSION = 4  # of a block's inner width
# Which features of an image get position embeddings: the pooled one alone, as in CLIP; all, as in DualCoOp;
# none, as in TaI-DPT.
POSITIONS = ("pooled", "all", "none")
STRIDE = 32  # pixels between two neighbours of the last grid


class CLIPResNet(nnx.Module):
    """Both towers.

    Args:
      text_config: a `transformers.CLIPTextConfig`.
      projection_width: D.
      dtype: of the products.
      image_settings: what else an `ImageTower` is made of.
    """

    def __init__(
        self,
        text_config: TextConfig,
        projection_width: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **image_settings: Any,
    ):
        self.image = ImageTower(projection_width=projection_width, dtype=dtype, rngs=rngs, **image_settings)
        self.text = TextTower(text_config, projection_width, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.zeros(()))


class ImageTower(nnx.Module):
    """Stem, four stages of bottleneck blocks, attention pooling.

    Args:
      depths: blocks of each stage, (3, 4, 6, 3) for RN50.
      width: channels behind the stem, 64 for RN50; the last grid has 32 times as many.
      num_heads: of the attention pooling.
      image_size: pixels on a side, which the position embeddings were learnt on.
      projection_width: D.
      position_embeddings: which features get them, one of `POSITIONS`.
      folded: whether batch norms are in the convolutions, see `convolution.fold_norms`.
      dtype: of the products.
    """

    def __init__(
        self,
        depths: Sequence[int],
        width: int,
        num_heads: int,
        image_size: int,
        projection_width: int,
        *,
        position_embeddings: str = "pooled",
        folded: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        settings: dict[str, Any] = {"folded": folded, "dtype": dtype, "rngs": rngs}
        self.stem1 = ConvNorm(3, width // 2, 3, stride=2, **settings)
        self.stem2 = ConvNorm(width // 2, width // 2, 3, **settings)
        self.stem3 = ConvNorm(width // 2, width, 3, **settings)
        width_in, stages = width, []
        for stage, depth in enumerate(depths):
            inner, blocks = width * 2**stage, []
            for block in range(depth):
                blocks.append(Block(width_in, inner, 2 if stage and not block else 1, **settings))
                width_in = inner * EXPANSION
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.pool = AttentionPool(width_in, num_heads, image_size // STRIDE, projection_width, rngs=rngs)
        self.position_embeddings = position_embeddings

    def __call__(
        self, pixels: Float[Array | np.ndarray, "B H W 3"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """Embeddings and local features, both un-normalised.

        Args:
          pixels: normalised; H and W are multiples of 32, for which position embeddings are interpolated.
        """
        grid = self.grid(pixels)
        return (
            self.pool(grid, positions=self.position_embeddings != "none"),
            self.pool.local(grid, positions=self.position_embeddings == "all"),
        )

    def grid(self, pixels: Float[Array | np.ndarray, "B H W 3"]) -> Float[Array, "B rows columns width"]:
        """The last grid, before it is pooled."""
        grid = jnp.asarray(pixels)
        for convolve in (self.stem1, self.stem2, self.stem3):
            grid = nnx.relu(convolve(grid))
        grid = _average(grid, 2)
        for stage in self.stages:
            for block in stage:
                grid = block(grid)
        return grid


class Block(nnx.Module):
    """A bottleneck, added to its input; where it strides, both are averaged first."""

    def __init__(
        self, width_in: int, inner: int, stride: int, *, folded: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        settings: dict[str, Any] = {"folded": folded, "dtype": dtype, "rngs": rngs}
        self.conv1 = ConvNorm(width_in, inner, 1, **settings)
        self.conv2 = ConvNorm(inner, inner, 3, **settings)
        self.conv3 = ConvNorm(inner, inner * EXPANSION, 1, **settings)
        same = stride == 1 and width_in == inner * EXPANSION
        self.shortcut = None if same else ConvNorm(width_in, inner * EXPANSION, 1, **settings)
        self.stride = stride

    def __call__(self, grid: Float[Array, "B H W channels"]) -> Float32[Array, "B rows columns width"]:
        """A grid to one with H / stride rows, W / stride columns and four times the inner width."""
        change = nnx.relu(self.conv1(grid))
        change = nnx.relu(self.conv2(change))
        change = self.conv3(_average(change, self.stride))
        if self.shortcut is not None:
            grid = self.shortcut(_average(grid, self.stride))
        return nnx.relu(add(grid.astype(jnp.float32), change))


class AttentionPool(nnx.Module):
    """The mean of a grid attends to itself and to the grid. In float32: it is small, and last."""

    def __init__(self, width: int, num_heads: int, side: int, projection_width: int, *, rngs: nnx.Rngs):
        self.position_embedding = nnx.Param(small_normal(rngs, side**2 + 1, width))
        self.attention = Attention(width, num_heads, out_width=projection_width, rngs=rngs)

    def __call__(self, grid: Float[Array, "B H W width"], *, positions: bool) -> Float32[Array, "B D"]:
        tokens = self._tokens(grid, positions)
        return self.attention(tokens[:, 0], 1, context=tokens)

    def local(self, grid: Float[Array, "B H W width"], *, positions: bool) -> Float32[Array, "B T D"]:
        """Each place through the value and output projections."""
        tokens = self._tokens(grid, positions)[:, 1:]
        return self.attention.out(self.attention.value(tokens))

    def _tokens(self, grid: Array, positions: bool) -> Array:
        _, rows, columns, width = grid.shape
        grid = grid.astype(jnp.float32).reshape(len(grid), -1, width)
        tokens = jnp.concatenate([grid.mean(axis=1, keepdims=True), grid], axis=1)
        if not positions:
            return tokens
        return tokens + resize_positions(self.position_embedding[...], (rows, columns))[None]


def _average(grid: Array, stride: int) -> Array:
    if stride == 1:
        return grid
    b, h, w, d = grid.shape
    return grid.reshape(b, h // stride, stride, w // stride, stride, d).mean(axis=(2, 4))


# Keys of OpenAI's own checkpoints, which open_clip_model.safetensors keeps.
KEY_TABLE: KeyTable = [
    *OPEN_CLIP_TEXT_KEYS,
    *(
        row
        for i in (1, 2, 3)
        for row in conv_norm_rows(rf"visual\.conv{i}", rf"visual\.bn{i}", f"image/stem{i}")
    ),
    *stage_rows(r"visual\.", "image/"),
    (r"visual\.attnpool\.positional_embedding", "image/pool/position_embedding", identity),
    *(
        row
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("c", "out"))
        for row in linear_rows(rf"visual\.attnpool\.{theirs}_proj", f"image/pool/attention/{ours}")
    ),
]
IGNORED_KEYS = [*OPEN_CLIP_IGNORED_KEYS, *convolution.IGNORED_KEYS]
