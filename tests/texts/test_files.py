"""Files of labelled texts: what is written is read, and what is no such file is refused by its line."""

import json
import logging
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlclip_jax import InputError
from mlclip_jax.texts.files import line_of, read_texts, save_texts

NAMES = ("dog", "umbrella", "犬", "traffic light")
GOOD = '{"text": "a dog", "labels": ["dog"]}'

texts_and_labels = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip),
        st.lists(st.sampled_from(range(len(NAMES))), min_size=1, unique=True),
    ),
    min_size=1,
    max_size=6,
)


def matrix(labels):
    values = np.zeros((len(labels), len(NAMES)), np.int8)
    for row, own in zip(values, labels):
        row[own] = 1
    return values


@given(texts_and_labels)
def test_what_is_written_is_read(tmp_path_factory, pairs):
    path = tmp_path_factory.getbasetemp() / "texts.jsonl"
    texts, labels = zip(*pairs)
    save_texts(path, texts, matrix(labels), NAMES)
    read, values = read_texts(path, NAMES)
    assert read == texts
    assert values.dtype == np.int8
    np.testing.assert_array_equal(values, matrix(labels))


@given(texts_and_labels, st.data())
def test_of_a_file_that_is_cut_off_every_whole_line_is_read(tmp_path_factory, pairs, data):
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    lines = [line_of({"text": text, "labels": [NAMES[k] for k in own]}) for text, own in pairs]
    whole = b"".join(lines)
    size = data.draw(st.integers(len(lines[0]), len(whole)))
    path.write_bytes(whole[:size])
    expected = whole[:size].count(b"\n") + (
        whole[size - 1 : size] == b"}" and whole[size : size + 1] == b"\n"
    )
    read, _ = read_texts(path, NAMES)
    assert read == tuple(text for text, _ in pairs[:expected])


def test_a_line_that_is_cut_off_is_said(tmp_path, caplog):
    (tmp_path / "x.jsonl").write_text(f'{GOOD}\n{{"text": "a d')
    with caplog.at_level(logging.INFO, "mlclip_jax"):
        assert read_texts(tmp_path / "x.jsonl", NAMES)[0] == ("a dog",)
    assert (
        'x.jsonl: the last line was not written to its end, and is left out: \'{"text": "a d\'' in caplog.text
    )


def test_other_keys_and_blank_lines_are_ignored_and_names_compared_composed(tmp_path):
    name = unicodedata.normalize("NFD", "café")
    line = {"text": "in a café", "labels": [f" {name} ", "dog"], "model": "x", "turn": 3}
    content = json.dumps(line, ensure_ascii=False)
    (tmp_path / "x.jsonl").write_bytes(f"\r\n{content}\r\n\r\n{GOOD}".encode("utf-8-sig"))
    texts, values = read_texts(tmp_path / "x.jsonl", ("café", "dog"))
    assert texts == ("in a café", "a dog")
    assert values.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "a dog",
            "is no JSON (Expecting value: line 1 column 1 (char 0)): 'a dog'; write an object on each line",
        ),
        ('{"text": "a dog', "is no JSON (Unterminated string"),
        ("[" * 100_000, "is no JSON ("),
        ("[1]", "is no object: '[1]'"),
        ('{"labels": ["dog"]}', "has no text: None; write {"),
        ('{"text": " ", "labels": ["dog"]}', "has no text: ' '"),
        ('{"text": 7, "labels": ["dog"]}', "has no text: 7"),
        ('{"text": "x"}', "has no list of labels: None; name one, or remove the line"),
        ('{"text": "x", "labels": []}', "has no list of labels: []"),
        ('{"text": "x", "labels": "dog"}', "has no list of labels: 'dog'"),
        (
            '{"text": "x", "labels": ["dog", "umbrela"]}',
            "has the label 'umbrela', which is not among the 4 labels (did you mean umbrella?); correct it",
        ),
        (
            '{"text": "x", "labels": [null]}',
            "has the label 'None', which is not among the 4 labels; correct it",
        ),
    ],
)
def test_a_line_that_is_no_labelled_text_is_refused_by_its_number(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(InputError, match=re.escape(f"x.jsonl, line 3 {message}")) as raised:
        read_texts(tmp_path / "x.jsonl", NAMES)
    assert "\n" not in str(raised.value)


def test_a_file_without_texts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*x\.jsonl: No such file"):
        read_texts(tmp_path / "x.jsonl", NAMES)
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"x\.jsonl holds no text"):
        read_texts(tmp_path / "x.jsonl", NAMES)
