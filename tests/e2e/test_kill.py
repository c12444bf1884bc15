"""Real processes, killed without warning: the run goes on to the identical result."""

import contextlib
import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from processes import finish, kill_when, outputs_of, start
from small_world import train_arguments, write_embeddings

from mlclip_jax.runs import read_run

SETTINGS = {
    "train__steps": 12_000,
    "train__log_every": 100,
    "train__checkpoint_every": 400,
    "evaluation__embeddings": "",  # nothing but training
}


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
    finish(train_arguments(world, world / "undisturbed", **SETTINGS))
    return world / "undisturbed"


def test_killed_three_times_it_ends_the_same(world, undisturbed, tmp_path):
    arguments = train_arguments(world, tmp_path, **SETTINGS)
    log = tmp_path / "metrics.jsonl"
    # Before the first checkpoint; between two; while one is being written.
    kill_when([start(arguments)], lambda: log.is_file() and log.stat().st_size > 0)
    kill_when([start(arguments)], lambda: max(saved_steps(tmp_path), default=0) >= 1200)
    kill_when([start(arguments)], lambda: is_saving_after(tmp_path, 2400))
    stopped_at = max(saved_steps(tmp_path))
    assert 2400 <= stopped_at < SETTINGS["train__steps"]
    assert f"going on from step {stopped_at} of {SETTINGS['train__steps']}" in finish(arguments)

    resumed, expected = read_run(tmp_path), read_run(undisturbed)
    assert resumed["step"] == expected["step"] == SETTINGS["train__steps"]
    jax.tree.map(np.testing.assert_array_equal, resumed["parameters"], expected["parameters"])
    assert log.read_text() == (undisturbed / "metrics.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(100, SETTINGS["train__steps"] + 1, 100))
    # What the kills left half-written is gone.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["11600", "12000"]


@pytest.mark.parametrize("delay", [0, 0.12, 0.5])  # seconds: before, within and after compilation
def test_interrupted_from_the_keyboard_it_says_so(world, tmp_path, delay):
    process = start(train_arguments(world, tmp_path, **SETTINGS | {"train__steps": 100_000}))
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
