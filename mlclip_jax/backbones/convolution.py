"""What the convolutional towers share: a convolution with batch norm at inference, folded into it or not."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from mlclip_jax.backbones.weights import KeyTable, Parameters, conv, identity

EPSILON = 1e-5  # torch's, which all of these towers were trained with


class ConvNorm(nnx.Module):
    """A convolution and its batch norm, by stored statistics.

    As the files hold them: a kernel without bias, and a norm. *Folded*: a kernel and a bias that do the same.

    Args:
      width_in, width_out: channels.
      size: of the square kernel; its input is padded by half of that.
      stride: of the convolution.
      folded: whether the norm is in the kernel and the bias; `fold_norms` puts it there.
      dtype: of the products.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        size: int,
        *,
        stride: int = 1,
        folded: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            width_in,
            width_out,
            kernel_size=(size, size),
            strides=(stride, stride),
            padding=size // 2,
            use_bias=folded,
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.norm = None if folded else Norm(width_out)

    def __call__(self, grid: Float[Array, "B H W channels"]) -> Float[Array, "B rows columns width"]:
        """A grid to a smaller or equal one, float32 unless folded."""
        grid = self.conv(grid)
        return grid if self.norm is None else self.norm(grid)


class Norm(nnx.Module):
    """Batch norm by stored statistics, in float32."""

    def __init__(self, width: int):
        self.scale, self.variance = nnx.Param(jnp.ones(width)), nnx.Param(jnp.ones(width))
        self.bias, self.mean = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, grid: Float[Array, "B H W width"]) -> Float32[Array, "B H W width"]:
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + EPSILON)
        shift = self.bias[...] - self.mean[...] * scale
        shape = (1, 1, 1, -1)
        # Not rounded to bfloat16: the next convolution does that, and on CPUs jax 0.12 compiles both
        # roundings together to NaN.
        return grid.astype(jnp.float32) * scale.reshape(shape) + shift.reshape(shape)


def fold_norms(parameters: Parameters) -> Parameters:
    """Puts every `ConvNorm`'s batch norm into its kernel and a bias.

    Args:
      parameters: nested dict of NumPy arrays, of a tower that is not folded.

    Returns:
      The nested dict of the same tower, folded.
    """
    if parameters.keys() == {"conv", "norm"}:
        kernel, norm = parameters["conv"]["kernel"], parameters["norm"]
        scale = norm["scale"] / np.sqrt(norm["variance"] + np.float32(EPSILON))
        return {"conv": {"kernel": kernel * scale, "bias": norm["bias"] - norm["mean"] * scale}}
    return {
        name: fold_norms(value) if isinstance(value, dict) else value for name, value in parameters.items()
    }


def conv_norm_rows(conv_key: str, norm_key: str, target: str) -> KeyTable:
    """Key-table rows of a `ConvNorm` that is not folded; keys are patterns, in torch's names."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    return [
        (rf"{conv_key}\.weight", f"{target}/conv/kernel", conv),
        *((rf"{norm_key}\.{theirs}", f"{target}/norm/{ours}", identity) for theirs, ours in names.items()),
    ]


def stage_rows(key: str, target: str) -> KeyTable:
    """Key-table rows of a ResNet's four stages of bottlenecks, by the names torchvision and OpenAI share."""
    parts = [("conv1", "bn1", "conv1"), ("conv2", "bn2", "conv2"), ("conv3", "bn3", "conv3")]
    parts.append((r"downsample\.0", r"downsample\.1", "shortcut"))
    return [
        row
        for stage in range(4)
        for conv_name, norm_name, ours in parts
        for row in conv_norm_rows(
            rf"{key}layer{stage + 1}\.(\d+)\.{conv_name}",
            rf"{key}layer{stage + 1}\.(\d+)\.{norm_name}",
            rf"{target}stages/{stage}/\1/{ours}",
        )
    ]


# Counts what training has seen, and is in every file beside a batch norm's statistics.
IGNORED_KEYS = [r".*\.num_batches_tracked"]
