"""Scores of parts of an image: patches and crops."""

import numpy as np

from mlclip_jax.zero_shot import cosine_scores, crop_scores, local_scores, merged_scores


def test_local_scores_are_a_soft_maximum_over_patches():
    """By hand: two patches with cosines 1 and 0, which at sharpness ln 3 weigh 3/4 and 1/4."""
    patches = np.array([[[2.0, 0.0], [0.0, 5.0]]], np.float32)
    classes = np.array([[3.0, 0.0]], np.float32)
    np.testing.assert_allclose(local_scores(patches, classes, float(np.log(3))), [[0.75]], rtol=1e-6)
    np.testing.assert_allclose(local_scores(patches, classes, 0.0), [[0.5]], rtol=1e-6)
    np.testing.assert_allclose(local_scores(patches, classes), [[1.0]], rtol=1e-6)


def test_each_class_looks_at_the_patches_that_show_it():
    patches = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)
    scores = local_scores(patches, np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(scores, [[1, 1]], rtol=1e-6)
    # The whole, their mean, resembles both by half as much.
    np.testing.assert_allclose(
        cosine_scores(patches.mean(axis=1), np.eye(2, dtype=np.float32)), 0.7071, atol=1e-4
    )


def test_one_patch_is_the_image():
    images, classes = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    cosine = cosine_scores(images, classes)
    np.testing.assert_allclose(local_scores(images[:, None], classes), cosine, atol=1e-6)
    np.testing.assert_allclose(merged_scores(images, images[:, None], classes), cosine, atol=1e-6)


def test_merged_scores_weigh_global_and_local():
    images, patches = np.array([[0.0, 1.0]], np.float32), np.array([[[1.0, 0.0]]], np.float32)
    classes = np.array([[1.0, 0.0]], np.float32)
    np.testing.assert_allclose(merged_scores(images, patches, classes), [[0.5]], atol=1e-6)
    np.testing.assert_allclose(merged_scores(images, patches, classes, weight=0.2), [[0.2]], atol=1e-6)


def test_a_class_counts_in_the_crop_that_shows_it_best():
    crops = np.array([[[1.0, 0.0], [0.6, 0.8]], [[0.0, -1.0], [0.0, -2.0]]], np.float32)
    np.testing.assert_allclose(
        crop_scores(crops, np.eye(2, dtype=np.float32)), [[1, 0.8], [0, -1]], atol=1e-6
    )
