"""Checkpoints of a run, through orbax's v1 API: what is trained, and the origin of what is frozen."""

import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from mlclip_jax.distributed.processes import all_or_none, all_processes, is_first
from mlclip_jax.errors import InputError
from mlclip_jax.progress import warn
from mlclip_jax.provenance import UNKNOWN, Origin

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # by bytes
METRIC = "mAP_percent"  # of an evaluation; the checkpoint with the highest is kept


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for pending saves when it is left.

    A save returns once the arrays are copied, and is written in the background, to a temporary name that is
    renamed when it is whole: a killed run leaves the checkpoint before it. Of several processes all must make
    the same calls, and see the same folder.

    Args:
      folder: where they are kept, one subfolder per step.
      origin: of what was frozen in training, with the hashes of the labels and, where there are any, of the
        images that were trained on and of the parameters that it began with.
      config: of the run, a dict that is kept with each of them.
      scored_on: digest of what the metric is measured on; the best is chosen among those of the same. By
        default, as in the latest that has a metric.
      read_only: leave the folder as it is; a run may be writing there. Only one run may do otherwise.
      keep: how many of the latest are kept, beside the best.

    Raises:
      InputError: there is no checkpoint to read.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        origin: Origin,
        *,
        config: dict | None = None,
        scored_on: str | None = None,
        read_only: bool = False,
        keep: int = 2,
    ) -> None:
        if read_only and not has_checkpoints(folder):
            raise InputError(f"no checkpoint in {folder}: start the command of this run again")
        self.folder = Path(folder).absolute()
        self._origin = origin
        self._kept_with_each = {"origin": origin.to_dict(), "config": config or {}, "scored_on": scored_on}
        self._read_only, self._keep = read_only, keep
        self._pending = None
        self._checkpointer = self._open()
        self.best = self._find_best()

    def _open(self):
        policies = ocp.training.preservation_policies
        kept: Any = policies.AnyPreservationPolicy([policies.LatestN(self._keep), _Best(self)])
        every: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)  # the caller decides when
        return ocp.training.Checkpointer(
            str(self.folder),
            preservation_policy=kept,
            save_decision_policy=every,
            cleanup_tmp_directories=not self._read_only,
        )

    def __enter__(self) -> "Checkpoints":
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_quiet())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._quiet, self._refusing_what_cannot_be_written():
                self._checkpointer.close()
        except Exception:
            if kind is None:  # otherwise what went wrong before says more
                raise

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self._checkpointer.checkpoints)

    def _find_best(self):
        scored = []
        for checkpoint in self._checkpointer.checkpoints:
            with contextlib.suppress(Exception), _quiet():  # what cannot be read is not the best
                kept = self._checkpointer.checkpointables_metadata(checkpoint.step).custom_metadata
                if kept["metric"] is not None:
                    scored.append((kept["metric"], checkpoint.step, kept["scored_on"]))
        wanted = self._kept_with_each["scored_on"]
        if wanted is None and scored:
            _, _, wanted = max(scored, key=lambda known: known[1])
        same = [(metric, -step) for metric, step, scored_on in scored if scored_on == wanted]
        if not same:
            return None, None
        metric, step = max(same)  # of several that are equal, the first
        return -step, metric

    def save(self, step: int, state: dict, metric: float | None = None) -> None:
        """Saves a dict of trees of arrays, as of after `step` steps.

        Args:
          step: how many steps were done.
          state: may be given up afterwards.
          metric: of an evaluation of this state.

        Raises:
          InputError: it, or the one before it, cannot be written.
        """
        self.check()
        if metric is not None and (self.best[1] is None or metric > self.best[1]):
            self.best = step, metric
        known = self._kept_with_each | {
            "metric": metric,
            "checksums": {name: checksums(tree) for name, tree in state.items()},
        }
        with self._refusing_what_cannot_be_written():
            self._pending = self._checkpointer.save_checkpointables_async(step, state, custom_metadata=known)

    def check(self) -> None:
        """Finds out, without waiting, whether what is written in the background has failed.

        Raises:
          InputError: it has.
        """
        if self._pending is not None:
            with self._refusing_what_cannot_be_written(), contextlib.suppress(TimeoutError):
                self._pending.result(timeout=0)
                self._pending = None

    def wait(self) -> None:
        """Waits until what was saved is whole on the disk.

        Raises:
          InputError: it cannot be written.
        """
        with self._refusing_what_cannot_be_written():
            self._checkpointer.wait()

    def restore(self, abstract_state: dict, step: int | None = None) -> tuple[int, dict]:
        """The newest checkpoint that can be read, and its step; or that of `step` alone.

        One that is damaged is reported, and set aside under another name, unless the folder is to be left as
        it is; then the one before it is taken.

        Args:
          abstract_state: what to read: trees of shapes, dtypes and shardings (see `abstract`).
          step: which, or None.

        Raises:
          InputError: there is none, none can be read, or it was trained on other frozen weights or settings.
        """
        self.wait()
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        if not steps:
            raise InputError(f"no checkpoint in {self.folder}: train first")
        if step is not None and step not in steps:
            raise InputError(
                f"no checkpoint of step {step} in {self.folder}; there are {', '.join(map(str, steps))}"
            )
        reasons, candidates = [], [step] if step is not None else steps[::-1]
        for candidate in candidates:
            with all_or_none():
                reason = self._what_is_wrong(candidate, abstract_state)
            if all_processes(reason is None):
                state, reason = self._load(candidate, abstract_state)
                # What is split over processes has checksums that all of them compute together.
                if all_processes(reason is None):
                    reason = self._what_has_changed(candidate, state)
                    if all_processes(reason is None):
                        return candidate, state
            reason = reason or "another process cannot read it"
            reasons.append(f"{candidate} ({reason})")
            if candidate != candidates[-1]:
                warn(f"the checkpoint {self.folder}/{candidate} is damaged ({reason})")
                if not self._read_only:
                    self._set_aside(candidate)
        raise InputError(
            f"cannot read the checkpoint {self.folder}/{'; '.join(reasons)}; if it is damaged, restore it, "
            "or remove the folder to begin anew; if another version made it, give another --workdir"
        )

    def _what_is_wrong(self, step, abstract_state):
        """Why a checkpoint cannot be read, as its description says; None if it may be.

        Raises:
          InputError: it was trained on other frozen weights, with other settings, or by another version.
        """
        try:
            there = self._checkpointer.checkpointables_metadata(step)
            kept = there.custom_metadata
            trained_on = Origin.from_dict(kept["origin"]) or UNKNOWN
        except Exception as error:  # orbax has no common base for what a damaged checkpoint raises
            return _in_words(error)
        if not trained_on.same_training(self._origin):
            had, has = (repr(origin.template) for origin in (trained_on, self._origin))
            texts = f" with class texts {had}, not {has}" if had != has else ""
            raise InputError(
                f"the checkpoint in {self.folder} was trained on {trained_on}, not on {self._origin}{texts}; "
                "give what it was trained on, or another --workdir"
            )
        if not abstract_state.keys() <= kept.get("checksums", {}).keys():
            raise InputError(
                f"the checkpoint {self.folder}/{step} was made by another version; give another --workdir"
            )
        for name, tree in abstract_state.items():
            if there.metadata.get(name) is None:
                return f"its {name} cannot be read"
            found, wanted = _shapes(there.metadata[name]), _shapes(tree)
            if found != wanted:
                path = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
                has, asked = found.get(path, "no such array"), wanted.get(path, "none")
                raise InputError(
                    f"the checkpoint {self.folder}/{step} was made by other settings or another version: "
                    f"of its {name}, {path} is {has}, not {asked}; give another --workdir"
                )
        return None

    def _load(self, step, abstract_state):
        """The state of a checkpoint and None; or None, and why it cannot be read."""
        try:
            return self._checkpointer.load_checkpointables(step, abstract_state), None
        except Exception as error:  # as above
            return None, _in_words(error)

    def _what_has_changed(self, step, state):
        """Which part of a state is not what was saved, in words; or None."""
        saved = self._checkpointer.checkpointables_metadata(step).custom_metadata["checksums"]
        changed = [name for name, tree in state.items() if checksums(tree) != saved[name]]
        return f"its {changed[0]} are not those that were saved" if changed else None

    def _set_aside(self, step):
        self._checkpointer.close()
        with all_or_none():  # and none looks before it is gone
            if is_first():
                place = self.folder / f"damaged-{step}"
                shutil.rmtree(place, ignore_errors=True)  # of the same step, another time
                try:
                    (self.folder / str(step)).rename(place)
                except OSError as error:
                    raise InputError(f"cannot move {self.folder}/{step} aside: {error.strerror}") from error
        self._checkpointer = self._open()
        self.best = self._find_best()

    @contextlib.contextmanager
    def _refusing_what_cannot_be_written(self):
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())
            # What writes arrays has exceptions of its own, which quote the system's.
            quoted = "os_error_code" in reason or "OS error" in reason
            if isinstance(error, TimeoutError) or not (isinstance(error, OSError) or quoted):
                raise
            raise InputError(
                f"cannot write checkpoints in {self.folder} ({reason[:300]}); make room or repair it, "
                "and start again: the run resumes from the last whole one"
            ) from error


