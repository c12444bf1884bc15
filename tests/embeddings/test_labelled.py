"""Images with labels: whose columns are those of the class embeddings, whatever order a file has them in."""

import numpy as np
import pytest

from mlclip_jax import InputError
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import Embeddings
from mlclip_jax.provenance import Origin

CLASSES = Embeddings(
    {"text": np.zeros((3, 4), np.float32)}, names=("cat", "dog", "owl"), origin=Origin("x", "", "a")
)
VECTORS = np.arange(8, dtype=np.float32).reshape(2, 4)
LABELS = np.array([[1, 0, -1], [0, 1, 1]], np.int8)


def read(folder, table=None, **arrays):
    np.savez(folder / "images.npz", image_embeddings=VECTORS, **arrays)
    return read_images({"embeddings": folder / "images.npz", "labels": table}, CLASSES)


def test_columns_come_in_the_order_of_the_classes(tmp_path):
    images = read(tmp_path, labels=LABELS, class_names=["owl", "cat", "dog"])
    np.testing.assert_array_equal(images.labels, LABELS[:, [1, 2, 0]])


def test_columns_without_names_are_taken_in_the_order_of_the_classes(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, labels=LABELS).labels, LABELS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS[:, :2]}, "has 2 columns of labels for 3 classes, and no label_names to match"),
        (
            {"labels": LABELS, "class_names": ["cat", "dog", "eel"]},
            "2 are in only one of them, such as",
        ),
        ({}, "holds no labels: give a CSV of them, --labels=FILE"),
    ],
)
def test_columns_that_cannot_be_matched(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, **arrays)


def test_a_table_needs_the_names_of_the_images(tmp_path):
    (tmp_path / "x.csv").write_text("filename,labels\na.jpg,cat\nb.jpg,dog\n")
    with pytest.raises(InputError, match=r"does not name its images, so .*x\.csv cannot be matched"):
        read(tmp_path, tmp_path / "x.csv")


def test_no_images():
    with pytest.raises(InputError, match="no images to score: give --embeddings=FILE or --images=FOLDER"):
        read_images({}, CLASSES)
