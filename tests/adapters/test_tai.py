"""TaI-Adapter: its shape, its arithmetic, its dropout."""

import jax
import numpy as np
import pytest
from flax import nnx

from mlclip_jax.adapters.tai import TaIAdapter
from mlclip_jax.modules import split_module


def test_three_layers_of_512_by_default():
    _, parameters = split_module(TaIAdapter(512, 80, rngs=nnx.Rngs(0)))
    shapes = [parameters["layers"][i]["kernel"].shape for i in "012"]
    assert shapes == [(512, 512), (512, 512), (512, 80)]
    count = sum(x.size for x in jax.tree.leaves(parameters))
    assert count == 2 * (512 * 512 + 512) + 512 * 80 + 80


def test_without_a_key_it_is_the_formula():
    adapter = TaIAdapter(6, 4, hidden=5, rngs=nnx.Rngs(1))
    x = expected = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    for i, layer in enumerate(adapter.layers):
        layer.bias[...] = jax.numpy.linspace(-1, 1, layer.bias.shape[0])
        expected = expected @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        if i < 2:
            expected = np.maximum(expected, 0)
    np.testing.assert_allclose(adapter(x), expected, rtol=1e-5, atol=1e-6)
    assert (expected < 0).any()  # no ReLU after the last layer: a logit may say "absent"


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth(depth):
    adapter = TaIAdapter(6, 4, hidden=5, depth=depth, rngs=nnx.Rngs(0))
    assert len(adapter.layers) == depth
    assert adapter(np.ones((7, 6), np.float32)).shape == (7, 4)


def test_dropout_keeps_the_mean_and_is_a_function_of_its_key():
    adapter = TaIAdapter(8, 3, hidden=64, depth=2, dropout=0.5, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=8).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    outputs = jax.vmap(adapter, (None, 0))(x, keys)
    error = np.std(outputs, axis=0) / np.sqrt(len(keys))
    assert (np.abs(outputs.mean(axis=0) - adapter(x)) < 4 * error).all()
    np.testing.assert_array_equal(adapter(x, keys[0]), adapter(x, keys[0]))
    assert (np.std(outputs, axis=0) > 0).all()


def test_every_hidden_layer_drops_its_own_units():
    """With one key for all layers, equal masks would couple them."""
    adapter = TaIAdapter(1, 1, hidden=256, depth=3, dropout=0.5, rngs=nnx.Rngs(0))
    masks = []
    adapter.dropout = lambda x, rngs: (masks.append(jax.random.key_data(rngs)), x)[1]
    adapter(np.ones(1, np.float32), jax.random.key(0))
    assert len(masks) == 2
    assert not np.array_equal(*masks)
