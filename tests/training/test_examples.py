"""Texts and images in one training set: which rows make up a batch, and what a method sees of each."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlclip_jax import InputError
from mlclip_jax.embeddings.rows import Rows, Stacked
from mlclip_jax.embeddings.store import Embeddings
from mlclip_jax.training.examples import Examples

WIDTH, LABELS = 4, 3


@functools.cache
def embeddings(kind, number):
    random = np.random.default_rng(number)
    labels = random.integers(0, 2, (number, LABELS)).astype(np.int8)
    vectors = random.normal(size=(number, WIDTH)).astype(np.float32)
    return Embeddings({kind: vectors}, tuple(f"{kind} {i}" for i in range(number)), labels)


def both(num_texts, num_images, share):
    return Examples(embeddings("text", num_texts), embeddings("image", num_images), ("image",), share)


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(2, 12),
    st.floats(0.05, 0.95),
    st.integers(0, 2**31 - 1),
)
def test_every_batch_has_its_share_and_every_row_comes_once_an_epoch(texts, images, size, share, seed):
    examples, number = both(texts, images, share), round(share * size)
    if not 0 < number < size:
        with pytest.raises(InputError, match=f"puts {number} texts into a batch of {size}"):
            examples.indices(seed, 0, size)
        return
    steps = 40
    batches = np.stack([examples.indices(seed, t, size) for t in range(steps)])
    assert batches.dtype == np.int32
    first, second = batches[:, :number].ravel(), batches[:, number:].ravel() - texts
    for rows, total in ((first, texts), (second, images)):
        whole = len(rows) // total * total
        for epoch in rows[:whole].reshape(-1, total):
            assert sorted(epoch) == list(range(total))


def test_texts_and_images_are_shuffled_apart():
    examples = both(20, 20, 0.5)
    batch = examples.indices(0, 0, 40)
    assert not np.array_equal(batch[:20], batch[20:] - 20)


def test_texts_alone_are_drawn_as_ever():
    """The order that runs of one kind have had since the first release."""
    alone = Examples(embeddings("text", 10), None, ("image",), 1.0)
    images = Examples(None, embeddings("image", 10), ("image",), 0.0)
    np.testing.assert_array_equal(alone.indices(3, 0, 10), images.indices(3, 0, 10))
    assert alone.indices(3, 0, 10).tolist() == np.random.default_rng([3, 3, 0]).permutation(10).tolist()


def test_a_method_sees_texts_in_the_place_of_images():
    examples = both(3, 2, 0.5)
    data = examples.data
    assert data.keys() == {"image", "labels", "is_text"}
    expected = np.concatenate([embeddings("text", 3).vectors, embeddings("image", 2).vectors])
    np.testing.assert_array_equal(data["image"], expected)
    np.testing.assert_array_equal(data["is_text"], [True] * 3 + [False] * 2)
    assert (len(examples), str(examples)) == (5, "3 texts and 2 images")
    rows = examples.indices(0, 0, 4)
    np.testing.assert_array_equal(data["labels"][rows][2:], embeddings("image", 2).labels[rows[2:] - 3])


def test_those_with_large_numbers_are_suspected_first():
    examples = both(3, 2, 0.5)
    examples.images.vectors[1] = 1e9
    assert examples.suspects(np.array([0, 4, 2]))[0] == "image 1"
    assert set(examples.suspects(np.array([0, 4, 2]))) == {"text 0", "text 2", "image 1"}
    embeddings.cache_clear()


def test_texts_lack_local_features():
    with pytest.raises(InputError, match="texts have no image_local, which this method reads"):
        Examples(embeddings("text", 3), None, ("image", "image_local"), 1.0)


def test_rows_of_two_arrays_are_those_of_both_together(tmp_path):
    parts = [np.random.default_rng(i).normal(size=(n, 3)).astype(np.float32) for i, n in enumerate((4, 5))]
    np.save(tmp_path / "0.npy", parts[1])
    whole = np.concatenate(parts)
    stacked = Stacked(parts[0], Rows([tmp_path / "0.npy"]))
    assert (len(stacked), stacked.shape, stacked.ndim) == (9, (9, 3), 2)
    assert (stacked.dtype, stacked.nbytes) == (whole.dtype, whole.nbytes)
    np.testing.assert_array_equal(stacked, whole)
    for rows in (np.array([8, 0, 3, 4, 4]), slice(2, 7), np.array([], int), 6):
        np.testing.assert_array_equal(stacked[rows], whole[rows])
