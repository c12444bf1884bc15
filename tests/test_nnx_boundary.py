"""The boundary between modules and plain dicts."""

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from mlclip_jax.nnx_boundary import Frozen, merge_module, split_module, split_trainable


class Chain(nnx.Module):
    """Twelve layers: enough for their numbers to sort differently as strings."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x) + 1
        return x


class WithTower(nnx.Module):
    """A learnt context in front of layers that are somebody else's."""

    def __init__(self, rngs):
        self.tower = Chain(rngs)
        self.context = nnx.Param(np.ones(2, np.float32))
        self.context_scale = Frozen(np.full(2, 3, np.float32))

    def __call__(self, x):
        return self.tower(x + (self.context_scale[...] * self.context[...])[None])


@pytest.mark.parametrize(
    ("trainable", "trained"),
    [
        (None, ["context", *(f"tower.layers.{i}.{name}" for i in range(12) for name in ("bias", "kernel"))]),
        (("context",), ["context"]),
        (("tower.layers.10.bias", "context"), ["context", "tower.layers.10.bias"]),
        (("tower.layers.1",), ["tower.layers.1.bias", "tower.layers.1.kernel"]),
    ],
)
def test_what_is_named_by_path_is_trained_and_all_else_is_frozen(trainable, trained):
    module = WithTower(nnx.Rngs(0))
    graph, parameters, frozen = split_trainable(module, trainable)
    assert sorted(flatten_dict(parameters, sep=".")) == sorted(trained)
    everything = flatten_dict(parameters, sep=".") | flatten_dict(frozen, sep=".")
    assert len(everything) == 26
    inputs = np.ones((3, 2), np.float32)

    def total(parameters):
        return merge_module(graph, parameters, frozen)(inputs).sum()

    np.testing.assert_allclose(total(parameters), module(inputs).sum(), rtol=1e-6)
    gradient = jax.jit(jax.grad(total))(parameters)
    assert sorted(flatten_dict(gradient, sep=".")) == sorted(trained)


def test_a_path_without_a_parameter():
    for path in ("contxt", "context_scale", "tower.layers.1.bia"):
        with pytest.raises(ValueError, match=f"WithTower has no parameter '{path}' to train"):
            split_trainable(WithTower(nnx.Rngs(0)), ("context", path))


def test_a_module_comes_back_with_every_layer_in_its_place():
    module = Chain(nnx.Rngs(0))
    graph, parameters = split_module(module)
    assert sorted(parameters["layers"], key=int) == [str(i) for i in range(12)]
    inputs = np.ones((3, 2), np.float32)
    again = jax.jit(lambda p, x: merge_module(graph, p)(x))(parameters, inputs)
    np.testing.assert_allclose(again, module(inputs), rtol=1e-6)
    np.testing.assert_array_equal(parameters["layers"]["10"]["kernel"], module.layers[10].kernel[...])
