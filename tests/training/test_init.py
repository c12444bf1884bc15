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


@pytest.fixture(autouse=True)
def _recipe(tmp_path):
    """Methods of images on stored class embeddings, so that no backbone is needed."""
    (tmp_path / "recipe.py").write_text(
        "from ml_collections.config_dict import placeholder\n"
        "from mlclip_jax import recipes\n"
        "VARIANTS = ('mld', 'ml_decoder', 'fc')\n"
        "def get_config(variant=''):\n"
        "    config, variant, _ = recipes.base(__file__, variant, VARIANTS)\n"
        "    del config.backbone, config.encoding, config.texts.labels, config.evaluation.images\n"
        "    config.texts.class_embeddings = placeholder(str)\n"
        "    config.examples = recipes.labelled_images()\n"
        "    own = {'mld': {'features': 'pooled', 'hidden': 16}, 'fc': {},\n"
        "           'ml_decoder': {'features': 'pooled', 'hidden': 16, 'width': 16, 'num_heads': 2}}\n"
        "    config.method = recipes.method(variant, **own[variant])\n"
        "    config.train.update(steps=4, batch_size=8, log_every=2, checkpoint_every=2)\n"
        "    return config\n"
    )


def train(world, tmp_path, name, variant="mld", others=False, **changes):
    values = {
        "texts.class_embeddings": world / ("others.npz" if others else "class_embeddings.npz"),
        "examples.embeddings": world / ("other_images.npz" if others else "images.npz"),
    } | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    command = [
        "train",
        f"--config={tmp_path / 'recipe.py'}:{variant}",
        f"--workdir={tmp_path / name}",
        *flags,
    ]
    return main(command)


def leaves(folder):
    return jax.tree.leaves(read_run(folder).parameters)


@pytest.mark.parametrize("others", [False, True])
def test_it_begins_where_the_other_run_ended(world, tmp_path, others):
    """Under other labels too: what no step has moved is what the other run learnt."""
    assert train(world, tmp_path, "first") == 0
    still = {"optimizer__learning_rate": 1e-20, "optimizer__weight_decay": 0.0}
    assert train(world, tmp_path, "second", others=others, init=tmp_path / "first", **still) == 0
    assert train(world, tmp_path, "fresh", others=others, **still) == 0
    differing = 0
    for first, second, fresh in zip(*(leaves(tmp_path / name) for name in ("first", "second", "fresh"))):
        np.testing.assert_array_equal(first, second)
        differing += not np.array_equal(first, fresh)
    assert differing > 8
    run = read_run(tmp_path / "second")
    assert run.label_names == (OTHERS if others else LABELS)
    assert run.class_embeddings.origin.init == read_run(tmp_path / "first").digest
    # Its references are its own labels, as those of any run.
    np.testing.assert_array_equal(run.frozen["reference_embeddings"], run.class_embeddings.vectors)


def test_what_was_drawn_at_random_comes_along(world, tmp_path):
    """Frozen queries belong to the parameters that were trained with them, whatever the seed."""
    assert train(world, tmp_path, "first", "ml_decoder") == 0
    assert train(world, tmp_path, "second", "ml_decoder", init=tmp_path / "first", seed=5) == 0
    first, second = (read_run(tmp_path / name).frozen["queries"] for name in ("first", "second"))
    np.testing.assert_array_equal(first, second)


def test_resumed_it_ends_the_same_and_knows_its_beginning(world, tmp_path, capsys):
    assert train(world, tmp_path, "first") == 0
    init = {"init": tmp_path / "first"}
    assert train(world, tmp_path, "whole", train__steps=8, **init) == 0
    assert train(world, tmp_path, "halved", train__steps=8, **init) == 0
    config = json.loads((tmp_path / "halved/config.json").read_text())
    assert config["init"] == str(tmp_path / "first")
    shutil.rmtree(tmp_path / "halved/checkpoints/8")
    assert train(world, tmp_path, "halved", train__steps=8, **init) == 0
    for ours, theirs in zip(leaves(tmp_path / "halved"), leaves(tmp_path / "whole")):
        np.testing.assert_array_equal(ours, theirs)
    capsys.readouterr()
    assert train(world, tmp_path, "halved", train__steps=8) == 2
    assert "was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "others", "changes", "message"),
    [
        (
            "mld",
            False,
            {"method__hidden": 8},
            "holds MLD, whose parameters do not fit: blocks.0.fc1.bias is (16,) there, and (8,) here",
        ),
        ("fc", False, {}, "holds MLD, whose parameters do not fit: "),
        ("mld", False, {"init": "nowhere"}, "nowhere holds no run"),
    ],
)
def test_beginnings_that_do_not_fit(world, tmp_path, capsys, variant, others, changes, message):
    assert train(world, tmp_path, "first") == 0
    capsys.readouterr()
    given = {"init": tmp_path / "first"} | changes
    assert train(world, tmp_path, "second", variant, others, **given) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_method_that_knows_its_own_labels_alone(world, tmp_path, capsys):
    assert train(world, tmp_path, "first", "fc") == 0
    assert train(world, tmp_path, "second", "fc", others=True, init=tmp_path / "first") == 2
    assert "holds FC, which knows no labels but those it was trained on" in capsys.readouterr().err
