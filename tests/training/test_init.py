"""A run begins with another run's parameters, under other labels where its method reads these."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_world import LABELS, write_embeddings

from mlclip_jax.cli import main
from mlclip_jax.runs import read_run

OTHERS = ("yak", "emu", "ant")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Classes and images of two sets of labels, in one space."""
    folder = write_embeddings(tmp_path_factory.mktemp("world"))
    classes = np.load(folder / "class_embeddings.npz")["embeddings"]
    np.savez(folder / "others.npz", embeddings=classes[:3] + 1, names=OTHERS)
    images = dict(np.load(folder / "images.npz"))
    labels = images["labels"][:, :3]
    labels[labels.sum(axis=1) == 0, 0] = 1
    np.savez(folder / "other_images.npz", **images | {"labels": labels, "class_names": OTHERS})
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Methods of images on stored class embeddings, so that no backbone is needed."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(
        "from ml_collections.config_dict import placeholder\n"
        "from mlclip_jax import recipes\n"
        "VARIANTS = ('mld', 'ml_decoder', 'fc')\n"
        "def get_config(variant=''):\n"
        "    config, variant, _ = recipes.base(__file__, variant, VARIANTS)\n"
        "    del config.backbone, config.encoding, config.texts.labels, config.evaluation.images\n"
        "    config.texts.class_embeddings = placeholder(str)\n"
        "    config.examples = recipes.training_images()\n"
        "    own = {'mld': {'features': 'pooled', 'hidden': 16}, 'fc': {},\n"
        "           'ml_decoder': {'features': 'pooled', 'hidden': 16, 'width': 16, 'num_heads': 2}}\n"
        "    config.method = recipes.method(variant, **own[variant])\n"
        "    config.train.update(steps=4, batch_size=8, log_every=2, checkpoint_every=2)\n"
        "    return config\n"
    )
    return path


@pytest.fixture(scope="module")
def first(world, recipe, tmp_path_factory):
    """A run of MLD to begin with."""
    folder = tmp_path_factory.mktemp("first")
    assert train(world, recipe, folder, "run") == 0
    return folder / "run"


def train(world, recipe, tmp_path, name, variant="mld", others=False, **changes):
    values = {
        "texts.class_embeddings": world / ("others.npz" if others else "class_embeddings.npz"),
        "examples.embeddings": world / ("other_images.npz" if others else "images.npz"),
    } | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return main(["train", f"--config={recipe}:{variant}", f"--workdir={tmp_path / name}", *flags])


def leaves(folder):
    return jax.tree.leaves(read_run(folder).parameters)


@pytest.mark.parametrize("others", [False, True])
def test_it_begins_where_the_other_run_ended(world, recipe, first, tmp_path, others):
    """Under other labels too: what no step has moved is what the other run learnt."""
    still = {"optimizer__learning_rate": 1e-20, "optimizer__weight_decay": 0.0, "train__steps": 1}
    assert train(world, recipe, tmp_path, "second", others=others, init=first, **still) == 0
    for before, after in zip(leaves(first), leaves(tmp_path / "second")):
        np.testing.assert_array_equal(before, after)
    run = read_run(tmp_path / "second")
    assert run.label_names == (OTHERS if others else LABELS)
    assert run.class_embeddings.origin.init == read_run(first).digest
    # Its references are its own labels, as those of any run.
    np.testing.assert_array_equal(run.frozen["reference_embeddings"], run.class_embeddings.vectors)


def test_what_was_drawn_at_random_comes_along(world, recipe, tmp_path):
    """Frozen queries belong to the parameters that were trained with them, whatever the seed."""
    one_step = {"train__steps": 1}
    assert train(world, recipe, tmp_path, "first", "ml_decoder", **one_step) == 0
    begun = one_step | {"init": tmp_path / "first", "seed": 5}
    assert train(world, recipe, tmp_path, "second", "ml_decoder", **begun) == 0
    first, second = (read_run(tmp_path / name).frozen["queries"] for name in ("first", "second"))
    np.testing.assert_array_equal(first, second)


def test_resumed_it_ends_the_same_and_knows_its_beginning(world, recipe, first, tmp_path, capsys):
    assert train(world, recipe, tmp_path, "run", init=first) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["init"] == str(first)
    whole = leaves(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    assert train(world, recipe, tmp_path, "run", init=first) == 0
    for ours, theirs in zip(leaves(tmp_path / "run"), whole):
        np.testing.assert_array_equal(ours, theirs)
    capsys.readouterr()
    assert train(world, recipe, tmp_path, "run") == 2
    assert "was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        (
            "mld",
            {"method__hidden": 8},
            "holds MLD, whose parameters do not fit: blocks.0.fc1.bias is (16,) there, and (8,) here",
        ),
        ("fc", {}, "holds MLD, whose parameters do not fit: "),
        ("mld", {"init": "nowhere"}, "nowhere holds no run"),
    ],
)
def test_beginnings_that_do_not_fit(world, recipe, first, tmp_path, capsys, variant, changes, message):
    assert train(world, recipe, tmp_path, "second", variant, **{"init": first} | changes) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_method_that_knows_its_own_labels_alone(world, recipe, tmp_path, capsys):
    assert train(world, recipe, tmp_path, "first", "fc", train__steps=1) == 0
    assert train(world, recipe, tmp_path, "second", "fc", others=True, init=tmp_path / "first") == 2
    assert "holds FC, which knows no labels but those it was trained on" in capsys.readouterr().err
