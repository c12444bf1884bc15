"""Runs that are one program, and differ in its arguments and data alone, trained at once."""

import contextlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlclip_jax.distributed.run_parallel import RUNS, make_runs_mesh, run_parallel
from mlclip_jax.distributed.sharding import local_copy, place, replicated
from mlclip_jax.errors import Preempted
from mlclip_jax.progress import note, progress_bar
from mlclip_jax.provenance import digest
from mlclip_jax.training.checkpoints import Checkpoints, abstract
from mlclip_jax.training.interruptions import ending_when_stalled, listening_for_stop
from mlclip_jax.training.loop import ON_DEVICE, next_boundary
from mlclip_jax.training.metric_log import Log
from mlclip_jax.training.preparation import Prepared
from mlclip_jax.wording import counted

MEMORY = 1 << 32  # bytes that runs may take on a device that does not say how many it has
SHARE = 0.5  # of a device's memory
COPIES = 8  # of a run's state: parameters, two moments, gradients, updates, and what a step computes
MOST = 64  # runs on each device


def may_train_together(run: Prepared) -> bool:
    """Whether a run may train beside others: its data fit on a device; nothing is evaluated on the way."""
    num_bytes = sum(array.nbytes for array in run.examples.data.values())
    train = run.config.train
    return num_bytes <= ON_DEVICE and not train.evaluate_every and train.label_shards == 1


def runs_at_once(run: Prepared) -> int:
    """How many runs like this one train at once: on each CPU one, as it fills the cores and their caches.

    On each accelerator as many as its memory has room for.
    """
    if jax.default_backend() == "cpu":
        return jax.device_count()
    limit = min((device.memory_stats() or {}).get("bytes_limit", MEMORY) for device in jax.local_devices())
    num_bytes = COPIES * sum(array.nbytes for array in jax.tree.leaves((run.state, run.frozen)))
    num_bytes += sum(array.nbytes for array in run.examples.data.values())
    return jax.device_count() * min(max(1, int(SHARE * limit) // num_bytes), MOST)


def train_together(runs: Sequence[Prepared]) -> None:
    """Trains runs to their end, each with a log and checkpoints in its own folder.

    Called again, it resumes where it was stopped. The devices of all processes share the runs.

    Args:
      runs: that `may_train_together`, whose configs differ in what is an argument of the step or decides
        data, and whose newest checkpoints, if any, are of one step.

    Raises:
      InputError: a step of a run had a loss or gradient that is not finite, or a file cannot be written.
      Preempted: a process received SIGTERM; all runs have saved the same step.
    """
    train, mesh = runs[0].config.train, make_runs_mesh()
    program = run_parallel(runs[0].chunk(), mesh)
    split, whole = NamedSharding(mesh, P(RUNS)), replicated(mesh)
    padding = -len(runs) % mesh.size
    take = jax.jit(lambda tree, at: jax.tree.map(lambda array: array[at], tree), out_shardings=whole)

    def stack(*trees):
        return place(jax.tree.map(lambda *x: np.stack([*x, *x[-1:] * padding]), *trees), split)

    data, starts = _all_data(runs)
    data = place(data, whole)
    frozen, hyper = stack(*(run.frozen for run in runs)), stack(*(run.hyper for run in runs))

    with (
        contextlib.ExitStack() as opened,
        progress_bar(train.steps, f"training {len(runs)} at once", "steps") as bar,
        listening_for_stop() as asked_to_stop,
        ending_when_stalled(train.stall_seconds) as renew,
    ):
        checkpoints = [
            opened.enter_context(Checkpoints(run.workdir / "checkpoints", run.origin, config=run.described))
            for run in runs
        ]
        step, states = checkpoints[0].latest_step or 0, [run.state for run in runs]
        if step:
            restored = (own.restore(abstract(run.state, whole)) for own, run in zip(checkpoints, runs))
            states = [jax.tree.map(np.asarray, local_copy(state, mesh)) for _, state in restored]
            note(f"{counted(len(runs), 'run')}: resuming from step {step} of {train.steps}")
        for run in runs:
            run.write(finished=step == train.steps)
        logs = [Log(run.workdir / "metrics.jsonl", step, train.max_skipped_steps) for run in runs]
        state = stack(*states)
        bar.update(step)
        while step < train.steps:
            end = next_boundary(step, train)
            indices = stack(*(start + run.indices(step, end) for run, start in zip(runs, starts)))
            steps = place(np.arange(step, end, dtype=np.int32), whole)
            state, metrics = program(state, frozen, data, indices, steps, hyper)
            metrics = local_copy(metrics, mesh)
            for at, log in enumerate(logs):
                log.write_pending()
                log.add(end, {name: metric[at] for name, metric in metrics.items()})
            bar.update(end - step)
            step, stop = end, asked_to_stop()
            if stop or step == train.steps or step % train.checkpoint_every == 0:
                for at, (log, own) in enumerate(zip(logs, checkpoints)):
                    log.write_pending(durable=True)
                    own.save(step, take(state, np.int32(at)))
                    own.wait()  # in the background, processes would meet in different checkpoints, for ever
            renew(step)
            if stop and step < train.steps:
                raise Preempted(
                    f"stopped on request; saved step {step} of {train.steps} of {counted(len(runs), 'run')}; "
                    "the same command resumes from there",
                    together=True,
                )


def _all_data(runs):
    """The data of all runs, one behind the other, the same ones once; and where each run's begin."""
    parts, starts, known, number = [], [], {}, 0
    for run in runs:
        data = {name: np.asarray(array) for name, array in run.examples.data.items()}
        content = digest(data.values())
        if content not in known:
            known[content] = number
            parts.append(data)
            number += len(data["labels"])
        starts.append(known[content])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, starts
