"""The loop of a run: chunks of steps; logging, evaluation and checkpoints between them; resuming."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import Int32, Shaped
from ml_collections import ConfigDict

from mlclip_jax.distributed.data_parallel import MODES
from mlclip_jax.distributed.processes import all_or_none, broadcast_from_first, check_shared
from mlclip_jax.distributed.sharding import AXIS, LABEL_AXIS, place, replicated, split_labels, split_rows
from mlclip_jax.embeddings.rows import Rows, Stacked
from mlclip_jax.errors import InputError, Preempted
from mlclip_jax.files import make_folder
from mlclip_jax.progress import note, progress_bar
from mlclip_jax.ranges import AT_LEAST_0, AT_LEAST_1, one_of
from mlclip_jax.recipes import check_same_run
from mlclip_jax.training.checkpoints import METRIC, Checkpoints, abstract, has_checkpoints
from mlclip_jax.training.interruptions import ending_when_stalled, listening_for_stop
from mlclip_jax.training.metric_log import Log

ON_DEVICE = 1 << 30  # bytes of examples that are kept on the device; of more, each chunk's are read in time
READ_AT_ONCE = 1 << 26  # bytes, of the latter
# What the best checkpoint is chosen by: what evaluations call it, and whether more of it is better.
BEST_BY = {"mAP": (METRIC, 1), "micro_f1": ("micro_f1_percent", 1), "loss": ("evaluation_loss", -1)}
CHECKPOINTS_AT_ONCE = 4  # two of the latest, the best, and the one being written


def run_conditions(train: Mapping | ConfigDict, num_devices: int) -> dict[str, tuple[Callable, str]]:
    """What must hold for the keys of a recipe that every run has; see `recipes.check`.

    Args:
      train: of the recipe.
      num_devices: of all processes.
    """
    shards = train.get("label_shards", 1)
    can_split = isinstance(shards, int) and shards >= 1 and num_devices % shards == 0
    over = num_devices // shards if can_split else num_devices
    conditions = {
        "seed": (lambda n: 0 <= n < 2**31, "from 0 to 2147483647"),
        "train.steps": (lambda n: 1 <= n < 2**31, "from 1 to 2147483647"),
        "train.batch_size": (
            lambda n: n >= 1 and n % over == 0,
            f"positive, and a multiple of the {over} devices that it is split over",
        ),
        "train.parallel": one_of(MODES),
        "train.label_shards": (lambda _: can_split, f"positive, and divide the {num_devices} devices"),
        "train.log_every": AT_LEAST_1,
        "train.evaluate_every": AT_LEAST_0,
        "train.checkpoint_every": AT_LEAST_1,
        "train.max_skipped_steps": AT_LEAST_0,
        "train.stall_seconds": AT_LEAST_0,
        "train.best_by": one_of(BEST_BY),
        "train.patience": AT_LEAST_0,
    }
    if can_split and shards > 1:
        conditions["train.parallel"] = (lambda mode: mode == "shard_map", "shard_map to split labels")
    return conditions


def open_workdir(workdir: str | os.PathLike, config: ConfigDict, may_change: tuple[str, ...]) -> Path:
    """The folder of a run, as a `Path`, made if it is missing.

    Args:
      workdir: the folder.
      config: of the run, which is to begin or to resume there.
      may_change: see `recipes.check_same_run`.

    Raises:
      InputError: it cannot be written, holds another run, or is not seen by all processes.
    """
    workdir = Path(workdir)
    with all_or_none():
        make_folder(workdir)
        if has_checkpoints(workdir / "checkpoints"):
            check_same_run(workdir, config, may_change)
    check_shared(workdir)
    return workdir


def resume(
    checkpoints: Checkpoints, state: dict, train: ConfigDict, shardings: Sharding | dict
) -> tuple[int, dict]:
    """Where a run resumes: the step and the state of its newest checkpoint, or 0 and `state`, placed.

    Args:
      checkpoints: an open `Checkpoints`.
      state: of step 0, on the host or this process's devices.
      train: of the recipe.
      shardings: of the state, one for all of it or a tree.

    Raises:
      InputError: the checkpoint cannot be used, or lies beyond the last step; or the disk is full.
    """
    with ending_when_stalled(train.stall_seconds):
        step = checkpoints.latest_step or 0
        with all_or_none():
            if step > train.steps:
                raise InputError(
                    f"{checkpoints.folder} holds a checkpoint of step {step}, beyond {train.steps}; remove it"
                )
            finished = is_finished(train, checkpoints.best, step)
            more = 0 if finished else max(1, CHECKPOINTS_AT_ONCE - checkpoints.number)
            needed = more * sum(x.nbytes for x in jax.tree.leaves(state))
            free = shutil.disk_usage(checkpoints.folder).free
            if free < needed:
                raise InputError(
                    f"{checkpoints.folder} has {free:,} bytes left, and the checkpoints of this run need "
                    f"{needed:,} more; make room, or give another --workdir"
                )
        if not step:
            return 0, place(state, shardings)
        step, state = checkpoints.restore(abstract(state, shardings))
    note(f"{checkpoints.folder}: resuming from step {step} of {train.steps}")
    return step, state


def run_steps(
    run_chunk: Callable[[dict, int, int], tuple[dict, dict]],
    state: dict,
    step: int,
    train: ConfigDict,
    checkpoints: Checkpoints,
    log_path: Path,
    evaluate: Callable[[dict], dict] | None = None,
    names_of: Callable[[int], Sequence[str]] | None = None,
) -> dict:
    """Runs from `step` to `train.steps`, logging, evaluating and saving on the way.

    Every process runs it; the first one writes the log.

    Args:
      run_chunk: `run_chunk(state, first, end) -> (state, metrics)`, of steps first to end - 1; returns
        before they are computed.
      state: a dict of trees of arrays; given up to the chunks.
      step: how many steps were done before.
      train: of the recipe: `steps`; `log_every`, `evaluate_every`, `checkpoint_every` in steps; `best_by`,
        `patience`, `max_skipped_steps` and `stall_seconds`.
      checkpoints: an open `Checkpoints`.
      log_path: of `metrics.jsonl`.
      evaluate: `evaluate(state) -> metrics`, called every `train.evaluate_every` steps; or None.
      names_of: `names_of(t)`, the names of the examples of step t, for whom its loss is not finite.

    Returns:
      The final state.

    Raises:
      InputError: more than `train.max_skipped_steps` steps had a loss or gradient that is not finite; or
        the log or a checkpoint cannot be written.
      Preempted: a process received SIGTERM; all have saved the same step.
    """
    measured, sign = BEST_BY[train.get("best_by", "mAP")]
    with (
        progress_bar(train.steps, "training", "steps", done=step) as bar,
        listening_for_stop() as asked_to_stop,
        ending_when_stalled(train.stall_seconds) as renew,
    ):
        log = Log(log_path, step, train.max_skipped_steps, names_of)
        while not is_finished(train, checkpoints.best, step):
            end = next_boundary(step, train)
            state, metrics = run_chunk(state, step, end)
            # This chunk now runs; meanwhile the line of the one before it is fetched and written.
            log.write_pending()
            checkpoints.check()
            bar.update(end - step)
            step, metric = end, None
            # Evaluate, then save: a run killed in between evaluates again, and loses nothing.
            if evaluate is not None and _is_due(step, train.evaluate_every):
                evaluated = evaluate(state)
                metrics |= evaluated
                if measured in evaluated:  # not where no example has a label
                    metric = sign * float(broadcast_from_first(np.float32(evaluated[measured])))
            log.add(step, metrics)
            _, highest = checkpoints.best
            is_best = metric is not None and (highest is None or metric > highest)
            is_last = is_finished(train, (step, metric) if is_best else checkpoints.best, step)
            stop = asked_to_stop() and not is_last
            if stop or is_best or is_last or _is_due(step, train.checkpoint_every):
                log.write_pending(durable=True)  # the log is complete up to every checkpoint
                checkpoints.save(step, state, metric)
            renew(step)
            if stop:
                checkpoints.wait()
                raise Preempted(
                    f"stopped on request; saved step {step} of {train.steps} in {checkpoints.folder}; "
                    "the same command resumes from there",
                    together=True,
                )
        checkpoints.wait()
    return state


def make_run_chunk(
    compiled: Callable[..., Callable],
    data: Mapping[str, Shaped[np.ndarray | Rows | Stacked, "N ..."]],
    indices_of: Callable[[int, int], Int32[np.ndarray, "S B"]],
    end_after: Callable[[int], int],
    mesh: Mesh,
) -> Callable[[dict, int, int], tuple[dict, dict]]:
    """Where a run's examples come from: `run_chunk(state, first, end)` for `run_steps`.

    Up to `ON_DEVICE` bytes they stay on the devices, all on each. Of more, each device gets the rows of its
    share of a chunk while the chunk before it runs, and each process reads those of its own devices alone,
    whether they lie in memory or in files. The steps are the same, and so is the result.

    Args:
      compiled: `compiled(split_data)` gives `run(state, data, indices, steps) -> (state, metrics)`, a
        compiled chunk; see `make_chunk`, and `split_data` of `data_parallel`.
      data: dict of arrays or `Rows` (N, ...), all examples; `labels` (N, K) are split as the adapter's are.
      indices_of: `indices_of(first, end)` gives the examples of these steps, (S, B).
      end_after: gives the first step after one at which something is due.
      mesh: from `make_mesh`.
    """

    def steps(first, end):
        return np.arange(first, end, dtype=np.int32)

    splits_labels = data["labels"].shape[1] % mesh.shape[LABEL_AXIS] == 0
    num_bytes = sum(array.nbytes for array in data.values())
    if num_bytes <= ON_DEVICE:
        run = compiled(split_data=False)
        shardings = dict.fromkeys(data, replicated(mesh))
        if splits_labels:
            shardings["labels"] = split_labels(mesh, 1)
        on_device = place({name: np.asarray(array) for name, array in data.items()}, shardings)
        return lambda state, first, end: run(state, on_device, indices_of(first, end), steps(first, end))

    run = compiled(split_data=True)
    shares = mesh.shape[AXIS]
    own = [share for share in range(shares) if set(mesh.devices[share]) & set(jax.local_devices())]
    step_bytes = indices_of(0, 1).size * num_bytes // len(data["labels"])
    span = max(1, READ_AT_ONCE // step_bytes)
    reader = ThreadPoolExecutor(1)
    ahead: dict[int, Future] = {}

    def read(first, end):
        """The rows of each share of these steps, and where each step's are among them."""
        indices = np.stack(np.split(indices_of(first, end), shares, axis=1))  # (shares, S, B / shares)
        rows = {share: {name: array[indices[share].ravel()] for name, array in data.items()} for share in own}
        places = np.arange(indices[0].size, dtype=np.int32).reshape(indices[0].shape)
        return rows, np.tile(places, (1, shares))

    def on_devices(rows, name):
        shape = (shares, *rows[own[0]][name].shape)
        by_label = name == "labels" and splits_labels
        sharding = split_rows(mesh, labels_axis=2 if by_label else None)

        def part(index: Any):
            return rows[index[0].start or 0][name][None, *index[1:]]

        return jax.make_array_from_callback(shape, sharding, part)

    def run_chunk(state, first, end):
        parts = []
        while first < end:
            stop = min(first + span, end)
            rows, places = (ahead.pop(first, None) or reader.submit(read, first, stop)).result()
            following = min(stop + span, end_after(stop))
            if following > stop:
                ahead[stop] = reader.submit(read, stop, following)
            placed = {name: on_devices(rows, name) for name in data}
            state, metrics = run(state, placed, places, steps(first, stop))
            jax.block_until_ready(parts[-1:])  # one chunk ahead is enough; more would only fill memory
            parts.append(metrics)
            first = stop
        return state, {name: [part[name] for part in parts] for name in parts[0]}

    return run_chunk


def is_finished(train: ConfigDict, best: tuple[int | None, float | None], step: int) -> bool:
    """Whether a run ends at a step: its last, or `train.patience` evaluations after the best one.

    Args:
      train: of the recipe.
      best: step and metric of the best checkpoint, None where there is none.
      step: how many steps are done.
    """
    best_step, _ = best
    patience = train.patience * train.evaluate_every
    exhausted = bool(patience) and best_step is not None and step - best_step >= patience
    return step == train.steps or exhausted


def next_boundary(step: int, train: ConfigDict) -> int:
    """The first step after `step` at which something is logged, evaluated or saved."""
    periods = [p for p in (train.log_every, train.evaluate_every, train.checkpoint_every) if p]
    return min(train.steps, *(step - step % period + period for period in periods))


def _is_due(step, period):
    return period > 0 and step % period == 0
