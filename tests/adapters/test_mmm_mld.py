"""MLD: what is published of it, what is wrong with that, and the default, which trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlclip_jax.adapters.mmm_mld import MLDAdapter
from mlclip_jax.losses import binary_cross_entropy
from mlclip_jax.nnx_boundary import merge_module, split_trainable

GENERATOR = np.random.default_rng(0)
CLASS_EMBEDDINGS = GENERATOR.normal(size=(5, 16)).astype(np.float32)
EMBEDDINGS = GENERATOR.normal(size=(8, 16)).astype(np.float32)
LOCAL = GENERATOR.normal(size=(8, 6, 16)).astype(np.float32)
BATCH = {"image": EMBEDDINGS, "image_local": LOCAL}
LABELS = GENERATOR.integers(0, 2, (8, 5)).astype(np.int8)
PUBLISHED = {"features": "pooled", "readout": "mean", "dropout": 0.0}


def gradient_sizes(**settings):
    """The largest gradient of each part of an adapter at its start."""
    adapter = MLDAdapter(CLASS_EMBEDDINGS, hidden=32, **settings, rngs=nnx.Rngs(0))
    graph, parameters, frozen = split_trainable(adapter)

    def loss(parameters):
        return binary_cross_entropy(merge_module(graph, parameters, frozen)(BATCH), LABELS)

    gradient = jax.grad(loss)(parameters)
    sizes = jax.tree_util.tree_map_with_path(lambda path, g: (jax.tree_util.keystr(path), g), gradient)
    leaves = jax.tree.leaves(sizes, is_leaf=lambda x: isinstance(x, tuple))
    return {name: float(jnp.abs(g).max()) for name, g in leaves}


def test_as_published_its_blocks_have_the_size_of_the_originals():
    adapter = MLDAdapter(np.zeros((10, 768), np.float32), blocks=3, **PUBLISHED, rngs=nnx.Rngs(0))
    _, parameters, _ = split_trainable(adapter)
    assert sum(array.size for array in jax.tree.leaves(parameters)) == 3 * 5_513_984


@pytest.mark.parametrize("blocks", [1, 3])
def test_as_published_it_begins_at_zero_and_hardly_learns(blocks):
    adapter = MLDAdapter(CLASS_EMBEDDINGS, hidden=32, blocks=blocks, **PUBLISHED, rngs=nnx.Rngs(0))
    assert np.abs(adapter({"image": EMBEDDINGS})).max() < 1e-6
    sizes = gradient_sizes(blocks=blocks, **PUBLISHED)
    last = f"['blocks']['{blocks - 1}']['norm2']"
    assert max(size for name, size in sizes.items() if name.startswith(last)) > 1e-3
    assert max(size for name, size in sizes.items() if not name.startswith(last)) < 1e-6


def test_with_one_key_every_class_attends_alike():
    adapter = MLDAdapter(CLASS_EMBEDDINGS, hidden=32, **PUBLISHED, rngs=nnx.Rngs(0))
    attention = adapter.blocks[0].attention
    attended = attention(jnp.tile(CLASS_EMBEDDINGS, (8, 1)), 5, context=EMBEDDINGS[:, None]).reshape(8, 5, 16)
    np.testing.assert_allclose(attended, attended[:, :1].repeat(5, axis=1), atol=1e-6)


def test_the_default_begins_as_zero_shot_and_learns():
    adapter = MLDAdapter(CLASS_EMBEDDINGS, hidden=32, rngs=nnx.Rngs(0))
    cosines = EMBEDDINGS @ CLASS_EMBEDDINGS.T / np.linalg.norm(CLASS_EMBEDDINGS, axis=1)
    cosines = (cosines - cosines.mean(axis=1, keepdims=True)) / cosines.std(axis=1, keepdims=True)
    np.testing.assert_allclose(adapter(BATCH), cosines, rtol=1e-4, atol=1e-5)
    sizes = gradient_sizes()
    assert sizes["['projection']['kernel']"] > 1e-3
    assert sizes["['cosine_weight']"] > 1e-3


@pytest.mark.parametrize(("settings", "length"), [({}, 4.0), (PUBLISHED, 1.0)])
def test_texts_and_tokens_enter_the_decoder_at_one_length(settings, length):
    """√D in the default, where each channel is about 1 as a layer norm leaves it; 1 as published."""
    adapter = MLDAdapter(CLASS_EMBEDDINGS, hidden=32, **settings, rngs=nnx.Rngs(0))
    entered = []

    def block(queries, tokens, keys):
        del keys
        entered.extend([queries, tokens])
        return queries

    adapter.blocks = nnx.List([block])
    adapter(BATCH)
    assert [len(x) for x in entered] == [8, 8]
    for x in entered:
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), length, rtol=1e-5)


def test_the_default_fits_what_the_published_form_does_not():
    """A hundred steps of Adam on eight images."""
    import optax

    losses = {}
    for name, settings in {"default": {}, "published": PUBLISHED}.items():
        adapter = MLDAdapter(CLASS_EMBEDDINGS, hidden=32, **settings, rngs=nnx.Rngs(0))
        graph, parameters, frozen = split_trainable(adapter)
        optimizer = optax.adam(1e-2)

        def loss(parameters, graph=graph, frozen=frozen):
            return binary_cross_entropy(merge_module(graph, parameters, frozen)(BATCH), LABELS)

        @jax.jit
        def step(parameters, state, loss=loss, optimizer=optimizer):
            value, gradient = jax.value_and_grad(loss)(parameters)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(parameters, updates), state, value

        state = optimizer.init(parameters)
        for _ in range(100):
            parameters, state, losses[name] = step(parameters, state)
    assert losses["default"] < 0.05
    assert losses["default"] < losses["published"] / 2


def test_other_class_texts_take_the_place_of_those_trained_with():
    trained = MLDAdapter(CLASS_EMBEDDINGS, hidden=32, rngs=nnx.Rngs(0))
    trained.projection.kernel[...] = jnp.linspace(-1, 1, 16)[:, None]
    _, parameters, _ = split_trainable(trained)
    graph, _, frozen = split_trainable(MLDAdapter(CLASS_EMBEDDINGS[::-1], hidden=32, rngs=nnx.Rngs(1)))
    carried = merge_module(graph, parameters, frozen)
    expected = np.asarray(trained(BATCH))[:, ::-1]
    np.testing.assert_allclose(carried(BATCH), expected, rtol=1e-4, atol=1e-5)


def test_lengths_do_not_matter():
    adapter = MLDAdapter(CLASS_EMBEDDINGS, hidden=32, rngs=nnx.Rngs(0))
    adapter.projection.kernel[...] = jnp.linspace(-1, 1, 16)[:, None]
    np.testing.assert_allclose(
        adapter({"image": 3 * EMBEDDINGS, "image_local": 7 * LOCAL}), adapter(BATCH), rtol=1e-4, atol=1e-5
    )
