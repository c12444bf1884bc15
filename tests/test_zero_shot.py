"""Scoring rules without training."""

import numpy as np

from mlclip_jax.zero_shot import cosine_scores, standardise


def test_cosine_scores_ignore_lengths():
    images = np.array([[3.0, 0.0], [1.0, 1.0]], np.float32)
    classes = np.array([[0.0, 2.0], [5.0, 0.0], [-1.0, -1.0]], np.float32)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(cosine_scores(images, classes), [[0, 1, -half], [half, half, -1]], atol=1e-6)


def test_a_zero_vector_resembles_nothing():
    scores = cosine_scores(np.array([[0.0, 0.0], [1.0, 2.0]], np.float32), np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(scores[0], 0)


def test_standardise_gives_every_image_mean_0_and_deviation_1():
    scores = np.random.default_rng(0).normal(3, 5, (4, 9)).astype(np.float32)
    standardised = standardise(scores)
    np.testing.assert_allclose(standardised.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(standardised.std(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.argsort(standardised, axis=1), np.argsort(scores, axis=1))


def test_standardise_of_equal_scores_is_zero():
    np.testing.assert_array_equal(standardise(np.full((2, 3), 7.0, np.float32)), 0)
