"""A run: it learns, it logs, it ends where it would have ended without being stopped."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from clip_cases import images
from flax import nnx
from interruption import stopped_after
from ml_collections import ConfigDict
from PIL import Image
from small_world import LABELS, train_arguments, write_embeddings
from tiny_clip import config_with, write_clip

from mlclip_jax import InputError
from mlclip_jax.adapters.tai import TaIAdapter
from mlclip_jax.cli import main
from mlclip_jax.comparison import SCORINGS, _difference, compare, describe_comparison
from mlclip_jax.configs import tai
from mlclip_jax.distributed.data_parallel import MODES, data_parallel
from mlclip_jax.distributed.sharding import make_mesh, replicated
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import read_embeddings
from mlclip_jax.evaluation import evaluate
from mlclip_jax.files import locked
from mlclip_jax.losses import binary_cross_entropy
from mlclip_jax.nnx_boundary import merge_module, split_trainable
from mlclip_jax.perturbation import make_perturbation
from mlclip_jax.runs import read_run
from mlclip_jax.training.metric_log import Log
from mlclip_jax.training.optimizers import make_optimizer, make_schedule
from mlclip_jax.training.preparation import prepare, with_loss_constants
from mlclip_jax.training.step import hyper_of, initial_state, make_chunk, make_loss, make_train_step
from mlclip_jax.training.train import train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"))


def small_config(world, **changes):
    config = tai.get_config()
    config.texts.class_embeddings = str(world / "class_embeddings.npz")
    config.texts.number = 300
    config.method.hidden = 32
    config.perturbation.radius = 3.0
    config.train.update(steps=60, batch_size=8, log_every=10, checkpoint_every=20)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def read_scored(world, runs):
    return read_images({"embeddings": str(world / "images.npz")}, runs[0].class_embeddings)


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
    evaluations = {line["step"]: line["mAP_percent"] for line in lines if "mAP_percent" in line}
    assert list(evaluations) == [200, 400]
    output = capsys.readouterr().out
    assert "| cosine zero-shot | raw | 1 |" in output
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["step"] == 400
    assert written["mAP"]["raw"] == pytest.approx(evaluations[400])
    assert written["mAP"]["raw"] > 80
    for name in ("metric", "classes", "images", "image size", "class texts", "backbone"):
        assert written["protocol"][name]


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_a_run_in_two_parts_is_the_run_in_one(world, tmp_path, mode):
    config = small_config(world, train__parallel=mode)
    whole = train(config, tmp_path / "whole")

    with stopped_after(30):
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
    with pytest.raises(InputError, match=r"step \d failed: its \w+ is .* lower optimizer.learning_rate"):
        train(small_config(world, optimizer__learning_rate=1e30), tmp_path)


@pytest.mark.parametrize("steps", [1, 2, 3, 60])
def test_the_schedule_is_finite_however_short(steps):
    config = tai.get_config()
    config.train.steps = steps
    optimizer = make_optimizer(config)(hyper_of(config))
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
        "method.hidden": 16,
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
    texts = read_embeddings(next((workdir / "embedded").glob("texts-*.npz")))
    assert texts.vectors.shape == (40, 20)
    assert texts.labels.shape == (40, 6)
    assert texts.names[5].count("scissors") == 1
    # The same again, from what is stored.
    before = (next((workdir / "embedded").glob("texts-*.npz"))).stat().st_mtime_ns
    assert main(template_arguments(folder, workdir)) == 0
    assert capsys.readouterr().out == first
    assert (next((workdir / "embedded").glob("texts-*.npz"))).stat().st_mtime_ns == before


def test_class_embeddings_are_made_by_the_templates_of_the_recipe(folder, tmp_path, capsys):
    """A set or a file of them; a run resumes under no other, nor under a file that has changed."""
    file = tmp_path / "templates.txt"
    file.write_text("a photo of {labels}.\nthe {}\n")
    given = f"--config.texts.templates={file}"
    arguments = template_arguments(folder, tmp_path / "run")
    assert main([*arguments, given]) == 0
    assert (
        "class texts the mean of 2 templates, 'a photo of {labels}.' to 'the {}'" in capsys.readouterr().out
    )
    assert main(arguments) == 2
    assert f"holds a run with texts.templates '{file}', not ''" in capsys.readouterr().err
    file.write_text("a photo of {labels}.\na {}\n")
    assert main([*arguments, given]) == 2
    assert r"with class texts 'a photo of {labels}.\nthe {}', not 'a photo" in capsys.readouterr().err
    assert main([*template_arguments(folder, tmp_path / "other"), "--config.texts.templates=imagnet"]) == 2
    assert "no set of templates or file 'imagnet' (did you mean imagenet?)" in capsys.readouterr().err
    # What the run recorded needs no file, which other labels are put into as well.
    assert read_run(tmp_path / "run").class_embeddings.origin.prompt == "a photo of {labels}.\nthe {}"


def test_embedded_first_and_then_trained(folder, tmp_path, capsys):
    """The way the README shows: every input of the run is a file that `mlclip embed` wrote."""
    embed = ["embed", f"--backbone={folder / 'clip'}"]
    names = [f"--texts={folder / 'labels.txt'}", "--template=a photo of {labels}."]
    assert main([*embed, *names, f"--output={tmp_path / 'class_embeddings.npz'}"]) == 0
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
    assert f"the class embeddings by {folder / 'clip'} (sha256 " in message


def test_evaluate_compares_methods_over_seeds(world, tmp_path, capsys):
    runs = []
    for radius in (0.0, 3.0):
        for seed in (0, 1):
            runs.append(tmp_path / f"{radius}-{seed}")
            train(small_config(world, seed=seed, perturbation__radius=radius), runs[-1])
    runs = [read_run(run) for run in runs]
    scored = read_scored(world, runs)
    described, compared = evaluate(runs, scored, num_samples=50)
    rows = {(row["method"], row["scoring"]): row for row in compared}
    none, some = "TaI-Adapter, radius=0.0", "TaI-Adapter, radius=3.0"
    assert {method for method, _ in rows} == {"cosine zero-shot", none, some}
    row = rows[some, "raw"]
    assert row["seeds"] == 2
    singles = [evaluate([run], scored, 1)[1][1]["mAP"] for run in runs[2:]]
    assert row["mAP"] == pytest.approx(np.mean(singles))
    assert row["spread"] == pytest.approx(np.std(singles, ddof=1))
    assert row["over_cosine"][0] == pytest.approx(row["mAP"] - rows["cosine zero-shot", "raw"]["mAP"])
    assert row["over_first"][0] == pytest.approx(row["mAP"] - rows[none, "raw"]["mAP"])
    difference, lower, upper = row["over_first"]
    assert lower < difference < upper
    # Of a method and itself there is no difference in any resample: they are drawn in pairs.
    assert compared[0]["over_cosine"] is None
    scores = np.asarray(scored.vectors[:, :6])
    for twin in compare({"itself": scores}, scored.labels, cosine=scores, num_samples=50)[1::2]:
        assert twin["over_cosine"] == [0, 0, 0]
    print(describe_comparison(described, compared))
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3 * 3
    assert len({line.count("|") for line in table}) == 1


def test_runs_on_different_texts_are_not_compared(world, tmp_path):
    other = tmp_path / "world"
    other.mkdir()
    write_embeddings(other, seed=5)
    for name, place in (("a", world), ("b", other)):
        train(small_config(place, train__steps=1), tmp_path / name)
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(InputError, match="have different class embeddings"):
        evaluate(runs, read_scored(world, runs))


def test_a_damaged_run_is_named_with_the_image(world, tmp_path):
    train(small_config(world, train__steps=1), tmp_path)
    run = read_run(tmp_path)
    damaged = dataclasses.replace(
        run, parameters=jax.tree.map(lambda x: x * np.float32(np.nan), run.parameters)
    )
    with pytest.raises(InputError, match=r"gives scores that are NaN or infinite, first for 000\.jpg; its"):
        evaluate([damaged], read_scored(world, [run]))


def test_unfinished_and_repeated_runs_are_not_compared(world, tmp_path):
    for name in ("a", "b", "c"):
        train(small_config(world, train__steps=20), tmp_path / name)
    path = tmp_path / "c" / "config.json"
    path.write_text(path.read_text().replace('"steps": 20', '"steps": 40'))
    runs = [read_run(tmp_path / name) for name in ("a", "b", "c")]
    scored = read_scored(world, runs)
    with pytest.raises(InputError, match=r"/a and .*/b are the same run twice"):
        evaluate(runs[:2], scored)
    with pytest.raises(InputError, match=r"/c stopped at step 20 of 40; start its command again"):
        evaluate(runs[::2], scored)


def test_fused_is_the_mean_of_both_standardised():
    scores, cosine = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)

    def by_hand(x):
        return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)

    np.testing.assert_allclose(
        SCORINGS["fused"](scores, cosine),
        (by_hand(scores) + by_hand(cosine)) / 2,
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_array_equal(SCORINGS["raw"](scores, cosine), scores)


def test_evaluation_leaves_a_running_run_alone(world, tmp_path):
    """What a run is just writing has a temporary name; only the run itself may clear such names away."""
    train(small_config(world), tmp_path)
    unfinished = tmp_path / "checkpoints" / "80.orbax-checkpoint-tmp"
    unfinished.mkdir()
    read_run(tmp_path)
    assert unfinished.is_dir()


def test_one_process_at_a_time(world, tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="another process is writing in"):
        train(small_config(world), tmp_path)
    train(small_config(world), tmp_path)


def test_other_images_can_be_scored_later(world, tmp_path, capsys):
    assert main(train_arguments(world, tmp_path / "run", evaluation__embeddings="")) == 0
    assert "mAP" not in capsys.readouterr().out
    assert main(train_arguments(world, tmp_path / "run")) == 0
    assert "images      60, " in capsys.readouterr().out
    few = tmp_path / "few"
    few.mkdir()
    with np.load(world / "images.npz") as images:
        np.savez(few / "images.npz", **{k: v if k == "class_names" else v[:10] for k, v in images.items()})
    assert main(train_arguments(world, tmp_path / "run", evaluation__embeddings=few / "images.npz")) == 0
    assert "images      10, " in capsys.readouterr().out


def test_what_does_not_change_the_result_may_change(world, tmp_path):
    first = train(small_config(world), tmp_path)
    config = small_config(world, train__log_every=7, train__checkpoint_every=13, train__parallel="pmap")
    assert_equal(train(config, tmp_path), first)
    with pytest.raises(InputError, match=r"holds a run with perturbation\.radius 3\.0, not 4\.0"):
        train(small_config(world, perturbation__radius=4.0), tmp_path)


def test_labels_in_another_order_are_other_labels(folder, tmp_path, capsys):
    arguments = template_arguments(folder, tmp_path / "run")
    assert main(arguments) == 0
    (tmp_path / "reversed.txt").write_text("\n".join(reversed(LABELS)))
    capsys.readouterr()
    assert main([*arguments, f"--config.texts.labels={tmp_path / 'reversed.txt'}"]) == 2
    assert "was trained on" in capsys.readouterr().err


# When a read fails, orbax gives up the others that it has begun, and these complain.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").write_text(""), r"cannot read .*config\.json"),
        (lambda run: (run / "config.json").write_text("[]"), r"cannot read .*config\.json"),
        (lambda run: (run / "config.json").write_text('{"a": 1}'), "it is no config of a run"),
        (lambda run: (run / "config.json").write_bytes(b"\xff"), r"cannot read .*config\.json"),
        (lambda run: (run / "config.json").unlink(), "holds no run: it has no config.json"),
        (lambda run: shutil.rmtree(run / "checkpoints/60/parameters"), "cannot read the checkpoint .*/60 "),
        (
            lambda run: (run / "checkpoints/60/_CHECKPOINT_METADATA").unlink(),
            "cannot read the checkpoint|no checkpoint",
        ),
        (
            lambda run: (run / "checkpoints/60").rename(run / "checkpoints/999"),
            "step 999, beyond 60|stopped|cannot read",
        ),
    ],
)
def test_a_damaged_workdir_is_one_clear_line(world, tmp_path, capsys, damage, message):
    run = tmp_path / "run"
    train(small_config(world, train__checkpoint_every=60), run)
    damage(run)
    capsys.readouterr()
    assert main(train_arguments(world, run, train__checkpoint_every=60)) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert re.search(message, error), error
    assert all("4 devices" in line for line in before)


def test_a_log_with_foreign_lines_does_not_stop_a_run(world, tmp_path):
    config = small_config(world)
    train(config, tmp_path)
    log = tmp_path / "metrics.jsonl"
    whole = log.read_text()
    log.write_bytes(b"\n\xff\xfe\n[1]\n" + log.read_bytes() + b"{")
    train(config, tmp_path)
    assert log.read_text() == whole


def test_a_recipe_that_lacks_a_key_or_has_one_too_many(world, tmp_path):
    config = small_config(world)
    del config.optimizer.weight_decay
    with pytest.raises(InputError, match=r"the recipe lacks optimizer\.weight_decay"):
        train(config, tmp_path)
    config = small_config(world)
    config.train.stpes = 3
    with pytest.raises(InputError, match=r"the recipe has train\.stpes, which nothing reads"):
        train(config, tmp_path)
    config = small_config(world)
    with config.ignore_type():
        config.perturbation.radius = "wide"
    with pytest.raises(InputError, match=r"perturbation\.radius=wide: must be finite"):
        train(config, tmp_path)


class TestStep:
    """What one step does, seen from outside: every setting of the recipe reaches it."""

    def parameters(self, steps=(0,), **changes):
        config = tai.get_config()
        config.loss = ConfigDict(changes.pop("loss", config.loss))
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        generator = np.random.default_rng(0)
        batch = {
            "image": generator.normal(size=(8, 6)).astype(np.float32),
            "labels": generator.integers(0, 2, (8, 3)).astype(np.int8),
            "is_text": np.ones(8, bool),
        }
        class_embeddings = np.zeros((3, 6), np.float32)
        settings = {"hidden": 16, "dropout": config.method.dropout, "dtype": config.method.dtype}
        adapter = TaIAdapter(class_embeddings, **settings, rngs=nnx.Rngs(0))
        graph, parameters, frozen = split_trainable(adapter)
        optimizer, hyper = make_optimizer(config), hyper_of(config)
        state = initial_state(parameters, optimizer(hyper))
        mesh = make_mesh(jax.devices()[:1])
        loss = make_loss(with_loss_constants(config).loss)
        step = make_train_step(graph, optimizer, loss, make_perturbation(config.perturbation))
        chunk = data_parallel(make_chunk(step), "shard_map", mesh)
        indices = np.tile(np.arange(8, dtype=np.int32), (len(steps), 1))
        state, _ = chunk(
            jax.device_put(state, replicated(mesh)), frozen, batch, indices, np.array(steps, np.int32), hyper
        )
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state["parameters"])])

    def test_every_setting_matters(self):
        base = self.parameters((0, 1))
        np.testing.assert_array_equal(self.parameters((0, 1)), base)
        for change in (
            {"perturbation__radius": 0.0},
            {"perturbation__radius": 13.0},
            {"perturbation__sampling": "interior_by_radius"},
            {"method__dropout": 0.5},
            {"optimizer__learning_rate": 2e-3},
            {"optimizer__weight_decay": 0.5},
            {"train__steps": 300},
            {"seed": 1},
            {"loss": {"name": "focal"}},
            {"method__dtype": "bfloat16"},
        ):
            assert not np.array_equal(self.parameters((0, 1), **change), base), change

    def test_noise_and_dropout_are_new_at_every_step(self):
        without = {"perturbation__radius": 0.0, "method__dropout": 0.0}
        for other in ({"method__dropout": 0.0}, {"perturbation__radius": 0.0}):
            assert not np.array_equal(self.parameters((0,), **other), self.parameters((7,), **other))
        np.testing.assert_array_equal(self.parameters((0,), **without), self.parameters((7,), **without))

    def test_without_noise_it_is_adamw_on_the_mean_loss(self):
        """One step, with NumPy: Adam's first step is the sign of the gradient, then the decay."""
        changes = {"perturbation__radius": 0.0, "method__dropout": 0.0, "optimizer__weight_decay": 0.1}
        parameters = self.parameters((0,), **changes)
        adapter = TaIAdapter(np.zeros((3, 6), np.float32), hidden=16, rngs=nnx.Rngs(0))
        graph, start, frozen = split_trainable(adapter)
        generator = np.random.default_rng(0)
        embeddings = generator.normal(size=(8, 6)).astype(np.float32)
        labels = generator.integers(0, 2, (8, 3)).astype(np.int8)
        gradient = jax.grad(
            lambda p: binary_cross_entropy(merge_module(graph, p, frozen)({"image": embeddings}), labels)
        )(start)
        rate = 1e-3 / 25  # where the 1-cycle begins
        expected = jax.tree.map(
            lambda p, g: p - rate * (g / (np.abs(g) + 1e-8) + 0.1 * p),
            jax.device_get(start),
            jax.device_get(gradient),
        )
        expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(expected)])
        np.testing.assert_allclose(parameters, expected, rtol=0, atol=2e-7)


