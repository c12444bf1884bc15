"""Where images come from: what every source is, and folders; see also `tables.py` and `datasets.py`."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int8
from PIL import Image

from mlclip_jax.data.images import printable, read_file
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_text

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class Example(NamedTuple):
    """An image and what is known of it.

    Attributes:
      image: the bytes of its file; or a path, uint8 `(h, w, 3)`, or a `PIL.Image`.
      labels: int8 `(K,)` in {1, 0, -1}.
      caption: a sentence about the image, or None.
      name: of the image, or None.
    """

    image: bytes | np.ndarray | Image.Image | Path
    labels: np.ndarray
    caption: str | None = None
    name: str | None = None


class Source:
    """A sequence of `Example`s: N images with what is known of them. An image is read when it is asked for.

    Args:
      title: what this is, for people.
      names: of the images, N strings; an image may be there several times, with several captions.
      read: called with an index, returns the bytes of its file or raises `images.UnreadableImage`.
      labels: int8 `(N, K)` in {1, 0, -1}; or None, for K = 0.
      label_names: K strings.
      captions: N strings, or None.
      remarks: strings: what was kept and what was left out, with counts.
      folder: where the files are, if they are files: index `i` is `folder / names[i]`; or None.

    Attributes: as the arguments, and
      digest: SHA-256 of names, labels and captions.
    """

    def __init__(
        self,
        title: str,
        names: Iterable[str],
        read: Callable[[int], bytes],
        *,
        labels: Int8[np.ndarray, "N K"] | None = None,
        label_names: Iterable[str] = (),
        captions: Iterable[str] | None = None,
        remarks: Iterable[str] = (),
        folder: str | os.PathLike | None = None,
    ) -> None:
        self.title = title
        self.folder = None if folder is None else str(Path(folder).resolve())
        self.names = tuple(names)
        self.read = read
        self.labels = np.zeros((len(self.names), 0), np.int8) if labels is None else labels
        self.label_names = tuple(label_names)
        self.captions = None if captions is None else tuple(captions)
        self.remarks = tuple(remarks)
        if not self.names:
            raise InputError(f"{title} holds no image")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        caption = None if self.captions is None else self.captions[index]
        return Example(self.read(index), self.labels[index], caption, self.names[index])

    @functools.cached_property
    def digest(self) -> str:
        known = json.dumps([self.names, self.label_names, self.captions])
        return hashlib.sha256(known.encode() + np.ascontiguousarray(self.labels).tobytes()).hexdigest()

    def select(self, indices: Iterable[int] | Int[np.ndarray, " N"], title: str | None = None) -> "Source":
        """The examples of these indices, in this order, as a source of their own."""
        indices = [int(i) for i in indices]
        return Source(
            title or self.title,
            [self.names[i] for i in indices],
            lambda index: self.read(indices[index]),
            labels=self.labels[indices],
            label_names=self.label_names,
            captions=None if self.captions is None else [self.captions[i] for i in indices],
            remarks=self.remarks,
            folder=self.folder,
        )

    def changes(self) -> str:
        """SHA-256 of the sizes and times of all files, which tell whether one was replaced."""
        if self.folder is None:
            return ""
        times = hashlib.sha256()
        for name in self.names:
            try:
                status = Path(self.folder, name).stat()
                times.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
            except (OSError, ValueError):
                times.update(b"- ")
        return times.hexdigest()

    def cut(self, number: int) -> int:
        """The index from which to hold out at least `number` examples, so that no image is on both sides.

        The rows of one image must be neighbours, as those of `read_table` are.
        """
        start = len(self) - number
        while 0 < start < len(self) and self.names[start] == self.names[start - 1]:
            start -= 1
        return start


def read_files(title: str, folder: str | os.PathLike, names: Sequence[str], **known: Any) -> Source:
    """A `Source` of files below a folder, by their paths in it."""
    names = list(names)
    return Source(
        title, map(printable, names), lambda i: read_file(Path(folder, names[i])), folder=folder, **known
    )


def read_folder(folder: str | os.PathLike) -> Source:
    """A `Source` of the images below a folder, sorted by path, unlabelled.

    Raises:
      InputError: there is no such folder, or no image in it.
    """
    images, others = list_images(folder)
    remarks = []
    if others:
        listed = ", ".join(printable(path.name) for path in others[:4]) + (", ..." if len(others) > 4 else "")
        remarks.append(f"{len(others)} files are no images and were left out: {listed}")
    names = [image.relative_to(folder).as_posix() for image in images]
    return read_files(printable(folder), folder, names, remarks=remarks)


def list_images(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """The image files below a folder, sorted by path, and the files there that are not images.

    Judged by their names alone; a directory or a pipe with the name of an image is among the images.

    Raises:
      InputError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder of images: {printable(folder)}")
    images, others = [], []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        elif not path.is_dir():
            others.append(path)
    if not images:
        looked_for = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"no image in {printable(folder)}: looked for {looked_for}")
    return images, others


def read_lines(path: str | os.PathLike) -> list[str]:
    """The non-empty lines of a UTF-8 text file, stripped.

    Raises:
      InputError: the file cannot be read, or holds no line.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no line of text")
    return lines
