"""Training texts from several places, in stated shares."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mlclip_jax import InputError
from mlclip_jax.texts.sources import read_sources, split_by_shares, training_texts
from mlclip_jax.texts.templates import write_texts

NAMES = ["dog", "umbrella", "traffic light"]


def settings(**changes):
    own = {"number": 40, "max_labels": 2, "size_weights": "", "per_combination": 1, "sources": "templates"}
    return ConfigDict(own | changes)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [{"text": f"text {i}", "labels": [NAMES[i % 3]]} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_templates_alone_are_what_write_texts_gives():
    texts, labels = training_texts(settings(), NAMES, 3)
    assert list(texts) == write_texts(labels, NAMES, 3)
    assert labels.shape == (40, 3)


def test_sources_come_in_their_shares_and_texts_keep_their_labels(file):
    texts, labels = training_texts(settings(sources=f"templates:1,{file}:2,imagenet:1"), NAMES, 0)
    assert (len(texts), labels.shape) == (40, (40, 3))
    own = [(text, row) for text, row in zip(texts, labels) if text.startswith("text ")]
    assert len(own) == 20
    for text, row in own:
        np.testing.assert_array_equal(row, np.eye(3)[int(text.split()[1]) % 3])
    for text, row in zip(texts, labels):
        if not text.startswith("text "):
            assert [name in text for name in NAMES] == list(row == 1)
    assert len(set(texts[10:30])) == 20


def test_which_texts_of_a_file_are_taken_follows_from_the_seed(file):
    few = settings(sources=str(file), number=20)
    (first, _), (again, _), (other, _) = (training_texts(few, NAMES, seed) for seed in (0, 0, 1))
    assert first == again != other


@given(st.integers(1, 10_000), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_of_a_number_add_up_and_are_as_near_as_can_be(number, shares):
    parts = split_by_shares(number, shares)
    assert sum(parts) == number
    exact = number * np.array(shares) / np.sum(shares)
    assert (np.abs(parts - exact) < 1 + 1e-9).all()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("template", r"there is no file 'template' \(did you mean templates\?\)"),
        ("templates:half", "'half' is no positive share; write templates:0.5"),
        ("templates:0", "'0' is no positive share"),
        ("templates:nan", "'nan' is no positive share"),
        ("templates,templates:2", "names 'templates' twice"),
        ("", "there is no file ''"),
    ],
)
def test_sources_that_are_none_are_refused(sources, message):
    with pytest.raises(InputError, match=message):
        read_sources(sources)


def test_too_few_texts_and_labels_without_any_are_refused(file, tmp_path):
    with pytest.raises(InputError, match=r"holds 30 texts, and 31 of texts.number=31 are to come from there"):
        training_texts(settings(sources=str(file), number=31), NAMES, 0)
    with pytest.raises(
        InputError, match=r"1 label has no text among the 2 to train on: traffic light; raise"
    ):
        training_texts(settings(number=2), NAMES, 0)
    one = tmp_path / "one.jsonl"
    one.write_text('{"text": "a dog", "labels": ["dog"]}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"2 labels have no text among the 1 to train on: umbrella, traffic"):
        training_texts(settings(sources=str(one), number=1), NAMES, 0)
