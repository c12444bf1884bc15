"""From patches to scores: each step by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlclip_jax.zero_shot import attention_affinity, merged, patch_probabilities, pooled, refined
from mlclip_jax.zero_shot.patches import class_boxes


def test_patches_are_softmaxed_over_classes_and_background():
    """By hand: cosines 1, 0 and 0.6, whose exponentials at scale ln 32 are 32, 1 and 8."""
    patches = np.array([[[2.0, 0.0]]], np.float32)
    classes = np.array([[3.0, 0.0], [0.0, 1.0]], np.float32)
    background = np.array([[0.6, 0.8]], np.float32)
    scale = float(np.log(32))
    with_words = patch_probabilities(patches, classes, background, scale)
    np.testing.assert_allclose(with_words, [[[32 / 41, 1 / 41]]], rtol=1e-5)
    without = patch_probabilities(patches, classes, scale=scale)
    np.testing.assert_allclose(without, [[[32 / 33, 1 / 33]]], rtol=1e-5)
    np.testing.assert_allclose(patch_probabilities(patches, classes).sum(), 1, rtol=1e-6)


def test_affinity_is_the_mean_of_late_maps_where_enough_layers_vote():
    """Twelve layers of two patches; maps are 1 and 0 but for the entry (0, 1), on which four layers vote."""
    maps = np.zeros((1, 12, 2, 2), np.float32)
    maps[0, :, 0, 0] = 1
    maps[0, [0, 2, 8, 9], 0, 1] = 0.8, 0.8, 0.6, 0.3  # 0.3 lies below that layer's mean, 1.3 / 4
    # Means are 0.45, 0.45, 0.4 and 0.325: three votes, so the entry is masked, and (0, 0) has twelve.
    np.testing.assert_allclose(attention_affinity(maps), [[[1, 0], [0, 0]]])
    maps[0, 9, 0, 1] = 0.9  # the fourth vote; layers 9 to 11 have 0.6, 0.9 and 0 there
    np.testing.assert_allclose(attention_affinity(maps), [[[1, 0.5], [0, 0]]], rtol=1e-6)
    maps[0, 11] = 7  # the last layer is never averaged
    np.testing.assert_allclose(attention_affinity(maps)[0, 0, 1], 0.5, rtol=1e-6)


def test_affinity_of_shallow_towers_has_a_layer_to_average():
    """Of four layers the third, of two and of one the first."""
    for depth, layer in ((4, 2), (2, 0), (1, 0)):
        maps = np.zeros((1, depth, 2, 2), np.float32)
        maps[0, :, 0, 0] = np.arange(1, depth + 1)
        np.testing.assert_allclose(attention_affinity(maps)[0, 0, 0], layer + 1)


def boxes(picture):
    scores = np.array([[float(mark == "#") for mark in row] for row in picture.split()], np.float32)
    inside = class_boxes(scores.reshape(1, -1, 1), scores.shape)[0, :, 0].reshape(scores.shape)
    return "\n".join("".join(".#"[int(place)] for place in row) for row in inside)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        # An L becomes its rectangle, at the last row and column too.
        ("....\n#...\n#...\n###.", "....\n###.\n###.\n###."),
        ("...#\n..#.\n....", "..##\n..##\n...."),  # corners connect
        ("#..#\n....\n#...", "#..#\n....\n#..."),  # three parts, three boxes
        # A spiral takes many steps to spread; its inside is in its box.
        ("#####.\n....#.\n###.#.\n#...#.\n#####.\n......", "#####.\n" * 5 + "......"),
        ("..\n..", "##\n##"),  # no place stands out
    ],
)
def test_boxes_around_connected_parts(picture, expected):
    assert boxes(picture) == expected


def test_classes_and_images_have_boxes_of_their_own():
    scores = np.random.default_rng(0).random((3, 20, 5)).astype(np.float32)
    together = class_boxes(scores, (4, 5))
    for image in range(3):
        for label in range(5):
            own = class_boxes(scores[image : image + 1, :, label : label + 1], (4, 5))
            np.testing.assert_array_equal(together[image, :, label], own[0, :, 0])
    assert 0.2 < together.mean() < 1


def test_refinement_carries_scores_from_within_the_boxes():
    """By hand, three patches in a row and a class at the first two: carried once, 0.75, 0.55 and 0.35."""
    affinity = np.array([[[0.5, 0.5, 0.1], [0.5, 0.1, 0.1], [0.1, 0.5, 0.1]]], np.float32)
    scores = np.array([[[1.0], [0.4], [0.5]]], np.float32)
    once = affinity[0] @ scores[0]
    np.testing.assert_allclose(once[:, 0], [0.75, 0.59, 0.35], rtol=1e-6)
    np.testing.assert_allclose(refined(scores, affinity, (1, 3), by_class=False)[0], once, rtol=1e-6)
    # The mean is 0.563, so the third patch is outside, and what it had to give is gone.
    np.testing.assert_allclose(refined(scores, affinity, (1, 3))[0, :, 0], [0.7, 0.54, 0.3], rtol=1e-6)


def test_the_highest_patch_counts_or_a_soft_one():
    scores = np.array([[[0.2, 0.5], [0.6, 0.5]]], np.float32)
    np.testing.assert_allclose(pooled(scores), [[0.6, 0.5]])
    np.testing.assert_allclose(pooled(scores, 0.0), [[0.4, 0.5]], rtol=1e-6)
    # At sharpness ln(3) / 0.4 the second patch weighs 3/4.
    np.testing.assert_allclose(pooled(scores, math.log(3) / 0.4), [[0.5, 0.5]], rtol=1e-6)


def test_merging_weighs_two_softmaxes():
    """By hand: patches 3/4 and 1/4, the whole image 1/3 and 2/3."""
    patches = np.array([[math.log(3) / 200, 0.0]], np.float32)
    whole = np.array([[0.0, math.log(2) / 80]], np.float32)
    np.testing.assert_allclose(merged(patches, patch_scale=200), [[0.75, 0.25]], rtol=1e-5)
    expected = [[0.1 / 3 + 0.9 * 0.75, 0.2 / 3 + 0.9 * 0.25]]
    np.testing.assert_allclose(merged(patches, whole, patch_scale=200), expected, rtol=1e-5)
    np.testing.assert_allclose(merged(patches), patches)
    half = merged(patches, whole, global_weight=0.5)
    np.testing.assert_allclose(half, patches / 2 + [[1 / 6, 1 / 3]], rtol=1e-5)


def test_refinement_is_differentiable_in_the_scores():
    """Boxes are a choice, which has no gradient; what is carried has that of a product."""
    affinity = jnp.ones((1, 3, 3)) / 3
    scores = jnp.array([[[1.0], [0.4], [0.5]]])
    gradient = jax.grad(lambda own: refined(own, affinity, (1, 3)).sum())(scores)
    np.testing.assert_allclose(gradient[0, :, 0], [1, 1, 1], rtol=1e-6)
