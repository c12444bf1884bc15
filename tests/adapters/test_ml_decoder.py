"""ML-Decoder: its sizes, its groups, its queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlclip_jax.adapters.ml_decoder import QUERIES, MLDecoder
from mlclip_jax.nnx_boundary import split_trainable

GENERATOR = np.random.default_rng(0)
EMBEDDINGS = GENERATOR.normal(size=(2, 16)).astype(np.float32)
LOCAL = GENERATOR.normal(size=(2, 5, 16)).astype(np.float32)
BATCH = {"image": EMBEDDINGS, "image_local": LOCAL}
SMALL = {"width": 24, "num_heads": 4, "hidden": 32}


def texts(num_labels, width=16):
    return np.random.default_rng(1).normal(size=(num_labels, width)).astype(np.float32)


def count(tree):
    return sum(array.size for array in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("num_labels", "width", "groups", "trainable", "total"),
    [
        # The original's numbers of parameters, for these K, C and groups.
        (80, 2048, 100, 7_150_672, 7_212_112),
        (20, 2048, 100, 7_104_532, 7_119_892),
        (1000, 2048, 100, 7_858_152, 7_934_952),
        (80, 768, 40, 6_167_632, 6_198_352),
        (18, 768, 100, 6_119_954, 6_133_778),
    ],
)
def test_it_has_the_originals_parameters(num_labels, width, groups, trainable, total):
    decoder = MLDecoder(texts(num_labels, width), groups=groups, rngs=nnx.Rngs(0))
    _, parameters, frozen = split_trainable(decoder)
    assert count(parameters) == trainable
    assert count(parameters) + count(frozen) == total


@pytest.mark.parametrize("num_labels", [1, 7, 80, 1000, 9605])
@pytest.mark.parametrize("queries", ["frozen", "learnt"])
def test_any_number_of_labels(num_labels, queries):
    decoder = MLDecoder(texts(num_labels), queries=queries, **SMALL, rngs=nnx.Rngs(0))
    logits = jax.jit(decoder)(BATCH)
    assert logits.shape == (2, num_labels)
    assert np.isfinite(logits).all()
    num_queries, _, size = decoder.kernel.shape
    assert num_queries == min(num_labels, 100)
    assert (size - 1) * num_queries < num_labels <= size * num_queries


def test_each_group_reads_its_own_query():
    """Labels of one group hang on one query's result, in the order of the original's reshape."""
    decoder = MLDecoder(texts(7), groups=3, queries="learnt", **SMALL, rngs=nnx.Rngs(0))
    before = np.asarray(decoder(BATCH))
    decoder.queries[...] = decoder.queries[...].at[1].multiply(jnp.linspace(-1, 1, 24))
    changed = np.abs(np.asarray(decoder(BATCH)) - before).max(axis=0) > 1e-6
    np.testing.assert_array_equal(changed, [False, False, False, True, True, True, False])


@pytest.mark.parametrize("queries", QUERIES)
def test_what_is_frozen(queries):
    _, parameters, frozen = split_trainable(MLDecoder(texts(6), queries=queries, **SMALL, rngs=nnx.Rngs(0)))
    assert frozen.keys() == {"frozen": {"queries"}, "learnt": set(), "text": {"class_embeddings"}}[queries]
    assert ("queries" in parameters) == (queries == "learnt")


def test_the_seed_draws_frozen_queries_again():
    first, again, other = (
        split_trainable(MLDecoder(texts(6), **SMALL, rngs=nnx.Rngs(seed)))[2]["queries"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_text_queries_take_other_labels():
    """The same parameters serve any class texts; each label's logit depends on its own text alone."""
    trained = MLDecoder(texts(6), queries="text", **SMALL, rngs=nnx.Rngs(0))
    _, parameters, _ = split_trainable(trained)
    graph, other_parameters, frozen = split_trainable(
        MLDecoder(texts(6)[[4, 1]], queries="text", **SMALL, rngs=nnx.Rngs(9))
    )
    assert jax.tree.map(np.shape, parameters) == jax.tree.map(np.shape, other_parameters)
    carried = nnx.merge(graph, parameters, frozen)
    expected = np.asarray(trained(BATCH))[:, [4, 1]]
    np.testing.assert_allclose(carried(BATCH), expected, rtol=1e-5, atol=1e-6)


def test_pooled_features_are_one_token():
    decoder = MLDecoder(texts(6), features="pooled", **SMALL, rngs=nnx.Rngs(0))
    local = MLDecoder(texts(6), features="local", **SMALL, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        decoder({"image": EMBEDDINGS}), local({"image_local": EMBEDDINGS[:, None]}), rtol=1e-5, atol=1e-6
    )


def test_where_it_looks_matters_and_order_does_not():
    decoder = MLDecoder(texts(6), **SMALL, rngs=nnx.Rngs(0))
    logits = decoder(BATCH)
    np.testing.assert_allclose(decoder({"image_local": LOCAL[:, ::-1]}), logits, rtol=1e-4, atol=1e-5)
    assert np.abs(decoder({"image_local": LOCAL * (np.arange(5) > 0)[None, :, None]}) - logits).max() > 1e-3
