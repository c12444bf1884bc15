"""Embeddings in files: one .npz, or a folder of shards that are mapped into memory, not read."""

import collections.abc
import contextlib
import functools
import json
import re
import resource
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing

# What other programs call the arrays of an .npz, in order of preference.
ARRAY_NAMES = {
    "vectors": ("embeddings", "image_embeddings", "text_embeddings", "features"),
    "names": ("names", "filenames"),
    "labels": ("labels", "targets"),
    "label_names": ("label_names", "class_names"),
    "local": ("local", "local_features"),
}
# The folders of shards, as clip-retrieval names them; those of labels and local features are ours.
IMAGES, TEXTS, METADATA, LABELS, LOCAL = "img_emb", "text_emb", "metadata", "labels", "local"
MANIFEST = "manifest.json"
LARGE = 1 << 30  # bytes: an .npy beyond is mapped into memory too
BLOCK = 1 << 25  # bytes that are held at once where all of a large array is walked through


class Embeddings(NamedTuple):
    """Embeddings of N examples and what is known of them.

    Attributes:
      vectors: float32 `(N, D)`, finite, un-normalised; an array or `Rows`.
      names: N names (file names, texts, or classes), or None.
      labels: int8 `(N, K)` in {1, 0, -1}, an array or `Rows`; or None.
      label_names: K names, or None.
      origin: what made them, or None: the fingerprint of a backbone (see `weights.fingerprint`), with the
        `image_size` of images or the `template` of texts.
      local: local features, float32 `(N, T, D)`, finite, un-normalised, an array or `Rows`; or None.
    """

    vectors: np.ndarray
    names: tuple | None = None
    labels: np.ndarray | None = None
    label_names: tuple | None = None
    origin: dict | None = None
    local: np.ndarray | None = None

    def features(self, names):
        """Some features of images by their names, see `methods`: a dict of arrays or `Rows`."""
        known = {"image": self.vectors, "image_local": self.local}
        return {name: known[name] for name in names}


