"""Embeddings in files: one .npz, or a folder of shards that are mapped into memory, not read."""

import dataclasses
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, Shaped

from mlclip_jax.data.sources import label_name
from mlclip_jax.embeddings.rows import Names, Rows, refused_parquet
from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing
from mlclip_jax.provenance import UNKNOWN, Origin

# The features that backbones make, and what they are called in an .npz, by us and by other programs.
FEATURES = {
    "image": ("image", "image_embeddings"),
    "image_local": ("image_local", "local", "local_features"),
    "text": ("text", "text_embeddings"),
    "text_local": ("text_local",),
    "pair": ("pair",),
}
PIXELS = "pixels"  # what a method reads that encodes images its own way; never stored
UNNAMED = ("embeddings", "features")  # what a file may call its only feature, whatever it is of
OTHER_ARRAYS = {
    "names": ("names", "filenames"),
    "labels": ("labels", "targets"),
    "label_names": ("label_names", "class_names"),
    "captions": ("captions",),
}
# The folders of shards, as clip-retrieval names them where it has them.
IMAGES, TEXTS, METADATA, LABELS = "img_emb", "text_emb", "metadata", "labels"
FEATURE_FOLDERS = {"image": IMAGES, "text": TEXTS, "image_local": "local"}  # others are named as the feature
MANIFEST, VERSION = "manifest.json", 2
LARGE = 1 << 30  # bytes: an .npy beyond is mapped into memory too


Feature = Float[np.ndarray | Rows, "N ..."]


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of N examples, and what is known of them.

    Attributes:
      features: by their names: float32 `(N, ...)`, finite, un-normalised, arrays or `Rows`. Those that
        backbones make are `image` (N, D), the embedding; `image_local` (N, T, D), of patches or places; of a
        text or caption `text` (N, D) and `text_local` (N, T, D), of its tokens and zero behind its end; and
        `pair` (N, D'), which BLIP makes of an image and its caption together.
      names: N names (file names, texts, or classes), or None.
      labels: int8 `(N, K)` in {1, 0, -1}, an array or `Rows`; or None.
      label_names: K names, or None.
      captions: N sentences about the images, or None.
      origin: what made them, `UNKNOWN` where that was not recorded.
    """

    features: Mapping[str, Feature]
    names: Sequence[str] | None = None
    labels: Int8[np.ndarray | Rows, "N K"] | None = None
    label_names: tuple[str, ...] | None = None
    captions: Sequence[str] | None = None
    origin: Origin = UNKNOWN

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def vectors(self) -> Feature:
        """The embeddings: of images, or else of texts, or else the first feature that there is."""
        first = next(iter(self.features))
        return self.features[next((name for name in ("image", "text") if name in self.features), first)]

    def only(self, names: Iterable[str]) -> dict[str, Feature]:
        """The features of these names."""
        return {name: self.features[name] for name in names}

    def replace(self, **changes: object) -> "Embeddings":
        """The same with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    def select(self, rows: Shaped[np.ndarray, " M"]) -> "Embeddings":
        """Those in these rows, or where a mask is true."""
        rows = np.arange(len(self))[rows]
        names, captions = (known and tuple(known[i] for i in rows) for known in (self.names, self.captions))
        return self.replace(
            features={name: feature[rows] for name, feature in self.features.items()},
            labels=None if self.labels is None else self.labels[rows],
            names=names,
            captions=captions,
        )


def read_embeddings(path: str | os.PathLike, kind: str = "image", reads: Iterable[str] = ()) -> Embeddings:
    """Reads embeddings of any maker.

    From an `.npz` whose arrays are named as in `FEATURES` and `OTHER_ARRAYS` (a single two-dimensional float
    array needs no particular name); an `.npy` of shape (N, D), mapped into memory if it is large; or a folder
    of such, always mapped: one that `mlclip embed` or clip-retrieval wrote, or of `.npy` files alone, in the
    order of the numbers in their names.

    Args:
      path: of the file or folder.
      kind: the feature, "image" or "text", that an array is which no name says it of.
      reads: names of further features that are wanted, if they are there: arrays or folders of these names.

    Raises:
      InputError: the file is missing or damaged, holds no embeddings, holds NaN or infinity, or its
        arrays' shapes do not fit one another; or the folder is not finished.
    """
    if Path(path).is_dir():
        return _read_folder(Path(path), kind, reads)
    if Path(path).suffix == ".npy" and Path(path).is_file() and Path(path).stat().st_size > LARGE:
        return Embeddings({kind: _matrix(path, [Path(path)])})
    arrays = read_arrays(path)
    origin = _stored_origin(arrays.pop("origin", None))
    features = _features(path, arrays, kind, reads)
    number = len(next(iter(features.values())))
    names, label_names, captions = (
        _checked_names(path, arrays, what) for what in ("names", "label_names", "captions")
    )
    label_names = label_names and tuple(map(label_name, label_names))
    labels = _named(arrays, OTHER_ARRAYS["labels"])
    if label_names is not None and len(set(label_names)) != len(label_names):
        raise InputError(f"{path} names a label twice; every column of labels needs its own name")
    for what, strings in (("names", names), ("captions", captions)):
        if strings is not None and len(strings) != number:
            raise InputError(f"{path}: {len(strings)} {what} for {number} embeddings")
    if labels is not None:
        labels = _checked_labels(path, labels, number, label_names)
    return Embeddings(features, names, labels, label_names, captions, origin)


def _features(path, arrays, kind, reads):
    """The features among the arrays of an .npz, checked."""
    features = {}
    for name in dict.fromkeys((*FEATURES, *reads)):
        feature = _named(arrays, FEATURES.get(name, (name,)))
        if feature is not None:
            features[name] = feature
    unnamed = _named(arrays, UNNAMED)
    if unnamed is None and not features:
        matrices = [a for a in arrays.values() if a.ndim == 2 and np.issubdtype(a.dtype, np.floating)]
        unnamed = matrices[0] if len(matrices) == 1 else None
    if kind not in features and unnamed is not None:
        features = {kind: unnamed} | features
    pooled = next((name for name in ("image", "text", *features) if name in features), None)
    if pooled is None or not _is_float(features[pooled], 2):
        found = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())
        accepted = " or ".join((*UNNAMED, *FEATURES[kind]))
        raise InputError(f"{path} holds no float array (N, D) named {accepted}; it holds {found}")
    number = len(features[pooled])
    if not number:
        raise InputError(f"{path} holds no embeddings: its array has shape {features[pooled].shape}")
    for name, feature in features.items():
        wanted = 3 if name.endswith("_local") else 2
        if not _is_float(feature, wanted) or len(feature) != number:
            got = f"{feature.dtype}{list(feature.shape)}"
            raise InputError(f"{path}: {name} must be floats ({number}, {'T, ' * (wanted - 2)}D); got {got}")
    return {name: finite(path, feature) for name, feature in features.items()}


