"""Images near their own aspect ratio, in few sizes, as each size is compiled for."""

import math

import numpy as np
from jaxtyping import UInt8

from mlclip_jax.backbones.processing import ImageLike, ImageProcessor, Size

# Of the longer side to the shorter: squares, and what most photographs have. What lies between is squashed by
# a sixth at most, sides being multiples of a patch; what is longer than 2 to 1 becomes that.
RATIOS = (1.0, 4 / 3, 3 / 2, 2.0)


def native_size(height: int, width: int, short_side: int, stride: int) -> Size:
    """The (height, width) that an image comes to: one of seven, as `RATIOS` has upright ones too.

    Args:
      height, width: of the image, in pixels.
      short_side: what the shorter side becomes, rounded to a multiple of `stride`, as the longer is.
      stride: pixels of a patch.
    """
    ratio = max(height, width) / min(height, width)
    nearest = min(RATIOS, key=lambda own: abs(math.log(own / ratio)))
    short = max(round(short_side / stride), 1)
    long = max(round(short * nearest), 1)
    return (short * stride, long * stride) if width >= height else (long * stride, short * stride)


def native_pixels(
    processor: ImageProcessor, image: ImageLike, short_side: int, stride: int
) -> UInt8[np.ndarray, "H W 3"]:
    """An image resized to its `native_size`, by the processor's filter, with nothing cropped.

    Raises:
      InputError: it cannot be used, see `ImageProcessor.pixels`.
    """
    whole = full_pixels(processor, image)
    size = native_size(*whole.shape[:2], short_side, stride)
    return processor.at_size(size, "squash").pixels(whole)


def full_pixels(processor: ImageProcessor, image: ImageLike) -> UInt8[np.ndarray, "H W 3"]:
    """An image at its own size, upright and in RGB.

    Raises:
      InputError: it cannot be used, see `ImageProcessor.pixels`.
    """
    return processor._replace(cover=None, size=None, crop=None).pixels(image)