class Rows:
    """The rows of several `.npy` files as one array, in files that are mapped into memory.

    Rows are read, checked to be finite, and converted when they are asked for: `rows[3:5]` or
    `rows[indices]` is an array. `np.asarray(rows)` reads all of them.

    Args:
      paths: of arrays (n, ...) that differ in n alone, floats or int8.
      dtype: of what comes out.
      stored: "bfloat16" where the files hold its bits as uint16; None: what they say.

    Attributes: `shape` and `dtype`, as of an array.

    Raises:
      InputError: a file cannot be read, or its array does not go with the first.
    """

    def __init__(self, paths, dtype=np.float32, stored=None):
        self._paths = list(paths)
        self.dtype = np.dtype(dtype)
        self._stored = None if stored is None else jnp.dtype(stored)
        shapes, kinds = zip(*map(_read_header, self._paths))
        for path, shape, kind in zip(self._paths, shapes, kinds):
            if shape[1:] != shapes[0][1:] or kind != kinds[0]:
                found = f"{kind}{list(shape)} and {kinds[0]}{list(shapes[0])}"
                raise InputError(f"{path} does not go with {self._paths[0]}: they hold {found}")
        # The bits of bfloat16 are stored as integers, which nothing else of floats may be.
        if kinds[0].kind != ("u" if stored else self.dtype.kind):
            raise InputError(f"{self._paths[0]} holds {kinds[0]}, where {stored or self.dtype} are needed")
        self._starts = np.cumsum([0, *(shape[0] for shape in shapes)])
        self.shape = (int(self._starts[-1]), *shapes[0][1:])
        self._map = functools.lru_cache(_most_maps())(lambda shard: _map(self._paths[shard]))

    def __len__(self):
        return self.shape[0]

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def nbytes(self):
        """Of all rows, once they are read."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, rows):
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        if rows.ndim == 0:
            return self[rows[None]][0]
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            values = self._map(int(shard))[rows[here] - self._starts[shard]]
            values = values if self._stored is None else values.view(self._stored)
            values = values.astype(self.dtype)
            if not np.isfinite(values).all():
                bad = rows[here][~np.isfinite(values).reshape(len(values), -1).all(axis=1)][0]
                raise InputError(
                    f"{self._paths[shard]} holds NaN or infinity, in row {bad - self._starts[shard]}; "
                    "remove it or compute it again"
                )
            taken[here] = values
        return taken

    def __array__(self, dtype=None, copy=None):
        del copy  # rows are always read anew
        return self[:].astype(dtype or self.dtype, copy=False)


class Names(collections.abc.Sequence):
    """A column of strings of Parquet files, which are read when the first string is asked for.

    Args:
      paths: of the files.
      column: its name.
      number: of strings, that all files have together.
    """

    def __init__(self, paths, column, number):
        self._paths, self._column, self._number = list(paths), column, number

    @functools.cached_property
    def _strings(self):
        from pyarrow import parquet

        with refused_parquet(self._paths[0].parent):
            strings = parquet.read_table(self._paths, columns=[self._column])[self._column]
        if len(strings) != self._number:
            raise InputError(
                f"{self._paths[0].parent} names {len(strings)} rows, and there are {self._number} embeddings"
            )
        return strings.combine_chunks()

    def __len__(self):
        return self._number

    def __getitem__(self, index):
        if isinstance(index, slice):
            return tuple(self._strings[index].to_pylist())
        return self._strings[index].as_py()

    def __eq__(self, other):
        return isinstance(other, collections.abc.Sequence) and tuple(self) == tuple(other)

    __hash__ = None


def read_embeddings(path):
    """Reads embeddings of any maker.

    From an `.npz` whose arrays are named as in `ARRAY_NAMES` (a single two-dimensional float array needs no
    particular name); an `.npy` of shape (N, D), mapped into memory if it is large; or a folder of such,
    always mapped: one that `mlclip embed` or clip-retrieval wrote, or of `.npy` files alone, in the order
    of the numbers in their names.

    Raises:
      InputError: the file is missing or damaged, holds no embeddings, holds NaN or infinity, or its
        arrays' shapes do not fit one another; or the folder is not finished.
    """
    if Path(path).is_dir():
        return _read_folder(Path(path))
    if Path(path).suffix == ".npy" and Path(path).is_file() and Path(path).stat().st_size > LARGE:
        return Embeddings(_matrix(path, [path]))
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


def read_arrays(path, what="embeddings"):
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
        raise InputError(f"no such file of {what}: {path}") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path} as .npy or .npz: {error}") from error
    except ValueError as error:
        raise InputError(
            f"cannot read {path} as .npy or .npz: it is neither, or holds Python objects"
        ) from error


def write_embeddings(path, embeddings):
    """Writes `Embeddings` to an .npz that `read_embeddings` reads, whole or not at all.

    Raises:
      InputError: the path cannot be written, or does not end in .npz.
    """
    if Path(path).suffix != ".npz" or Path(path).is_dir():
        raise InputError(f"cannot write embeddings to {path}: it must be a file whose name ends in .npz")
    arrays = {
        "embeddings": embeddings.vectors,
        "names": embeddings.names,
        "labels": embeddings.labels,
        "label_names": embeddings.label_names,
        "origin": None if embeddings.origin is None else json.dumps(embeddings.origin),
        "local": embeddings.local,
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: np.asarray(array) for name, array in arrays.items() if array is not None})


def blocks(array):
    """An array or `Rows`, a block of its rows at a time, so that no more is held in memory."""
    rows = max(1, BLOCK * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        yield np.asarray(array[start : start + rows])


def shard_path(folder, kind, shard):
    """Where a shard lies, by its number: `img_emb/img_emb_00007.npy`."""
    suffix = "parquet" if kind == METADATA else "npy"
    return Path(folder) / kind / f"{kind}_{shard:05}.{suffix}"


def list_shards(folder, suffix=".npy"):
    """The files of a folder with this suffix, in the order of the last number in their names."""
    paths = [path for path in Path(folder).glob(f"*{suffix}") if not path.name.startswith(".")]

    def number(path):
        digits = re.findall(r"\d+", path.stem)
        return int(digits[-1]) if digits else -1

    return sorted(paths, key=lambda path: (number(path), path.name))


def read_manifest(folder):
    """The manifest of a folder that `mlclip embed` writes, a dict; None where there is none.

    Raises:
      InputError: it is damaged, or of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["version"] != 1:
            raise InputError(f"{path} has version {manifest['version']!r}, which this release does not read")
        for key in ("complete", "dtype", "label_names", "local", "origin"):
            manifest[key]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise InputError(f"cannot read {path} as a manifest of `mlclip embed`: {reason}") from error
    return manifest


