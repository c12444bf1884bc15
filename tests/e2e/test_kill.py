"""Real processes, killed without warning: the run resumes to the identical result."""

import contextlib
import functools
import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from processes import kill_when, outputs_of, start, start_together, wait_until
from small_world import train_arguments, write_embeddings

from mlclip_jax.runs import read_run

SETTINGS = {  # by the number of processes
    1: {"train__steps": 1_200, "train__log_every": 50, "train__checkpoint_every": 100},
    2: {"train__steps": 1_200, "train__log_every": 20, "train__checkpoint_every": 40},
}
KILLS = 20  # of the full form, for each number of processes


def arguments_of(world, workdir, num_processes):
    return train_arguments(world, workdir, evaluation__embeddings="", **SETTINGS[num_processes])


def begin(world, workdir, num_processes):
    arguments = arguments_of(world, workdir, num_processes)
    return start_together(arguments, num_processes) if num_processes > 1 else [start(arguments)]


def saved_steps(workdir):
    folder = workdir / "checkpoints"
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def is_saving_after(workdir, step):
    """Whether a checkpoint is being written, in its temporary folder, after one of this step."""
    started = any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))
    return started and max(saved_steps(workdir), default=0) >= step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world):
    """A run of each number of processes that nothing happened to: `undisturbed(number)`, its folder."""

    @functools.cache
    def run(num_processes):
        workdir = world / f"undisturbed-{num_processes}"
        outputs_of(begin(world, workdir, num_processes))
        return workdir

    return run


def assert_ended_as(workdir, expected, num_processes):
    steps, every = (SETTINGS[num_processes][f"train__{key}"] for key in ("steps", "checkpoint_every"))
    ours, theirs = read_run(workdir), read_run(expected)
    assert ours.step == theirs.step == steps
    jax.tree.map(np.testing.assert_array_equal, ours.parameters, theirs.parameters)
    log = workdir / "metrics.jsonl"
    assert log.read_text() == (expected / "metrics.jsonl").read_text()
    logged = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    between = SETTINGS[num_processes]["train__log_every"]
    assert logged == list(range(between, steps + 1, between))
    # What kills left half-written is gone.
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert kept == [steps - every, steps]


def test_killed_twice_it_ends_the_same(world, undisturbed, tmp_path):
    log, steps = tmp_path / "metrics.jsonl", SETTINGS[1]["train__steps"]
    # Before the first checkpoint; while one is being written. The full form has every moment.
    kill_when(begin(world, tmp_path, 1), lambda: log.is_file() and log.stat().st_size > 0)
    kill_when(begin(world, tmp_path, 1), lambda: is_saving_after(tmp_path, 300))
    stopped_at = max(saved_steps(tmp_path))
    assert 300 <= stopped_at < steps
    [output] = outputs_of(begin(world, tmp_path, 1))
    assert f"resuming from step {stopped_at} of {steps}" in output
    assert_ended_as(tmp_path, undisturbed(1), 1)


@pytest.mark.slow  # a minute
def test_two_processes_killed_while_they_save_end_the_same(world, undisturbed, tmp_path):
    kill_when(begin(world, tmp_path, 2), lambda: is_saving_after(tmp_path, 80))
    stopped_at = max(saved_steps(tmp_path))
    assert f"resuming from step {stopped_at} of " in outputs_of(begin(world, tmp_path, 2))[0]
    assert_ended_as(tmp_path, undisturbed(2), 2)


@pytest.mark.slow  # a quarter of an hour
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_at_any_moment_it_ends_the_same(world, undisturbed, tmp_path, num_processes):
    """Half of the kills fall while a checkpoint is written; of two processes, one dies before the other."""
    expected, random = undisturbed(num_processes), np.random.default_rng(num_processes)
    steps = SETTINGS[num_processes]["train__steps"]
    for kill in range(KILLS):
        workdir, after = tmp_path / str(kill), int(0.9 * steps * random.random())
        log = workdir / "metrics.jsonl"

        def reached(workdir=workdir, log=log, after=after, saving=kill % 2):
            if saving:
                return is_saving_after(workdir, after)
            lines = log.read_text().count("\n") if log.is_file() else 0
            return lines * SETTINGS[num_processes]["train__log_every"] >= after

        processes = begin(world, workdir, num_processes)
        wait_until(reached, *processes)
        time.sleep(0.05 * random.random())
        for process in random.permutation(processes):
            process.kill()
            time.sleep(0.2 * random.random())
        outputs_of(processes, None)
        stopped_at = max(saved_steps(workdir), default=0)
        assert stopped_at < steps, "it ended before the kill"
        outputs_of(begin(world, workdir, num_processes))
        assert_ended_as(workdir, expected, num_processes)
        print(f"{num_processes} processes, killed after step {after}, went on from {stopped_at}: identical")


@pytest.mark.parametrize("delay", [0, 0.12, 0.5])  # seconds: before, within and after compilation
def test_interrupted_from_the_keyboard_it_says_so(world, tmp_path, delay):
    settings = SETTINGS[1] | {"train__steps": 100_000, "evaluation__embeddings": ""}
    # Nothing kept, so that there is something to compile.
    process = start([*train_arguments(world, tmp_path, **settings), "--nocompilation_cache"])
    while not (tmp_path / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(delay)
    for _ in range(20):  # a library's callback may swallow one, so press again, as a person would
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
            break
    [output] = outputs_of([process], 130, timeout=0.1)
    assert output.splitlines()[-1] == "mlclip train: interrupted"
