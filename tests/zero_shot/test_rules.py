"""Scoring rules without training."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mlclip_jax.zero_shot import (
    centred,
    cosine_scores,
    in_blocks,
    l2_normalize,
    log_softmax_scores,
    mean_direction,
    ridge_map,
    ridge_scores,
    standardise,
)


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


def test_log_softmax_at_a_temperature():
    """By hand: scores 0 and 0.5 ln 3 over the temperature 0.5 are 0 and ln 3, probabilities 1/4 and 3/4."""
    scores = np.array([[0.0, 0.5 * np.log(3)]], np.float32)
    expected = np.log([[0.25, 0.75]])
    np.testing.assert_allclose(log_softmax_scores(scores, 0.5), expected, rtol=1e-6)
    # What all classes of an image have in common counts for nothing.
    np.testing.assert_allclose(log_softmax_scores(scores + 1, 0.5), expected, rtol=1e-5)


def test_vectors_are_centred_on_a_mean_direction():
    """By hand: the directions (1, 0) and (0, 1), of whatever length, have the mean (0.5, 0.5)."""
    centre = mean_direction(np.array([[3.0, 0.0], [0.0, 0.1]], np.float32))
    np.testing.assert_allclose(centre, [0.5, 0.5], atol=1e-6)
    half = np.sqrt(0.5)
    vectors = np.array([[5.0, 0.0], [0.6, 0.8], [0.0, 2.0]], np.float32)
    expected = [[half, -half], [1 / np.sqrt(10), 3 / np.sqrt(10)], [-half, half]]
    np.testing.assert_allclose(centred(vectors, centre), expected, atol=1e-6)


def test_a_vector_at_the_centre_resembles_nothing():
    vectors = np.array([[0.0, 4.0]], np.float32)
    np.testing.assert_array_equal(centred(vectors, np.array([0.0, 1.0], np.float32)), 0)


def test_the_ridge_map_makes_the_scores_of_as_many_images_as_there_are():
    images, classes = np.random.default_rng(2).normal(size=(2, 6, 8)).astype(np.float32)
    scores = l2_normalize(images) @ ridge_map(classes, penalty=0.7).T
    np.testing.assert_allclose(scores, ridge_scores(images, classes, penalty=0.7), atol=1e-6)


@pytest.mark.parametrize("size", [1, 35, 36, 10**6])  # one row a block, 5 and a rest of 1, 6, all
def test_blocks_of_images_give_what_all_of_them_give(size):
    images, classes = np.random.default_rng(3).normal(size=(2, 11, 4)).astype(np.float32)
    classes, seen = classes[:6], []

    def rule(block):
        seen.append(len(block))
        return standardise(cosine_scores(block, classes))

    scores = in_blocks(rule, images, num_labels=6, most=size)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, standardise(cosine_scores(images, classes)), atol=1e-5)
    assert max(seen) == min(11, max(1, size // 6))


def test_blocks_of_stored_half_precision_are_scored_in_single(tmp_path):
    """Large sets are stored as float16, and mapped from their file."""
    images = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float16)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    classes = np.eye(3, dtype=np.float32)
    scores = in_blocks(lambda block: cosine_scores(block, classes), mapped, num_labels=3, most=6)
    np.testing.assert_allclose(scores, cosine_scores(images.astype(np.float32), classes), atol=1e-6)


def test_no_image_has_no_scores():
    scores = in_blocks(lambda block: block, np.zeros((0, 4), np.float32), num_labels=4)
    assert scores.shape == (0, 4)


def test_ridge_scores_of_many_labels_solve_no_system_as_large_as_them():
    """20,000 x 20,000 numbers would be 1.6 GB, and a minute to solve; 64 x 64 are nothing."""
    generator = np.random.default_rng(5)
    images = generator.normal(size=(3, 64)).astype(np.float32)
    classes = generator.normal(size=(20_000, 64)).astype(np.float32)
    scores = np.asarray(ridge_scores(images, classes), np.float64)
    unit, x = (np.asarray(l2_normalize(v), np.float64) for v in (classes, images))
    # The large system itself, (T T' + 3 I) a = T x, which needs no solving to be checked.
    np.testing.assert_allclose((scores @ unit) @ unit.T + 3 * scores, x @ unit.T, atol=1e-5)
