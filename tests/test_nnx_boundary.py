"""The boundary between modules and plain dicts."""

import jax
import numpy as np
from flax import nnx

from mlclip_jax.nnx_boundary import merge_module, split_module


class Chain(nnx.Module):
    """Twelve layers: enough for their numbers to sort differently as strings."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x) + 1
        return x


def test_a_module_comes_back_with_every_layer_in_its_place():
    module = Chain(nnx.Rngs(0))
    graph, parameters = split_module(module)
    assert sorted(parameters["layers"], key=int) == [str(i) for i in range(12)]
    inputs = np.ones((3, 2), np.float32)
    again = jax.jit(lambda p, x: merge_module(graph, p)(x))(parameters, inputs)
    np.testing.assert_allclose(again, module(inputs), rtol=1e-6)
    np.testing.assert_array_equal(parameters["layers"]["10"]["kernel"], module.layers[10].kernel[...])
