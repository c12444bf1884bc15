"""Where images come from: what every source is, and folders; see also `tables.py` and `datasets.py`."""

import functools
import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int8
from PIL import Image

from mlclip_jax.data.images import image_suffixes, printable, read_file
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_text
from mlclip_jax.wording import counted, listed


def label_name(name: object) -> str:
    """A label's name without blanks at its ends, in Unicode's composed form (NFC), whichever it comes in."""
    return unicodedata.normalize("NFC", str(name)).strip()


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
      label_names: K strings, which become `label_name`s.
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
        self.label_names = tuple(map(label_name, label_names))
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
        names = listed(printable(path.name) for path in others)
        are = counted(len(others), "file is no image", "files are no images")
        remarks.append(f"{are}, and left out: {names}")
    names = [image.relative_to(folder).as_posix() for image in images]
    return read_files(printable(folder), folder, names, remarks=remarks)


def list_images(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """The image files below a folder, sorted by path, and the files there that are not images.

    Judged by their names alone; a directory or a pipe with the name of an image is among the images. Links to
    folders elsewhere are followed; every folder is entered once.

    Raises:
      InputError: there is no such folder, a folder below it may not be read, or no image is in it.
    """
    if "://" in str(folder):
        raise InputError(f"{printable(folder)} is a URL: download what it names, and give the file or folder")
    if not Path(folder).is_dir():
        if set("*?[") & set(str(folder)):
            raise InputError(
                f"nothing matches {printable(folder)}: give the folder, or leave the quotes away"
            )
        raise InputError(f"no such folder of images: {printable(folder)}")
    images, others, entered, ahead = [], [], set(), [os.fspath(folder)]
    while ahead:
        for place, folders, files in os.walk(ahead.pop(), onerror=_not_listed):
            status = Path(place).stat()
            if (status.st_dev, status.st_ino) in entered:  # a link to it was followed
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            # Links come after all real folders, so that these keep their names.
            ahead += [os.path.join(place, own) for own in folders if os.path.islink(os.path.join(place, own))]  # noqa: PTH114, PTH118
            for name in files:
                path = Path(place, name)
                (images if path.suffix.lower() in image_suffixes() else others).append(path)
            images += [Path(place, own) for own in folders if Path(own).suffix.lower() in image_suffixes()]
    if not images:
        more = len(image_suffixes()) - 2
        raise InputError(f"no image in {printable(folder)}: looked for .jpg, .png and {more} other suffixes")
    return sorted(images), sorted(others)


def _not_listed(error):
    raise InputError(f"cannot list {printable(error.filename)}: {error.strerror}; allow it, or move it away")


def read_lines(path: str | os.PathLike) -> list[str]:
    r"""The non-empty lines of a text file, stripped; they end at `\n` or `\r\n`, and at no other sign.

    Raises:
      InputError: the file cannot be read, or holds no line.
    """
    text = read_text(path)
    if "\r" in text and "\n" not in text:
        raise InputError(f"{path} ends its lines by carriage returns alone; save it with line feeds")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no line of text")
    return lines