def _is_float(array, ndim):
    return array.ndim == ndim and np.issubdtype(array.dtype, np.floating)


def read_arrays(path: str | os.PathLike, what: str = "embeddings") -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of an `.npz` by name, or that of an `.npy` under the first of `UNNAMED`.

    Raises:
      InputError: the file is missing or damaged, is neither, or holds Python objects.
    """
    try:
        with Path(path).open("rb") as file:
            loaded = np.load(file, allow_pickle=False)  # a pickle could run code
            if isinstance(loaded, np.ndarray):
                return {UNNAMED[0]: loaded}
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise InputError(f"no such file of {what}: {path}") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path} as .npy or .npz: {error}") from error
    except ValueError as error:
        raise InputError(
            f"cannot read {path} as .npy or .npz: it is neither, or holds Python objects"
        ) from error


def write_embeddings(path: str | os.PathLike, embeddings: Embeddings) -> None:
    """Writes `Embeddings` to an .npz that `read_embeddings` reads, whole or not at all.

    Raises:
      InputError: the path cannot be written, or does not end in .npz.
    """
    if Path(path).suffix != ".npz" or Path(path).is_dir():
        raise InputError(f"cannot write embeddings to {path}: it must be a file whose name ends in .npz")
    known = {
        "names": embeddings.names,
        "labels": embeddings.labels,
        "label_names": embeddings.label_names,
        "captions": embeddings.captions,
        "origin": None if embeddings.origin == UNKNOWN else json.dumps(embeddings.origin.to_dict()),
    }
    known = {**embeddings.features, **known}
    arrays: dict[str, Any] = {name: np.asarray(x) for name, x in known.items() if x is not None}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def shard_path(folder: str | os.PathLike, kind: str, shard: int) -> Path:
    """Where a shard lies, by its number: `img_emb/img_emb_00007.npy`.

    Args:
      folder: of all shards.
      kind: of the array: a feature's name, `LABELS` or `METADATA`.
      shard: its number.
    """
    kind = FEATURE_FOLDERS.get(kind, kind)
    suffix = "parquet" if kind == METADATA else "npy"
    return Path(folder) / kind / f"{kind}_{shard:05}.{suffix}"


def list_shards(folder: str | os.PathLike, suffix: str = ".npy") -> list[Path]:
    """The files of a folder with this suffix, in the order of the last number in their names."""
    paths = [path for path in Path(folder).glob(f"*{suffix}") if not path.name.startswith(".")]

    def number(path):
        digits = re.findall(r"\d+", path.stem)
        return int(digits[-1]) if digits else -1

    return sorted(paths, key=lambda path: (number(path), path.name))


def read_manifest(folder: str | os.PathLike) -> dict | None:
    """The manifest of a folder that `mlclip embed` writes; None where there is none.

    Its `features` are names, its `origin` is an `Origin`.

    Raises:
      InputError: it is damaged, or of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["version"] not in (1, VERSION):
            raise InputError(f"{path} has version {manifest['version']!r}, which this release does not read")
        if manifest["version"] == 1:  # of release 0.1, which knew embeddings and local features
            features = ["image" if manifest["kind"] == IMAGES else "text"]
            manifest["features"] = features + ["image_local"] * manifest["local"]
        manifest["origin"] = Origin.from_dict(manifest["origin"]) or UNKNOWN
        for key in ("complete", "dtype", "label_names", "features"):
            manifest[key]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise InputError(f"cannot read {path} as a manifest of `mlclip embed`: {reason}") from error
    return manifest


