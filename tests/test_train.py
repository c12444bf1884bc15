"""A run: it learns, it logs, it ends where it would have ended without being stopped."""

import json

import jax
import numpy as np
import pytest
from clip_cases import images
from PIL import Image
from small_world import LABELS, train_arguments, write_embeddings
from tiny_clip import config_with, write_clip

from mlclip_jax import InputError, evaluate
from mlclip_jax.cli import main
from mlclip_jax.configs import tai
from mlclip_jax.data.sources import read_embeddings
from mlclip_jax.train import Log, make_optimizer, train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"))


def small_config(world, **changes):
    config = tai.get_config()
    config.texts.class_embeddings = str(world / "class_texts.npz")
    config.texts.number = 300
    config.adapter.hidden = 32
    config.perturbation.radius = 3.0
    config.train.update(steps=60, batch_size=8, log_every=10, checkpoint_every=20)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def steps_of(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_it_learns_texts_and_scores_images(world, tmp_path, capsys):
    arguments = train_arguments(
        world, tmp_path / "run", train__steps=400, train__evaluate_every=200, optimizer__learning_rate=3e-3
    )
    assert main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    evaluations = {line["step"]: line["mAP"] for line in lines if "mAP" in line}
    assert list(evaluations) == [200, 400]
    output = capsys.readouterr().out
    assert "| cosine zero-shot | raw | 1 |" in output
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["step"] == 400
    assert written["mAP"]["raw"] == pytest.approx(100 * evaluations[400])
    assert written["mAP"]["raw"] > 80
    for name in ("metric", "classes", "images", "image size", "class texts", "backbone"):
        assert written["protocol"][name]


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_a_run_in_two_parts_is_the_run_in_one(world, tmp_path, mode):
    config = small_config(world, train__parallel=mode)
    whole = train(config, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop_at_30(self, step, metrics):
        if step > 30:
            raise Stop
        add(self, step, metrics)

    add = Log.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "add", stop_at_30)
        with pytest.raises(Stop):
            train(config, tmp_path / "parts")
    assert steps_of(tmp_path / "parts") == [10, 20, 30]  # saved at 20: the last line is to be cut off
    resumed = train(config, tmp_path / "parts")
    assert_equal(resumed, whole)
    assert (tmp_path / "parts/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_a_finished_run_is_left_as_it_is(world, tmp_path):
    config = small_config(world)
    parameters = train(config, tmp_path)
    log = (tmp_path / "metrics.jsonl").read_text()
    assert_equal(train(config, tmp_path), parameters)
    assert (tmp_path / "metrics.jsonl").read_text() == log
    assert steps_of(tmp_path) == [10, 20, 30, 40, 50, 60]


def test_chunks_end_where_something_is_due(world, tmp_path):
    train(small_config(world, train__log_every=25, train__checkpoint_every=40), tmp_path)
    assert steps_of(tmp_path) == [25, 40, 50, 60]


def test_seeds_differ_and_repeat(world, tmp_path):
    first = train(small_config(world), tmp_path / "0")
    again = train(small_config(world), tmp_path / "1")
    other = train(small_config(world, seed=1), tmp_path / "2")
    assert_equal(first, again)
    assert not np.array_equal(first["layers"]["0"]["kernel"], other["layers"]["0"]["kernel"])


def test_divergence_stops_the_run(world, tmp_path):
    with pytest.raises(InputError, match=r"training diverged by step 10: .*; lower optimizer.learning_rate"):
        train(small_config(world, optimizer__learning_rate=1e30), tmp_path)


@pytest.mark.parametrize("steps", [1, 2, 3, 60])
def test_the_schedule_is_finite_however_short(steps):
    config = tai.get_config()
    config.train.steps = steps
    optimizer = make_optimizer(config)
    parameters = {"x": np.ones(2, np.float32)}
    state = optimizer.init(parameters)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(steps):
            updates, state = optimizer.update(parameters, state, parameters)
            assert np.isfinite(updates["x"]).all()


def test_the_log_loses_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    Log(path, 20)
    assert path.read_text() == '{"step": 10}\n{"step": 20}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP, a label file, five images and their labels."""
    folder = tmp_path_factory.mktemp("templates")
    write_clip(folder / "clip", config_with({"text_config.max_position_embeddings": 77}))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "images").mkdir()
    rows = ["filename,labels"]
    for i, image in enumerate(images()):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        rows.append(f"{i}.png,{LABELS[i]}|{LABELS[i - 1]}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder


def template_arguments(folder, workdir):
    values = {
        "backbone": folder / "clip",
        "texts.labels": folder / "labels.txt",
        "texts.number": 40,
        "evaluation.images": folder / "images",
        "evaluation.labels": folder / "table.csv",
        "adapter.hidden": 16,
        "train.steps": 20,
        "train.batch_size": 8,
    }
    settings = [f"--config.{name}={value}" for name, value in values.items()]
    return ["train", "--config=tai:templates", f"--workdir={workdir}", *settings]


def test_from_texts_and_pixels(folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main(template_arguments(folder, workdir)) == 0
    first = capsys.readouterr().out
    assert "images      5, " in first
    assert "image size  24x24" in first
    assert "class texts 'a photo of {labels}.'" in first
    assert str(folder / "clip") in first
    texts = read_embeddings(workdir / "texts.npz")
    assert texts.vectors.shape == (40, 20)
    assert texts.labels.shape == (40, 6)
    assert texts.names[5].count("scissors") == 1
    # The same again, from what is stored.
    before = (workdir / "texts.npz").stat().st_mtime_ns
    assert main(template_arguments(folder, workdir)) == 0
    assert capsys.readouterr().out == first
    assert (workdir / "texts.npz").stat().st_mtime_ns == before


def test_embedded_first_and_then_trained(folder, tmp_path, capsys):
    """The way the README shows: every input of the run is a file that `mlclip embed` wrote."""
    embed = ["embed", f"--backbone={folder / 'clip'}"]
    names = [f"--texts={folder / 'labels.txt'}", "--template=a photo of {labels}."]
    assert main([*embed, *names, f"--output={tmp_path / 'class_texts.npz'}"]) == 0
    assert main([*embed, f"--images={folder / 'images'}", f"--output={tmp_path / 'photographs.npz'}"]) == 0
    arguments = train_arguments(
        tmp_path,
        tmp_path / "run",
        evaluation__embeddings=tmp_path / "photographs.npz",
        evaluation__labels=folder / "table.csv",
    )
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "class texts 'a photo of {labels}.'" in output
    assert "image size  24x24" in output
    assert f"backbone    {folder / 'clip'} (sha256 " in output
    # The same scores as where the run embeds for itself.
    assert main(template_arguments(folder, tmp_path / "itself")) == 0
    cosine = [line for line in output.splitlines() if line.startswith("| cosine")]
    assert cosine == [line for line in capsys.readouterr().out.splitlines() if line.startswith("| cosine")]


def test_embeddings_of_another_backbone_are_refused(folder, tmp_path, capsys):
    assert main(template_arguments(folder, tmp_path / "run")) == 0
    other = write_clip(tmp_path / "other", seed=1)
    output = tmp_path / "images.npz"
    assert main(["embed", f"--backbone={other}", f"--images={folder / 'images'}", f"--output={output}"]) == 0
    capsys.readouterr()
    table = f"--labels={folder / 'table.csv'}"
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", f"--embeddings={output}", table]) == 2
    message = capsys.readouterr().err
    assert f"{output} was made by {other} (sha256 " in message
    assert f"the class texts by {folder / 'clip'} (sha256 " in message


def test_evaluate_compares_methods_over_seeds(world, tmp_path, capsys):
    runs = []
    for radius in (0.0, 3.0):
        for seed in (0, 1):
            runs.append(tmp_path / f"{radius}-{seed}")
            train(small_config(world, seed=seed, perturbation__radius=radius), runs[-1])
    source = {"embeddings": str(world / "images.npz")}
    comparison = evaluate.compare(runs, source, num_samples=50)
    rows = {(row["method"], row["scoring"]): row for row in comparison["rows"]}
    assert {method for method, _ in rows} == {"cosine zero-shot", "radius=0.0", "radius=3.0"}
    row = rows["radius=3.0", "raw"]
    assert row["seeds"] == 2
    singles = [evaluate.compare([run], source, 1)["rows"][1]["mAP"] for run in runs[2:]]
    assert row["mAP"] == pytest.approx(np.mean(singles))
    assert row["spread"] == pytest.approx(np.std(singles, ddof=1))
    assert row["over_cosine"][0] == pytest.approx(row["mAP"] - rows["cosine zero-shot", "raw"]["mAP"])
    assert row["over_first"][0] == pytest.approx(row["mAP"] - rows["radius=0.0", "raw"]["mAP"])
    difference, lower, upper = row["over_first"]
    assert lower <= upper
    assert abs(difference) < 100
    evaluate.print_comparison(comparison)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3 * 3
    assert len({line.count("|") for line in table}) == 1


def test_runs_on_different_texts_are_not_compared(world, tmp_path):
    other = tmp_path / "world"
    other.mkdir()
    write_embeddings(other, seed=5)
    for name, place in (("a", world), ("b", other)):
        train(small_config(place, train__steps=1), tmp_path / name)
    with pytest.raises(InputError, match="were trained on different class texts"):
        evaluate.compare([tmp_path / "a", tmp_path / "b"], {"embeddings": str(world / "images.npz")})
