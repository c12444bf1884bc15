"""Inputs in batches through a compiled function: one is computed while the next is prepared."""

import os
import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from mlclip_jax.distributed.sharding import split_rows
from mlclip_jax.errors import InputError


def as_list(inputs: Iterable[Any], unit: str) -> list[Any]:
    """Images or texts as a list.

    Raises:
      InputError: it is one alone, whose letters or pixels would be taken for several.
    """
    if isinstance(inputs, str | os.PathLike | Image.Image):
        raise InputError(f"give a list of {unit}, not {reprlib.repr(inputs)} alone")
    return list(inputs)


def padded_batches(
    number: int, batch_size: int, multiple: int, prepare: Callable[[slice], Sequence[np.ndarray]]
) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Slices of rows, and the inputs of each, padded by zeros to as many rows as any other.

    Args:
      number: of all rows.
      batch_size: how many at once, at most, but for what `multiple` adds.
      multiple: divides the number of rows of a batch.
      prepare: makes the inputs of a slice of rows, on the host.
    """
    # A power of two, so that short lists neither wait for a full batch nor compile for every length.
    batch_size = min(batch_size, 1 << (number - 1).bit_length())
    batch_size += -batch_size % multiple
    for start in range(0, number, batch_size):
        rows = slice(start, min(start + batch_size, number))
        yield (
            rows,
            [
                np.pad(array, [(0, batch_size - len(array))] + [(0, 0)] * (array.ndim - 1))
                for array in prepare(rows)
            ],
        )


def run_ahead(
    function: Callable[..., Sequence[jax.Array]],
    mesh: Mesh,
    batches: Iterable[tuple[Any, Sequence[np.ndarray]]],
) -> Iterator[tuple[Any, list[np.ndarray]]]:
    """Pairs of anything and the inputs of a batch, to pairs of that thing and the outputs, on the host.

    Args:
      function: compiled; called with the inputs, whose rows are split over the devices.
      mesh: of these devices.
      batches: the pairs, all of the same shapes.
    """
    running = deque()

    def finish():
        thing, outputs = running.popleft()
        return thing, [np.asarray(output) for output in outputs]

    for thing, inputs in batches:
        running.append((thing, function(*jax.device_put(inputs, split_rows(mesh)))))
        if len(running) > 1:  # one computes while the next is prepared; more would only fill memory
            yield finish()
    while running:
        yield finish()
