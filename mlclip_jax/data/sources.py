"""Where examples come from: embeddings computed anywhere, folders of images, and CSV files of labels."""

import contextlib
import csv
import hashlib
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mlclip_jax.errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# What Pillow raises of files that it cannot decode.
UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
# What other programs call the arrays of an .npz, in order of preference.
ARRAY_NAMES = {
    "vectors": ("embeddings", "image_embeddings", "text_embeddings", "features"),
    "names": ("names", "filenames"),
    "labels": ("labels", "targets"),
    "label_names": ("label_names", "class_names"),
    "local": ("local", "local_features"),
}


class Embeddings(NamedTuple):
    """Embeddings of N examples and what is known of them.

    Attributes:
      vectors: float32 `(N, D)`, finite, un-normalised.
      names: N names (file names, texts, or classes), or None.
      labels: int8 `(N, K)` in {1, 0, -1}, or None.
      label_names: K names, or None.
      origin: what made them, or None: the fingerprint of a backbone (see `weights.fingerprint`), with the
        `image_size` of images or the `template` of texts.
      local: local features, float32 `(N, T, D)`, finite, un-normalised, or None.
    """

    vectors: np.ndarray
    names: tuple | None = None
    labels: np.ndarray | None = None
    label_names: tuple | None = None
    origin: dict | None = None
    local: np.ndarray | None = None


class Example(NamedTuple):
    """An image and what is known of it.

    Attributes:
      image: uint8 `(h, w, 3)`, a `PIL.Image`, or a path.
      labels: int8 `(K,)` in {1, 0, -1}.
      caption: a sentence about the image.
    """

    image: np.ndarray | Image.Image | Path
    labels: np.ndarray
    caption: str


class CaptionedImages:
    """A sequence of `Example`s: images in a folder, and a CSV of their captions.

    Args:
      folder: of the images.
      table: CSV with the columns `filename` (below the folder) and `caption`, and perhaps `labels` (names
        joined by `|`). A file may have several rows, one for each of its captions.

    Attributes:
      label_names: K names, sorted; none where the table has no column of labels.
      digest: SHA-256 of the table's rows.

    Raises:
      InputError: the table cannot be read, is no such table, or names a file that is not there.
    """

    def __init__(self, folder, table):
        self._folder = Path(folder)
        by_file = {}  # the rows of one image are neighbours, wherever the table has them
        for row in _read_rows(table, ("filename", "caption")):
            by_file.setdefault(row["filename"], []).append(row)
        self._rows = [row for rows in by_file.values() for row in rows]
        self.digest = hashlib.sha256(json.dumps(self._rows).encode()).hexdigest()
        missing = [row["filename"] for row in self._rows if not (self._folder / row["filename"]).is_file()]
        if missing:
            raise InputError(
                f"{table}: {len(missing)} of {len(self._rows)} files are not in {folder}, "
                f"the first {missing[0]}"
            )
        labels = [_split_labels(row.get("labels") or "") for row in self._rows]
        self.label_names = tuple(sorted(set().union(*labels)))
        columns = {label: k for k, label in enumerate(self.label_names)}
        self._labels = np.zeros((len(self._rows), len(columns)), np.int8)
        for row, present in zip(self._labels, labels):
            row[[columns[label] for label in present]] = 1

    def __len__(self):
        return len(self._rows)

    def cut(self, number):
        """The index from which to hold out at least `number` examples, so that no image is on both sides."""
        start = len(self) - number
        names = [row["filename"] for row in self._rows]
        while 0 < start < len(self) and names[start] == names[start - 1]:
            start -= 1
        return start

    def __getitem__(self, index):
        row = self._rows[index]
        return Example(self._folder / row["filename"], self._labels[index], row["caption"])


def read_embeddings(path):
    """Reads a `.npy` of shape (N, D), or an `.npz` whose arrays are named as in `ARRAY_NAMES`.

    An .npz with a single two-dimensional float array needs no particular name for it.

    Raises:
      InputError: the file is missing or damaged, holds no embeddings, holds NaN or infinity, or its
        arrays' shapes do not fit one another.
    """
    arrays = read_arrays(path)
    origin = _checked_origin(arrays.pop("origin", None))
    vectors = _named(arrays, "vectors")
    if vectors is None:
        matrices = [a for a in arrays.values() if a.ndim == 2 and np.issubdtype(a.dtype, np.floating)]
        vectors = matrices[0] if len(matrices) == 1 else None
    if vectors is None or vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        found = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())
        raise InputError(f"{path} holds no float array (N, D) named {_accepted('vectors')}; it holds {found}")
    if not len(vectors):
        raise InputError(f"{path} holds no embeddings: its array has shape {vectors.shape}")
    vectors = _finite(path, vectors)
    local = _named(arrays, "local")
    if local is not None:
        if local.ndim != 3 or len(local) != len(vectors) or not np.issubdtype(local.dtype, np.floating):
            got = f"{local.dtype}{list(local.shape)}"
            raise InputError(f"{path}: {_accepted('local')} must be floats ({len(vectors)}, T, D); got {got}")
        local = _finite(path, local)
    names, label_names = (_checked_names(path, arrays, what) for what in ("names", "label_names"))
    labels = _named(arrays, "labels")
    if label_names is not None and len(set(label_names)) != len(label_names):
        raise InputError(f"{path} names a label twice; every column of labels needs its own name")
    if names is not None and len(names) != len(vectors):
        raise InputError(f"{path}: {len(names)} names for {len(vectors)} embeddings")
    if labels is not None:
        labels = _checked_labels(path, labels, len(vectors), label_names)
    return Embeddings(
        vectors,
        names=names,
        labels=labels,
        label_names=label_names,
        origin=origin,
        local=local,
    )


