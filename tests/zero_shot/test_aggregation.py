"""Several templates for each class, made into one."""

import numpy as np
import pytest

from mlclip_jax.errors import InputError
from mlclip_jax.zero_shot import (
    cosine_scores,
    highest_scores,
    mean_embeddings,
    mean_ranks,
    mean_scores,
    score_by_templates,
)


def test_a_mean_embedding_has_the_mean_direction_and_the_mean_length():
    """By hand: (4, 0) and (0, 2) point to (1, 0) and (0, 1), and are 3 long on average."""
    first, second = (
        np.array([[4.0, 0.0], [1.0, 0.0]], np.float32),
        np.array([[0.0, 2.0], [5.0, 0.0]], np.float32),
    )
    half = 3 * np.sqrt(0.5)
    np.testing.assert_allclose(mean_embeddings([first, second]), [[half, half], [3.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(mean_embeddings([first]), first, rtol=1e-6)


def test_templates_that_cancel_out_leave_a_zero_vector():
    opposite = np.array([[1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(mean_embeddings([opposite, -opposite]), 0)


def test_means_and_maximum_of_scores():
    first, second = (
        np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
        np.array([[5.0, 0.0], [3.0, 2.0]], np.float32),
    )
    np.testing.assert_array_equal(mean_scores([first, second]), [[3, 1], [3, 3]])
    np.testing.assert_array_equal(highest_scores(iter([first, second])), [[5, 2], [3, 4]])


def test_mean_ranks_count_from_the_bottom_and_share_ties():
    first = np.array([[0.1, 0.9, 0.5]], np.float32)  # ranks 1, 3, 2
    second = np.array([[7.0, 7.0, 100.0]], np.float32)  # 1.5, 1.5, 3
    np.testing.assert_array_equal(mean_ranks([first, second]), [[1.25, 2.25, 2.5]])


@pytest.mark.parametrize("by", ["embeddings", "scores", "ranks", "maximum"])
def test_templates_are_scored_by_any_rule(by):
    images, *templates = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    scores = [cosine_scores(images, one) for one in templates]
    expected = {
        "embeddings": cosine_scores(images, mean_embeddings(templates)),
        "scores": mean_scores(scores),
        "ranks": mean_ranks(scores),
        "maximum": highest_scores(scores),
    }[by]
    np.testing.assert_allclose(score_by_templates(images, templates, by), expected, atol=1e-6)


def test_an_unknown_aggregation_is_named():
    with pytest.raises(
        InputError, match=r"no aggregation 'rank' \(did you mean ranks\?\); there are embeddings"
    ):
        score_by_templates(np.eye(2, dtype=np.float32), [np.eye(2, dtype=np.float32)], "rank")
