"""A source cut in two, train and test: as scikit-learn cuts it, or with each label's share kept."""

import math
import re

import numpy as np

from mlclip_jax.data.sources import Source
from mlclip_jax.errors import InputError
from mlclip_jax.options import YES_OR_NO

PARTS = ("train", "test")


def split_source(
    source: Source, ratio: str, part: str, *, seed: str | int = 42, stratified: str | bool | int = False
) -> Source:
    """One side of a source.

    Plain, it is exactly scikit-learn's `train_test_split(test_size=test / 100, random_state=seed)` of the
    examples in their order, by which MMM-CLIP's Kaggle files were cut, with seed 42. Stratified, each label
    has about the same share of both sides, by iterative stratification (Sechidis et al., "On the
    Stratification of Multi-Label Data", 2011); the sides then keep the source's order.

    The rows of an image with several captions fall on the same side; the ratio is then that of the images.

    Args:
      source: a `Source`.
      ratio: percent of train and of test, "70/30".
      part: "train" or "test".
      seed: a number from 0 to 2**32 - 1.
      stratified: yes or no; unknown labels count as absent.

    Returns:
      A `Source`.

    Raises:
      InputError: one of these is no such thing, or a side would be empty.
    """
    test_size = _test_percent(ratio) / 100
    seed, stratified = _read_seed(seed), _read_yes_or_no("stratified", stratified)
    if part not in PARTS:
        raise InputError(f"no part {part!r} of a split; there are {', '.join(PARTS)}")
    # A name that is there twice without captions is a row like any other: so MMM-CLIP's files were cut.
    rows_of = {}
    for row, name in enumerate(source.names):
        rows_of.setdefault(row if source.captions is None else name, []).append(row)
    groups = list(rows_of.values())
    if len(groups) == math.ceil(test_size * len(groups)):
        raise InputError(
            f"a split {ratio} of {source.title}, {len(groups)} images, leaves none to train on; "
            "give more images, or a larger percentage of train"
        )
    if stratified:
        if not source.label_names:
            raise InputError(f"{source.title} has no labels to stratify by; give stratified=no, or labels")
        present = np.array([(source.labels[rows] == 1).any(axis=0) for rows in groups])
        sides = _stratified(present, test_size, seed)
    else:
        from sklearn.model_selection import train_test_split

        sides = train_test_split(np.arange(len(groups)), test_size=test_size, random_state=seed)
    for name, side in zip(PARTS, sides):
        if not len(side):
            raise InputError(
                f"a stratified split {ratio} of {source.title}, {len(groups)} images, leaves none to {name}; "
                "give more images, or stratified=no"
            )
    rows = [row for group in sides[PARTS.index(part)] for row in groups[group]]
    how = f"seed {seed}, stratified" if stratified else f"seed {seed}"
    return source.select(rows, f"{source.title}, {ratio} {part} ({how})")


def _stratified(present, test_size, seed):
    """The indices of both sides, in order."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    if present.shape[1] == 1:  # the library knows no single label; one that no image has changes nothing
        present = np.pad(present, ((0, 0), (0, 1)))
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=test_size, random_state=seed)
    return next(splitter.split(np.zeros((len(present), 1)), present))


def _test_percent(ratio):
    found = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", str(ratio))
    if not found or int(found[1]) + int(found[2]) != 100:
        raise InputError(f"no split {ratio!r}: give percent of train and of test, such as 70/30")
    return int(found[2])


def _read_seed(seed):
    if not re.fullmatch(r"\d{1,10}", str(seed)) or int(seed) >= 2**32:
        raise InputError(f"no seed {seed!r} of a split: give a whole number from 0 to 4294967295")
    return int(seed)


def _read_yes_or_no(name, value):
    if str(value).lower() not in YES_OR_NO:
        raise InputError(f"{name}={value!r} is neither yes nor no")
    return YES_OR_NO[str(value).lower()]
