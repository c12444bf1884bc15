"""One run as several real processes: the same result, and an orderly end whatever happens to one of them."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from processes import SLOWLY, finish, finish_together, outputs_of, start_together, wait_until
from small_world import train_arguments, write_embeddings

from mlclip_jax.runs import read_run

SETTINGS = {
    "loss__reduction": "sum",  # a mean would hide processes that average what they should add up
    "train__steps": 200,
    "train__log_every": 5,
    "train__checkpoint_every": 100,
    "train__evaluate_every": 100,
    "evaluation__embeddings": "images.npz",
}
STREAMED = """
from mlclip_jax.training import loop
loop.ON_DEVICE = 0  # so each process reads the rows of its own devices, chunk by chunk
"""
STALL = 20  # seconds, into which a chunk of steps and its compilation must fit on a busy machine
ENDLESS = {
    "train__steps": 10**8,
    "train__log_every": 50,
    "train__checkpoint_every": 1000,
    "train__evaluate_every": 0,
    "evaluation__embeddings": "",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"), num_images=160)


@pytest.fixture(scope="module")
def alone(world):
    """A run on four devices of one process."""
    finish(arguments_of(world, world / "alone"), num_devices=4)
    return world / "alone"


@pytest.fixture(scope="module")
def together(world):
    """The same run on two devices of each of two processes: its folder, and what they printed."""
    arguments = arguments_of(world, world / "together", train__parallel="pmap")
    return world / "together", finish_together(arguments, 2, num_devices=2)


@pytest.fixture(scope="module")
def streamed(world):
    arguments = arguments_of(world, world / "streamed", train__parallel="shard_map")
    return world / "streamed", finish_together(arguments, 2, num_devices=2, preamble=STREAMED)


def arguments_of(world, workdir, **changes):
    settings = SETTINGS | {"evaluation__embeddings": world / "images.npz"} | changes
    return train_arguments(world, workdir, **settings)


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_curve(ours, expected, first=0):
    """From line `first` on; a line is the mean over its steps."""
    ours, expected = ([line["loss"] for line in log_of(workdir)[first:]] for workdir in (ours, expected))
    assert len(ours) == len(expected) == SETTINGS["train__steps"] / SETTINGS["train__log_every"] - first
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(ours[:20], expected[:20], rtol=1e-4)


@pytest.mark.parametrize("run", ["together", pytest.param("streamed", marks=pytest.mark.slow)])
def test_two_processes_are_as_one(alone, request, run):
    workdir, (first, second) = request.getfixturevalue(run)
    assert "4 devices (cpu) in 2 processes, mesh 4 data x 1 labels; batch 8, 2 on each device\n" in first
    assert "trained" not in second  # one speaks for both
    assert_same_curve(workdir, alone)
    scored = [[line["mAP_percent"] for line in log_of(run)[19::20]] for run in (workdir, alone)]
    assert scored[0] == pytest.approx(scored[1], rel=1e-6)
    assert len(scored[0]) == 2
    evaluations = [json.loads((run / "evaluation.json").read_text())["mAP"] for run in (workdir, alone)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-6)
    assert sorted(path.name for path in workdir.iterdir()) == sorted(path.name for path in alone.iterdir())


@pytest.mark.parametrize(
    ("num_processes", "num_devices"), [(1, 1), (2, 1), pytest.param(1, 2, marks=pytest.mark.slow)]
)
def test_a_checkpoint_of_four_devices_goes_on_elsewhere(world, alone, tmp_path, num_processes, num_devices):
    """Two processes each take the rows of their own devices, chunk by chunk."""
    unscored = {"evaluation__embeddings": "", "train__evaluate_every": 0}
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        if checkpoint.name != "100":
            shutil.rmtree(checkpoint)
    how = {"num_devices": num_devices, "preamble": STREAMED if num_processes > 1 else ""}
    output = finish_together(arguments_of(world, tmp_path, **unscored), num_processes, **how)[0]
    assert "resuming from step 100 of 200" in output
    assert_same_curve(tmp_path, alone, first=20)


def test_told_to_stop_all_save_the_same_step_and_go_on_from_it(world, together, tmp_path):
    """SIGTERM to one process of two; the log and the parameters are then those of an undisturbed run."""
    undisturbed, _ = together
    arguments = arguments_of(world, tmp_path, train__parallel="pmap")
    # JAX asks once a second whether it was told to stop; steps must be left when it does.
    processes = start_together(arguments, 2, num_devices=2, preamble=SLOWLY)
    wait_until(lambda: (tmp_path / "metrics.jsonl").is_file() and log_of(tmp_path), *processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = outputs_of(processes, 75)
    step = log_of(tmp_path)[-1]["step"]
    assert 0 < step < SETTINGS["train__steps"]
    assert (tmp_path / f"checkpoints/{step}").is_dir()
    for output in outputs:
        assert f"mlclip train: stopped on request; saved step {step} of 200 in" in output.splitlines()[-1]
    assert f"resuming from step {step}" in finish_together(arguments, 2, num_devices=2)[0]
    ours, expected = (read_run(workdir).parameters for workdir in (tmp_path, undisturbed))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert log_of(tmp_path) == log_of(undisturbed)


def test_processes_with_different_configs_are_refused(world, tmp_path):
    arguments = arguments_of(world, tmp_path, **ENDLESS)
    first, second = outputs_of(start_together(arguments, 2, own=["--config.seed=1"]), 2)
    assert "another process failed; its own message says why" in first
    assert "mlclip train: error: process 1 has another config, or finds other data" in second
    assert not (tmp_path / "config.json").exists()


def test_a_folder_that_not_all_see_is_refused(world, tmp_path):
    """As when each machine has one of that name on its own disk."""
    processes = start_together(
        arguments_of(world, tmp_path / "one"), 2, own=[f"--workdir={tmp_path / 'other'}"]
    )
    first, second = outputs_of(processes, 2)
    assert "another process failed; its own message says why" in first
    assert f"mlclip train: error: {tmp_path / 'other'} is not the folder that process 0 sees; name" in second
    assert [path for folder in ("one", "other") for path in (tmp_path / folder).iterdir()] == []


@pytest.mark.slow  # a minute
def test_two_processes_pretrain_as_one(tmp_path):
    """Each decodes its share of every batch; held-out scenes are scored by both."""
    tower = ("hidden_size=32", "intermediate_size=32", "num_hidden_layers=1")
    settings = [f"model.{name}_config.{size}" for name in ("vision", "text") for size in tower]
    settings += ["model.vision_config.image_size=32", "scenes.number=120", "evaluation.number=20"]
    settings += ["train.steps=6", "train.batch_size=8", "train.log_every=2", "train.evaluate_every=3"]
    arguments = ["pretrain", "--config=pretrain_scenes:short", *(f"--config.{value}" for value in settings)]
    finish([*arguments, f"--workdir={tmp_path / 'one'}"], num_devices=2)
    finish_together([*arguments, f"--workdir={tmp_path / 'two'}"], 2)
    for ours, expected in zip(log_of(tmp_path / "two"), log_of(tmp_path / "one"), strict=True):
        assert ours.keys() == expected.keys()
        for name in ours.keys() - {"seconds"}:
            assert ours[name] == pytest.approx(expected[name], rel=1e-4), name
    one, two = (json.loads((tmp_path / name / "clip/figures.json").read_text()) for name in ("one", "two"))
    assert two["mAP_percent"] == pytest.approx(one["mAP_percent"], rel=1e-2)
    assert (two["held_out"], two["skipped"]) == (20, 0)


@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_that_hangs_ends_the_other_with_its_stack(world, tmp_path, stopped):
    processes = start_together(arguments_of(world, tmp_path, **ENDLESS, train__stall_seconds=STALL), 2)
    wait_until(lambda: (tmp_path / "metrics.jsonl").is_file() and log_of(tmp_path), *processes)
    processes[stopped].send_signal(signal.SIGSTOP)
    try:
        [output] = outputs_of([processes[1 - stopped]], 1)
    finally:
        processes[stopped].kill()
        outputs_of([processes[stopped]], -signal.SIGKILL)
    assert f"error: process {1 - stopped} of 2 has made no progress for {STALL} seconds, since step" in output
    assert "most recent call first" in output
    assert "loop.py" in output
