"""The built-in world: scenes of several objects, with labels and captions, drawn from (seed, index).

The objects are icons of DejaVu Sans, the font that Matplotlib ships. Any number of scenes exists, every one
of them a pure function of its seed, its index and the settings, so that nothing has to be stored.
"""

import csv
import functools
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlclip_jax.data.sources import Example
from mlclip_jax.errors import InputError
from mlclip_jax.files import make_folder, replacing
from mlclip_jax.texts.templates import TEMPLATES, fill

# What adapters are trained on, and what they have never been trained on; the built-in CLIP knows both.
ICONS = {
    "airplane": "✈",
    "anchor": "⚓",
    "cloud": "☁",
    "coffee cup": "☕",
    "envelope": "✉",
    "flag": "⚑",
    "flower": "✿",
    "gear": "⚙",
    "heart": "♥",
    "horse": "♞",
    "house": "⌂",
    "lightning bolt": "⚡",
    "moon": "☾",
    "pencil": "✏",
    "scales": "⚖",
    "scissors": "✂",
    "skull": "☠",
    "snowflake": "❄",
    "snowman": "☃",
    "star": "★",
    "sun": "☀",
    "swords": "⚔",
    "telephone": "☎",
    "umbrella": "☂",
}
OTHER_ICONS = {
    "castle": "♜",
    "clover": "☘",
    "crown": "♛",
    "dice": "⚄",
    "hand": "✌",
    "hammers": "⚒",
    "keyboard": "⌨",
    "music notes": "♫",
    "smiley face": "☺",
    "wheelchair": "♿",
}
LABELS = tuple(ICONS)
OTHER_LABELS = tuple(OTHER_ICONS)
# What adapters are trained on, and more.
CAPTIONS = (
    *TEMPLATES,
    "{labels}.",
    "a colourful picture of {labels}.",
    "a drawing of {labels}.",
    "a scene that shows {labels}.",
    "a view of {labels}.",
    "look at {labels}.",
    "someone drew {labels}.",
    "the image contains {labels}.",
    "the photo has {labels} in it.",
    "there {is} {labels} in the scene.",
    "this picture shows {labels}.",
    "we see {labels}.",
    "you can see {labels} here.",
    "{labels} in a picture.",
    "{labels} in front of a colourful background.",
)


class Difficulty(NamedTuple):
    """How hard scenes are to read.

    Attributes:
      min_objects, max_objects: how many objects a scene is meant to hold, uniformly.
      min_size, max_size: of an object's longer side, as a fraction of the scene's.
      overlap: how much of an object's box another one's may cover, in [0, 1]; an object for which no place
        is found is left out, and is not among the labels.
      rotation: of an object, either way, in degrees.
      clutter: how many marks without a meaning are drawn below the objects.
      noise: standard deviation of each pixel, in [0, 255].
    """

    min_objects: int = 1
    max_objects: int = 5
    min_size: float = 0.28
    max_size: float = 0.5
    overlap: float = 0.2
    rotation: float = 15.0
    clutter: int = 6
    noise: float = 8.0


DEFAULT = Difficulty()


