"""The log of a run: its metrics, and the steps whose loss or gradient was not finite."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mlclip_jax.distributed.processes import is_first
from mlclip_jax.errors import InputError
from mlclip_jax.files import write_text
from mlclip_jax.progress import warn

NONFINITE = "nonfinite.jsonl"


class Log:
    """`metrics.jsonl`, a line per chunk, written one chunk late so that the device never waits for it.

    Beside it stands `nonfinite.jsonl`, a line for each step whose loss or gradient was not finite, with the
    names of its examples. Every process sees the metrics; the first one writes.

    Args:
      path: the file; lines beyond `step`, of a run that was killed after its checkpoint, are cut off.
      step: where the run resumes.
      max_skipped: how many steps of the run may be not finite.
      names_of: `names_of(t)`, the names of the examples of step t; or None.

    Raises:
      InputError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        max_skipped: int = 0,
        names_of: Callable[[int], Sequence[str]] | None = None,
    ) -> None:
        self._path, self._nonfinite = path, path.with_name(NONFINITE)
        self._max_skipped, self._names_of = max_skipped, names_of
        self._pending = []
        if is_first():
            _cut(self._path, step)
            if self._nonfinite.exists():
                _cut(self._nonfinite, step)

    def add(self, step: int, metrics: Mapping) -> None:
        """Notes metrics as of after `step` steps; arrays that are still being computed are not waited for."""
        self._pending.append((step, metrics))

    def write_pending(self, *, durable: bool = False) -> None:
        """Waits for the metrics noted so far, and appends them.

        Args:
          durable: whether they must be on the disk, and not in memory, afterwards.

        Raises:
          InputError: too many steps were not finite, or the file cannot be written.
        """
        pending, self._pending = self._pending, []
        for step, metrics in pending:
            values = {name: np.concatenate([np.ravel(v) for v in _parts(m)]) for name, m in metrics.items()}
            finite, skipped = values.pop("finite", None), values.pop("skipped", None)
            if finite is not None and not finite.all():
                self._report(step - len(finite), values["loss"], finite, skipped)
                values = {n: v[finite] if len(v) == len(finite) else v for n, v in values.items()}
                values["skipped_steps"] = np.array([(~finite).sum()])
            means = {name: float(np.mean(value)) for name, value in values.items() if value.size}
            _append(self._path, {"step": step, **means})
        if durable and is_first():
            with self._path.open("a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def _report(self, first, losses, finite, skipped):
        """Records the steps that were not finite, and stops the run once they are too many."""
        for place in np.flatnonzero(~finite):
            t, loss = first + int(place), float(losses[place])
            names = list(self._names_of(t)) if self._names_of else []
            cause = "its gradient is not finite" if math.isfinite(loss) else f"its loss is {loss}"
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            shown = f" on {shown}" if names else ""
            _append(self._nonfinite, {"step": t + 1, "loss": str(loss), "examples": names})
            if skipped[place] > self._max_skipped:
                allowed = f", and {self._max_skipped} were skipped before" if self._max_skipped else ""
                raise InputError(
                    f"step {t + 1} failed: {cause}{shown}{allowed}; {self._nonfinite} lists the examples: "
                    "fix them, lower optimizer.learning_rate, or raise train.max_skipped_steps"
                )
            warn(f"step {t + 1} was skipped: {cause}{shown}")


def _parts(metric):
    return metric if isinstance(metric, list) else [metric]


def _append(path, content):
    if not is_first():
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; free some space there") from error


def _cut(path, step):
    """Leaves the lines of a file up to a step; makes it where it is missing."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    write_text(path, "".join(line + "\n" for line in lines if _step_of(line) <= step))


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # cut off by a kill, or no line of ours
        return math.inf
