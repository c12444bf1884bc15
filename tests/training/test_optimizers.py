"""Optimizers against torch's formulas in NumPy, schedules at their corners, groups of parameters, lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlclip_jax import InputError, recipes
from mlclip_jax.configs import tai
from mlclip_jax.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    check_groups,
    make_optimizer,
    make_schedule,
    with_steps,
)
from mlclip_jax.training.step import hyper_of

RANDOM = np.random.default_rng(0)
START = {"kernel": RANDOM.normal(size=(4, 3)), "bias": RANDOM.normal(size=3)}
START = jax.tree.map(lambda x: x.astype(np.float32), START)
GRADIENTS = [jax.tree.map(lambda x: RANDOM.normal(size=x.shape).astype(np.float32), START) for _ in range(4)]
RATE, DECAY = 0.1, 0.2


def config_with(optimizer=None, schedule=None, **train):
    config = tai.get_config()
    config.optimizer = recipes.optimizer(learning_rate=RATE, weight_decay=DECAY, **(optimizer or {}))
    config.schedule = recipes.schedule(**({"name": "constant"} | (schedule or {})))
    config.train.update(train)
    return config


def descend(config, gradients=GRADIENTS, hyper=None):
    optimizer = make_optimizer(config)(hyper_of(config) if hyper is None else hyper)
    parameters, state = jax.tree.map(jnp.asarray, START), None
    state = optimizer.init(parameters)
    with jax.numpy_dtype_promotion("standard"):
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, parameters)
            parameters = jax.tree.map(jnp.add, parameters, updates)
    return jax.device_get(parameters)


def adam(x, gradients, *, decoupled, b2=0.999, eps=1e-8):
    """torch.optim.AdamW's and Adam's formula."""
    x, mean, square = np.float64(x), 0, 0
    for t, gradient in enumerate(map(np.float64, gradients), 1):
        if not decoupled:
            gradient = gradient + DECAY * x
        mean, square = 0.9 * mean + 0.1 * gradient, b2 * square + (1 - b2) * gradient**2
        step = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - b2**t)) + eps)
        x = x - RATE * (step + (DECAY * x if decoupled else 0))
    return x


def sgd(x, gradients, momentum=0.9, nesterov=False):
    """torch.optim.SGD's formula, its buffer beginning at 0."""
    x, buffer = np.float64(x), 0
    for gradient in map(np.float64, gradients):
        gradient = gradient + DECAY * x
        buffer = momentum * buffer + gradient
        x = x - RATE * (gradient + momentum * buffer if nesterov else buffer)
    return x


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"name": "adamw"}, lambda x, g: adam(x, g, decoupled=True)),
        ({"name": "adamw", "b2": 0.9}, lambda x, g: adam(x, g, decoupled=True, b2=0.9)),
        ({"name": "adam"}, lambda x, g: adam(x, g, decoupled=False)),
        ({"name": "sgd"}, sgd),
        ({"name": "sgd", "momentum": 0.0}, lambda x, g: sgd(x, g, momentum=0)),
        ({"name": "sgd", "nesterov": True}, lambda x, g: sgd(x, g, nesterov=True)),
    ],
)
def test_formulas(settings, formula):
    ended = descend(config_with(settings))
    for name, x in START.items():
        expected = formula(x, [gradient[name] for gradient in GRADIENTS])
        np.testing.assert_allclose(ended[name], expected, rtol=1e-5, atol=1e-5)


def test_muon_moves_matrices_along_orthogonal_ones():
    config = config_with({"name": "muon", "momentum": 0.0})
    config.optimizer.weight_decay = 0.0
    ended = descend(config, GRADIENTS[:1])
    step = (START["kernel"] - ended["kernel"]) / RATE
    scale = 0.2 * np.sqrt(4)  # as large as AdamW's: 0.2 of the root of the larger dimension
    singular = np.linalg.svd(step / scale, compute_uv=False)
    assert (singular > 0.6).all()
    assert (singular < 1.3).all()
    # A bias is Adam's.
    np.testing.assert_allclose(ended["bias"], START["bias"] - RATE * np.sign(GRADIENTS[0]["bias"]), atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_and_the_program_serve_any_rate(name):
    config = config_with({"name": name})
    twice = hyper_of(config) | {"learning_rate": np.float32(2 * RATE), "weight_decay": np.float32(0)}
    config.optimizer.update(learning_rate=2 * RATE, weight_decay=0.0)
    for ours, theirs in zip(descend(config).values(), descend(config, hyper=twice).values()):
        np.testing.assert_array_equal(ours, theirs)


def test_a_gradient_is_scaled_down_to_its_largest_norm():
    config = config_with({"name": "sgd", "momentum": 0.0, "max_norm": 0.5})
    config.optimizer.weight_decay = 0.0
    ended = descend(config, GRADIENTS[:1])
    moved = np.concatenate([np.ravel(START[name] - ended[name]) for name in START])
    assert np.linalg.norm(moved) == pytest.approx(0.5 * RATE, rel=1e-4)


def test_groups_have_factors_of_their_own():
    groups = {
        "biases": {"paths": r"(.*/)?bias", "learning_rate": 10.0, "weight_decay": 0.0},
        "rest": {"paths": ".*", "learning_rate": 0.0},
    }
    config = config_with({"name": "sgd", "momentum": 0.0, "groups": groups})
    ended = descend(config, GRADIENTS[:1])
    np.testing.assert_array_equal(ended["kernel"], START["kernel"])
    np.testing.assert_allclose(ended["bias"], START["bias"] - 10 * RATE * GRADIENTS[0]["bias"], rtol=1e-5)
    check_groups(config, START)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("kernle", r"paths='kernle' matches no parameter, .*; there are bias, kernel"),
        ("(", "no regular"),
    ],
)
def test_groups_that_match_nothing(paths, message):
    with pytest.raises(InputError, match=message):
        check_groups(config_with({"groups": {"mine": {"paths": paths}}}), START)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant"}, {0: 1, 99: 1}),
        ({"name": "constant", "warmup": 10}, {0: 0, 5: 0.5, 10: 1, 99: 1}),
        ({"name": "cosine"}, {0: 1, 50: 0.5, 100: 0}),
        ({"name": "cosine", "warmup": 20}, {0: 0, 10: 0.5, 20: 1, 60: 0.5, 100: 0}),
        ({"name": "step", "every": 40, "factor": 0.1}, {0: 1, 39: 1, 40: 0.1, 79: 0.1, 80: 0.01}),
        ({"name": "step", "every": 40, "factor": 0.5, "warmup": 10}, {0: 0, 10: 1, 49: 1, 50: 0.5}),
        ({"name": "one_cycle"}, {0: 1 / 25, 30: 1}),
    ],
)
def test_schedules_at_their_corners(schedule, expected):
    rate = make_schedule(config_with(schedule=schedule, steps=100))
    with jax.numpy_dtype_promotion("standard"):
        assert {step: float(rate(step)) for step in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_are_finite_however_short(name, steps):
    rate = make_schedule(config_with(schedule={"name": name, "warmup": 5}, steps=steps))
    with jax.numpy_dtype_promotion("standard"):
        assert np.isfinite([float(rate(step)) for step in range(steps + 1)]).all()


def test_epochs_become_steps():
    config = config_with(epochs=1.5, batch_size=8)
    assert with_steps(config, 100).train.steps == 19  # 18.75
    assert config.train.steps == 3000
    config.train.epochs = 0.0
    assert with_steps(config, 100).train.steps == 3000
