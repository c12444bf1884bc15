"""The loop of a run: chunks of steps, a log that never makes the device wait, checkpoints, going on."""

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlclip_jax.checkpoints import abstract
from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing
from mlclip_jax.parallel import AXIS, MODES
from mlclip_jax.progress import progress_bar

ON_DEVICE = 1 << 30  # bytes of examples that are kept on the device; of more, each chunk's are read in time
READ_AT_ONCE = 1 << 26  # bytes, of the latter


def run_conditions(num_devices):
    """What must hold for the keys of a recipe that every run has; see `recipes.check`."""
    return {
        "seed": (lambda n: 0 <= n < 2**31, "from 0 to 2147483647"),
        "train.steps": (lambda n: 1 <= n < 2**31, "from 1 to 2147483647"),
        "train.batch_size": (
            lambda n: n >= 1 and n % num_devices == 0,
            f"positive, and a multiple of the {num_devices} devices",
        ),
        "train.parallel": (lambda mode: mode in MODES, f"one of {', '.join(MODES)}"),
        "train.log_every": (lambda n: n >= 1, "at least 1"),
        "train.evaluate_every": (lambda n: n >= 0, "at least 0"),
        "train.checkpoint_every": (lambda n: n >= 1, "at least 1"),
    }


def resume(checkpoints, state, num_steps, sharding):
    """Where a run goes on: the step and the state of its newest checkpoint, or 0 and `state`, placed.

    Raises:
      InputError: the checkpoint cannot be used, or lies beyond the last step.
    """
    step = checkpoints.latest_step or 0
    if step > num_steps:
        raise InputError(
            f"{checkpoints.folder} holds a checkpoint of step {step}, beyond {num_steps}; remove it"
        )
    if not step:
        return 0, jax.device_put(state, sharding)
    state = checkpoints.restore(abstract(state, sharding))
    print(f"{checkpoints.folder}: going on from step {step} of {num_steps}", file=sys.stderr)
    return step, state


def run_steps(run_chunk, state, step, train, checkpoints, log_path, evaluate=None):
    """Runs from `step` to `train.steps`, logging, evaluating and saving on the way.

    Args:
      run_chunk: `run_chunk(state, first, end) -> (state, metrics)`, of steps first to end - 1; returns
        before they are computed.
      state: a dict of trees of arrays; given up to the chunks.
      step: how many steps were done before.
      train: of the recipe: `steps`, and `log_every`, `evaluate_every`, `checkpoint_every` in steps.
      checkpoints: an open `Checkpoints`.
      log_path: of `metrics.jsonl`.
      evaluate: `evaluate(state) -> metrics`, called every `train.evaluate_every` steps; or None.

    Returns:
      The final state.
    """
    log = Log(log_path, step)
    with progress_bar(train.steps, "training", "steps", done=step) as bar:
        while step < train.steps:
            end = next_boundary(step, train)
            state, metrics = run_chunk(state, step, end)
            # This chunk now runs; meanwhile the line of the one before it is fetched and written.
            log.write_pending()
            bar.update(end - step)
            step = end
            # Evaluate, then save: a run killed in between evaluates again, and loses nothing.
            if evaluate is not None and _is_due(step, train.evaluate_every):
                metrics |= evaluate(state)
            log.add(step, metrics)
            if _is_due(step, train.checkpoint_every) or step == train.steps:
                log.write_pending()  # the log is complete up to every checkpoint
                checkpoints.save(step, state)
    return state


def make_chunk(train_step):
    """Many steps in one program: `chunk(state, frozen, data, indices, steps)`, for one device.

    `data` are all examples, `indices` (S, B / devices) those of each step, `steps` (S,) the steps' numbers;
    metrics come back with a leading S.
    """

    def chunk(state, frozen, data, indices, steps):
        def body(state, rows_and_step):
            rows, step = rows_and_step
            return train_step(state, frozen, jax.tree.map(lambda array: array[rows], data), step)

        return jax.lax.scan(body, state, (indices, steps))

    return chunk


