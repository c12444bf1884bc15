"""What a run varies is an argument of its step: many runs in one program are each run alone."""

import itertools

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mlclip_jax import methods
from mlclip_jax.configs import tai
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.sharding import make_mesh, replicated
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.perturbation import make_perturbation
from mlclip_jax.training import step as step_module
from mlclip_jax.training.optimizers import make_optimizer
from mlclip_jax.training.step import hyper_of, initial_state, make_chunk, make_loss, make_train_step

NUMBER, WIDTH, LABELS, BATCH, STEPS = 40, 12, 5, 8, 30
RUNS = [
    {"perturbation.radius": radius, "optimizer.learning_rate": rate, "seed": seed}
    for radius, rate, seed in itertools.product((0.0, 2.0, 5.0), (1e-3, 1e-2), (0, 1))
]


def state_and_hyper(changes):
    config = ConfigDict(tai.get_config("embeddings"))
    config.method.hidden, config.train.steps = 16, STEPS
    config.update_from_flattened_dict(changes)
    class_embeddings = np.zeros((LABELS, WIDTH), np.float32)
    module = methods.find(config.method).make(class_embeddings, rngs=nnx.Rngs(config.seed))
    graph, parameters, _ = split_trainable(module)
    optimizer, hyper = make_optimizer(config), hyper_of(config)
    step = make_train_step(
        graph, optimizer, make_loss({"name": "binary_cross_entropy"}), make_perturbation(config.perturbation)
    )
    return step, initial_state(parameters, optimizer(hyper)), hyper


def data_and_steps():
    random = np.random.default_rng(0)
    data = {
        "image": random.normal(size=(NUMBER, WIDTH)).astype(np.float32),
        "labels": random.integers(0, 2, (NUMBER, LABELS)).astype(np.int8),
        "is_text": np.ones(NUMBER, bool),
    }
    indices = random.integers(0, NUMBER, (STEPS, BATCH)).astype(np.int32)
    return data, indices, np.arange(STEPS, dtype=np.int32)


def test_noise_and_dropout_are_those_of_jax(monkeypatch):
    """A run by JAX's own random numbers, which take longer, is the same run to the last bit."""
    mesh = make_mesh(jax.devices()[:2])
    ended = []
    for make_key in (step_module.make_key, jax.random.key):
        monkeypatch.setattr(step_module, "make_key", make_key)
        step, state, hyper = state_and_hyper({"perturbation.radius": 2.0})
        run = data_parallel(make_chunk(step), "shard_map", mesh)
        ended.append(run(jax.device_put(state, replicated(mesh)), {}, *data_and_steps(), hyper))
    jax.tree.map(np.testing.assert_array_equal, *ended)


def test_twelve_runs_at_once_are_the_twelve_runs():
    mesh = make_mesh(jax.devices()[:2])
    rest = data_and_steps()
    steps, states, hypers = zip(*map(state_and_hyper, RUNS))
    chunk = make_chunk(steps[0])
    together = jax.vmap(chunk, in_axes=(0, None, None, None, None, 0))
    stack = lambda *arrays: np.stack(arrays)  # noqa: E731
    all_states, all_hypers = jax.tree.map(stack, *states), jax.tree.map(stack, *hypers)
    run = data_parallel(together, "shard_map", mesh)
    all_states, all_metrics = run(jax.device_put(all_states, replicated(mesh)), {}, *rest, all_hypers)
    assert all_metrics["loss"].shape == (12, STEPS)

    alone = data_parallel(chunk, "shard_map", mesh)
    ended = []
    for place, (state, hyper) in enumerate(zip(states, hypers)):
        state, metrics = alone(jax.device_put(state, replicated(mesh)), {}, *rest, hyper)
        np.testing.assert_allclose(all_metrics["loss"][place], metrics["loss"], rtol=1e-5)
        for ours, theirs in zip(jax.tree.leaves(all_states), jax.tree.leaves(state)):
            np.testing.assert_allclose(ours[place], theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
        ended.append(metrics["loss"][-1])
    # Each number of the twelve makes a difference.
    assert len(np.unique(ended)) == 12
