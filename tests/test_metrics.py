"""Metrics against scikit-learn, on ties, unknown labels, weights and sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from mlclip_jax.metrics import (
    average_precision,
    bootstrap_mean_average_precision,
    mean_average_precision,
)

# Few distinct scores, so that most examples are tied.
tied_scores = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1.0, 3e38])


@st.composite
def scored_examples(draw, labels=(0, 1, -1)):
    shape = draw(st.sampled_from([(1, 1), (2, 3), (7, 2), (12, 3)]))  # each is compiled once
    scores = draw(hnp.arrays(np.float32, shape, elements=tied_scores))
    return scores, draw(hnp.arrays(np.int8, shape, elements=st.sampled_from(labels)))


def reference(scores, labels, weights=None):
    """scikit-learn's figure for each class, NaN where it has no positive."""
    figures = []
    for score, label in zip(scores.T, labels.T):
        known = label >= 0
        if weights is not None:
            known &= weights > 0
        if not (label[known] == 1).any():
            figures.append(np.nan)
            continue
        sample_weight = None if weights is None else weights[known]
        figures.append(average_precision_score(label[known], score[known], sample_weight=sample_weight))
    return np.array(figures)


@settings(deadline=None, max_examples=150)
@given(scored_examples())
def test_average_precision_is_scikit_learns(examples):
    scores, labels = examples
    ours = jax.jit(average_precision)(scores, labels)
    np.testing.assert_allclose(ours, reference(scores, labels), rtol=1e-6)


@settings(deadline=None, max_examples=75)
@given(scored_examples(), st.data())
def test_weights_are_repetitions_and_zero_is_padding(examples, data):
    scores, labels = examples
    weights = data.draw(hnp.arrays(np.int32, len(scores), elements=st.integers(0, 3)))
    weighted = average_precision(scores, labels, weights)
    repeated = reference(np.repeat(scores, weights, axis=0), np.repeat(labels, weights, axis=0))
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)
    np.testing.assert_allclose(weighted, reference(scores, labels, weights), rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(scored_examples(), st.randoms(use_true_random=False))
def test_order_of_examples_and_of_classes_does_not_matter(examples, random):
    scores, labels = examples
    rows, columns = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    shuffled = average_precision(scores[rows][:, columns], labels[rows][:, columns])
    np.testing.assert_allclose(shuffled, average_precision(scores, labels)[jnp.array(columns)], rtol=1e-6)


def test_exact_at_the_size_of_coco():
    generator = np.random.default_rng(0)
    labels = (generator.random((40_000, 3)) < (0.3, 0.02, 0.001)).astype(np.int8)
    scores = generator.normal(size=labels.shape).round(3).astype(np.float32) + labels
    np.testing.assert_allclose(average_precision(scores, labels), reference(scores, labels), rtol=1e-6)


def test_classes_without_a_positive_are_left_out_and_counted():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5]], np.float32)
    labels = np.array([[1, 0, -1], [0, 0, -1]], np.int8)
    mean, count = jax.jit(mean_average_precision)(scores, labels)
    assert (float(mean), int(count)) == (1.0, 1)
    mean, count = mean_average_precision(scores, np.zeros_like(labels))
    assert np.isnan(mean)
    assert count == 0


def test_constant_scores_read_the_prevalence():
    # The trapezoid rule, which some papers use, reads 0.625 here.
    labels = np.array([[1], [0], [0], [0]], np.int8)
    assert average_precision(np.zeros((4, 1), np.float32), labels)[0] == pytest.approx(0.25)


def test_bootstrap_resamples_methods_alike():
    generator = np.random.default_rng(1)
    labels = (generator.random((60, 4)) < 0.3).astype(np.int8)
    good = (generator.normal(size=labels.shape) + labels).astype(np.float32)
    key = jax.random.key(0)
    draws = bootstrap_mean_average_precision(key, good, labels, 200)
    assert draws.shape == (200,)
    # A monotone change of all scores changes no ranking, hence no resample.
    np.testing.assert_array_equal(draws, bootstrap_mean_average_precision(key, good * 2 + 1, labels, 200))
    assert np.std(draws) > 0.01
    # One resample, done by hand.
    drawn = jax.random.randint(jax.random.split(key, 200)[7], (60,), 0, 60)
    np.testing.assert_allclose(draws[7], np.nanmean(reference(good[drawn], labels[drawn])), rtol=1e-6)