def list_images(folder):
    """The image files below a folder, sorted by path, and the files there that are not images.

    Raises:
      InputError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder of images: {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise InputError(f"no image in {folder}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images, [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]


def read_image(path):
    """Decodes a file to an upright 8-bit RGB `PIL.Image`, see `upright_rgb`.

    Raises:
      InputError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return upright_rgb(image)
    except UNREADABLE as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no image format is recognised" if unknown else getattr(error, "strerror", None) or error
        raise InputError(f"cannot read image {path}: {reason}; repair or remove it") from error


def upright_rgb(image):
    """A `PIL.Image` of any mode as an upright one in 8-bit RGB.

    Turned by its EXIF orientation. 16-bit grey is scaled by 255 / 65535 (Pillow itself would clip it); CMYK
    and palettes are converted as Pillow does it; transparency is dropped, and what lies below it shows.

    Raises:
      ValueError: its pixels are floating-point numbers, whose range nothing tells.
    """
    with contextlib.suppress(struct.error):  # a damaged EXIF block turns nothing, and loses nothing
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # to RGB at once, Pillow warns about a palette's transparency
    return image.convert("RGB")


def read_labels(path, names, label_names):
    """Labels from a CSV with the columns `filename` and `labels` (names joined by `|`, or none).

    Args:
      path: the CSV file; rows of files that are not in `names` are left out.
      names: the N examples' file names, as the CSV has them.
      label_names: the K labels to read into columns.

    Returns:
      int8 `(N, K)` of 1 and 0.

    Raises:
      InputError: the file is no such CSV, lacks a row for one of the examples, has two different rows for
        one, or holds a label that is not in `label_names`.
    """
    rows = _read_label_rows(path)
    missing = [name for name in names if name not in rows]
    if missing:
        raise InputError(
            f"{path} has no row for {len(missing)} of {len(names)} images, the first {missing[0]}"
        )
    column = {label: k for k, label in enumerate(label_names)}
    labels = np.zeros((len(names), len(label_names)), np.int8)
    for row, name in zip(labels, names):
        for label in rows[name]:
            if label not in column:
                raise InputError(f"{path}: label {label!r} of {name} is not one of the {len(column)} labels")
            row[column[label]] = 1
    return labels


def read_lines(path):
    """The non-empty lines of a UTF-8 text file, stripped.

    Raises:
      InputError: the file cannot be read, or holds no line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no line of text")
    return lines


def read_arrays(path):
    """The arrays of an `.npz` by name, or that of an `.npy` under the first of `ARRAY_NAMES`.

    Raises:
      InputError: the file is missing or damaged, is neither, or holds Python objects.
    """
    try:
        with Path(path).open("rb") as file:
            loaded = np.load(file, allow_pickle=False)  # a pickle could run code
            if isinstance(loaded, np.ndarray):
                return {ARRAY_NAMES["vectors"][0]: loaded}
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise InputError(f"no such file of embeddings: {path}") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path} as .npy or .npz: {error}") from error
    except ValueError as error:
        raise InputError(
            f"cannot read {path} as .npy or .npz: it is neither, or holds Python objects"
        ) from error


def _finite(path, vectors):
    vectors = vectors.astype(np.float32, copy=False)
    bad_rows = np.flatnonzero(~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1))
    if len(bad_rows):
        raise InputError(
            f"{path}: {len(bad_rows)} of {len(vectors)} embeddings hold NaN or infinity, the first in row "
            f"{bad_rows[0]}; remove those rows or compute them again"
        )
    return vectors


def _named(arrays, what):
    return next((arrays[name] for name in ARRAY_NAMES[what] if name in arrays), None)


def _accepted(what):
    return " or ".join(ARRAY_NAMES[what])


def _checked_names(path, arrays, what):
    """Names as a tuple of strings, or None; bytes are read as UTF-8."""
    names = _named(arrays, what)
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind not in "US":
        got = f"{names.dtype}{list(names.shape)}"
        raise InputError(f"{path}: {_accepted(what)} must be a row of strings; got {got}")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)


def _checked_origin(array):
    """The fingerprint that `write_embeddings` stored; None for whatever others call origin."""
    try:
        origin = json.loads(str(array))
        return origin if {"name", "revision", "sha256"} <= origin.keys() else None
    except (AttributeError, json.JSONDecodeError):
        return None


def _checked_labels(path, labels, num_examples, label_names):
    if labels.ndim != 2 or len(labels) != num_examples:
        raise InputError(f"{path}: labels have shape {labels.shape}, expected ({num_examples}, K)")
    if label_names is not None and len(label_names) != labels.shape[1]:
        raise InputError(f"{path}: {len(label_names)} label names for {labels.shape[1]} columns of labels")
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (1, 0, -1)).all():
        raise InputError(
            f"{path}: labels must be 1 present, 0 absent or -1 unknown; got {labels.flat[0]} and others"
        )
    return labels.astype(np.int8)


def _read_label_rows(path):
    rows = {}
    for row in _read_rows(path, ("filename", "labels")):
        labels = _split_labels(row["labels"])
        if rows.setdefault(row["filename"], labels) != labels:
            raise InputError(f"{path} has two different rows for {row['filename']}")
    return rows


def _split_labels(cell):
    return {label.strip() for label in cell.split("|") if label.strip()}


def _read_rows(path, columns):
    """The rows of a CSV, as dicts, that has these columns."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if not set(columns) <= set(reader.fieldnames or ()):
                wanted = " and ".join(columns)
                raise InputError(f"{path} needs the columns {wanted}; it has {reader.fieldnames}")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {reader.line_num}: {row['filename']} has not one cell per column; "
                        "join labels by |, and quote a cell that holds a comma"
                    )
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
