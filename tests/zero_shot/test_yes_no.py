"""Yes or No: pairs of prompts."""

import numpy as np
import pytest
from zero_shot.prompt_tables import table

from mlclip_jax import InputError
from mlclip_jax.zero_shot.yes_no import yes_no

IMAGES = np.array([[3.0, 4.0], [5.0, 0.0]], np.float32)


def test_scores_are_log_odds_of_the_papers_pair():
    """By hand: unit vectors (0.6, 0.8) and (1, 0), so that cosines are what stands here."""
    encode = table(
        {
            "A photo of a cat": (2.0, 0.0),  # cosines 0.6 and 1
            "A photo of a traffic light": (0.0, 1.0),  # 0.8 and 0
            "A photo of nothing": (0.8, 0.6),  # 0.96 and 0.8
        }
    )
    decided = yes_no(IMAGES, encode, ["cat", "traffic_light"])
    np.testing.assert_allclose(decided.scores, [[-36, -16], [20, -80]], atol=1e-4)
    np.testing.assert_array_equal(decided.labels, [[False, False], [True, False]])
    assert decided.scores.dtype == np.float32
    assert decided.prompts == ()
    assert [len(texts) for texts in encode.asked] == [3]  # nothing is encoded once
    np.testing.assert_allclose(
        yes_no(IMAGES, encode, ["cat", "traffic_light"], logit_scale=1.0).scores,
        decided.scores / 100,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("absent", "prompt"), [("without", "A photo without a cat"), ("no", "A photo of no cat")]
)
def test_each_class_may_have_its_own_no(absent, prompt):
    encode = table({"A photo of a cat": (1.0, 0.0), prompt: (0.0, 1.0)})
    decided = yes_no(IMAGES, encode, ["cat"], absent=absent)
    np.testing.assert_allclose(decided.scores, [[-20], [100]], atol=1e-4)
    np.testing.assert_array_equal(decided.labels, [[False], [True]])


def test_an_image_in_the_middle_is_a_no():
    encode = table({"A photo of a cat": (1.0, 0.0), "A photo of nothing": (0.0, 1.0)})
    decided = yes_no(np.ones((1, 2), np.float32), encode, ["cat"])
    assert (decided.scores[0, 0], decided.labels[0, 0]) == (0, False)


def test_another_no_is_refused_in_one_line():
    with pytest.raises(
        InputError, match=r"^no prompt absent='nothin' \(did you mean nothing\?\); choose nothing, w"
    ):
        yes_no(IMAGES, table({}), ["cat"], absent="nothin")
