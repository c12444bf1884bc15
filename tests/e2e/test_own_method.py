"""The contract of a method: one written outside the package does all that those inside do."""

import json

import jax
import numpy as np
import own_method
import pytest
from processes import SLOWLY, kill_when, start

import mlclip_jax
from mlclip_jax import methods
from mlclip_jax.cli import main
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS, Scenes, write_scenes
from mlclip_jax.runs import read_run


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "low_rank", "own_method.LowRank")
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name, seed, number in (("train", 11, 48), ("test", 12, 40)):
        write_scenes(Scenes(seed, number), folder / name)
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "others.txt").write_text("\n".join(OTHER_LABELS[:3]))
    return folder


def arguments(world, workdir, *more):
    source = [
        f"--config.{key}={world / path}"
        for key, path in {
            "examples.images": "train/images",
            "examples.labels": "train/labels.csv",
            "texts.labels": "labels.txt",
            "evaluation.images": "test/images",
            "evaluation.labels": "test/labels.csv",
        }.items()
    ]
    return ["train", f"--config={own_method.RECIPE}:images,rank=4", f"--workdir={workdir}", *source, *more]


@pytest.fixture(scope="module")
def run(world):
    assert main(arguments(world, world / "run")) == 0
    return world / "run"


def parameters_of(workdir):
    return jax.tree.leaves(read_run(workdir).parameters)


def test_it_trains_the_same_under_pmap(world, run, tmp_path):
    assert main(arguments(world, tmp_path / "run", "--config.train.parallel=pmap")) == 0
    for ours, theirs in zip(parameters_of(tmp_path / "run"), parameters_of(run)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert json.loads((run / "config.json").read_text())["method"] == {"name": "low_rank", "rank": 4}
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]


def test_only_the_paths_that_it_names_are_trained(run):
    loaded = read_run(run)
    assert {name: sorted(part) for name, part in loaded.parameters.items()} == {
        "image": ["bias", "kernel"],
        "text": ["kernel"],
    }
    np.testing.assert_array_equal(loaded.frozen["text"]["bias"], np.zeros(4))


def test_killed_it_resumes_to_the_same_end(world, run, tmp_path):
    command = arguments(world, tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/20"
    kill_when(
        [start(command, num_devices=jax.device_count(), preamble=own_method.PREAMBLE + SLOWLY)],
        checkpoint.is_dir,
    )
    assert main(command) == 0
    for ours, theirs in zip(parameters_of(tmp_path / "run"), parameters_of(run)):
        np.testing.assert_array_equal(ours, theirs)


def test_it_is_evaluated_calibrated_and_predicts(world, run, tmp_path, capsys):
    assert main(["evaluate", f"--workdir={run}", "--bootstrap=10"]) == 0
    assert "| Low rank | raw | 1 |" in capsys.readouterr().out
    held_out = [f"--images={world / 'test/images'}", f"--labels={world / 'test/labels.csv'}"]
    assert main(["calibrate", f"--workdir={run}", *held_out]) == 0
    predict = ["predict", f"--workdir={run}", f"--images={world / 'test/images'}"]
    assert main([*predict, f"--output={tmp_path / 'x.csv'}"]) == 0
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 41
    # Other class embeddings may replace its own.
    assert main([*predict, f"--output={tmp_path / 'y.csv'}", f"--classes={world / 'others.txt'}"]) == 0
    assert (tmp_path / "y.csv").read_text().splitlines()[0] == f"file,labels,{','.join(OTHER_LABELS[:3])}"
    images = sorted((world / "test/images").iterdir())[:2]
    assert mlclip_jax.load(run).predict(images).shape == (2, len(LABELS))


def test_its_settings_and_options_are_checked(world, tmp_path, capsys):
    def with_option(option):
        return ["train", f"--config={own_method.RECIPE}:images,{option}", f"--workdir={tmp_path}"]

    for command, message in (
        (
            arguments(world, tmp_path, "--config.method.rank=0"),
            "--config.method.rank=0: must be",
        ),
        (arguments(world, tmp_path, "--config.method.rnak=3"), "did you mean 'rank'?"),
        (
            with_option("rnk=3"),
            "no option 'rnk' (did you mean rank?); its options, and defaults: loss=binary_cross_entropy, ",
        ),
        (with_option("rank=x"), "takes a whole number as rank, not 'x'"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
