"""How long a run is, and which of its checkpoints is the best."""

import json

import jax
import numpy as np
import pytest
from interruption import stopped_after
from small_world import write_embeddings

from mlclip_jax import calibration
from mlclip_jax.cli import main
from mlclip_jax.configs import tai
from mlclip_jax.runs import read_run
from mlclip_jax.training.train import train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"))


def config_of(world, **train_settings):
    config = tai.get_config()
    config.texts.update(class_embeddings=str(world / "class_embeddings.npz"), number=300)
    config.evaluation.embeddings = str(world / "images.npz")
    config.method.hidden = 32
    config.perturbation.radius = 3.0
    settings = {
        "batch_size": 8,
        "log_every": 10,
        "evaluate_every": 10,
        "checkpoint_every": 1000,
        "steps": 200,
    }
    config.train.update(settings | train_settings)
    return config


def evaluations_of(workdir, name):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.mark.parametrize(
    ("best_by", "name", "best_of"),
    [("mAP", "mAP_percent", max), ("micro_f1", "micro_f1_percent", max), ("loss", "evaluation_loss", min)],
)
def test_the_best_checkpoint_is_the_best_by_what_was_asked(world, tmp_path, best_by, name, best_of):
    # So fast that the best evaluation is not the last one.
    config = config_of(world, best_by=best_by)
    config.optimizer.learning_rate = 0.03
    train(config, tmp_path)
    measured = evaluations_of(tmp_path, name)
    assert len(measured) == 20
    best = best_of(measured, key=measured.get)
    assert read_run(tmp_path, checkpoint="best").step == best
    assert best < 200
    assert read_run(tmp_path).step == 200


def test_a_run_without_a_better_evaluation_ends(world, tmp_path):
    config = config_of(world, patience=3, steps=2_000)
    config.optimizer.learning_rate = 0.1
    ended = train(config, tmp_path / "whole")
    measured = evaluations_of(tmp_path / "whole", "mAP_percent")
    last, best = max(measured), max(measured, key=measured.get)
    assert last == best + 30 < 2_000
    run = read_run(tmp_path / "whole")
    assert run.finished
    assert run.step == last
    # Started again, it does nothing more, and leaves what was fitted to its parameters.
    said = []
    fitted = tmp_path / "whole" / calibration.FILE
    calibrate = ["calibrate", f"--workdir={tmp_path / 'whole'}", f"--embeddings={world / 'images.npz'}"]
    assert main(calibrate) == 0
    again = train(config, tmp_path / "whole", report=said.append)
    assert fitted.is_file()
    assert f"trained {last} steps on 300 texts" in said[0]
    jax.tree.map(np.testing.assert_array_equal, again, ended)
    # Stopped before, it ends at the same step.
    with stopped_after(best + 10):
        train(config, tmp_path / "parts")
    assert not read_run(tmp_path / "parts").finished
    jax.tree.map(np.testing.assert_array_equal, train(config, tmp_path / "parts"), ended)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_epochs_are_steps_of_the_examples(world, tmp_path):
    config = config_of(world, epochs=2.0, evaluate_every=0, checkpoint_every=20)
    with stopped_after(40):
        train(config, tmp_path)
    train(config, tmp_path)
    run = read_run(tmp_path)
    assert run.step == run.config.train.steps == 75  # 2 x 300 / 8
    assert run.finished