class Scenes:
    """A sequence of `Example`s, whose images are uint8 `(side, side, 3)`.

    `scenes[i]` is a function of `seed`, `i` and the settings alone.

    Args:
      seed: integer; different seeds show different scenes.
      number: how many there are, at most 2**32.
      label_names: which objects occur, out of `LABELS` and `OTHER_LABELS`; the columns of the labels.
      side: of the images, in pixels.
      difficulty: a `Difficulty`.
      partial: the fraction of captions that name only part of the objects.

    Attributes:
      digest: SHA-256 of all these.

    Raises:
      InputError: there is no such object, or a setting is out of range.
    """

    def __init__(
        self,
        seed: int,
        number: int,
        *,
        label_names: Sequence[str] = LABELS,
        side: int = 64,
        difficulty: Difficulty = DEFAULT,
        partial: float = 0.5,
    ) -> None:
        icons = ICONS | OTHER_ICONS
        unknown = [name for name in label_names if name not in icons]
        if unknown:
            raise InputError(f"the world has no {unknown[0]!r}; it has {', '.join(icons)}")
        _check(seed, number, label_names, side, difficulty, partial)
        self.seed = seed
        self.label_names = tuple(label_names)
        self.side = side
        self.difficulty = difficulty
        self.partial = partial
        self.digest = hashlib.sha256(
            repr((seed, number, self.label_names, side, difficulty, partial)).encode()
        ).hexdigest()
        self._number = number
        self._sizes = tuple(round(side * size) for size in (difficulty.min_size, difficulty.max_size))

    def __len__(self) -> int:
        return self._number

    @property
    def names(self) -> range:
        """The scenes' numbers."""
        return range(len(self))

    def cut(self, number: int) -> int:
        """The index from which to hold out `number` scenes."""
        return len(self) - number

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._number:
            raise IndexError(f"scene {index} of {self._number}")
        # A counter-based generator: its state is its position, and costs nothing to make.
        random = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        image = self._background(random)
        labels = self._draw_objects(random, image)
        np.clip(image, 0, 255, out=image)
        return Example(image.astype(np.uint8), labels, self._caption(random, labels))

    def _background(self, random):
        side = self.side
        low, high = random.uniform(20, 235, (2, 3)).astype(np.float32)
        fields = _fields(side)
        row, column = random.integers(0, side, 2)
        field = fields[random.integers(len(fields)), row : row + side, column : column + side]
        contrast = np.float32(random.uniform(0, 1))
        image = low + (contrast * (high - low)) * field[:, :, None]
        for _ in range(self.difficulty.clutter):
            mark = _marks(side)[random.integers(24)]
            top, left = random.integers(0, side - np.array(mark.shape))
            colour = low + random.uniform(-60, 60, 3).astype(np.float32)
            _blend(image, mark, top, left, colour)
        if self.difficulty.noise:
            row, column = random.integers(0, side, 2)
            grain = _grain(side)[row : row + side, column : column + side]
            image += np.float32(self.difficulty.noise) * grain
        return image

    def _draw_objects(self, random, image):
        difficulty, side = self.difficulty, self.side
        labels = np.zeros(len(self.label_names), np.int8)
        most = min(difficulty.max_objects, len(labels))
        wanted = random.integers(min(difficulty.min_objects, most), most, endpoint=True)
        boxes = np.zeros((0, 4))
        for label in random.choice(len(labels), wanted, replace=False):
            size = int(random.integers(*self._sizes, endpoint=True))
            angle = int(random.integers(-2, 2, endpoint=True))
            icon = _icon(self.label_names[label], size, angle * difficulty.rotation / 2)
            height, width = icon.shape
            # Several places at once; the first that is free enough is taken.
            tops = random.integers(0, side - height, 16, endpoint=True)
            lefts = random.integers(0, side - width, 16, endpoint=True)
            candidates = np.stack([tops, lefts, tops + height, lefts + width], axis=1)
            free = np.flatnonzero(_covered(candidates, boxes) <= difficulty.overlap)
            colours = random.uniform(0, 255, (4, 3)).astype(np.float32)
            if not len(free):
                continue
            top, left, bottom, right = candidates[free[0]]
            behind = image[top:bottom, left:right].reshape(-1, 3).mean(axis=0)
            colour = colours[np.argmax(np.abs(colours - behind).sum(axis=1))]
            _blend(image, icon, top, left, colour)
            boxes = np.concatenate([boxes, candidates[free[:1]]])
            labels[label] = 1
        return labels

    def _caption(self, random, labels):
        present = random.permutation(np.flatnonzero(labels))
        if random.random() < self.partial:
            present = present[: random.integers(1, len(present), endpoint=True)]
        template = CAPTIONS[random.integers(len(CAPTIONS))]
        return fill(template, [self.label_names[label] for label in present])


