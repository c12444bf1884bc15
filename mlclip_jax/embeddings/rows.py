"""Rows of arrays in many files, which are mapped into memory and read when they are asked for."""

import collections.abc
import contextlib
import functools
import os
import resource
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from numpy.typing import DTypeLike

from mlclip_jax.errors import InputError

Index = slice | int | np.integer | Shaped[np.ndarray, "..."]
BLOCK = 1 << 25  # bytes that are held at once where all of a large array is walked through


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

    def __init__(
        self, paths: Iterable[Path], dtype: DTypeLike = np.float32, stored: str | None = None
    ) -> None:
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
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *shapes[0][1:])
        self._map = functools.lru_cache(_most_maps())(lambda shard: _map(self._paths[shard]))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all rows, once they are read."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, rows: Index) -> Shaped[np.ndarray, "..."]:
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

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> Shaped[np.ndarray, "..."]:
        del copy  # rows are always read anew
        return self[:].astype(dtype or self.dtype, copy=False)


class Names(collections.abc.Sequence):
    """A column of strings of Parquet files, which are read when the first string is asked for.

    Args:
      paths: of the files.
      column: its name.
      number: of strings, that all files have together.
    """

    def __init__(self, paths: Iterable[Path], column: str, number: int) -> None:
        self._paths, self._column, self._number = list(paths), column, number

    @functools.cached_property
    def _strings(self) -> Any:
        from pyarrow import parquet

        with refused_parquet(self._paths[0].parent):
            strings = parquet.read_table(self._paths, columns=[self._column])[self._column]
        if len(strings) != self._number:
            raise InputError(
                f"{self._paths[0].parent} names {len(strings)} rows, and there are {self._number} embeddings"
            )
        return strings.combine_chunks()

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return tuple(self._strings[index].to_pylist())
        return self._strings[index].as_py()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, collections.abc.Sequence) and tuple(self) == tuple(other)

    __hash__ = None


class Stacked:
    """The rows of one array after those of another, without a copy of either.

    Args:
      first, second: arrays or `Rows` (n, ...) that differ in n alone.

    Attributes: `shape` and `dtype`, as of an array.
    """

    def __init__(
        self, first: Shaped[np.ndarray | Rows, "N ..."], second: Shaped[np.ndarray | Rows, "M ..."]
    ) -> None:
        self._first, self._second = first, second
        self.shape: tuple[int, ...] = (len(first) + len(second), *first.shape[1:])
        self.dtype, self.ndim = np.dtype(first.dtype), first.ndim
        self.nbytes = first.nbytes + second.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Index) -> Shaped[np.ndarray, "..."]:
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        taken = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        behind = rows >= len(self._first)
        taken[~behind] = self._first[rows[~behind]]
        taken[behind] = self._second[rows[behind] - len(self._first)]
        return taken

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> Shaped[np.ndarray, "..."]:
        del copy  # of two arrays one is always made
        return self[:].astype(dtype or self.dtype, copy=False)


def blocks(array: Shaped[np.ndarray | Rows, "N ..."]) -> Iterator[Shaped[np.ndarray, "M ..."]]:
    """An array or `Rows`, a block of its rows at a time, so that no more is held in memory."""
    rows = max(1, BLOCK * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        yield np.asarray(array[start : start + rows])


@contextlib.contextmanager
def refused_parquet(path: str | os.PathLike) -> Generator[None]:
    """Within the block, what Parquet cannot read is an `InputError` that names `path`."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"cannot read {path} as Parquet: {' '.join(str(error).split())}") from error


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
