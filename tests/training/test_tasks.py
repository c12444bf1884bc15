"""TaI-Adapter's tasks by argument: few-shot and partial labels, from the recipe to a scored run."""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from small_world import LABELS, train_arguments, write_embeddings

from mlclip_jax import InputError, methods, recipes
from mlclip_jax.cli import main
from mlclip_jax.data.limited_labels import choose_shots
from mlclip_jax.embeddings.store import read_embeddings
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.runs import read_run
from mlclip_jax.training.preparation import prepare


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"), num_images=200)


def arguments(world, workdir, task, **changes):
    command, _, *rest = train_arguments(world, workdir, **changes)
    return [
        command,
        f"--config=tai:embeddings,{task}",
        *rest,
        f"--config.examples.embeddings={world}/images.npz",
    ]


def prepared(world, workdir, task, **changes):
    config = recipes.read(f"tai:embeddings,{task}")
    values = {
        "texts.class_embeddings": str(world / "class_embeddings.npz"),
        "texts.number": 300,
        "examples.embeddings": str(world / "images.npz"),
    }
    config.update_from_flattened_dict(values | changes)
    return prepare(config, workdir)


def test_few_shot_trains_on_texts_and_on_few_images(world, tmp_path, capsys):
    assert main(arguments(world, tmp_path, "task=few_shot,shots=2")) == 0
    said = capsys.readouterr()
    images = read_embeddings(world / "images.npz")
    chosen = choose_shots(images.labels, 2, 0, LABELS)
    assert f"{len(chosen)} images to train on, 2 or more of each label" in said.err
    assert f"trained 60 steps on 300 texts and {len(chosen)} images about 6 labels" in said.out
    # Of the 200 that it is scored on, which the table warns of.
    assert f"of exactly these images {len(chosen)} were trained on" in said.out
    assert read_run(tmp_path).config.perturbation.image_radius == 1


def test_noise_that_drowns_normalised_embeddings_is_warned_of(world, tmp_path, caplog):
    prepared(world, tmp_path / "as they are", "task=few_shot,shots=2")
    assert "noise" not in caplog.text
    known = np.load(world / "class_embeddings.npz")
    unit = known["embeddings"] / np.linalg.norm(known["embeddings"], axis=1, keepdims=True)
    np.savez(tmp_path / "unit.npz", names=known["names"], embeddings=unit)
    changes = {"texts.class_embeddings": str(tmp_path / "unit.npz"), "perturbation.radius": 9.0}
    prepared(world, tmp_path / "unit", "task=zero_shot", **changes | {"examples.embeddings": ""})
    assert re.search(r"perturbation.radius=9 is noise 1\d times as long as the embeddings", caplog.text)


