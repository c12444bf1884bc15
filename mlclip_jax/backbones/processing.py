"""Pixels and token ids exactly as a checkpoint expects them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mlclip_jax.backbones.weights import read_json
from mlclip_jax.data.sources import read_image
from mlclip_jax.errors import InputError


class ImageProcessor(NamedTuple):
    """What `preprocessor_config.json` asks for, in the order in which it is done.

    Attributes:
      shortest_edge: resize the shorter side to this, in pixels; or None.
      size: resize to this (height, width), whatever the aspect; or None.
      crop: then cut out this (height, width) around the centre, zeros beyond the edge; or None.
      resample: PIL's number of the resampling filter.
      scale: then multiply pixel values (0 to 255) by this.
      mean, std: then subtract and divide by these, per channel.
    """

    shortest_edge: int | None
    size: tuple | None
    crop: tuple | None
    resample: int
    scale: float
    mean: tuple
    std: tuple

    @property
    def output_size(self):
        """(height, width) of what comes out."""
        return self.crop or self.size

    def pixels(self, image):
        """Resizes and crops an image (path, `PIL.Image`, or uint8 array (h, w, 3)) to uint8 (h, w, 3)."""
        image = _to_rgb(image)
        if self.shortest_edge is not None:
            shorter, longer = sorted(image.size)
            other = int(self.shortest_edge * longer / shorter)
            wide = image.width > image.height
            image = image.resize(
                (other, self.shortest_edge) if wide else (self.shortest_edge, other), self.resample
            )
        elif self.size is not None:
            image = image.resize(self.size[::-1], self.resample)
        if self.crop is not None:
            height, width = self.crop
            # Offsets as transformers computes them; PIL fills what lies outside with zeros.
            top, left = (image.height - height) // 2, (image.width - width) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image, np.uint8)

    def normalise(self, pixels):
        """uint8 (..., 3) to float32; runs on the device, so that only bytes cross to it."""
        pixels = pixels.astype(np.float32) * np.float32(self.scale)
        shape = (1,) * (pixels.ndim - 1) + (3,)
        mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (self.mean, self.std))
        return (pixels - mean) / std


def read_image_processor(folder):
    """The `ImageProcessor` of a checkpoint's folder.

    Raises:
      InputError: `preprocessor_config.json` is missing or asks for something unknown.
    """
    path = Path(folder) / "preprocessor_config.json"
    config = read_json(path)
    try:
        size = config.get("size", 224) if config.get("do_resize", True) else None
        shortest_edge = size if isinstance(size, int) else (size or {}).get("shortest_edge")
        crop = config.get("crop_size", size) if config.get("do_center_crop", True) else None
        normalise = config.get("do_normalize", True)
        processor = ImageProcessor(
            shortest_edge=shortest_edge,
            size=_height_and_width(size) if size is not None and shortest_edge is None else None,
            crop=None if crop is None else _height_and_width(crop),
            resample=Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)),
            scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=tuple(config["image_mean"]) if normalise else (0.0,) * 3,
            std=tuple(config["image_std"]) if normalise else (1.0,) * 3,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be followed: {type(error).__name__} {error}") from error
    edges = [] if processor.shortest_edge is None else [processor.shortest_edge]
    lengths = [*edges, *(processor.size or ()), *(processor.crop or ())]
    sizes_fit = all(isinstance(length, int) and length > 0 for length in lengths)
    numbers = [*processor.mean, *processor.std]
    channels_fit = len(processor.mean) == len(processor.std) == 3 and all(
        isinstance(number, int | float) for number in numbers
    )
    if not (sizes_fit and channels_fit):
        raise InputError(
            f"{path} cannot be followed: sizes must be positive, image_mean and image_std 3 numbers"
        )
    if processor.output_size is None:
        raise InputError(
            f"{path} leaves images of different sizes; it needs a crop_size, or a height and width"
        )
    return processor


class Tokenizer:
    """A checkpoint's own `tokenizer.json`, padded and truncated to the text tower's context.

    Args:
      folder: holds `tokenizer.json`, and `tokenizer_config.json` where padding is not by the end token.
      context_length: T, in tokens, start and end included.
      vocabulary_size: how many token ids the text tower knows.
    """

    def __init__(self, folder, context_length, vocabulary_size):
        from transformers import PreTrainedTokenizerFast

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path} is missing: a backbone's folder must hold it to encode texts")
        try:
            self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token=_pad_token(folder))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise InputError(f"cannot read {path}: {error}") from error
        if len(self._tokenizer) > vocabulary_size:
            raise InputError(
                f"{path} has {len(self._tokenizer)} tokens, and config.json a vocabulary of {vocabulary_size}"
            )
        self.context_length = context_length

    def __call__(self, texts):
        """Token ids int32 `(len(texts), T)`, and how many texts were cut to fit."""
        lengths = [len(ids) for ids in self._tokenizer(texts)["input_ids"]]
        encoded = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.context_length
        )
        truncated = sum(length > self.context_length for length in lengths)
        return np.asarray(encoded["input_ids"], np.int32), truncated


def _pad_token(folder):
    config_file = Path(folder) / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    token = config.get("pad_token") or config.get("eos_token") or "<|endoftext|>"
    return token["content"] if isinstance(token, dict) else token


def _to_rgb(image):
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise InputError(f"an image array must be uint8 (h, w, 3); got {image.dtype} {image.shape}")
        return Image.fromarray(image)
    return read_image(image)


def _height_and_width(size):
    if isinstance(size, int):
        return size, size
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return int(size["height"]), int(size["width"])
