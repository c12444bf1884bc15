"""The numbers are those of `jax.random`, bit for bit, however they are asked for."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlclip_jax.threefry import make_key

DRAWS = {
    "bits": lambda key: jax.random.bits(key, (3, 5)),
    "half_words": lambda key: jax.random.bits(key, (7,), np.uint16),
    "normal": lambda key: jax.random.normal(key, (2, 9)),
    "one_uniform": jax.random.uniform,
    "bernoulli": lambda key: jax.random.bernoulli(key, 0.9, (40,)),
    "permutation": lambda key: jax.random.permutation(key, 12),
    "no_numbers": lambda key: jax.random.bits(key, (0,)),
}
words = st.integers(0, 2**32 - 1).map(np.uint32)


@functools.partial(jax.jit, static_argnums=0)
def of_examples(draw, key, step, positions):
    """What examples draw by keys as a step makes them: folded in, split, one for each."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), positions)
    noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    return jax.vmap(draw)(noise_keys), jax.vmap(draw)(dropout_keys)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@given(seed=words, step=words, first=words)
def test_they_are_those_of_jax(draw, seed, step, first):
    positions = first + np.arange(3, dtype=np.uint32)
    ours, theirs = (of_examples(draw, key(seed), step, positions) for key in (make_key, jax.random.key))
    for own, reference in zip(ours, theirs):
        assert own.dtype == reference.dtype
        np.testing.assert_array_equal(own, reference)


@given(words, st.sampled_from([(), (3,), (2, 4)]))
def test_keys_split_into_any_shape_are_those_of_jax(seed, shape):
    ours, theirs = (jax.random.split(key, shape) for key in (make_key(seed), jax.random.key(seed)))
    np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))


def test_more_numbers_than_a_word_counts_are_refused():
    with pytest.raises(ValueError, match=r"shape \(65536, 65536\)"):
        jax.jit(lambda: jax.random.bits(make_key(np.uint32(0)), (1 << 16, 1 << 16))).lower()
