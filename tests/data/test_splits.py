"""Splits: scikit-learn's own, to the order; stratified ones that keep rare labels; no image on both sides."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from mlclip_jax import InputError
from mlclip_jax.data.sources import Source
from mlclip_jax.data.splits import split_source


def a_source(number, labels=None, **known):
    """Images whose bytes are their row's number."""
    names = known.pop("names", [f"{row}.jpg" for row in range(number)])
    if labels is not None:
        known |= {"labels": np.asarray(labels, np.int8), "label_names": map(str, range(len(labels[0])))}
    return Source("images", names, lambda row: str(row).encode(), **known)


def rows(source):
    return [int(example.image) for example in source]


@pytest.mark.parametrize(
    ("ratio", "train"), [("2/98", 156), ("5/95", 392), ("10/90", 784), ("20/80", 1568), ("70/30", 5490)]
)
def test_the_published_splits_are_scikit_learns(ratio, train):
    """The sizes of MMM-CLIP's Kaggle files, whose 7,843 rows name two of the images twice."""
    source = a_source(7843, names=["twice", *map(str, range(7841)), "twice"])
    indices = train_test_split(range(7843), test_size=int(ratio.split("/")[1]) / 100, random_state=42)
    sides = [split_source(source, ratio, part) for part in ("train", "test")]
    assert len(sides[0]) == train
    for side, expected in zip(sides, indices):
        assert rows(side) == expected


def test_a_split_is_of_labels_and_captions_too():
    labels = np.random.default_rng(0).integers(-1, 2, (50, 3))
    source = a_source(50, labels, captions=[f"caption {row}" for row in range(50)])
    part = split_source(source, "30/70", "train", seed="7")
    assert part.title == "images, 30/70 train (seed 7)"
    assert part.label_names == source.label_names
    for row, example in zip(rows(part), part):
        assert (example.name, example.caption) == (f"{row}.jpg", f"caption {row}")
        np.testing.assert_array_equal(example.labels, labels[row])
    assert rows(split_source(source, "30/70", "train", seed=8)) != rows(part)


@settings(max_examples=60)
@given(
    st.integers(30, 200), st.integers(20, 80), st.integers(0, 2**32 - 1), st.booleans(), st.integers(0, 2**32)
)
def test_the_sides_are_the_whole(number, percent, seed, stratified, data_seed):
    labels = np.random.default_rng(data_seed).integers(-1, 2, (number, 1 + data_seed % 4))
    source = a_source(number, labels)

    def side(part):
        return rows(
            split_source(source, f"{percent}/{100 - percent}", part, seed=seed, stratified=stratified)
        )

    train, test = side("train"), side("test")
    assert sorted(train + test) == list(range(number))
    # Rounded up, or as iterative stratification rounds label by label: of 1,500 such, at most 2.72 off.
    off = 3 if stratified and labels.shape[1] > 3 else 1
    assert abs(len(train) - number * percent / 100) <= off
    assert (side("train"), side("test")) == (train, test)


def test_an_image_with_several_captions_is_on_one_side():
    names = [f"{row // 5}.jpg" for row in range(1000)]
    labels = np.repeat(np.random.default_rng(0).integers(0, 2, (200, 2)), 5, axis=0)
    source = a_source(1000, labels, names=names, captions=map(str, range(1000)))
    for stratified in (False, True):
        train, test = (
            split_source(source, "60/40", part, stratified=stratified) for part in ("train", "test")
        )
        assert not set(train.names) & set(test.names)
        assert sorted(rows(train) + rows(test)) == list(range(1000))
        assert len(set(train.names)) == pytest.approx(120, abs=2)
        # They stay neighbours, as `Source.cut` wants them.
        assert np.diff(np.array(rows(train)).reshape(-1, 5)).min() == 1
        assert np.diff(np.array(rows(train)).reshape(-1, 5)).max() == 1
    indices, _ = train_test_split(range(200), test_size=0.4, random_state=42)
    plain = split_source(source, "60/40", "train")
    assert [int(name.removesuffix(".jpg")) for name in plain.names[::5]] == indices


@pytest.mark.parametrize("data_seed", range(4))
def test_stratified_sides_share_rare_labels_better_than_chance(data_seed):
    random = np.random.default_rng(data_seed)
    shares = np.array([0.01, 0.02, 0.05, 0.2, 0.5])
    labels = random.random((2000, 5)) < shares
    source = a_source(2000, labels)

    def off(stratified):  # by how many positives each label's count differs from a tenth
        side = split_source(source, "10/90", "train", seed=data_seed, stratified=stratified)
        return np.abs(side.labels.sum(axis=0) - labels.sum(axis=0) / 10)

    assert off(True)[:3].max() <= 1
    assert (off(True) <= 0.01 * labels.sum(axis=0) + 1).all()
    assert off(True).sum() < 0.5 * off(False).sum()


def test_unknown_labels_count_as_absent():
    random = np.random.default_rng(0)
    labels = random.integers(-1, 2, (300, 4))
    sides = [
        rows(split_source(a_source(300, some), "50/50", "train", stratified=True))
        for some in (labels, np.maximum(labels, 0))
    ]
    assert sides[0] == sides[1]


def test_yes_and_no_are_read():
    source = a_source(100, np.eye(100, 5, dtype=np.int8))
    ways = {
        given: rows(split_source(source, "20/80", "train", stratified=given))
        for given in ("yes", "True", 1, "1", "no", "false", False, 0)
    }
    assert ways["yes"] == ways["True"] == ways[1] == ways["1"]
    assert ways["no"] == ways["false"] == ways[False] == ways[0] != ways["yes"]
    title = split_source(source, "20/80", "test", stratified="yes").title
    assert title == "images, 20/80 test (seed 42, stratified)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": "70/20"}, "no split '70/20': give percent of train and of test, such as 70/30"),
        ({"ratio": "100/0"}, "no split '100/0'"),
        ({"ratio": "0.7"}, "no split '0.7'"),
        ({"ratio": "-5/105"}, "no split '-5/105'"),
        ({"ratio": None}, "no split None"),
        ({"part": "val"}, "no part 'val' of a split; there are train, test"),
        ({"seed": "x"}, "no seed 'x' of a split: give a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "no seed 4294967296 of a split"),
        ({"seed": -1}, "no seed -1 of a split"),
        ({"stratified": "maybe"}, "stratified='maybe' is neither yes nor no"),
        ({"ratio": "1/99"}, "a split 1/99 of images, 60 images, leaves none to train on; give more images"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_what_cannot_be_split_is_refused(given, message):
    source = a_source(60, np.ones((60, 2)))
    with pytest.raises(InputError, match=re.escape(message)):
        split_source(source, **({"ratio": "70/30", "part": "train"} | given))


def test_a_split_without_labels_is_not_stratified():
    with pytest.raises(
        InputError, match="images has no labels to stratify by; give stratified=no, or labels"
    ):
        split_source(a_source(60), "70/30", "train", stratified=True)


def test_a_stratified_side_is_not_empty():
    # Each label's only image goes to the larger side.
    source = a_source(6, np.eye(6))
    with pytest.raises(
        InputError, match="a stratified split 30/70 of images, 6 images, leaves none to train"
    ):
        split_source(source, "30/70", "test", stratified=True)
