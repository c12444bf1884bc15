"""FC: a linear layer, and what the class texts add to it."""

import numpy as np
import pytest
from flax import nnx

from mlclip_jax.adapters.fc import TEXTS, FCAdapter
from mlclip_jax.nnx_boundary import split_trainable

GENERATOR = np.random.default_rng(0)
EMBEDDINGS = GENERATOR.normal(size=(3, 6)).astype(np.float32)
CLASS_EMBEDDINGS = GENERATOR.normal(size=(4, 6)).astype(np.float32)


def of_layer(adapter, inputs):
    return inputs @ np.asarray(adapter.linear.kernel[...]) + np.asarray(adapter.linear.bias[...])


def test_without_text_it_is_one_linear_layer():
    adapter = FCAdapter(CLASS_EMBEDDINGS, text="none", rngs=nnx.Rngs(0))
    _, parameters, frozen = split_trainable(adapter)
    shapes = {name: array.shape for name, array in parameters["linear"].items()}
    assert shapes == {"kernel": (6, 4), "bias": (4,)}
    assert parameters.keys() == {"linear"}
    assert frozen == {}
    np.testing.assert_allclose(
        adapter({"image": EMBEDDINGS}), of_layer(adapter, EMBEDDINGS), rtol=1e-5, atol=1e-6
    )


def test_as_published_the_first_text_is_a_bias():
    adapter = FCAdapter(CLASS_EMBEDDINGS, text="first", rngs=nnx.Rngs(0))
    inputs = np.concatenate([EMBEDDINGS, np.tile(CLASS_EMBEDDINGS[0], (3, 1))], axis=1)
    np.testing.assert_allclose(
        adapter({"image": EMBEDDINGS}), of_layer(adapter, inputs), rtol=1e-5, atol=1e-6
    )
    # The same for every image: differences between images are the layer's alone.
    without = of_layer(adapter, np.concatenate([EMBEDDINGS, np.zeros((3, 6))], axis=1))
    np.testing.assert_allclose(np.ptp(adapter({"image": EMBEDDINGS}) - without, axis=0), 0, atol=1e-5)


def test_each_label_has_its_own_cosine():
    adapter = FCAdapter(CLASS_EMBEDDINGS, text="cosine", rngs=nnx.Rngs(0))
    weights = np.array([1, 2, 3, -1], np.float32)
    adapter.cosine_weight[...] = weights
    cosines = EMBEDDINGS @ CLASS_EMBEDDINGS.T
    cosines /= np.linalg.norm(EMBEDDINGS, axis=1)[:, None] * np.linalg.norm(CLASS_EMBEDDINGS, axis=1)
    cosines = (cosines - cosines.mean(axis=1, keepdims=True)) / cosines.std(axis=1, keepdims=True)
    expected = of_layer(adapter, EMBEDDINGS) + weights * cosines
    np.testing.assert_allclose(adapter({"image": EMBEDDINGS}), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_class_texts_are_not_trained(text):
    _, parameters, frozen = split_trainable(FCAdapter(CLASS_EMBEDDINGS, text=text, rngs=nnx.Rngs(0)))
    assert "class_embeddings" not in parameters
    assert frozen.keys() == (set() if text == "none" else {"class_embeddings"})
