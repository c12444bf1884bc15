"""Prompts that name two labels, and what their scores say of each."""

import numpy as np
import pytest

from mlclip_jax.errors import InputError
from mlclip_jax.zero_shot import compound_prompts, fuse_compounds, weakened_maximum

PAIRS = np.array([[0, 1], [0, 2], [0, 3], [1, 2]])


def test_compound_prompts_name_both_labels():
    prompts = compound_prompts(["dog", "umbrella", "skis"], np.array([[0, 1], [2, 0]]))
    assert prompts == ["a photo of a dog and an umbrella.", "a photo of skis and a dog."]
    assert compound_prompts(["dog", "cat"], np.array([[0, 1]]), "{labels}") == ["a dog and a cat"]


def test_the_weakened_maximum_is_the_second_highest_of_a_labels_prompts():
    """By hand: label 0 is in the first three prompts, labels 1 and 2 in two, label 3 in one."""
    scores = np.array([[5.0, 1.0, 3.0, 2.0], [0.0, 4.0, 6.0, 8.0]], np.float32)
    np.testing.assert_array_equal(weakened_maximum(scores, PAIRS, 4), [[3, 2, 1, 3], [4, 0, 4, 6]])
    np.testing.assert_array_equal(weakened_maximum(scores, PAIRS, 4, place=1), [[5, 5, 2, 3], [6, 8, 8, 6]])


def test_a_label_in_no_prompt_is_refused_with_its_number():
    with pytest.raises(
        InputError, match="label 2 is in none of the 1 compound prompt; give each label a pair"
    ):
        weakened_maximum(np.zeros((1, 1), np.float32), np.array([[0, 1]]), 3)


def test_compounds_are_fused_on_the_scale_of_single_prompts():
    """By hand: single scores 1 and 3 have mean 2 and deviation 1; the compound, 4, is 2 of them above."""
    single, compound = np.array([[1.0, 3.0]], np.float32), np.array([[4.0]], np.float32)
    fused = fuse_compounds(single, compound, np.array([[0, 1]]))
    np.testing.assert_allclose(fused, [[(-1 + 2) / 2, (1 + 2) / 2]], atol=1e-6)
    # A shift and a scale that all scores of an image share change nothing.
    np.testing.assert_allclose(
        fuse_compounds(7 * single + 1, 7 * compound + 1, np.array([[0, 1]])), fused, atol=1e-5
    )


def test_an_image_that_all_prompts_fit_alike_gets_equal_scores():
    fused = fuse_compounds(np.full((1, 4), 0.2, np.float32), np.full((1, 4), 0.2, np.float32), PAIRS)
    np.testing.assert_allclose(fused, 0, atol=1e-6)
