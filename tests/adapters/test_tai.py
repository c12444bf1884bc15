"""TaI-Adapter: its shape, its arithmetic, its dropout."""

import jax
import numpy as np
import pytest
from flax import nnx

from mlclip_jax.adapters.layers import dropout
from mlclip_jax.adapters.tai import TaIAdapter
from mlclip_jax.nnx_boundary import split_trainable


def texts(num_labels, width):
    """Class texts, of which TaI reads the shape alone."""
    return np.zeros((num_labels, width), np.float32)


def test_three_layers_of_512_by_default():
    _, parameters, frozen = split_trainable(TaIAdapter(texts(80, 512), rngs=nnx.Rngs(0)))
    shapes = [parameters["layers"][i]["kernel"].shape for i in "012"]
    assert shapes == [(512, 512), (512, 512), (512, 80)]
    count = sum(x.size for x in jax.tree.leaves(parameters))
    assert count == 2 * (512 * 512 + 512) + 512 * 80 + 80
    assert frozen == {}


def test_without_keys_it_is_the_formula():
    adapter = TaIAdapter(texts(4, 6), hidden=5, rngs=nnx.Rngs(1))
    x = expected = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    for i, layer in enumerate(adapter.layers):
        layer.bias[...] = jax.numpy.linspace(-1, 1, layer.bias.shape[0])
        expected = expected @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        if i < 2:
            expected = np.maximum(expected, 0)
    np.testing.assert_allclose(adapter({"image": x}), expected, rtol=1e-5, atol=1e-6)
    assert (expected < 0).any()  # no ReLU after the last layer: a logit may say "absent"


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth(depth):
    adapter = TaIAdapter(texts(4, 6), hidden=5, depth=depth, rngs=nnx.Rngs(0))
    assert len(adapter.layers) == depth
    assert adapter({"image": np.ones((7, 6), np.float32)}).shape == (7, 4)


def test_dropout_keeps_the_mean_and_is_a_function_of_its_key():
    adapter = TaIAdapter(texts(3, 8), hidden=64, depth=2, dropout=0.5, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    outputs = adapter({"image": np.repeat(x, 4000, axis=0)}, keys)
    error = np.std(outputs, axis=0) / np.sqrt(len(keys))
    assert (np.abs(outputs.mean(axis=0) - adapter({"image": x})[0]) < 4 * error).all()
    # What is dropped out of an example follows from its key, wherever it stands.
    np.testing.assert_allclose(adapter({"image": x}, keys[7:8])[0], outputs[7], rtol=1e-5, atol=1e-6)
    assert (np.std(outputs, axis=0) > 0).all()


def test_every_layer_drops_its_own_units():
    """Through identity layers, a unit survives two dropouts of one half each a quarter of the time."""
    size = 1024
    adapter = TaIAdapter(texts(size, size), hidden=size, dropout=0.5, rngs=nnx.Rngs(0))
    for layer in adapter.layers:
        layer.kernel[...] = jax.numpy.eye(size)
    outputs = adapter({"image": np.ones((2, size), np.float32)}, jax.random.split(jax.random.key(0), 2))
    assert set(np.unique(outputs)) == {0, 4}
    assert abs((outputs > 0).mean() - 1 / 4) < 4 * np.sqrt(1 / 4 * 3 / 4 / outputs.size)


def test_every_place_drops_its_own_units():
    """With one mask for all layers, their units would be coupled."""
    keys, ones = jax.random.split(jax.random.key(0), 2), np.ones((2, 256), np.float32)
    masks = [np.asarray(dropout(ones, 0.5, keys, place)) for place in (0, 1)]
    assert not np.array_equal(*masks)
    assert not np.array_equal(*masks[0])
    assert set(np.unique(masks)) == {0, 2}
    np.testing.assert_array_equal(dropout(ones, 0.0, keys, 0), ones)
    np.testing.assert_array_equal(dropout(ones, 0.5, None, 0), ones)
