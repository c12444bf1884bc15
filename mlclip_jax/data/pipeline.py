"""Which examples make up which batch, and images read ahead of their use."""

import functools
import json
import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from mlclip_jax.data.images import UnreadableImage, decode_image
from mlclip_jax.data.sources import Source
from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing
from mlclip_jax.streams import Stream

MAX_SKIPPED = 0.01  # of all images, by default
SHOWN = 3  # skipped images in a message


def batch_indices(
    seed: int, step: int, num_examples: int, batch_size: int, stream: Stream = Stream.ORDER
) -> Int32[np.ndarray, " B"]:
    """The examples of global batch `step`: a function of position alone, so that resuming needs no state.

    Each epoch is a fresh permutation of all examples; a batch may span the end of one and the start of the
    next, so every example is seen once per epoch, whatever the batch size.

    Args:
      seed: integer of the run.
      step: t, counted from 0.
      num_examples: N.
      batch_size: B, of the global batch.
      stream: of random numbers, from which the orders follow.

    Returns:
      int32 `(B,)`, indices in [0, N).
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(batch_size, np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _epoch_order(seed, int(epoch), num_examples, stream)[offsets[here]]
    return indices


@functools.lru_cache(maxsize=4)  # of two epochs, of two sets of examples
def _permutation(seed, epoch, num_examples, stream):
    return np.random.default_rng([seed, stream, epoch]).permutation(num_examples)


def _epoch_order(*which):
    with _drawing:  # of all threads that come to a new epoch, one draws it
        return _permutation(*which)


_drawing = threading.Lock()


class TrainingOrder:
    """The examples of steps `first` to `end` - 1, one after the other: a sequence of (position, index).

    Of several processes, each takes its own share of every global batch. The position is that in the whole
    run, step times batch size and so on, from which the randomness of an example follows.

    Args:
      seed, num_examples, batch_size: as of `batch_indices`.
      first, end: steps.
      process, num_processes: whose share; the processes' number must divide the batch.
    """

    def __init__(
        self,
        seed: int,
        num_examples: int,
        batch_size: int,
        first: int,
        end: int,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        if batch_size % num_processes:
            raise InputError(f"a batch of {batch_size} cannot be split over {num_processes} processes")
        self._order = seed, num_examples, batch_size
        self._share = batch_size // num_processes
        self._first, self._end, self._process = first, end, process

    def __len__(self) -> int:
        return (self._end - self._first) * self._share

    def __getitem__(self, number: int) -> tuple[int, int]:
        step, offset = divmod(number, self._share)
        step, offset = self._first + step, self._process * self._share + offset
        seed, num_examples, batch_size = self._order
        index = _cached_indices(seed, step, num_examples, batch_size)[offset]
        return step * batch_size + offset, int(index)


_cached_indices = functools.lru_cache(maxsize=256)(batch_indices)


class OnceOrder:
    """Examples one after the other, padded to whole batches: a sequence of (position, index or -1).

    Of several processes, each takes its own share of every batch, so that all have as many.

    Args:
      indices: of the examples, a sequence.
      batch_size: of the global batch.
      process, num_processes: whose share; the processes' number must divide the batch.
    """

    def __init__(
        self,
        indices: Sequence[int] | Int[np.ndarray, " N"],
        batch_size: int,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        if batch_size % num_processes:
            raise InputError(f"a batch of {batch_size} cannot be split over {num_processes} processes")
        self._indices, self._batch_size = indices, batch_size
        self._share, self._process = batch_size // num_processes, process

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size) * self._share

    def __getitem__(self, number: int) -> tuple[int, int]:
        batch, offset = divmod(number, self._share)
        position = batch * self._batch_size + self._process * self._share + offset
        return position, int(self._indices[position]) if position < len(self._indices) else -1


class Batch(NamedTuple):
    """Examples, and which they are.

    Attributes:
      data: dict of arrays (b, ...); zeros where `indices` is -1. Empty if that is everywhere.
      indices: int (b,), of the examples in their source; -1 where there is none, or one that cannot be read.
      skipped: pairs (index, reason) of the examples that could not be read.
    """

    data: dict
    indices: np.ndarray
    skipped: tuple


def read_batches(
    source: Any,
    order: TrainingOrder | OnceOrder,
    batch_size: int,
    prepare: Callable[[Any, int], dict],
    *,
    replace: int | None = None,
    num_threads: int | None = None,
    num_workers: int = 0,
) -> Generator[Batch]:
    """Reads examples in an order, in batches, ahead of their use; what comes depends on the order alone.

    Args:
      source: a sequence of `sources.Example`; to ask for one may raise `UnreadableImage`.
      order: a `TrainingOrder` or `OnceOrder`.
      batch_size: b, of this process.
      prepare: `prepare(example, position)` returns a dict of arrays, or raises `UnreadableImage`.
      replace: of how many examples, the source's first, the next that can be read takes the place of one
        that cannot; None: its place stays empty.
      num_threads: that read and prepare; by default one for each core that this process may use.
      num_workers: processes that do so in place of this one, each with as many threads; 0 for none.

    Yields:
      `Batch`es.
    """
    import grain

    num_threads = num_threads or _usable_cores()
    sequence: Any = order
    dataset = grain.MapDataset.source(sequence).map(_Read(source, prepare, replace))
    if num_workers:
        _mark_flags_as_parsed()
        # Whole batches are dealt out to the processes: single examples would make up others.
        ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        dataset = dataset.batch(batch_size, batch_fn=_stack).to_iter_dataset(ahead).mp_prefetch(workers)
    else:
        ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * batch_size + num_threads)
        dataset = dataset.to_iter_dataset(ahead).batch(batch_size, batch_fn=_stack)
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


class _Read:
    """An example of an order: its data, its index and what was skipped. A class, so that it can be sent."""

    def __init__(self, source, prepare, replace):
        self._source, self._prepare, self._replace = source, prepare, replace

    def __call__(self, position_and_index):
        position, index = position_and_index
        skipped = []
        while index >= 0:
            try:
                return self._prepare(self._source[index], position), index, tuple(skipped)
            except UnreadableImage as error:
                skipped.append((index, str(error)))
            replaced = self._replace is not None and len(skipped) < self._replace
            index = (index + 1) % self._replace if replaced else -1
        return None, -1, tuple(skipped)


def _stack(examples):
    indices = np.array([index for _, index, _ in examples])
    skipped = tuple(pair for _, _, own in examples for pair in own)
    like = next((data for data, _, _ in examples if data is not None), {})
    data = {name: np.zeros((len(examples), *np.shape(x)), np.asarray(x).dtype) for name, x in like.items()}
    for row, (own, _, _) in enumerate(examples):
        for name, x in (own or {}).items():
            data[name][row] = x
    return Batch(data, indices, skipped)


def _usable_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _mark_flags_as_parsed():
    # Grain's workers take absl's own flags along, which the command line here does not use.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def readable(source: Source, skipped: "Skipped") -> Int[np.ndarray, " N"]:
    """Which images of a source can be decoded; the others are added to `skipped`.

    For what reads images twice or by itself, and should not end at one that is damaged.

    Raises:
      InputError: too many cannot be.
    """

    def reason(index):
        try:
            decode_image(source.read(index))
        except UnreadableImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(reason, range(len(source))))
    skipped.add((index, why) for index, why in enumerate(reasons) if why is not None)
    return np.flatnonzero([why is None for why in reasons])


class Skipped:
    """The images that could not be read: counted, listed in a file, and refused above a fraction.

    Args:
      names: of all images.
      path: of the report, JSON Lines of `name` and `reason`; or None.
      max_fraction: of all images.

    Attributes: as the arguments, and
      reasons: dict from indices to reasons.
    """

    def __init__(
        self,
        names: Sequence,
        path: str | os.PathLike | None,
        max_fraction: float = MAX_SKIPPED,
    ) -> None:
        self.names, self.path, self.max_fraction = names, path, max_fraction
        self.reasons = {}

    def add(self, pairs: Iterable[tuple[int, str]]) -> None:
        """Notes examples by (index, reason).

        Raises:
          InputError: these are too many; the report is written.
        """
        self.reasons.update(pairs)
        if len(self.reasons) > self.max_fraction * len(self.names):
            self.write()
            shown = [f"{self.names[i]} ({why})" for i, why in sorted(self.reasons.items())[:SHOWN]]
            listed = f"; {self.path} lists them" if self.path else ""
            raise InputError(
                f"{len(self.reasons)} of {len(self.names)} images cannot be read, and "
                f"max_skipped={self.max_fraction:g} allows fewer: {', '.join(shown)}{listed}"
            )

    def write(self) -> None:
        """Writes the report, a line for each image, in their order; none where all could be read."""
        if self.path is None:
            return
        if not self.reasons:
            Path(self.path).unlink(missing_ok=True)  # of an earlier attempt
            return
        with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for index, reason in sorted(self.reasons.items()):
                file.write(json.dumps({"name": self.names[index], "reason": reason}) + "\n")

    def read(self, path: str | os.PathLike | None = None) -> None:
        """Takes over the report of the part of a run that came before, or of another process, at `path`."""
        path = Path(path or self.path or "")
        if path.is_file():
            known = {name: index for index, name in enumerate(self.names)}
            lines = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)
            self.add((known[line["name"]], line["reason"]) for line in lines if line["name"] in known)

    def __str__(self) -> str:
        listed = f"{self.path} lists them" if self.path else ", ".join(self.names[i] for i in self.reasons)
        return (
            f"{len(self.reasons)} of {len(self.names)} images could not be read and were left out: {listed}"
        )
