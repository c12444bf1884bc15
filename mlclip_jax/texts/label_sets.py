"""Names of labels, and which of them each training text is about."""

import math
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


def sample_label_sets(
    seed: int,
    number: int,
    num_labels: int,
    max_labels: int,
    *,
    per_combination: int = 1,
    size_weights: Sequence[float] = (),
) -> Int8[np.ndarray, "N K"]:
    """Draws label sets: every label once alone, then sets of 1 to `max_labels` distinct labels.

    The content of a drawn set is uniform given its size.

    Args:
      seed: integer; the same arguments give the same sets.
      number: N, how many sets.
      num_labels: K, how many labels there are.
      max_labels: the largest set, capped at K.
      per_combination: how many times each drawn set comes, one after the other. With 1, of 10,000 sets of up
        to 3 of 80 labels 4,342 stand alone in their combination.
      size_weights: how often sets of 1, 2, ... `max_labels` labels are drawn, relative to one another; by
        default all alike. See `read_size_weights`.

    Returns:
      int8 `(N, K)`, 1 where a set holds a label. With N < K only the first N labels come alone.
    """
    generator = np.random.default_rng([seed, Stream.LABEL_SETS])
    drawn = -(-number // per_combination)
    labels = np.zeros((drawn, num_labels), np.int8)
    alone = min(drawn, num_labels)
    labels[np.arange(alone), np.arange(alone)] = 1
    most = min(max_labels, num_labels)
    if size_weights:
        weights = np.array(size_weights[:most])
        sizes = generator.choice(np.arange(1, most + 1), size=drawn, p=weights / weights.sum())
    else:
        sizes = generator.integers(1, most, size=drawn, endpoint=True)
    for row, size in zip(labels[alone:], sizes[alone:]):
        row[generator.choice(num_labels, size, replace=False)] = 1
    return np.repeat(labels, per_combination, axis=0)[:number]


def read_size_weights(text: str, max_labels: int) -> tuple[float, ...]:
    """Reads `size_weights` of a recipe: "3,2,1" draws sets of one label three times as often as of three.

    Args:
      text: `max_labels` numbers, none negative and the first positive; or empty, for none.
      max_labels: how many labels the largest set has.

    Raises:
      InputError: it is neither.
    """
    if not text:
        return ()
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if len(weights) != max_labels or not all(0 <= w < math.inf for w in weights) or not weights[0]:
        raise InputError(
            f"invalid size_weights={text!r}: give as many numbers as max_labels={max_labels}, separated by "
            "commas, none negative, the first positive, such as " + ",".join(["1"] * max_labels)
        )
    return weights
