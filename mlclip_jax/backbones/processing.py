"""Pixels exactly as a checkpoint expects them."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float32, UInt8
from PIL import Image

from mlclip_jax.backbones.weights import read_json_object
from mlclip_jax.data.images import UnreadableImage, decode_image, read_image, upright_rgb
from mlclip_jax.errors import InputError

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray  # a path, a file's bytes, pixels
Size = tuple[int, int]  # height and width
# `cover`, `size`, `crop` and `crop_pct` of an `ImageProcessor`.
Resizes = tuple[Size | None, Size | None, Size | None, float]
RESIZES = ("crop", "squash")
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
DECODES = ("full", "reduced")
MOST_RESIZED = 16  # times the pixels of a crop: beyond, only what the crop keeps is resized
# open_clip's and BLIP's files may leave out these, the means and deviations of CLIP's training images.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageProcessor(NamedTuple):
    """What is done to an image, in this order.

    Attributes:
      cover: resize, keeping the aspect, to just cover this (height, width); or None.
      size: resize to this (height, width), whatever the aspect; or None.
      crop: then cut out this (height, width) around the centre, zeros beyond the edge; or None.
      resample: PIL's number of the resampling filter.
      scale: then multiply pixel values (0 to 255) by this.
      mean, std: then subtract and divide by these, per channel.
      crop_pct: what part of `cover` the crop is, at another size too.
      round_offset: whether half of an odd margin is rounded to even, as torchvision crops, or down, as
        transformers does.
      decode: "full", or "reduced": JPEG files are decoded at the smallest scale, in eighths, that is no
        smaller than what they are resized to, which is faster and changes pixels a little.
    """

    cover: Size | None
    size: Size | None
    crop: Size | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    round_offset: bool = False
    decode: str = "full"

    @property
    def resize(self) -> str:
        """How an image comes to its size: "crop", "squash", or "squash and crop"."""
        if self.crop is None:
            return "squash"
        return "crop" if self.size is None else "squash and crop"

    @property
    def output_size(self) -> Size:
        """(height, width) of what comes out."""
        size = self.crop or self.size
        assert size is not None  # `_checked` lets no other pass
        return size

    def at_size(self, size: Size, resize: str | None = None) -> "ImageProcessor":
        """The same for another output size.

        Args:
          size: (height, width).
          resize: "crop" (keep the aspect and cut off what protrudes), "squash" (do not), or None, as the
            checkpoint does it at its own size.
        """
        if resize == "squash" or (resize is None and self.crop is None):
            return self._replace(cover=None, size=size, crop=None)
        if resize is None and self.size is not None:  # squashed to a size of which the crop is a part
            scaled = [
                math.floor(own * new / cut) for own, new, cut in zip(self.size, size, self.crop or size)
            ]
            return self._replace(size=(scaled[0], scaled[1]), crop=size)
        return self._replace(cover=_cover(size, self.crop_pct), size=None, crop=size)

    def pixels(self, image: ImageLike) -> UInt8[np.ndarray, "H W 3"]:
        """Resizes and crops an image.

        Where one side of an image is very much longer than the other, only the part that the crop keeps is
        resized, whose pixels may then differ by 1.

        Args:
          image: a path, the bytes of a file, a `PIL.Image`, or uint8 array (H, W, 3).

        Raises:
          InputError: it cannot be used; a path is named. Of bytes, an `UnreadableImage`.
        """
        needed = self.cover or self.size
        image = _to_rgb(image, max(needed) if needed and self.decode == "reduced" else None)
        if self.cover is not None:
            height, width = self.cover
            if height * image.width >= width * image.height:  # the image is wider than what it covers
                width = int(height * image.width / image.height)
            else:
                height = int(width * image.height / image.width)
            if self.crop is not None and height * width > MOST_RESIZED * math.prod(self.crop):
                return np.asarray(self._resized_crop(image, self.crop, height, width), np.uint8)
            image = image.resize((width, height), self.resample)
        elif self.size is not None:
            image = image.resize(self.size[::-1], self.resample)
        if self.crop is not None:
            left, top = self._offset(self.crop, image.width, image.height)
            # PIL fills what lies outside with zeros.
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return np.asarray(image, np.uint8)

    def _offset(self, crop: Size, width: int, height: int) -> Size:
        left, top = width - crop[1], height - crop[0]
        return (round(left / 2), round(top / 2)) if self.round_offset else (left // 2, top // 2)

    def _resized_crop(self, image: Image.Image, crop: Size, height: int, width: int) -> Image.Image:
        left, top = self._offset(crop, width, height)
        across, down = image.width / width, image.height / height
        box = left * across, top * down, (left + crop[1]) * across, (top + crop[0]) * down
        return image.resize(crop[::-1], self.resample, box=box)

    def normalise(
        self, pixels: UInt8[Array | np.ndarray, "*batch H W 3"]
    ) -> Float32[Array | np.ndarray, "*batch H W 3"]:
        """Pixels as towers take them; runs on the device, so that only bytes cross to it."""
        scaled = pixels.astype(np.float32) * np.float32(self.scale)
        shape = (1,) * (scaled.ndim - 1) + (3,)
        mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (self.mean, self.std))
        return (scaled - mean) / std


def transformers_processor(folder: str | os.PathLike, default_type: str) -> ImageProcessor:
    """What `preprocessor_config.json`, or `processor_config.json` with it inside, asks for.

    Args:
      folder: of the checkpoint.
      default_type: "CLIP", "Blip" or "ConvNext", where the file does not name its type.

    Raises:
      InputError: the file is missing, damaged, or asks for something unknown.
    """
    path = Path(folder) / "preprocessor_config.json"
    whole = Path(folder) / "processor_config.json"
    is_inside = not path.is_file() and whole.is_file()
    path = whole if is_inside else path
    content = read_json_object(path)
    config: Any = content.get("image_processor") if is_inside else content

    def make():
        if not isinstance(config, dict) or not config:
            raise ValueError("it describes no image_processor")
        kind = config.get("image_processor_type") or config.get("feature_extractor_type") or default_type
        known = [name for name in TRANSFORMERS_RESIZES if kind.startswith(name)]
        if not known:
            raise ValueError(f"image_processor_type {kind!r} is not known")
        cover, size, crop, crop_pct = TRANSFORMERS_RESIZES[known[0]](config)
        normalise = config.get("do_normalize", True)
        for key in ("image_mean", "image_std"):
            if normalise and key not in config:
                raise ValueError(
                    f"it has no {key}; CLIP's is {list(CLIP_MEAN if key == 'image_mean' else CLIP_STD)}"
                )
        return ImageProcessor(
            cover=cover if config.get("do_resize", True) else None,
            size=size if config.get("do_resize", True) else None,
            crop=crop,
            resample=Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)),
            scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=tuple(config["image_mean"]) if normalise else (0.0,) * 3,
            std=tuple(config["image_std"]) if normalise else (1.0,) * 3,
            crop_pct=crop_pct,
        )

    return _checked(path, make)


def open_clip_processor(
    path: str | os.PathLike, preprocess_config: dict[str, Any], image_size: int
) -> ImageProcessor:
    """What `preprocess_cfg` of the open_clip config at `path` asks for; see `open_clip.image_transform`."""

    def make():
        size = _height_and_width(preprocess_config.get("size", image_size))
        mode = preprocess_config.get("resize_mode", "shortest")
        if mode not in ("shortest", "squash"):
            raise ValueError(f"resize_mode {mode!r} is not one of shortest, squash")
        return ImageProcessor(
            cover=size if mode == "shortest" else None,
            size=size if mode == "squash" else None,
            crop=size if mode == "shortest" else None,
            resample=_filter(preprocess_config.get("interpolation", "bicubic")),
            scale=1 / 255,
            mean=tuple(preprocess_config.get("mean", CLIP_MEAN)),
            std=tuple(preprocess_config.get("std", CLIP_STD)),
            round_offset=True,
        )

    return _checked(path, make)


def timm_processor(path: str | os.PathLike, pretrained_config: dict[str, Any]) -> ImageProcessor:
    """What `pretrained_cfg` of the timm config at `path` asks for; see `timm.data.transforms_factory`."""

    def make():
        height, width = pretrained_config["input_size"][1:]
        mode = pretrained_config.get("crop_mode", "center")
        if mode != "center":
            raise ValueError(f"crop_mode {mode!r} is not center")
        return ImageProcessor(
            cover=_cover((height, width), pretrained_config["crop_pct"]),
            size=None,
            crop=(height, width),
            resample=_filter(pretrained_config["interpolation"]),
            scale=1 / 255,
            mean=tuple(pretrained_config["mean"]),
            std=tuple(pretrained_config["std"]),
            crop_pct=pretrained_config["crop_pct"],
            round_offset=True,
        )

    return _checked(path, make)


def _cover(size: Size, crop_pct: float | int) -> Size:
    """What an image is to cover so that this size is the part `crop_pct` of its sides."""
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


def _clip_resizes(config: dict[str, Any]) -> Resizes:
    size = config.get("size", 224)
    for key in ("size", "crop_size"):
        if not isinstance(config.get(key, 224), int | dict | None):
            raise ValueError(f"{key} {config[key]!r} is neither a number nor an object, of height and width")
    edge = size if isinstance(size, int) else (size or {}).get("shortest_edge")
    crop = config.get("crop_size", size) if config.get("do_center_crop", True) else None
    crop = None if crop is None else _height_and_width(crop)
    return (
        None if edge is None else (edge, edge),
        None if size is None or edge is not None else _height_and_width(size),
        crop,
        crop[0] / edge if edge and crop else 1.0,
    )


def _blip_resizes(config: dict[str, Any]) -> Resizes:
    return None, _height_and_width(config.get("size", 384)), None, 1.0


def _convnext_resizes(config: dict[str, Any]) -> Resizes:
    height, width = _height_and_width(config.get("size", 384))
    crop_pct = config.get("crop_pct")
    crop_pct = 224 / 256 if crop_pct is None else crop_pct
    if height >= 384:
        return None, (height, width), None, crop_pct
    edge = int(height / crop_pct)
    return (edge, edge), None, (height, width), crop_pct


# How the image processors of transformers resize: their config to `cover`, `size`, `crop` and `crop_pct`.
TRANSFORMERS_RESIZES = {"CLIP": _clip_resizes, "Blip": _blip_resizes, "ConvNext": _convnext_resizes}


def _checked(path: str | os.PathLike, make: Callable[[], ImageProcessor]) -> ImageProcessor:
    try:
        processor = make()
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        lacking = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} cannot be followed: {lacking}") from error
    lengths = [*(processor.cover or ()), *(processor.size or ()), *(processor.crop or ())]
    sizes_fit = all(isinstance(length, int) and length > 0 for length in lengths)
    numbers = [*processor.mean, *processor.std]
    channels_fit = len(processor.mean) == len(processor.std) == 3 and all(
        isinstance(number, int | float) for number in numbers
    )
    if not (sizes_fit and channels_fit):
        raise InputError(
            f"{path} cannot be followed: sizes must be positive, means and deviations 3 numbers each"
        )
    if processor.crop is None and processor.size is None:
        raise InputError(
            f"{path} leaves images of different sizes; it needs a crop_size, or a height and width"
        )
    return processor


def _to_rgb(image: ImageLike, at_least: int | None = None) -> Image.Image:
    if isinstance(image, bytes):
        return decode_image(image, at_least)
    if isinstance(image, str | os.PathLike):
        return read_image(image, at_least)
    if isinstance(image, Image.Image):
        try:
            image.load()
            return upright_rgb(image)
        except Exception as error:  # a file that is opened decodes only now
            raise UnreadableImage(f"cannot use image {image}: {error}") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
            raise InputError(f"an image array must be uint8 (h, w, 3); got {image.dtype} {image.shape}")
        return Image.fromarray(image)
    raise InputError(
        f"an image must be a path, a file's bytes, a PIL.Image or a NumPy array, not a {type(image).__name__}"
    )


def _filter(name: str) -> int:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation {name!r} is not one of {', '.join(INTERPOLATIONS)}")
    return INTERPOLATIONS[name]


def _height_and_width(size: Any) -> Size:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple):
        height, width = size
        return height, width
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return int(size["height"]), int(size["width"])
