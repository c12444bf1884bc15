"""Embeddings, images and labels from files, whoever wrote them; what cannot be read is named."""

import re

import numpy as np
import pytest
from PIL import Image

from mlclip_jax import InputError
from mlclip_jax.data.sources import list_images, read_embeddings, read_image, read_labels, read_lines

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("key", ["embeddings", "image_embeddings", "text_embeddings", "features", "whatever"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_of_any_maker(tmp_path, key, dtype):
    np.savez(tmp_path / "x.npz", **{key: VECTORS.astype(dtype)})
    embeddings = read_embeddings(tmp_path / "x.npz")
    assert embeddings.vectors.dtype == np.float32
    np.testing.assert_array_equal(embeddings.vectors, VECTORS)
    assert embeddings[1:] == (None,) * 5


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", VECTORS)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "x.npy").vectors, VECTORS)


def test_npz_with_labels_and_names(tmp_path):
    labels = np.array([[1, 0], [0, -1], [1, 1]])
    np.savez(
        tmp_path / "x.npz",
        image_embeddings=VECTORS,
        filenames=["a.jpg", "b.jpg", "c.jpg"],
        labels=labels,
        class_names=["cat", "dog"],
    )
    embeddings = read_embeddings(tmp_path / "x.npz")
    assert embeddings.names == ("a.jpg", "b.jpg", "c.jpg")
    assert embeddings.label_names == ("cat", "dog")
    assert embeddings.labels.dtype == np.int8
    np.testing.assert_array_equal(embeddings.labels, labels)


def with_nan(row):
    vectors = VECTORS.copy()
    vectors[row, 1] = np.nan
    return vectors


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": with_nan(2)}, "1 of 3 embeddings hold NaN or infinity, the first in row 2"),
        ({"embeddings": np.full((3, 4), np.inf)}, "3 of 3 embeddings hold NaN or infinity"),
        ({"embeddings": np.zeros((0, 4))}, r"holds no embeddings: its array has shape (0, 4)"),
        ({"embeddings": np.zeros(4)}, "holds no float array (N, D)"),
        ({"embeddings": np.zeros((3, 4), int)}, "holds no float array (N, D)"),
        ({"a": VECTORS, "b": VECTORS}, "it holds a float32[3, 4], b float32[3, 4]"),
        ({"embeddings": VECTORS, "names": ["a"]}, "1 names for 3 embeddings"),
        ({"embeddings": VECTORS, "names": "abc"}, "names or filenames must be a row of strings; got <U3[]"),
        ({"embeddings": VECTORS, "names": [1, 2, 3]}, "names or filenames must be a row of strings"),
        (
            {"embeddings": VECTORS, "labels": np.zeros((3, 2)), "class_names": ["a", "a"]},
            "names a label twice",
        ),
        ({"embeddings": VECTORS, "labels": np.zeros((2, 5))}, "labels have shape (2, 5), expected (3, K)"),
        ({"embeddings": VECTORS, "labels": np.full((3, 5), 2)}, "labels must be 1 present, 0 absent or -1"),
        (
            {"embeddings": VECTORS, "labels": np.zeros((3, 2)), "class_names": ["a"]},
            "1 label names for 2 columns of labels",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        read_embeddings(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short", b"\x93NUMPY\x01\x00"])
def test_damaged_files_of_embeddings(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*x\.npz as \.npy or \.npz"):
        read_embeddings(tmp_path / "x.npz")


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "x.npz", embeddings=np.array([[object()]], dtype=object))
    with pytest.raises(InputError, match="cannot read"):
        read_embeddings(tmp_path / "x.npz")


def test_missing_and_directory(tmp_path):
    with pytest.raises(InputError, match="no such file of embeddings"):
        read_embeddings(tmp_path / "none.npz")
    with pytest.raises(InputError, match="cannot read"):
        read_embeddings(tmp_path)


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


def test_images_are_rgb_and_upright(tmp_path):
    stored = Image.new("L", (4, 2), 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    stored.save(tmp_path / "x.png", exif=exif)
    image = read_image(tmp_path / "x.png")
    assert (image.mode, image.size) == ("RGB", (2, 4))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_unreadable_images(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read image .*x\.jpg: .*; repair or remove it") as raised:
        read_image(tmp_path / "x.jpg")
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says what is damaged, and reads on
def test_a_damaged_exif_block_loses_no_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9003] = "2020:01:01"
    Image.new("RGB", (8, 6)).save(tmp_path / "x.jpg", exif=exif)
    content = bytearray((tmp_path / "x.jpg").read_bytes())
    block = content.index(b"Exif") + 6
    for offset in range(
        block, block + 40
    ):  # some of these make the block unreadable, none may lose the image
        damaged = content.copy()
        damaged[offset] ^= 0xFF
        (tmp_path / "y.jpg").write_bytes(damaged)
        assert sorted(read_image(tmp_path / "y.jpg").size) == [6, 8]


def test_what_others_call_origin_is_left_alone(tmp_path):
    for origin in ("flickr", "[1]", "3", np.arange(3)):
        np.savez(tmp_path / "x.npz", embeddings=VECTORS, origin=origin)
        assert read_embeddings(tmp_path / "x.npz").origin is None
    np.savez(tmp_path / "x.npz", embeddings=VECTORS, names=np.array([b"a", b"b", b"c"]))
    assert read_embeddings(tmp_path / "x.npz").names == ("a", "b", "c")


def test_truncated_image(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated"):
        read_image(tmp_path / "x.jpg")


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
        ("filename,labels\na.jpg,cat\nb.jpg,cat,dog\n", "line 3: b.jpg has not one cell per column"),
        ("filename,labels\na.jpg,cat\nb.jpg\n", "line 3: b.jpg has not one cell per column"),
        ("name;labels\n", "needs the columns filename and labels"),
        ("", "needs the columns filename and labels"),
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
