"""Embeddings from files, whoever wrote them; what cannot be read is named."""

import re

import numpy as np
import pytest

from mlclip_jax import InputError
from mlclip_jax.embeddings import store
from mlclip_jax.embeddings.store import read_embeddings
from mlclip_jax.provenance import UNKNOWN

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("key", ["embeddings", "image_embeddings", "text_embeddings", "features", "whatever"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_of_any_maker(tmp_path, key, dtype):
    np.savez(tmp_path / "x.npz", **{key: VECTORS.astype(dtype)})
    for kind in ("image", "text"):
        embeddings = read_embeddings(tmp_path / "x.npz", kind)
        assert list(embeddings.features) == [
            {"image_embeddings": "image", "text_embeddings": "text"}.get(key, kind)
        ]
        assert embeddings.vectors.dtype == np.float32
        np.testing.assert_array_equal(embeddings.vectors, VECTORS)
        assert embeddings.origin == UNKNOWN
        for known in ("names", "labels", "label_names", "captions"):
            assert getattr(embeddings, known) is None


def test_several_features(tmp_path):
    arrays = {
        "image": VECTORS,
        "text": 2 * VECTORS,
        "text_local": np.ones((3, 5, 4)),
        "depth": VECTORS[:, :2],
    }
    np.savez(tmp_path / "x.npz", **arrays, captions=["a", "b", "c"], logits=np.full((3, 4), np.nan))
    stored = read_embeddings(tmp_path / "x.npz", reads=["image", "depth"])
    assert list(stored.features) == ["image", "text", "text_local", "depth"]
    for name, feature in stored.features.items():
        np.testing.assert_array_equal(feature, arrays[name])
    assert stored.captions == ("a", "b", "c")
    chosen = stored.select(np.array([2, 0]))
    np.testing.assert_array_equal(chosen.features["depth"], VECTORS[[2, 0], :2])
    assert (len(chosen), chosen.captions, chosen.names) == (2, ("c", "a"), None)


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", VECTORS)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "x.npy").vectors, VECTORS)


def test_a_large_npy_is_mapped(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", VECTORS.astype(np.float16))
    monkeypatch.setattr(store, "LARGE", 0)
    vectors = read_embeddings(tmp_path / "x.npy").vectors
    assert isinstance(vectors, store.Rows)
    np.testing.assert_array_equal(vectors, VECTORS)
    np.save(tmp_path / "x.npy", VECTORS[None])
    with pytest.raises(InputError, match=r"must hold arrays \(N, D\); they are \[1, 3, 4\]"):
        read_embeddings(tmp_path / "x.npy")


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
    with pytest.raises(InputError, match=r"holds no embeddings: no \.npy file"):
        read_embeddings(tmp_path)


def test_what_others_call_origin_is_left_alone(tmp_path):
    for origin in ("flickr", "[1]", "3", np.arange(3)):
        np.savez(tmp_path / "x.npz", embeddings=VECTORS, origin=origin)
        assert read_embeddings(tmp_path / "x.npz").origin == UNKNOWN
    np.savez(tmp_path / "x.npz", embeddings=VECTORS, names=np.array([b"a", b"b", b"c"]))
    assert read_embeddings(tmp_path / "x.npz").names == ("a", "b", "c")
