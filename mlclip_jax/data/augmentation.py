"""Random changes to images, for methods that train on pixels: functions of a generator and an image.

Each takes a `numpy.random.Generator` and a `PIL.Image` in 8-bit RGB, leaves that as it is, and returns one.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mlclip_jax.errors import InputError

Augment = Callable[[np.random.Generator, Image.Image, tuple[int, int]], Image.Image]


def make_augment(names: str) -> Augment | None:
    """What changes the images of a batch, by its parts' names.

    Args:
      names: some of "random_resized_crop", "flip", "cutout" and "rand_augment", with commas between them, in
        the order in which they are applied; random_resized_crop can only be the first. Empty: nothing.

    Returns:
      A function of a generator, an image and the size `(height, width)` to a changed image, which has that
      size if random_resized_crop is named; None if nothing is.

    Raises:
      InputError: a name is unknown, or there twice, or random_resized_crop is not the first.
    """
    parts = {
        "random_resized_crop": random_resized_crop,
        "flip": lambda random, image, _: random_flip(random, image),
        "cutout": lambda random, image, _: cutout(random, image),
        "rand_augment": lambda random, image, _: rand_augment(random, image),
    }
    given = [name.strip() for name in names.split(",")] if names.strip() else []
    for i, name in enumerate(given):
        if name not in parts:
            raise InputError(f"no augmentation {name!r} (in {names!r}); there are {', '.join(parts)}")
        if name in given[:i]:
            raise InputError(f"augmentation {name} is named twice in {names!r}; name it once")
    if "random_resized_crop" in given[1:]:
        raise InputError(f"random_resized_crop must be the first augmentation; it is not, in {names!r}")

    def augment(random, image, size):
        for name in given:
            image = parts[name](random, image, size)
        return image

    return augment if given else None


def random_resized_crop(
    random: np.random.Generator,
    image: Image.Image,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """A random part of an image, resized.

    The crop of "Going Deeper with Convolutions" (Szegedy et al., 2015), as torchvision defines it.

    Args:
      random: a generator.
      image: a `PIL.Image`.
      size: `(height, width)` of the result.
      scale: bounds of the part's share of the image's area.
      ratio: bounds of its width by its height.
      resample: the filter that resizes it.
    """
    height, width = size
    return image.crop(_crop_box(random, *image.size, scale, ratio)).resize((width, height), resample)


def random_flip(random: np.random.Generator, image: Image.Image) -> Image.Image:
    """An image, mirrored left to right every other time."""
    return ImageOps.mirror(image) if random.random() < 0.5 else image


def cutout(random: np.random.Generator, image: Image.Image, fraction: float = 0.5) -> Image.Image:
    """An image with a box of one random colour in it: ML-Decoder's training (Ridnik et al., 2021) has it.

    The box is centred at a random pixel, and what of it lies outside of the image is lost.

    Args:
      random: a generator.
      image: a `PIL.Image`.
      fraction: of each side of the image, the box's.
    """
    spans = []
    for side in image.size:
        length = int(fraction * side + 0.5)
        start = int(random.integers(side)) - length // 2
        spans.append((max(start, 0), min(start + length, side)))
    (left, right), (top, bottom) = spans
    colour = tuple(int(value) for value in random.integers(256, size=3))
    image = image.copy()
    image.paste(colour, (left, top, right, bottom))
    return image


def rand_augment(
    random: np.random.Generator, image: Image.Image, num_ops: int = 2, magnitude: int = 9, bins: int = 31
) -> Image.Image:
    """An image after some operations drawn from `OPERATIONS`: RandAugment (Cubuk et al., 2020).

    Operations and their ranges are torchvision's, which are those of the paper's code.

    Args:
      random: a generator.
      image: a `PIL.Image`.
      num_ops: how many operations; the same may be drawn again.
      magnitude: of all of them, from 0 to `bins - 1`, the strongest.
      bins: how many magnitudes there are.
    """
    names = list(OPERATIONS)
    for _ in range(num_ops):
        apply, strongest, either_sign = OPERATIONS[names[random.integers(len(names))]]
        value = strongest * magnitude / (bins - 1)
        if either_sign and random.random() < 0.5:
            value = -value
        image = apply(image, value)
    return image


# The operations of `rand_augment`: a function of an image and a value, the value of the strongest magnitude
# (the weakest is 0), and whether its sign is drawn. What comes in from outside of the image is black.
OPERATIONS = {
    "Identity": (lambda image, _: image, 0.0, False),
    "ShearX": (lambda image, value: _moved(image, (1, value, 0, 0, 1, 0)), 0.3, True),
    "ShearY": (lambda image, value: _moved(image, (1, 0, 0, value, 1, 0)), 0.3, True),
    # In parts of the side, for the paper's images of 331 pixels; whole pixels are moved.
    "TranslateX": (
        lambda image, value: _moved(image, (1, 0, -int(value * image.width), 0, 1, 0)),
        150 / 331,
        True,
    ),
    "TranslateY": (
        lambda image, value: _moved(image, (1, 0, 0, 0, 1, -int(value * image.height))),
        150 / 331,
        True,
    ),
    "Rotate": (lambda image, value: image.rotate(value), 30.0, True),  # degrees
    "Brightness": (lambda image, value: ImageEnhance.Brightness(image).enhance(1 + value), 0.9, True),
    "Color": (lambda image, value: ImageEnhance.Color(image).enhance(1 + value), 0.9, True),
    "Contrast": (lambda image, value: ImageEnhance.Contrast(image).enhance(1 + value), 0.9, True),
    "Sharpness": (lambda image, value: ImageEnhance.Sharpness(image).enhance(1 + value), 0.9, True),
    "Posterize": (lambda image, value: ImageOps.posterize(image, 8 - round(value)), 4.0, False),  # bits lost
    "Solarize": (lambda image, value: ImageOps.solarize(image, 255 - value), 255.0, False),  # below white
    "AutoContrast": (lambda image, _: ImageOps.autocontrast(image), 0.0, False),
    "Equalize": (lambda image, _: ImageOps.equalize(image), 0.0, False),
}


def _moved(image, matrix):
    """An image whose pixel (x, y) comes from (a x + b y + c, d x + e y + f), of (a, b, c, d, e, f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _crop_box(random, width, height, scale, ratio):
    """Left, top, right and bottom of a random crop."""
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    # No luck, as with very long images: the largest part of the middle whose ratio is allowed.
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
