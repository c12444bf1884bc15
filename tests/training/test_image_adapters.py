"""Adapters trained on images with labels: every recipe, from files to a table, and on to other labels."""

import contextlib
import csv
import functools
import io
import json
import shutil

import jax
import numpy as np
import pytest
from clip_cases import images
from PIL import Image
from tiny_clip import config_with, write_clip

import mlclip_jax
from mlclip_jax import InputError, methods, recipes
from mlclip_jax.cli import main
from mlclip_jax.configs import ml_decoder, mmm_clip
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import read_embeddings, write_embeddings
from mlclip_jax.evaluation import figures_of
from mlclip_jax.experiments import few_shot
from mlclip_jax.runs import read_run
from mlclip_jax.training.loop import run_conditions
from mlclip_jax.training.train import train

LABELS = ("cat", "dog", "owl", "bus")
DECODER = {"method.hidden": 16, "method.num_heads": 2}
# Recipe, changes, and whether it takes other labels.
CASES = {
    "fc": ("mmm_clip:fc", {}),
    "fc_published": ("mmm_clip:fc_published", {}),
    "mld_local": ("mmm_clip:mld", DECODER),
    "mld_pooled": ("mmm_clip:mld", DECODER | {"method.features": "pooled"}),
    "mld_published": ("mmm_clip:mld_published", DECODER | {"optimizer.learning_rate": 1e-2}),
    "ml_decoder_local": ("ml_decoder", DECODER | {"method.width": 16, "method.groups": 3}),
    "ml_decoder_pooled": ("ml_decoder:learnt", DECODER | {"method.width": 16, "method.features": "pooled"}),
    "ml_decoder_text": ("ml_decoder:text", DECODER | {"method.width": 16}),
    "bfloat16": ("mmm_clip:mld", DECODER | {"method.dtype": "bfloat16"}),
}
# tests/distributed/test_data_parallel.py shows that the wrappers agree; one adapter of images has both.
MODES = [*((case, "shard_map") for case in CASES), ("mld_local", "pmap")]
SLOW = ("mld_pooled", "ml_decoder_pooled")  # with local features the same adapters are trained
MODES = [pytest.param(*mode, marks=pytest.mark.slow) if mode[0] in SLOW else mode for mode in MODES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP, labels, images and a table of which has which, and both embedded."""
    folder = tmp_path_factory.mktemp("images")
    write_clip(folder / "clip", config_with({"text_config.max_position_embeddings": 77}))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "other.txt").write_text("kite\nscissors\nzebra")
    rows = {"images": ["filename,labels"], "test": ["filename,labels"]}
    for split, shift in (("images", 0), ("test", 7)):
        (folder / split).mkdir()
        for i, image in enumerate(images()):
            Image.fromarray(np.roll(image, shift, axis=1)).save(folder / split / f"{i}.png")
            rows[split].append(f"{i}.png,{LABELS[i % 4]}|{LABELS[(i + 1) % 4]}")
        (folder / f"{split}.csv").write_text("\n".join(rows[split]))
        flags = [
            f"--images={folder / split}",
            "--features=image,image_local",
            f"--output={folder / split}.npz",
        ]
        assert main(["embed", f"--backbone={folder / 'clip'}", *flags]) == 0
    return folder


def arguments(folder, workdir, case, **changes):
    recipe, own = CASES[case]
    values = {
        "backbone": folder / "clip",
        "texts.labels": folder / "labels.txt",
        "examples.embeddings": folder / "images.npz",
        "examples.labels": folder / "images.csv",
        "evaluation.embeddings": folder / "test.npz",
        "evaluation.labels": folder / "test.csv",
        "train.steps": 40,
        "train.batch_size": 8,
        "train.log_every": 10,
        "optimizer.learning_rate": 1e-2,
    }
    values |= own | {name.replace("__", "."): value for name, value in changes.items()}
    settings = [f"--config.{name}={value}" for name, value in values.items()]
    return ["train", f"--config={recipe}", f"--workdir={workdir}", *settings]


def losses_of(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """`trained(case, mode)`: the folder of such a run, made when first asked for, and what it printed."""

    @functools.cache
    def run(case, mode="shard_map"):
        workdir = tmp_path_factory.mktemp(f"{case}-{mode}")
        # Lowered for CPUs, the gradient of JAX's own attention in bfloat16 mixes dtypes.
        promotion = jax.numpy_dtype_promotion("standard" if case == "bfloat16" else "strict")
        printed = io.StringIO()
        with promotion, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            assert main(arguments(folder, workdir, case, train__parallel=mode)) == 0
        return workdir, printed.getvalue()

    return run


@pytest.mark.parametrize(("case", "mode"), MODES)
def test_every_adapter_trains(folder, trained, case, mode):
    workdir, printed = trained(case, mode)
    assert "parameters, " + ("bfloat16" if case == "bfloat16" else "float32") in printed
    assert "| cosine zero-shot | raw | 1 |" in printed
    losses = losses_of(workdir)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    # What is read back scores as what was trained; frozen queries are drawn again from the seed.
    run = read_run(workdir)
    written = json.loads((workdir / "evaluation.json").read_text())
    scored = read_images(
        {"embeddings": folder / "test.npz", "labels": folder / "test.csv"},
        run.class_embeddings,
        None,
        None,
        reads=run.method.reads,
    )
    figures = figures_of(run, run.decide(scored), scored.labels)
    assert figures == pytest.approx(written["raw"])


@pytest.mark.parametrize("loss", ["focal", "two_way", "pairwise_ranking"])
def test_a_loss_trains_by_its_name(folder, tmp_path, caplog, loss):
    """tests/distributed/test_data_parallel.py takes steps with all of them."""
    config = mmm_clip.get_config(f"fc,loss={loss}")
    config.backbone, config.texts.labels = str(folder / "clip"), str(folder / "labels.txt")
    config.examples.update(embeddings=str(folder / "images.npz"), labels=str(folder / "images.csv"))
    config.train.update(steps=40, batch_size=8, log_every=10)
    with caplog.at_level("INFO", "mlclip_jax"):
        train(config, tmp_path)
    # Of these only the focal loss trains what a sigmoid makes probabilities of.
    assert (f"{loss}: probabilities need `mlclip calibrate`" in caplog.text) == (loss != "focal")
    losses = losses_of(tmp_path)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_a_loss_may_be_changed_by_name_alone_and_its_constants_are_recorded(folder, tmp_path, capsys):
    changed = arguments(folder, tmp_path, "fc", loss__name="asymmetric", train__steps=1)
    assert main(changed) == 0
    recorded = json.loads((tmp_path / "config.json").read_text())["loss"]
    assert recorded["name"] == "asymmetric"
    assert recorded["gamma_negative"] == 4.0
    assert recorded["reduction"] == "sum"
    assert main(changed) == 0  # the same run again
    capsys.readouterr()
    for wrong, message in (
        ({"loss__name": "assymetric"}, "loss.name must be one of binary_cross_entropy, mean_squared_error"),
        (
            {"loss__reduction": "samples", "loss__name": "two_way"},
            "reduction must be one of mean, sum for this",
        ),
        ({"loss__reduction": "median"}, "reduction must be one of mean, samples, sum"),
        ({"method__text": "second"}, "method.text=second: must be one of cosine, first, none"),
    ):
        assert main(arguments(folder, tmp_path / "wrong", "fc", **wrong)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("mmm_clip:mdl", "recipe mmm_clip has no variant 'mdl' (did you mean mld?); it has fc, fc_pub"),
        ("mmm_clip:mld,loss=asl", "no loss 'asl'; there are binary_cross_entropy"),
        ("mmm_clip:mld,lr=3", "recipe mmm_clip has no option 'lr'; its options, and defaults: loss=binary"),
        ("few_shot:fd", "recipe few_shot has no variant 'fd'"),
    ],
)
def test_variants_that_do_not_exist(tmp_path, capsys, variant, message):
    assert main(["train", f"--config={variant}", f"--workdir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_local_features_are_asked_for_where_they_are_read(folder, tmp_path, capsys):
    images = read_embeddings(folder / "test.npz")
    pooled = images.replace(features=images.only(["image"]))
    write_embeddings(tmp_path / "pooled.npz", pooled)
    given = {"evaluation__embeddings": tmp_path / "pooled.npz"}
    assert main(arguments(folder, tmp_path / "run", "mld_local", **given)) == 2
    assert (
        "holds no image_local, which this method reads, but image; embed with --features=image,image_local"
    ) in capsys.readouterr().err
    assert main(arguments(folder, tmp_path / "run", "mld_pooled", **given)) == 0


@pytest.mark.parametrize(
    ("variant", "setting", "message"),
    [
        ("fc,loss=asymmetric", "loss.clip=-2.0", "loss.clip=-2.0: must be in [0, 1)"),
        ("fc,loss=asymmetric", "loss.gamma_negative=-4.0", "must be finite and not negative"),
        ("fc,loss=two_way", "loss.temperature_positive=0.0", "must be finite and positive"),
        ("fc,loss=smoothed_binary_cross_entropy", "loss.smoothing=5.0", "must be in [0, 1]"),
        ("fc,loss=asymmetric", "loss.name=two_way", "loss two_way has no"),
        ("mld", "perturbation.radius=2.0", "must be 0 with local features, which no noise is added to"),
        ("mld", "method.num_heads=7", "num_heads=7 does not divide the width"),
        ("mld", "method.blocks=0", "must be at least 1"),
        ("mld", "method.features=all", "must be one of local, pooled"),
        ("mld", "examples.images=elsewhere", "give either --config.examples.embeddings=FILE or"),
    ],
)
def test_values_that_cannot_be_are_one_line(folder, tmp_path, capsys, variant, setting, message):
    given = arguments(folder, tmp_path, "fc")
    given[1] = f"--config=mmm_clip:{variant}"
    assert main([*given, f"--config.{setting}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("mlclip train: error: ")


def test_a_run_does_not_go_on_with_other_images_or_labels(folder, trained, tmp_path, capsys):
    """Under whatever name; the same ones may have moved."""
    shutil.copytree(trained("fc")[0], tmp_path / "run")
    shutil.copy(folder / "images.npz", tmp_path / "moved.npz")
    other = (folder / "images.csv").read_text().replace(f"0.png,{LABELS[0]}|", "0.png,")
    (tmp_path / "other.csv").write_text(other)
    for changed, code in (
        ({"examples__embeddings": tmp_path / "moved.npz"}, 0),
        ({"examples__embeddings": folder / "test.npz"}, 2),
        ({"examples__labels": tmp_path / "other.csv"}, 2),
    ):
        assert main(arguments(folder, tmp_path / "run", "fc", **changed)) == code, changed
        assert ("was trained on" in capsys.readouterr().err) == (code == 2)


def test_the_least_of_every_setting_is_accepted_and_less_is_not(folder, tmp_path):
    """As the messages say."""
    least = {"train.label_shards": 1, "method.dropout": 0, "optimizer.weight_decay": 0}
    least |= dict.fromkeys(["max_skipped", "train.evaluate_every", "train.max_skipped_steps"], 0)
    least |= {"train.stall_seconds": 0, "seed": 0}
    for name in ("steps", "log_every", "checkpoint_every"):
        least[f"train.{name}"] = 1
    for name in ("width", "num_heads", "groups", "hidden"):
        least[f"method.{name}"] = 1
    config = ml_decoder.get_config()
    config.backbone, config.texts.labels = str(folder / "clip"), str(folder / "labels.txt")
    config.examples.update(embeddings=str(folder / "images.npz"), labels=str(folder / "images.csv"))
    config.train.batch_size = jax.device_count()
    config.update_from_flattened_dict(least)
    train(config, tmp_path / "run")
    holds, _ = run_conditions(config.train, num_devices=1)["train.batch_size"]
    assert holds(1)
    assert not holds(0)
    for name, value in least.items():
        below = config.copy_and_resolve_references()
        below.update_from_flattened_dict({name: value - 1})
        with pytest.raises(InputError, match=rf"--config\.{name}=-?\d(\.0)?: must"):
            train(below, tmp_path / "other")


def test_recipes_of_ones_own_that_are_no_recipes(folder, tmp_path):
    config = mmm_clip.get_config("fc")
    del config.loss
    config.loss = "focal"
    with pytest.raises(InputError, match=r"the recipe's loss\.name must be one of"):
        train(config, tmp_path)
    config = mmm_clip.get_config("fc")
    config.backbone, config.texts.labels = str(folder / "clip"), str(folder / "labels.txt")
    with pytest.raises(InputError, match=r"FC has no setting 'foo'; it has text, dtype"):
        methods.find(config.method.to_dict() | {"foo": 1})


def test_what_is_drawn_is_kept_with_the_run(trained, tmp_path):
    """Another version of JAX may draw other queries from the same seed."""
    shutil.copytree(trained("ml_decoder_local")[0], tmp_path, dirs_exist_ok=True)
    kept = np.load(tmp_path / "random_buffers.npz")["queries"]
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.frozen["queries"], kept)
    np.savez(tmp_path / "random_buffers.npz", queries=kept + 1)
    np.testing.assert_array_equal(read_run(tmp_path).frozen["queries"], kept + 1)


def test_a_folder_of_images_gives_the_same_run(folder, trained, tmp_path):
    """Embedded on the way, or stored before: the same local features, the same parameters."""
    given = {"examples__embeddings": "", "examples__images": folder / "images"}
    assert main(arguments(folder, tmp_path, "mld_local", **given)) == 0
    assert losses_of(tmp_path) == losses_of(trained("mld_local")[0])


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize("case", ["mld_local", "ml_decoder_text"])
def test_other_labels_in_one_call(folder, trained, case):
    run = mlclip_jax.load(trained(case)[0])
    files = sorted((folder / "test").iterdir())
    other = run.with_labels(["kite", "cat"])
    assert other.label_names == ("kite", "cat")
    # A label's probability does not depend on which others are asked for.
    expected = run.predict(files)[:, [0]]
    np.testing.assert_allclose(other.predict(files)[:, [1]], expected, atol=1e-5)
    np.testing.assert_allclose(run.with_labels(["cat"]).predict(files), expected, atol=1e-5)
    for wrong, message in (
        ("cat", "must be a list of names; got 'cat'"),
        ([], "must be a list of names"),
        ([" "], "must be a string that is not blank"),
        ([3], "must be a string that is not blank; got 3"),
        (["cat", "cat"], "names 'cat' more than once"),
    ):
        with pytest.raises(InputError, match=message):
            run.with_labels(wrong)
    # The labels it was trained on, in another order, are still what they were.
    back = run.with_labels(LABELS[::-1])
    np.testing.assert_allclose(back.predict(files)[:, ::-1], run.predict(files), atol=1e-5)


def test_other_labels_from_the_shell(folder, trained, tmp_path, capsys):
    mld, fc = (trained(case)[0] for case in ("mld_local", "fc"))
    predict = [
        f"--images={folder / 'test'}",
        f"--classes={folder / 'other.txt'}",
        f"--output={tmp_path / 'x.csv'}",
    ]
    assert main(["predict", f"--workdir={mld}", *predict]) == 0
    with (tmp_path / "x.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["file", "labels", "kite", "scissors", "zebra"]
    (tmp_path / "other.csv").write_text(
        "filename,labels\n" + "\n".join(f"{i}.png,{'kite' if i % 2 else 'zebra'}" for i in range(5))
    )
    evaluate_flags = [
        f"--classes={folder / 'other.txt'}",
        f"--labels={tmp_path / 'other.csv'}",
        "--bootstrap=5",
    ]
    runs = f"--workdir={mld},{trained('ml_decoder_text')[0]}"
    capsys.readouterr()
    assert main(["evaluate", runs, *evaluate_flags, "--protocol=voc07"]) == 0
    output = capsys.readouterr().out
    assert "VOC 2007's 11-point" in output
    assert "2 of 3 have a positive and are counted" in output
    assert "| MLD | raw |" in output
    before = json.loads((mld / "evaluation.json").read_text())
    assert before["protocol"]["classes"] == "4 of 4 have a positive and are counted"
    assert main(["evaluate", f"--workdir={fc}", *evaluate_flags]) == 2
    assert "holds FC, which knows no labels but those it was trained on; MLD and " in capsys.readouterr().err
    with pytest.raises(InputError, match="which knows no labels but those it was trained on"):
        mlclip_jax.load(fc).with_labels(["kite"])


def test_calibration_is_refused_on_what_was_trained_on(folder, trained, tmp_path, capsys):
    workdir = shutil.copytree(trained("mld_local")[0], tmp_path / "run")

    def calibrate(split):
        given = [f"--embeddings={folder / split}.npz", f"--labels={folder / split}.csv"]
        return main(["calibrate", f"--workdir={workdir}", *given])

    assert calibrate("images") == 2
    assert "5 of the 5 images were trained on" in capsys.readouterr().err
    assert calibrate("test") == 0
    run = mlclip_jax.load(workdir)
    files = sorted((folder / "test").iterdir())
    output = tmp_path / "x.jsonl"
    predict = [f"--images={folder / 'test'}", f"--output={output}"]
    assert main(["predict", f"--workdir={workdir}", *predict]) == 0
    for line, row in zip(output.read_text().splitlines(), run.predict(files)):
        expected = [name for name, p, t in zip(LABELS, row, run.thresholds) if p >= t]
        assert json.loads(line)["labels"] == expected
    assert not np.allclose(run.thresholds, 0.5)
    # Of other labels, nothing is known.
    np.testing.assert_array_equal(run.with_labels(["kite"]).thresholds, 0.5)


def test_few_shot_makes_its_table(tmp_path, monkeypatch):
    """A small form of the command: fewer scenes and steps, two methods, one split."""
    read = recipes.read

    def short(recipe):
        config = read(recipe)
        config.train.steps = 20
        return config

    monkeypatch.setattr(recipes, "read", short)
    small = {name: (seed, 40, labels) for name, (seed, _, labels) in few_shot.FOLDERS.items()}
    monkeypatch.setattr(few_shot, "FOLDERS", small)
    variants = {name: few_shot.VARIANTS[name] for name in ("fc", "mld_pooled")}
    rows = few_shot.few_shot(tmp_path, 1, variants, (0.7,))
    assert [row[0] for row in rows] == ["plain cosine", "FC", "MLD, pooled features"]
    assert rows[1][-1] == ""
    assert all(0 < float(cell) <= 100 for cell in rows[2][1:])
    table = (tmp_path / "table.md").read_text()
    assert "| method | 70/30 | other labels |" in table
    assert "Trained on 28 of 40 scenes" in table
    # A second seed is added to what is there.
    first = read_run(tmp_path / "fc-70-seed0").parameters
    again = few_shot.few_shot(tmp_path, 2, {"fc": "FC"}, (0.7,))
    assert "±" in again[1][1]
    jax.tree.map(np.testing.assert_array_equal, read_run(tmp_path / "fc-70-seed0").parameters, first)
