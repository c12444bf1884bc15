"""One step, two wrappers, any number of devices: the same result."""

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from mlclip_jax.adapters.tai import TaIAdapter
from mlclip_jax.configs import tai
from mlclip_jax.distributed.data_parallel import MODES, data_parallel
from mlclip_jax.distributed.sharding import make_mesh, replicated
from mlclip_jax.losses import COUPLED, LOSSES
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.perturbation import make_perturbation
from mlclip_jax.training.optimizers import make_optimizer
from mlclip_jax.training.step import hyper_of, initial_state, make_chunk, make_loss, make_train_step

NUMBER, WIDTH, LABELS, BATCH = 37, 12, 5, 8


def run(mode, num_devices, num_steps, labels=None, loss="binary_cross_entropy"):
    """Parameters and losses after some steps of a small adapter, with noise, dropout and unknown labels."""
    config = ConfigDict(tai.get_config())
    config.train.steps = 200
    config.perturbation.radius, config.seed = 2.0, 7
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(NUMBER, WIDTH)).astype(np.float32)
    labels = generator.integers(-1, 2, (NUMBER, LABELS)).astype(np.int8) if labels is None else labels
    class_embeddings = np.zeros((LABELS, WIDTH), np.float32)
    adapter = TaIAdapter(class_embeddings, hidden=16, dropout=0.3, rngs=nnx.Rngs(0))
    graph, parameters, frozen = split_trainable(adapter)
    optimizer, hyper = make_optimizer(config), hyper_of(config)
    mesh = make_mesh(jax.devices()[:num_devices])
    state = initial_state(parameters, optimizer(hyper))
    data = {"image": embeddings, "labels": labels, "is_text": np.ones(len(labels), bool)}
    state, data = jax.device_put((state, data), replicated(mesh))
    perturb = make_perturbation(config.perturbation)
    step = make_train_step(graph, optimizer, make_loss({"name": loss}), perturb)
    run_chunk = data_parallel(make_chunk(step), mode, mesh)
    indices = np.random.default_rng(1).integers(0, NUMBER, (num_steps, BATCH)).astype(np.int32)
    losses = []
    for start in range(0, num_steps, 50):
        steps = np.arange(start, min(start + 50, num_steps), dtype=np.int32)
        state, metrics = run_chunk(state, frozen, data, indices[start : start + 50], steps, hyper)
        losses.append(metrics["loss"])
    return jax.device_get(state["parameters"]), np.concatenate(losses)


def relative_difference(ours, reference):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(reference))
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)


@pytest.fixture(scope="module")
def reference():
    return {num_steps: run("shard_map", 1, num_steps) for num_steps in (1, 100)}


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("num_steps", "tolerance"), [(1, 1e-6), (100, 1e-4)])
def test_modes_and_devices_agree(reference, mode, num_devices, num_steps, tolerance):
    parameters, losses = run(mode, num_devices, num_steps)
    expected_parameters, expected_losses = reference[num_steps]
    assert losses.shape == (num_steps,)
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance)
    assert relative_difference(parameters, expected_parameters) < tolerance


@pytest.mark.parametrize(
    ("loss", "mode"),
    [
        *((loss, "shard_map") for loss in LOSSES),
        *(
            pytest.param(loss, "pmap", marks=[pytest.mark.slow] if i else [])
            for i, loss in enumerate(COUPLED)
        ),
    ],
)
def test_every_loss_is_the_same_on_any_number_of_devices(loss, mode):
    """Those that couple samples see the batch of all devices; sums and means are over all of them."""
    labels = np.random.default_rng(3).choice([0, 1, -1], (NUMBER, LABELS), p=[0.6, 0.3, 0.1]).astype(np.int8)
    one, four = (run(mode, num_devices, 3, labels, loss) for num_devices in (1, 4))
    np.testing.assert_allclose(four[1], one[1], rtol=1e-5)
    assert relative_difference(four[0], one[0]) < 1e-4
    assert (four[1] != 0).all()


def test_unknown_labels_on_one_device_only_do_not_shift_the_mean():
    """With the known labels all on one of two devices, a mean of means would halve the loss."""
    labels = np.full((NUMBER, LABELS), -1, np.int8)
    indices = np.random.default_rng(1).integers(0, NUMBER, (1, BATCH))
    labels[indices[0, : BATCH // 2]] = 1
    labels[indices[0, BATCH // 2 :]] = -1
    one, two = (run("shard_map", num_devices, 1, labels) for num_devices in (1, 2))
    np.testing.assert_allclose(two[1], one[1], rtol=1e-6)
    assert relative_difference(two[0], one[0]) < 1e-6


def test_labels_all_unknown_leave_a_finite_zero_loss():
    parameters, losses = run("shard_map", 2, 3, np.full((NUMBER, LABELS), -1, np.int8))
    np.testing.assert_array_equal(losses, 0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(parameters))


def test_the_state_is_donated():
    mesh = make_mesh(jax.devices()[:2])
    for mode in MODES:
        state = jax.device_put({"x": np.zeros(3, np.float32)}, replicated(mesh))
        chunk = data_parallel(lambda state, *_: ({"x": state["x"] + 1}, {}), mode, mesh)
        result, _ = chunk(state, {}, {}, np.zeros((1, 2), np.int32), np.zeros(1, np.int32), {})
        assert state["x"].is_deleted()
        np.testing.assert_array_equal(result["x"], 1)