def embedding_files(path: str | os.PathLike) -> list[Path]:
    """The files behind embeddings: the one at `path`, or those of the shards and the manifest below it."""
    path = Path(path)
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _read_folder(folder, kind, reads):
    manifest = read_manifest(folder)
    if manifest is not None and not manifest["complete"]:
        raise InputError(f"{folder} is not finished; run its command again to resume it")
    wanted = dict.fromkeys((*FEATURES, *reads)) if manifest is None else manifest["features"]
    paths = {name: list_shards(folder / FEATURE_FOLDERS.get(name, name)) for name in wanted}
    if manifest is None:
        paths = {name: found for name, found in paths.items() if found} or {kind: list_shards(folder)}
    first = next(iter(paths))
    if not paths[first]:
        raise InputError(
            f"{folder} holds no embeddings: no .npy file, nor a folder {IMAGES} or {TEXTS} of them"
        )
    stored = "bfloat16" if manifest is not None and manifest["dtype"] == "bfloat16" else None
    features = {first: _matrix(folder, paths[first], stored)}
    number = len(features[first])
    for name in list(paths)[1:]:
        features[name] = _rows_like(folder / FEATURE_FOLDERS.get(name, name), number, stored=stored)
    names = labels = captions = None
    metadata = list_shards(folder / METADATA, ".parquet")
    if metadata:
        columns = _columns(metadata[0])
        by_preference = ("caption", "key") if first == "text" else ("image_path", "key", "caption")
        column = next((name for name in by_preference if name in columns), None)
        names = None if column is None else Names(metadata, column, number)
        if "caption" in columns and column != "caption":
            captions = Names(metadata, "caption", number)
    if manifest is None:
        return Embeddings(features, names, captions=captions)
    if number != manifest["embeddings"]:
        raise InputError(
            f"{folder} holds {number} embeddings, and its manifest says {manifest['embeddings']}"
        )
    if manifest["label_names"]:
        labels = _rows_like(folder / LABELS, number, np.int8)
    label_names = tuple(manifest["label_names"]) or None
    return Embeddings(features, names, labels, label_names, captions, manifest["origin"])


def _matrix(path, files, stored=None):
    vectors = Rows(files, stored=stored)
    if vectors.ndim != 2 or not len(vectors):
        raise InputError(f"{path} must hold arrays (N, D); they are {list(vectors.shape)} together")
    return vectors


def _rows_like(folder, number, *dtype, stored=None):
    """The rows of another folder of shards, that must be as many as the embeddings."""
    rows = Rows(list_shards(folder), *dtype, stored=stored) if list_shards(folder) else ()
    if len(rows) != number:
        raise InputError(f"{folder} has {len(rows)} rows for {number} embeddings; copy all its files")
    return rows


def _columns(path):
    from pyarrow import parquet

    with refused_parquet(path):
        return parquet.read_schema(path).names


def finite(path: str | os.PathLike, vectors: Float[np.ndarray, "N ..."]) -> Float[np.ndarray, "N ..."]:
    """A feature as float32.

    Raises:
      InputError: some of it is NaN or infinite; `path` is named.
    """
    vectors = vectors.astype(np.float32, copy=False)
    bad_rows = np.flatnonzero(~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1))
    if len(bad_rows):
        raise InputError(
            f"{path}: {len(bad_rows)} of {len(vectors)} embeddings hold NaN or infinity, the first in row "
            f"{bad_rows[0]}; remove those rows or compute them again"
        )
    return vectors


def _named(arrays, names):
    return next((arrays[name] for name in names if name in arrays), None)


def _checked_names(path, arrays, what):
    """Names as a tuple of strings, or None; bytes are read as UTF-8."""
    names = _named(arrays, OTHER_ARRAYS[what])
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind not in "US":
        got = f"{names.dtype}{list(names.shape)}"
        accepted = " or ".join(OTHER_ARRAYS[what])
        raise InputError(f"{path}: {accepted} must be a row of strings; got {got}")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)


def _stored_origin(array):
    """What `write_embeddings` stored; `UNKNOWN` for whatever others call origin."""
    try:
        return Origin.from_dict(json.loads(str(array))) or UNKNOWN
    except json.JSONDecodeError:
        return UNKNOWN


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