def has_checkpoints(folder: str | os.PathLike) -> bool:
    """Whether there is a whole checkpoint in a folder, which need not exist."""
    return bool(saved_steps(folder))


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """The steps of the whole checkpoints in a folder, which need not exist."""
    return [int(path.name) for path in Path(folder).glob("*") if path.name.isdigit()]


class _Best:
    """Preserves the best checkpoint of a `Checkpoints`; see orbax's `PreservationPolicy`."""

    def __init__(self, checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints, *, context):
        del context
        return [info.step == self._checkpoints.best[0] for info in checkpoints]


def _in_words(error):
    """What went wrong first, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def abstract(tree: dict, sharding: jax.sharding.Sharding | dict) -> dict:
    """Shapes and dtypes of a tree of arrays, for `Checkpoints.restore`.

    Args:
      tree: of arrays.
      sharding: of all of them, or a tree of one for each.
    """
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _, sharding=sharding: sharding, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)


def checksums(tree: object) -> list[int]:
    """A number for each array of a tree, of the bits of all its values: what a disk did to them shows.

    Computed on the devices, so that what is split over processes is not gathered.
    """
    return np.asarray(_checksums(jax.tree.leaves(tree))).tolist()


@jax.jit
def _checksums(arrays):
    def add_bits(array):
        bits = jax.lax.bitcast_convert_type(array, UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)
        place = jnp.zeros(array.shape, jnp.uint32)
        for axis, size in enumerate(array.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        # Each counts by an odd number of its own, so that values which change places show too.
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jnp.stack([add_bits(array) for array in arrays])


@contextlib.contextmanager
def _quiet():
    """Keeps off the terminal what orbax logs, at length, of errors that it raises too."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _shapes(tree):
    """A dict from the path of each array to its shape."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(x.shape) for path, x in leaves}
