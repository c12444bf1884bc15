"""How combinations of classes are written."""

import numpy as np
import pytest
from zero_shot.prompt_tables import table

from mlclip_jax import InputError
from mlclip_jax.zero_shot.prompts import FORMS, encode_distinct, spaced

COMBINATIONS = [["cat"], ["cat", "owl"], ["cat", "owl", "dog"]]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("names", ["cat", "cat, owl", "cat, owl, dog"]),
        ("words", ["cat", "cat owl", "cat owl dog"]),
        (
            "sentences",
            ["a photo of a cat.", "a photo of a cat and an owl.", "a photo of a cat, an owl and a dog."],
        ),
        ("published", ["A photo of a cat", "A photo of a cat,and a owl", "A photo of a cat,a owl,and a dog"]),
        ("photos", ["A photo of cat", "A photo of cat, owl", "A photo of cat, owl, dog"]),
    ],
)
def test_each_form_writes_combinations_in_its_way(form, expected):
    assert FORMS[form](COMBINATIONS) == expected


def test_names_have_blanks_for_underscores():
    assert spaced(["traffic_light", "cat"]) == ["traffic light", "cat"]


def test_names_that_prompts_cannot_tell_apart_are_refused():
    with pytest.raises(InputError, match="names 'hot dog' more than once"):
        spaced(["hot_dog", "hot dog"])


def test_equal_texts_are_encoded_once():
    encode = table({"a": (1, 2), "b": (3, 4)})
    np.testing.assert_array_equal(encode_distinct(encode, ["b", "a", "b"]), [[3, 4], [1, 2], [3, 4]])
    assert encode.asked == [["b", "a"]]
