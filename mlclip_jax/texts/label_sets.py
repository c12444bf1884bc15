"""Names of labels, and which of them each training text is about."""

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8

from mlclip_jax.data.sources import label_name, read_lines
from mlclip_jax.errors import InputError
from mlclip_jax.streams import Stream


def check_label_names(names: object, where: object) -> None:
    """Refuses what are no names of labels.

    Args:
      names: to be a list of distinct strings that are not blank.
      where: they come from, in words.

    Raises:
      InputError: they are not.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not len(names):
        raise InputError(f"{where} must be a list of names; got {names!r}")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: a label's name must be a string that is not blank; got {name!r}")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{where} names {name!r} more than once; every class needs a name of its own")


def read_names(path: str | os.PathLike) -> list[str]:
    """The labels of a text file, one on each line.

    Raises:
      InputError: the file cannot be read, or names one twice.
    """
    names = [label_name(line) for line in read_lines(path)]
    check_label_names(names, path)
    return names


def sample_label_sets(seed: int, number: int, num_labels: int, max_labels: int) -> Int8[np.ndarray, "N K"]:
    """Draws label sets: every label once alone, then sets of 1 to `max_labels` distinct labels.

    The size of a drawn set is uniform, and so is its content given its size.

    Args:
      seed: integer; the same arguments give the same sets.
      number: N, how many sets.
      num_labels: K, how many labels there are.
      max_labels: the largest set, capped at K.

    Returns:
      int8 `(N, K)`, 1 where a set holds a label. With N < K only the first N labels come alone.
    """
    generator = np.random.default_rng([seed, Stream.LABEL_SETS])
    labels = np.zeros((number, num_labels), np.int8)
    alone = min(number, num_labels)
    labels[np.arange(alone), np.arange(alone)] = 1
    sizes = generator.integers(1, min(max_labels, num_labels), size=number, endpoint=True)
    for row, size in zip(labels[alone:], sizes[alone:]):
        row[generator.choice(num_labels, size, replace=False)] = 1
    return labels
