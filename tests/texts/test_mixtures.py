"""Label sets, and mixtures of class embeddings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlclip_jax import InputError
from mlclip_jax.texts.label_sets import read_size_weights, sample_label_sets
from mlclip_jax.texts.mixtures import mix_class_embeddings


@given(st.integers(0, 5), st.integers(1, 30), st.integers(1, 8), st.integers(1, 10))
def test_every_label_comes_alone_and_no_set_is_empty_or_too_large(seed, number, num_labels, max_labels):
    sets = sample_label_sets(seed, number, num_labels, max_labels)
    assert sets.shape == (number, num_labels)
    assert sets.dtype == np.int8
    alone = min(number, num_labels)
    np.testing.assert_array_equal(sets[:alone], np.eye(number, num_labels)[:alone])
    sizes = sets.sum(axis=1)
    assert sizes.min() >= 1
    assert sizes.max() <= max_labels
    np.testing.assert_array_equal(sets, sample_label_sets(seed, number, num_labels, max_labels))


def test_sizes_and_labels_are_uniform():
    sets = sample_label_sets(0, 30_000, 10, 3)[10:]
    sizes = np.bincount(sets.sum(axis=1), minlength=4)[1:] / len(sets)
    np.testing.assert_allclose(sizes, 1 / 3, atol=0.01)
    np.testing.assert_allclose(sets.mean(axis=0), 0.2, atol=0.01)


def test_a_mixture_is_the_mean_of_its_classes():
    classes = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    mixed = mix_class_embeddings(np.array([[0, 1, 0, 0], [1, 0, 1, 1]], np.int8), classes)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed[0], classes[1], rtol=1e-6)
    np.testing.assert_allclose(mixed[1], classes[[0, 2, 3]].mean(axis=0), rtol=1e-5)


@given(st.integers(0, 100), st.integers(1, 5), st.integers(1, 200))
def test_each_combination_comes_as_often_as_asked(seed, per_combination, number):
    sets = sample_label_sets(seed, number, 10, 3, per_combination=per_combination)
    assert len(sets) == number
    for start in range(0, number, per_combination):
        block = sets[start : start + per_combination]
        np.testing.assert_array_equal(block, np.broadcast_to(block[0], block.shape))


def test_sizes_of_sets_follow_their_weights():
    sets = sample_label_sets(0, 30_000, 10, 3, size_weights=(3, 2, 1))[10:]
    shares = np.bincount(sets.sum(axis=1), minlength=4)[1:] / len(sets)
    np.testing.assert_allclose(shares, [3 / 6, 2 / 6, 1 / 6], atol=0.01)


@pytest.mark.parametrize("text", ["1,2", "1,x,3", "0,1,1", "1,-1,1", "1,inf,1", "1,nan,1", "1;2;3"])
def test_weights_that_fit_no_sizes_are_refused(text):
    with pytest.raises(InputError, match=r"invalid size_weights=.* as many numbers as max_labels=3"):
        read_size_weights(text, 3)