def make_run_chunk(run, data, indices_of, end_after, sharding):
    """Where a run's examples come from: `run_chunk(state, first, end)` for `run_steps`.

    Up to `ON_DEVICE` bytes they stay on the devices. Of more, the rows of each chunk are read while the one
    before it runs, whether they lie in memory or in files; the steps are the same, and so is the result.

    Args:
      run: `run(state, data, indices, steps) -> (state, metrics)`, a compiled chunk; see `make_chunk`.
      data: dict of arrays or `Rows` (N, ...), all examples.
      indices_of: `indices_of(first, end)` gives the examples of these steps, (S, B).
      end_after: gives the first step after one at which something is due.
      sharding: of the data on the devices.
    """

    def steps(first, end):
        return np.arange(first, end, dtype=np.int32)

    num_bytes = sum(array.nbytes for array in data.values())
    if num_bytes <= ON_DEVICE:
        on_device = jax.device_put({name: np.asarray(array) for name, array in data.items()}, sharding)
        return lambda state, first, end: run(state, on_device, indices_of(first, end), steps(first, end))

    step_bytes = indices_of(0, 1).size * num_bytes // len(data["labels"])
    span = max(1, READ_AT_ONCE // step_bytes)
    reader, ahead = ThreadPoolExecutor(1), {}

    def read(first, end):
        indices = indices_of(first, end)
        rows = {name: array[indices.ravel()] for name, array in data.items()}
        return rows, np.arange(indices.size, dtype=np.int32).reshape(indices.shape)

    def run_chunk(state, first, end):
        parts = []
        while first < end:
            stop = min(first + span, end)
            rows, indices = (ahead.pop(first, None) or reader.submit(read, first, stop)).result()
            following = min(stop + span, end_after(stop))
            if following > stop:
                ahead[stop] = reader.submit(read, stop, following)
            state, metrics = run(state, jax.device_put(rows, sharding), indices, steps(first, stop))
            jax.block_until_ready(parts[-1:])  # one chunk ahead is enough; more would only fill memory
            parts.append(metrics)
            first = stop
        return state, jax.tree.map(lambda *own: jnp.concatenate(own), *parts)

    return run_chunk


def update(optimizer, state, total, count, gradient):
    """The end of a training step: what one device found out, summed over all, moves the parameters.

    Args:
      optimizer: an `optax.GradientTransformation`.
      state: dict of `parameters` and `optimizer` state.
      total: this device's sum of losses, a scalar.
      count: what the sum is to be divided by, once both are summed over devices.
      gradient: of `total`.

    Returns:
      The new state, and the metrics: the mean `loss`.
    """
    # Sums first, then one division: devices may know different numbers of labels.
    total, count, gradient = jax.lax.psum((total, count, gradient), AXIS)
    count = jnp.maximum(count, 1)
    gradient = jax.tree.map(lambda g: g / count, gradient)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes; all else here runs strictly
        updates, optimizer_state = optimizer.update(gradient, state["optimizer"], state["parameters"])
    parameters = optax.apply_updates(state["parameters"], updates)
    return {"parameters": parameters, "optimizer": optimizer_state}, {"loss": total / count}


class Log:
    """`metrics.jsonl`, a line per chunk, written one chunk late so that the device never waits for it.

    Args:
      path: the file; lines beyond `step`, of a run that was killed after its checkpoint, are cut off.
      step: where the run goes on.
    """

    def __init__(self, path, step):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        with replacing(path) as temporary:
            kept = (line + "\n" for line in lines if _step_of(line) <= step)
            temporary.write_text("".join(kept), encoding="utf-8")
        self._path = path
        self._pending = []

    def add(self, step, metrics):
        """Notes metrics as of after `step` steps; arrays that are still being computed are not waited for."""
        self._pending.append((step, metrics))

    def write_pending(self):
        """Waits for the metrics noted so far, and appends them.

        Raises:
          InputError: the loss is no longer finite, or the file cannot be written.
        """
        lines = []
        for step, metrics in self._pending:
            means = {name: float(np.mean(value)) for name, value in metrics.items()}
            if not math.isfinite(means.get("loss", 0)):
                raise InputError(f"training diverged by step {step}: {means}; lower optimizer.learning_rate")
            lines.append(json.dumps({"step": step, **means}) + "\n")
        self._pending = []
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; free some space there") from error


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # cut off by a kill, or no line of ours
        return math.inf


def next_boundary(step, train):
    """The first step after `step` at which something is logged, evaluated or saved."""
    periods = [p for p in (train.log_every, train.evaluate_every, train.checkpoint_every) if p]
    return min(train.steps, *(step - step % period + period for period in periods))


def _is_due(step, period):
    return period > 0 and step % period == 0
