"""The labels of an adapter, split over devices: the same result, and a part of the memory on each."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from interruption import stopped_after
from small_world import write_embeddings

from mlclip_jax import InputError, methods
from mlclip_jax.configs import ml_decoder, mmm_clip, tai
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.sharding import (
    local_copy,
    make_mesh,
    place,
    replicated,
    split_by_labels,
    split_labels,
)
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.perturbation import make_perturbation
from mlclip_jax.runs import read_run
from mlclip_jax.training.preparation import with_loss_constants
from mlclip_jax.training.step import hyper_of, initial_state, make_chunk, make_loss, make_train_step
from mlclip_jax.training.train import shardings_of, train

pytestmark = pytest.mark.devices(4)

NUMBER, WIDTH, BATCH = 13, 16, 8
SMALL = {"hidden": 24, "width": 16, "groups": 4, "num_heads": 2}
CASES = {
    "tai": functools.partial(tai.get_config, "embeddings"),
    "tai, labels and samples coupled": functools.partial(tai.get_config, "embeddings,loss=two_way"),
    "fc": functools.partial(mmm_clip.get_config, "fc"),
    "mld": functools.partial(mmm_clip.get_config, "mld"),
    "ml_decoder": functools.partial(ml_decoder.get_config, "learnt"),
}


def run(config, label_shards, num_labels=8, num_steps=5, optimizer=None):
    """State and losses after some steps on four devices, of which so many share the labels.

    The steps are plain descents: Adam would make something of gradients that are zero but for rounding.
    """
    config = with_loss_constants(config)
    config.method.update({key: value for key, value in SMALL.items() if key in config.method})
    random = np.random.default_rng(0)
    class_embeddings = random.normal(size=(num_labels, WIDTH)).astype(np.float32)
    adapter = methods.find(config.method).make(class_embeddings, rngs=nnx.Rngs(0))
    graph, parameters, frozen = split_trainable(adapter)
    optimizer, mesh = optimizer or optax.sgd(0.1), make_mesh(label_shards=label_shards)
    state = initial_state(parameters, optimizer)
    shardings = shardings_of(state, adapter.label_axes(), optimizer, mesh)
    data = {
        "image": random.normal(size=(NUMBER, WIDTH)).astype(np.float32),
        "labels": random.integers(-1, 2, (NUMBER, num_labels)).astype(np.int8),
        "is_text": np.ones(NUMBER, bool),
    }
    if "image_local" in methods.find(config.method).reads:
        data["image_local"] = random.normal(size=(NUMBER, 3, WIDTH)).astype(np.float32)
    placed = place(data, dict.fromkeys(data, replicated(mesh)) | {"labels": split_labels(mesh, 1)})
    frozen = place(frozen, split_by_labels(mesh, frozen, adapter.label_axes()))
    fuse_allreduce, perturb = label_shards == 1, make_perturbation(config.perturbation)
    step = make_train_step(
        graph, lambda _: optimizer, make_loss(config.loss), perturb, fuse_allreduce=fuse_allreduce
    )
    chunk = data_parallel(make_chunk(step), "shard_map", mesh, state_shardings=shardings)
    indices = random.integers(0, NUMBER, (num_steps, BATCH)).astype(np.int32)
    steps = np.arange(num_steps, dtype=np.int32)
    state, metrics = chunk(place(state, shardings), frozen, placed, indices, steps, hyper_of(config))
    return state, np.asarray(metrics["loss"]), mesh


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case in ("fc", "ml_decoder") else []) for case in CASES],
)
def test_the_result_is_the_same(case):
    expected, expected_losses, mesh = run(CASES[case](), 1)
    expected = local_copy(expected["parameters"], mesh)
    for label_shards in (2, 4) if case.startswith("tai") else (2,):
        state, losses, mesh = run(CASES[case](), label_shards)
        np.testing.assert_allclose(losses[0], expected_losses[0], rtol=2e-6)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
        for ours, theirs in zip(*map(jax.tree.leaves, (local_copy(state["parameters"], mesh), expected))):
            assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max() + 1e-7


def test_twenty_thousand_labels_take_a_part_of_the_memory():
    """The last layer and what the optimizer keeps of it lie in quarters, before and after a step."""

    def bytes_on_one_device(state):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))

    adam = optax.adamw(1e-3)
    (whole, *_), (split, *_) = (run(tai.get_config(), shards, 20_000, 1, adam) for shards in (1, 4))
    assert bytes_on_one_device(split) < 0.26 * bytes_on_one_device(whole)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"))


def small_config(world, label_shards, **train):
    config = tai.get_config()
    config.texts.class_embeddings = str(world / "class_embeddings.npz")
    config.texts.number = 300
    config.evaluation.embeddings = str(world / "images.npz")
    config.method.hidden = 32
    config.train.update({"steps": 60, "batch_size": 8, "log_every": 10, "checkpoint_every": 20} | train)
    config.train.label_shards = label_shards
    return config


def test_a_run_may_be_split_otherwise_when_it_goes_on(world, tmp_path, caplog):
    caplog.set_level("INFO", "mlclip_jax")
    expected = train(small_config(world, 1, evaluate_every=20), tmp_path / "whole")
    with stopped_after(30):
        train(small_config(world, 2, evaluate_every=20), tmp_path / "run")
    assert "mesh 2 data x 2 labels; batch 8, 4 on each device" in caplog.text
    parameters = train(small_config(world, 1, evaluate_every=20), tmp_path / "run")
    for ours, theirs in zip(*map(jax.tree.leaves, (parameters, expected))):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert read_run(tmp_path / "run").step == 60


@pytest.mark.parametrize(
    ("label_shards", "changes", "message"),
    [
        (3, {}, "label_shards=3: must be positive, and divide the 4 devices"),
        (0, {}, "label_shards=0: must be positive"),
        (4, {}, "label_shards=4 does not divide the 6 labels"),
        (2, {"parallel": "pmap"}, "parallel=pmap: must be shard_map to split labels"),
        (
            2,
            {"batch_size": 5},
            "batch_size=5: must be positive, and a multiple of the 2 devices",
        ),
    ],
)
def test_what_cannot_be_split(world, tmp_path, label_shards, changes, message):
    with pytest.raises(InputError, match=message):
        train(small_config(world, label_shards, **changes), tmp_path)