def test_the_schedule_is_one_cycle():
    config = tai.get_config()
    config.train.steps = 1000
    with jax.numpy_dtype_promotion("standard"):
        rates = np.array([make_schedule(config)(step) for step in range(1001)])
    assert rates[0] == pytest.approx(1 / 25)
    assert rates.argmax() == 300
    assert rates[300] == pytest.approx(1)
    assert (np.diff(rates[:301]) > 0).all()
    assert (np.diff(rates[300:]) < 0).all()
    assert rates[1000] < 1e-5


def test_intervals_are_of_the_basic_bootstrap():
    """Reflected about the estimate: resamples of a mean average precision lie above it, not around it."""
    skewed = np.arange(101.0) ** 2  # quantiles 2.5% and 97.5%, interpolated: 6.5 and 9506.5
    measured = {
        "ours": (np.array([30.0, 32.0]), skewed + 10),
        "theirs": (np.array([20.0]), np.full(101, 10.0)),
    }
    difference, lower, upper = _difference(measured, "ours", "theirs")
    assert difference == 11
    assert (lower, upper) == pytest.approx((22 - 9506.5, 22 - 6.5))


def test_runs_of_one_program_share_it(world, tmp_path):
    """They are then traced and compiled once in a process."""
    changes = ({}, {"seed": 5, "perturbation.radius": 1.0, "train.log_every": 7}, {"method.hidden": 16})
    chunks = [prepare(small_config(world, **own), tmp_path / str(i)).chunk() for i, own in enumerate(changes)]
    assert chunks[0] is chunks[1]
    assert chunks[0] is not chunks[2]
    for mode in MODES:
        assert data_parallel(chunks[0], mode, make_mesh()) is not data_parallel(chunks[2], mode, make_mesh())
    shardings = {"parameters": replicated(make_mesh())}
    programs = [data_parallel(chunks[0], "shard_map", make_mesh(), state_shardings=shardings) for _ in "ab"]
    assert programs[0] is programs[1]


