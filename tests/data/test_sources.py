"""Folders, labels and lists from files; what cannot be read is named."""

import re

import numpy as np
import pytest

from mlclip_jax import InputError
from mlclip_jax.data.sources import list_images, read_lines
from mlclip_jax.data.tables import read_labels


def test_list_images_finds_all_and_lists_the_others(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", "sub/.hidden"):
        (tmp_path / name).touch()
    images, others = list_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in images] == ["a.png", "b.JPG", "sub/c.webp"]
    assert [path.name for path in others] == ["notes.txt", ".hidden"]


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match="no image in"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="no such folder of images"):
        list_images(tmp_path / "none")


def test_labels_by_name(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(
        'filename,labels\nb.jpg,dog|"cat"\nunused.jpg,\na.jpg,\n"sub/c.jpg",dog\n'.replace('"cat"', "cat")
    )
    labels = read_labels(table, ["a.jpg", "b.jpg", "sub/c.jpg"], ["cat", "dog"])
    np.testing.assert_array_equal(labels, [[0, 0], [1, 1], [0, 1]])
    assert labels.dtype == np.int8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,labels\na.jpg,cat\n", "has no row for 1 of 2 images, the first b.jpg"),
        ("filename,labels\na.jpg,cat\nb.jpg,bird\n", "label 'bird' of b.jpg is not one of the 2 labels"),
        ("filename,labels\na.jpg,cat\nb.jpg,\na.jpg,dog\n", "two different rows for a.jpg"),
        ("filename,labels\na.jpg,cat\nb.jpg,cat,dog\n", "row 2 (b.jpg) has not one cell per column"),
        ("filename,labels\na.jpg,cat\nb.jpg\n", "row 2 (b.jpg) has not one cell per column"),
        ("name;labels\nx;y\n", "needs a column of files"),
        ("", "lists no image"),
        ("filename\na.jpg\n", "needs a column of labels"),
        ('filename,labels\n"a.jpg,cat\n', "cannot read"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, content, message):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        read_labels(tmp_path / "labels.csv", ["a.jpg", "b.jpg"], ["cat", "dog"])


def test_tables_that_cannot_be_read(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"filename,labels\n\xff\xfe,cat\n")
    for path in (tmp_path / "labels.csv", tmp_path / "none.csv"):
        with pytest.raises(InputError, match="cannot read"):
            read_labels(path, ["a.jpg"], ["cat"])


def test_lines(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\ufeff  a dog \r\n\n naïve\n")
    assert read_lines(path) == ["a dog", "naïve"]
    path.write_text("\n \n")
    with pytest.raises(InputError, match="holds no line of text"):
        read_lines(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot read"):
        read_lines(path)