@contextlib.contextmanager
def refused_parquet(path):
    """Within the block, what Parquet cannot read is an `InputError` that names `path`."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"cannot read {path} as Parquet: {' '.join(str(error).split())}") from error


def embedding_files(path):
    """The files behind embeddings: the one at `path`, or those of the shards and the manifest below it."""
    path = Path(path)
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _read_folder(folder):
    manifest = read_manifest(folder)
    kind = next((kind for kind in (IMAGES, TEXTS) if (folder / kind).is_dir()), None)
    if manifest is not None and not manifest["complete"]:
        raise InputError(f"{folder} is not finished; run its command again to resume it")
    paths = list_shards(folder if kind is None else folder / kind)
    if not paths:
        raise InputError(
            f"{folder} holds no embeddings: no .npy file, nor a folder {IMAGES} or {TEXTS} of them"
        )
    stored = None if manifest is None or manifest["dtype"] != "bfloat16" else "bfloat16"
    vectors = _matrix(folder, paths, stored)
    names = labels = local = None
    metadata = [] if kind is None else list_shards(folder / METADATA, ".parquet")
    if metadata:
        column = _name_column(metadata[0], "caption" if kind == TEXTS else "image_path")
        names = None if column is None else Names(metadata, column, len(vectors))
    if manifest is None:
        return Embeddings(vectors, names)
    if len(vectors) != manifest["embeddings"]:
        raise InputError(
            f"{folder} holds {len(vectors)} embeddings, and its manifest says {manifest['embeddings']}"
        )
    if manifest["label_names"]:
        labels = _rows_like(folder / LABELS, vectors, np.int8)
    if manifest["local"]:
        local = _rows_like(folder / LOCAL, vectors, stored=stored)
    label_names = tuple(manifest["label_names"]) or None
    return Embeddings(vectors, names, labels, label_names, manifest["origin"], local)


def _matrix(path, files, stored=None):
    vectors = Rows(files, stored=stored)
    if vectors.ndim != 2 or not len(vectors):
        raise InputError(f"{path} must hold arrays (N, D); they are {list(vectors.shape)} together")
    return vectors


def _rows_like(folder, vectors, *dtype, stored=None):
    """The rows of another folder of shards, that must be as many as the vectors."""
    rows = Rows(list_shards(folder), *dtype, stored=stored) if list_shards(folder) else ()
    if len(rows) != len(vectors):
        raise InputError(f"{folder} has {len(rows)} rows for {len(vectors)} embeddings; copy all its files")
    return rows


def _name_column(path, wanted):
    from pyarrow import parquet

    with refused_parquet(path):
        there = parquet.read_schema(path).names
    return next((name for name in (wanted, "image_path", "key", "caption") if name in there), None)


def _read_header(path):
    """Shape and dtype of a `.npy`."""
    try:
        with Path(path).open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read[version](file)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"cannot read {path} as .npy: {' '.join(str(error).split())}") from error
    if dtype.kind not in "fiu" or len(shape) < 2:
        raise InputError(f"{path} holds {dtype}{list(shape)}, where numbers (N, D) are needed")
    return shape, dtype


def _map(path):
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path} as .npy: {' '.join(str(error).split())}") from error


def _most_maps():
    """How many files may be mapped at once: each takes a descriptor, of which a quarter is used at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(8, min(soft, 1 << 18) // 4)


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
