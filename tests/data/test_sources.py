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


def test_links_to_folders_are_followed_and_every_folder_entered_once(tmp_path):
    for name in ("in/a.jpg", "in/sub/b.jpg", "elsewhere/c.jpg", "elsewhere/deep/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/again").symlink_to(tmp_path / "in/sub")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/file.jpg").symlink_to(tmp_path / "elsewhere/c.jpg")
    images, others = list_images(tmp_path / "in")
    names = [path.relative_to(tmp_path / "in").as_posix() for path in images]
    assert names == ["a.jpg", "file.jpg", "linked/c.jpg", "linked/deep/d.jpg", "sub/b.jpg"]
    assert others == []


def test_whatever_pillow_opens_is_found(tmp_path):
    found = [
        f"{i}{suffix}" for i, suffix in enumerate((".avif", ".jfif", ".jpe", ".jp2", ".PNG", ".ppm", ".tga"))
    ]
    for name in (*found, "x.eps", "x.pdf", "x.h5", "x.txt", "x"):
        (tmp_path / name).touch()
    images, others = list_images(tmp_path)
    assert [path.name for path in images] == sorted(found)
    assert len(others) == 5


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
        ("place;labels\nx;y\n", "needs a column of files"),
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
    path.write_bytes("one\x0ctwo\u2028three\x85four\x1cfive\rsix\r\nseven".encode())
    assert read_lines(path) == ["one\x0ctwo\u2028three\x85four\x1cfive\rsix", "seven"]
    path.write_text("a dog\ncafé", encoding="utf-16")
    assert read_lines(path) == ["a dog", "café"]
    path.write_bytes(b"one\rtwo\r")
    with pytest.raises(InputError, match="ends its lines by carriage returns alone; save it with line feeds"):
        read_lines(path)
    path.write_text("\n \n")
    with pytest.raises(InputError, match="holds no line of text"):
        read_lines(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot read"):
        read_lines(path)
