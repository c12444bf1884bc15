"""FC: a linear layer, and nothing else."""

import jax
import numpy as np
from flax import nnx

from mlclip_jax.adapters import ADAPTERS, TITLES, make_adapter
from mlclip_jax.adapters.fc import FCAdapter
from mlclip_jax.modules import split_module


def test_it_is_one_linear_layer():
    adapter = FCAdapter(6, 4, rngs=nnx.Rngs(0))
    _, parameters = split_module(adapter)
    assert {name: array.shape for name, array in parameters["linear"].items()} == {
        "kernel": (6, 4),
        "bias": (4,),
    }
    embeddings = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    kernel, bias = (np.asarray(parameters["linear"][name]) for name in ("kernel", "bias"))
    expected = embeddings @ kernel + bias
    np.testing.assert_allclose(adapter(embeddings), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(adapter(embeddings, jax.random.key(0)), adapter(embeddings))


def test_adapters_are_made_by_name():
    assert ADAPTERS.keys() == TITLES.keys()
    adapter = make_adapter({"name": "tai", "hidden": 5, "depth": 2, "dropout": 0.1}, 6, 4, rngs=nnx.Rngs(0))
    assert adapter(np.zeros((2, 6), np.float32)).shape == (2, 4)
    assert isinstance(make_adapter({"name": "fc"}, 6, 4, rngs=nnx.Rngs(0)), FCAdapter)
