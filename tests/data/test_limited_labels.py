"""Few-shot and partial labels: what is left, and that it is what was asked for."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlclip_jax import InputError
from mlclip_jax.data.limited_labels import choose_shots, hide_labels

NAMES = [f"label {k}" for k in range(6)]


def labels_of(seed, number=40, rate=0.3):
    random = np.random.default_rng(seed)
    return np.where(random.random((number, len(NAMES))) < rate, 1, random.integers(-1, 1)).astype(np.int8)


@given(st.integers(0, 200), st.integers(1, 5))
def test_every_label_has_its_shots_and_no_image_is_needless(seed, shots):
    labels = labels_of(seed)
    assume(((labels == 1).sum(axis=0) >= shots).all())
    chosen = choose_shots(labels, shots, seed, NAMES)
    present = labels[chosen] == 1
    assert (present.sum(axis=0) >= shots).all()
    assert len(chosen) <= shots * len(NAMES)
    np.testing.assert_array_equal(chosen, np.unique(chosen))
    # Of the labels with the fewest images among the chosen, some have no more than they need.
    assert present.sum(axis=0).min() == shots
    np.testing.assert_array_equal(chosen, choose_shots(labels, shots, seed, NAMES))


def test_another_seed_chooses_other_images():
    labels = labels_of(0, 400)
    assert set(choose_shots(labels, 2, 0, NAMES)) != set(choose_shots(labels, 2, 1, NAMES))


def test_labels_with_fewer_images_than_shots_are_named():
    labels = np.zeros((10, 6), np.int8)
    labels[:8] = 1
    labels[:5, 2] = 0
    with pytest.raises(InputError, match=r"1 label .* fewer than shots=4 images: label 2 \(3\); lower it"):
        choose_shots(labels, 4, 0, NAMES)


@pytest.mark.parametrize("known", [0.1, 0.5, 0.9])
def test_partial_labels_are_those_of_the_benchmarks(known):
    """HCP-MLR-PL's own lines, for the shape of PASCAL VOC 2007's training images."""
    labels = np.random.default_rng(1).integers(0, 2, (5011, 20)).astype(np.int8)
    random = np.random.RandomState(0)
    stays = random.random_sample((5011, 20)) < known
    published = stays * np.where(labels == 1, 1, -1)  # where 0 is unknown
    hidden = hide_labels(labels, known)
    np.testing.assert_array_equal(hidden == 1, published == 1)
    np.testing.assert_array_equal(hidden == 0, published == -1)
    np.testing.assert_array_equal(hidden == -1, published == 0)


def test_what_is_unknown_stays_so_and_all_known_changes_nothing():
    labels = labels_of(3)
    assert (hide_labels(labels, 0.5)[labels == -1] == -1).all()
    np.testing.assert_array_equal(hide_labels(labels, 1.0), labels)