def write_scenes(scenes: Scenes, folder: str | os.PathLike) -> None:
    """Writes scenes as `images/000000.jpg`, ..., and `labels.csv` (filename, labels, caption) beside them.

    The JPEGs are nearly lossless: quality 95, without chroma subsampling.

    Raises:
      InputError: the folder cannot be written, or holds images already.
    """
    folder = Path(folder)
    make_folder(folder / "images")
    if any((folder / "images").iterdir()) or (folder / "labels.csv").exists():
        raise InputError(f"{folder} holds images or labels already; remove them, or name another folder")
    with (
        replacing(folder / "labels.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(["filename", "labels", "caption"])
        for index in range(len(scenes)):
            scene, name = scenes[index], f"{index:06}.jpg"
            Image.fromarray(np.asarray(scene.image)).save(folder / "images" / name, quality=95, subsampling=0)
            present = [scenes.label_names[label] for label in np.flatnonzero(scene.labels)]
            table.writerow([name, "|".join(present), scene.caption])


def _blend(image, mask, top, left, colour):
    """Paints `colour` over `image`, in place, as far as `mask` (h, w) in [0, 1] covers it."""
    height, width = mask.shape
    region = image[top : top + height, left : left + width]
    region += mask[:, :, None] * (colour - region)


def _covered(candidates, boxes):
    """Largest overlap of each candidate (n, 4) with any of the boxes (m, 4), over the smaller area."""
    if not len(boxes):
        return np.zeros(len(candidates))
    low = np.maximum(candidates[:, None, :2], boxes[None, :, :2])
    high = np.minimum(candidates[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (candidates, boxes)]
    return (shared / np.minimum(areas[0][:, None], areas[1][None])).max(axis=1)


@functools.cache
def _icon(name, size, angle):
    """An object's shape as coverage in [0, 1], float32, its longer side `size` pixels."""
    large = _large_icon(name).rotate(angle, Image.Resampling.BICUBIC, expand=True)
    large = large.crop(large.getbbox())
    scale = size / max(large.size)
    width, height = (max(1, round(length * scale)) for length in large.size)
    return np.asarray(large.resize((width, height), Image.Resampling.BOX), np.float32) / 255


@functools.cache
def _large_icon(name):
    icon = (ICONS | OTHER_ICONS)[name]
    canvas = Image.new("L", (512, 512))
    ImageDraw.Draw(canvas).text((256, 256), icon, fill=255, font=_font(256), anchor="mm")
    return canvas.crop(canvas.getbbox())


@functools.cache
def _font(size):
    import matplotlib  # slow to import, and here for its font alone

    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


@functools.cache
def _marks(side):
    """Small strokes and dots, as coverage in [0, 1]."""
    random = np.random.default_rng(0)
    marks = []
    for _ in range(24):
        length = max(3, round(side * random.uniform(0.06, 0.2)))
        canvas = Image.new("L", (4 * length, 4 * length))
        ends = random.uniform(0, 4 * length, 4)
        ImageDraw.Draw(canvas).line(list(ends), fill=255, width=max(4, side // 12))
        marks.append(np.asarray(canvas.resize((length, length), Image.Resampling.BOX), np.float32) / 255)
    return marks


@functools.cache
def _fields(side):
    """Backgrounds to cut a window from: values in [0, 1], float32 (F, 2 side, 2 side)."""
    random = np.random.default_rng(0)
    across = np.linspace(0, 1, 2 * side)
    fields = []
    for _ in range(16):  # slopes
        angle = random.uniform(0, 2 * math.pi)
        slope = np.cos(angle) * across[None] + np.sin(angle) * across[:, None]
        fields.append((slope - slope.min()) / np.ptp(slope))
    for _ in range(16):  # soft stripes
        angle, waves = random.uniform(0, math.pi), random.uniform(3, 12)
        slope = np.cos(angle) * across[None] + np.sin(angle) * across[:, None]
        fields.append(0.5 + 0.5 * np.sin(2 * math.pi * waves * slope))
    for cells in np.repeat([4, 6, 8, 12], 8):  # clouds of several sizes
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells), dtype=np.uint8))
        fine = coarse.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
        fields.append(np.asarray(fine, np.float64) / 255)
    return np.stack(fields).astype(np.float32)


@functools.cache
def _grain(side):
    return np.random.default_rng(0).normal(size=(2 * side, 2 * side, 1)).astype(np.float32)


def _check(seed, number, label_names, side, difficulty, partial):
    d = difficulty
    smallest, largest = f"min_size={d.min_size}", f"max_size={d.max_size}"
    fewest, most = f"min_objects={d.min_objects}", f"max_objects={d.max_objects}"
    conditions = {
        f"seed={seed} is outside [0, 2147483647]": 0 <= seed < 2**31,
        f"number={number} is outside [0, 4294967296]": 0 <= number <= 2**32,
        "label_names is empty": len(label_names) >= 1,
        f"label_names={list(label_names)} names a label twice": len(set(label_names)) == len(label_names),
        f"side={side} is outside [16, 512]": 16 <= side <= 512,
        f"partial={partial} is outside [0, 1]": 0 <= partial <= 1,
        f"{fewest} is less than 1, or more than {most}": 1 <= d.min_objects <= d.max_objects,
        f"{smallest} is not above 0, or more than {largest}": 0 < d.min_size <= d.max_size,
        f"{largest} is more than 0.7": d.max_size <= 0.7,
        f"overlap={d.overlap} is outside [0, 1]": 0 <= d.overlap <= 1,
        f"rotation={d.rotation} is outside [0, 180]": 0 <= d.rotation <= 180,
        f"clutter={d.clutter} is less than 0": d.clutter >= 0,
        f"noise={d.noise} is outside [0, 255]": 0 <= d.noise <= 255,
    }
    for wrong, holds in conditions.items():
        if not holds:
            raise InputError(wrong)