def test_each_image_comes_as_often_as_each_text_unless_a_share_is_given(world, tmp_path):
    run = prepared(world, tmp_path / "a", "task=few_shot,shots=9")
    number = len(run.examples)
    assert number == len(run.examples.texts) + len(run.examples.images)
    epoch = np.concatenate([run.examples.indices(0, step, 8) for step in range(number // 8)])
    assert len(np.unique(epoch)) == len(epoch)
    is_text = run.examples.data["is_text"][epoch]
    assert 0 < is_text.sum() < len(epoch)
    run = prepared(world, tmp_path / "b", "task=few_shot,shots=9", **{"texts.share": 0.5})
    assert run.examples.num_texts(64) == 32


def test_partial_labels_shift_texts_and_no_image_is_trained_on(world, tmp_path, capsys):
    assert main(arguments(world, tmp_path, "task=partial_labels,known=0.5")) == 0
    said = capsys.readouterr()
    assert "200 images to train on; " in said.err
    assert "% of labels are known" in said.err
    assert "shifted 300 texts towards the images of their labels, and 0 not; 0 labels known of no" in said.err
    assert "trained 60 steps on 300 texts about 6 labels" in said.out
    assert "200 were trained on" in said.out


@pytest.mark.parametrize("published", ["yes", "no"])
def test_every_shifted_text_lies_where_images_of_its_labels_are_expected(world, tmp_path, published):
    run = prepared(world, tmp_path, f"task=partial_labels,published={published}")
    texts, images = run.examples.texts, read_embeddings(world / "images.npz")
    known = np.asarray(run.examples.seen_images.labels)
    assert set(np.unique(known)) == {-1, 0, 1}
    alone = texts.labels.sum(axis=1) == 1
    for vector, labels in zip(texts.vectors[alone], texts.labels[alone]):
        own = images.features["image"][known[:, labels == 1][:, 0] == 1]
        if published == "yes":  # a text of mixtures becomes the mean image itself
            np.testing.assert_allclose(vector, own.mean(axis=0), atol=1e-4)
        else:
            other = images.features["image"].mean(axis=0)
            assert np.linalg.norm(vector - own.mean(axis=0)) < np.linalg.norm(vector - other) + 3


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("task=few_shot,shots=99", {}, "have fewer than shots=99 images: "),
        (
            "task=few_shots",
            {},
            r"has no task=few_shots \(did you mean few_shot\?\); it has zero_shot, few_shot",
        ),
        (
            "task=partial_labels,known=0",
            {},
            "known=0 leaves none of the 200 images a label that is known; raise",
        ),
        ("task=partial_labels,known=2", {}, r"invalid --config.examples.known=2.0: must be in \[0, 1\]"),
        ("task=partial_labels", {"perturbation.shift": "far"}, "must be one of empty, mean, regression"),
        (
            "task=few_shot",
            {"perturbation.image_radius": -1.0},
            "image_radius=-1.0: must be finite and not neg",
        ),
        (
            "task=few_shot",
            {"perturbation.radius": float("nan")},
            "radius=nan: must be finite and not negative",
        ),
        ("task=few_shot", {"examples.embeddings": ""}, "no images to train on: give --config.examples.embe"),
        ("task=zero_shot", {"examples.embeddings": ""}, None),
        ("task=few_shot", {"texts.number": 5}, "1 label has no text among the 5 to train on: scissors"),
        ("task=few_shot", {"texts.size_weights": "1,2"}, "invalid size_weights='1,2': give as many numbers"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(world, tmp_path, task, changes, message):
    if message is None:
        prepared(world, tmp_path, task, **changes)
        return
    with pytest.raises(InputError, match=message):
        prepared(world, tmp_path, task, **changes)


def test_the_published_adapter_has_the_size_that_table_4_implies():
    settings = recipes.read("tai:coco2014,published=yes").method
    module = methods.find(settings).make(np.zeros((80, 1024), np.float32), rngs=nnx.Rngs(0))
    _, parameters, _ = split_trainable(module)
    assert sum(array.size for array in jax.tree.leaves(parameters)) == 10_655_824


def test_the_published_recipe_is_what_the_paper_states():
    zero = recipes.read("tai:voc2007,published=yes")
    few = recipes.read("tai:coco2014,published=yes,task=few_shot,shots=4,data=/data")
    partial = recipes.read("tai:nus_wide,published=yes,task=partial_labels,known=0.1")
    for config in (zero, few, partial):
        assert (config.backbone, config.encoding.resize) == ("timm/resnet50_clip.openai", "squash")
        assert (config.train.epochs, config.train.batch_size, config.texts.number) == (60, 64, 10_000)
        assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 1e-4)
        assert config.schedule.name == "one_cycle"
        assert (config.method.hidden, config.method.depth) == (2048, 4)
    radii = [
        (config.perturbation.radius, config.perturbation.image_radius) for config in (zero, few, partial)
    ]
    assert radii == [(25, 0), (25, 1), (10, 0)]
    assert [config.encoding.image_size for config in (zero, few, partial)] == ["224", "224", "448"]
    assert (few.examples.shots, partial.examples.known) == (4, 0.1)
    assert partial.perturbation.shift == "mean"
    assert zero.examples.images is None
    assert few.examples.images == "coco:/data/coco,split=train2014,unannotated=drop"
    assert partial.evaluation.images == "nus_wide:data/nus-wide,split=test"