def mixed_arguments(world, workdir, **changes):
    given = {"examples__embeddings": world / "images.npz", "texts__share": 0.25}
    return train_arguments(world, workdir, **given | changes)


def test_texts_and_images_train_together(world, tmp_path, capsys):
    """Resumed, it ends as undisturbed; and it is not the run on texts."""
    assert main(mixed_arguments(world, tmp_path / "mixed")) == 0
    assert "trained 60 steps on 300 texts and 60 images about 6 labels" in capsys.readouterr().out
    whole = jax.tree.leaves(read_run(tmp_path / "mixed").parameters)
    shutil.rmtree(tmp_path / "mixed/checkpoints/60")
    assert main(mixed_arguments(world, tmp_path / "mixed", evaluation__embeddings="")) == 0
    assert main(train_arguments(world, tmp_path / "texts", evaluation__embeddings="")) == 0
    resumed, texts = (jax.tree.leaves(read_run(tmp_path / name).parameters) for name in ("mixed", "texts"))
    for ours, theirs, other in zip(whole, resumed, texts):
        np.testing.assert_array_equal(ours, theirs)
        assert np.abs(ours - other).max() > 1e-4
    # The images are known to the run: scoring it on them says so.
    capsys.readouterr()
    evaluate = ["evaluate", f"--workdir={tmp_path / 'mixed'}", f"--embeddings={world / 'images.npz'}"]
    assert main([*evaluate, "--bootstrap=10"]) == 0
    assert "beware      of exactly these images 60 were trained on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts__share": 1.0}, "--config.texts.share=1 leaves no room for the images of config.examples"),
        ({"texts__share": 0.01}, "--config.texts.share=0.01 puts 0 texts into a batch of 8"),
        ({"texts__share": 1.5}, "invalid --config.texts.share=1.5: must be in [0, 1]"),
        ({"examples__embeddings": ""}, "no images to train on: give --config.examples.embeddings=FILE"),
        (
            {"texts__share": 0.0},
            "--config.perturbation.radius=3 moves nothing, as the run trains on 60 images; set it to 0",
        ),
        (
            {"perturbation__image_sampling": "both"},
            "invalid --config.perturbation.image_sampling=both: must be one of surface, interior",
        ),
    ],
)
def test_shares_that_cannot_be(world, tmp_path, capsys, changes, message):
    assert main(mixed_arguments(world, tmp_path / "run", **changes)) == 2
    assert message in capsys.readouterr().err
