"""Scoring rules without training."""

import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import Ridge

from mlclip_jax.zero_shot import cosine_scores, l2_normalize, ridge_scores, standardise


def test_cosine_scores_ignore_lengths():
    images = np.array([[3.0, 0.0], [1.0, 1.0]], np.float32)
    classes = np.array([[0.0, 2.0], [5.0, 0.0], [-1.0, -1.0]], np.float32)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(cosine_scores(images, classes), [[0, 1, -half], [half, half, -1]], atol=1e-6)


def test_a_zero_vector_resembles_nothing():
    scores = cosine_scores(np.array([[0.0, 0.0], [1.0, 2.0]], np.float32), np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(scores[0], 0)


def test_ridge_scores_are_weights_of_a_ridge_regression():
    random = np.random.default_rng(0)
    images, classes = random.normal(size=(5, 16)), random.normal(size=(7, 16)) + 2
    images, classes = images.astype(np.float32), classes.astype(np.float32)
    regression = Ridge(alpha=0.5, fit_intercept=False)
    regression.fit(np.asarray(l2_normalize(classes), np.float64).T, np.asarray(l2_normalize(images)).T)
    np.testing.assert_allclose(ridge_scores(images, classes, penalty=0.5), regression.coef_, atol=1e-6)


def test_ridge_scores_explain_once_what_classes_share():
    """By hand: classes (1, 0) and (0.6, 0.8) have the Gram matrix [[1, 0.6], [0.6, 1]]; penalty 1."""
    classes = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    image = np.array([[2.0, 0.0]], np.float32)  # cosines 1 and 0.6
    expected = np.linalg.solve([[2.0, 0.6], [0.6, 2.0]], [1.0, 0.6])
    np.testing.assert_allclose(expected, [1.64 / 3.64, 0.6 / 3.64], atol=1e-12)
    np.testing.assert_allclose(ridge_scores(image, classes, penalty=1)[0], expected, atol=1e-6)


def test_ridge_scores_of_a_large_penalty_rank_as_cosine():
    random = np.random.default_rng(1)
    images, classes = random.normal(size=(2, 6, 8)).astype(np.float32)
    scaled = 1e4 * ridge_scores(images, classes, penalty=1e4)
    np.testing.assert_allclose(scaled, cosine_scores(images, classes), atol=2e-3)
    assert jnp.isfinite(ridge_scores(np.zeros((1, 8), np.float32), classes)).all()


def test_standardise_gives_every_image_mean_0_and_deviation_1():
    scores = np.random.default_rng(0).normal(3, 5, (4, 9)).astype(np.float32)
    standardised = standardise(scores)
    np.testing.assert_allclose(standardised.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(standardised.std(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.argsort(standardised, axis=1), np.argsort(scores, axis=1))


def test_standardise_of_equal_scores_is_zero():
    np.testing.assert_array_equal(standardise(np.full((2, 3), 7.0, np.float32)), 0)
