"""ResNet and VGG-16 trained on ImageNet: the towers of the supervised baselines.

Equal to torchvision's models (He et al. 2015, arXiv 1512.03385, with the stride in the 3x3 convolution;
Simonyan and Zisserman 2014, arXiv 1409.1556) without their classifiers. The hub holds their weights in timm's
layout (timm/resnet101.tv_in1k, timm/vgg16.tv_in1k) and in transformers' (microsoft/resnet-101).

In shapes, `width` is that of a grid, H and W are rows and columns of pixels or of a grid.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from mlclip_jax.backbones import convolution
from mlclip_jax.backbones.convolution import ConvNorm, conv_norm_rows, stage_rows
from mlclip_jax.backbones.transformer import add, linear
from mlclip_jax.backbones.weights import KeyTable, conv, identity, transposed

STRIDE = 32  # pixels between two neighbours of the last grid
RESNET_DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
RESNET_WIDTHS = (64, 256, 512, 1024, 2048)  # behind the stem and each stage

VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions
VGG16_WIDTH = 4096  # of the two layers behind the grid
VGG16_SIDE = 7  # rows and columns that those layers read


class ResNet(nnx.Module):
    """A ResNet of bottleneck blocks without its classifier.

    Args:
      depths: blocks of each stage.
      widths: channels behind the stem and behind each stage.
      folded: whether batch norms are in the convolutions, see `convolution.fold_norms`.
      dtype: of the products.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        folded: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        settings: dict[str, Any] = {"folded": folded, "dtype": dtype, "rngs": rngs}
        self.stem = ConvNorm(3, widths[0], 7, stride=2, **settings)
        width_in, stages = widths[0], []
        for stage, (depth, width) in enumerate(zip(depths, widths[1:])):
            blocks = []
            for block in range(depth):
                blocks.append(Block(width_in, width, 2 if stage and not block else 1, **settings))
                width_in = width
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)

    def image(
        self, pixels: Float[Array | np.ndarray, "B H W 3"]
    ) -> tuple[Float32[Array, "B width"], Float32[Array, "B T width"]]:
        """The mean of the last grid, and the grid's places in row order, of normalised pixels of any size."""
        grid = nnx.relu(self.stem(jnp.asarray(pixels)))
        grid = nnx.max_pool(grid, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                grid = block(grid)
        local = grid.reshape(len(grid), -1, grid.shape[-1])
        return local.mean(axis=1), local


class Block(nnx.Module):
    """A bottleneck a quarter as wide as its result, added to its input."""

    def __init__(
        self, width_in: int, width: int, stride: int, *, folded: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        settings: dict[str, Any] = {"folded": folded, "dtype": dtype, "rngs": rngs}
        self.conv1 = ConvNorm(width_in, width // 4, 1, **settings)
        self.conv2 = ConvNorm(width // 4, width // 4, 3, stride=stride, **settings)
        self.conv3 = ConvNorm(width // 4, width, 1, **settings)
        same = stride == 1 and width_in == width
        self.shortcut = None if same else ConvNorm(width_in, width, 1, stride=stride, **settings)

    def __call__(self, grid: Float[Array, "B H W channels"]) -> Float32[Array, "B rows columns width"]:
        """A grid to one with H / stride rows and W / stride columns."""
        change = nnx.relu(self.conv1(grid))
        change = nnx.relu(self.conv2(change))
        change = self.conv3(change)
        grid = grid if self.shortcut is None else self.shortcut(grid)
        return nnx.relu(add(grid.astype(jnp.float32), change))


class VGG16(nnx.Module):
    """VGG-16 without its classifier: thirteen convolutions, then two layers on a grid of 7 x 7."""

    def __init__(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        width_in, stages = 3, []
        for width, depth in VGG16_STAGES:
            convolutions = []
            for _ in range(depth):
                convolutions.append(
                    nnx.Conv(
                        width_in,
                        width,
                        kernel_size=(3, 3),
                        padding=1,
                        dtype=dtype,
                        param_dtype=dtype,
                        rngs=rngs,
                    )
                )
                width_in = width
            stages.append(nnx.List(convolutions))
        self.stages = nnx.List(stages)
        self.fc1 = linear(VGG16_SIDE**2 * width_in, VGG16_WIDTH, dtype, rngs)
        self.fc2 = linear(VGG16_WIDTH, VGG16_WIDTH, dtype, rngs)

    def image(
        self, pixels: Float[Array | np.ndarray, "B H W 3"]
    ) -> tuple[Float32[Array, "B 4096"], Float32[Array, "B T 512"]]:
        """What the classifier would read, and the last grid's places in row order.

        Args:
          pixels: normalised, of any size. The grid is averaged to 7 x 7 before the first layer, as
            torchvision does it; at 224 pixels that is as it is.
        """
        grid = jnp.asarray(pixels)
        for stage in self.stages:
            for convolve in stage:
                grid = nnx.relu(convolve(grid))
            grid = nnx.max_pool(grid, (2, 2), strides=(2, 2))
        rows, columns = (_adaptive_average(size, VGG16_SIDE).astype(grid.dtype) for size in grid.shape[1:3])
        small = jnp.einsum("ih,jw,bhwd->bijd", rows, columns, grid)
        pooled = nnx.relu(self.fc1(small.reshape(len(grid), -1)))
        pooled = nnx.relu(self.fc2(pooled)).astype(jnp.float32)
        return pooled, grid.reshape(len(grid), -1, grid.shape[-1]).astype(jnp.float32)


def _adaptive_average(size: int, new_size: int) -> Float32[np.ndarray, "new_size size"]:
    """What each of `size` places gives to each of `new_size` averages, as in torch: (new_size, size)."""
    weights = np.zeros((new_size, size), np.float32)
    for i in range(new_size):
        start, end = i * size // new_size, -(-(i + 1) * size // new_size)
        weights[i, start:end] = 1 / (end - start)
    return weights


def grid_kernel(array: np.ndarray) -> np.ndarray:
    """The first layer behind the grid, on channels, rows and columns, to (rows columns channels, out)."""
    return conv(array.reshape(len(array), -1, VGG16_SIDE, VGG16_SIDE)).reshape(-1, len(array))


def single_kernel(array: np.ndarray) -> np.ndarray:
    """The second layer, perhaps kept as a convolution of 1 x 1, to (in, out)."""
    return transposed(array.reshape(len(array), -1))


def _vgg16_rows() -> KeyTable:
    rows: KeyTable = []
    position = 0
    for stage, (_, depth) in enumerate(VGG16_STAGES):
        for i in range(depth):
            target = f"stages/{stage}/{i}"
            rows += [
                (rf"features\.{position}\.weight", f"{target}/kernel", conv),
                (rf"features\.{position}\.bias", f"{target}/bias", identity),
            ]
            position += 2  # the convolution and its ReLU
        position += 1  # the pool
    return rows


# timm's keys, which for a ResNet are torchvision's.
RESNET_KEY_TABLE: KeyTable = [
    *conv_norm_rows("conv1", "bn1", "stem"),
    *stage_rows("", ""),
]
RESNET_IGNORED_KEYS = [r"fc\.(weight|bias)", *convolution.IGNORED_KEYS]

_STAGE = r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)"
TRANSFORMERS_RESNET_KEY_TABLE: KeyTable = [
    *conv_norm_rows(
        r"resnet\.embedder\.embedder\.convolution", r"resnet\.embedder\.embedder\.normalization", "stem"
    ),
    *(
        row
        for i in range(3)
        for row in conv_norm_rows(
            rf"{_STAGE}\.layer\.{i}\.convolution",
            rf"{_STAGE}\.layer\.{i}\.normalization",
            rf"stages/\1/\2/conv{i + 1}",
        )
    ),
    *conv_norm_rows(
        rf"{_STAGE}\.shortcut\.convolution", rf"{_STAGE}\.shortcut\.normalization", r"stages/\1/\2/shortcut"
    ),
]
TRANSFORMERS_RESNET_IGNORED_KEYS = [r"classifier\.1\.(weight|bias)", *convolution.IGNORED_KEYS]

# timm's keys and torchvision's, whose first two layers have other names.
VGG16_KEY_TABLE: KeyTable = [
    *_vgg16_rows(),
    (r"(?:pre_logits\.fc1|classifier\.0)\.weight", "fc1/kernel", grid_kernel),
    (r"(?:pre_logits\.fc1|classifier\.0)\.bias", "fc1/bias", identity),
    (r"(?:pre_logits\.fc2|classifier\.3)\.weight", "fc2/kernel", single_kernel),
    (r"(?:pre_logits\.fc2|classifier\.3)\.bias", "fc2/bias", identity),
]
VGG16_IGNORED_KEYS = [r"(?:head\.fc|classifier\.6)\.(weight|bias)"]
