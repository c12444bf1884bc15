"""Scores as files, ours and anybody's: one `.npz` that every method can write, and that is evaluated."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int8

from mlclip_jax.data.sources import label_name
from mlclip_jax.data.tables import read_labels
from mlclip_jax.embeddings.store import read_arrays
from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing
from mlclip_jax.texts.label_sets import check_label_names


class Scores(NamedTuple):
    """Scores of N images for K labels; larger means more present.

    Attributes:
      scores: finite: logits, cosines, probabilities.
      label_names: K names.
      names: N names of images, or None.
      labels: in {1, 0, -1}, or None.
      origin: what made them, in words.
    """

    scores: Float[np.ndarray, "N K"]
    label_names: tuple[str, ...]
    names: tuple[str, ...] | None = None
    labels: Int8[np.ndarray, "N K"] | None = None
    origin: str = ""


def write_scores(path: str | os.PathLike, scores: Scores) -> None:
    """Writes `Scores` to an `.npz` file with the arrays `scores`, `label_names` and, where known, the others.

    Raises:
      InputError: the place cannot be written, or its name does not end in `.npz`.
    """
    if Path(path).suffix != ".npz":
        raise InputError(f"cannot write scores to {path}: its name must end in .npz")
    known = {name: value for name, value in scores._asdict().items() if value is not None}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in known.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_scores(path: str | os.PathLike) -> Scores:
    """`Scores` from a file that `write_scores` or anybody else wrote.

    Raises:
      InputError: the file is missing or damaged, its arrays do not fit together, or a score is not finite.
    """
    if Path(path).suffix != ".npz":
        raise InputError(f"cannot read scores from {path}: a file is needed whose name ends in .npz")
    arrays = read_arrays(path, "scores")
    for needed in ("scores", "label_names"):
        if needed not in arrays:
            raise InputError(f"{path} holds no array {needed!r}; it has {', '.join(arrays) or 'none'}")
    scores = arrays["scores"]
    if scores.ndim != 2 or scores.dtype.kind != "f" or not scores.size:
        raise InputError(f"{path}: scores must be floats (N, K); got {scores.dtype}{list(scores.shape)}")
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores).all(axis=1)))
        raise InputError(f"{path}: scores hold NaN or infinity, the first in row {row}")
    known = Scores(
        scores,
        tuple(map(label_name, arrays["label_names"].tolist())),
        tuple(map(str, arrays["names"].tolist())) if "names" in arrays else None,
        arrays.get("labels"),
        str(arrays.get("origin", "")),
    )
    check_label_names(known.label_names, path)
    number, num_labels = scores.shape
    for what, length, wanted in (
        ("label_names", len(known.label_names), num_labels),
        ("names", number if known.names is None else len(known.names), number),
    ):
        if length != wanted:
            raise InputError(f"{path}: {length} {what} for scores of shape {list(scores.shape)}")
    if known.labels is not None:
        if known.labels.shape != scores.shape or not np.isin(known.labels, (-1, 0, 1)).all():
            raise InputError(f"{path}: labels must be 1, 0 or -1, one for each score")
        known = known._replace(labels=known.labels.astype(np.int8))
    return known


def read_aligned(paths: Sequence[str | os.PathLike]) -> list[Scores]:
    """Several files of scores of the same images and labels, whose rows and columns are as in the first.

    Raises:
      InputError: a file cannot be read, or they are about different images or labels.
    """
    first, *others = known = [read_scores(path) for path in paths]
    for path, other in zip(paths[1:], others):
        if sorted(other.label_names) != sorted(first.label_names):
            raise InputError(f"{paths[0]} and {path} score different labels")
        if len(other.scores) != len(first.scores):
            raise InputError(
                f"{paths[0]} and {path} score {len(first.scores)} and {len(other.scores)} images"
            )
        if first.names and other.names and sorted(other.names) != sorted(first.names):
            raise InputError(f"{paths[0]} and {path} score different images")
    return [_in_order(scores, first) for scores in known]


def read_together(
    paths: Sequence[str | os.PathLike], table: str | os.PathLike | None = None
) -> tuple[list[Scores], Int8[np.ndarray, "N K"]]:
    """Several files of scores, see `read_aligned`, and the labels (N, K) of the images.

    Args:
      paths: of the files.
      table: of the images' labels, see `tables.read_table`; by default those of the files.

    Raises:
      InputError: the files do not go together, or no labels are known.
    """
    known = read_aligned(paths)
    first = known[0]
    if table:
        if first.names is None:
            raise InputError(f"{paths[0]} does not name its images, so {table} cannot be matched with them")
        return known, read_labels(table, first.names, first.label_names)
    labels = known_labels(known)
    if labels is None:
        raise InputError(f"{', '.join(map(str, paths))} hold no labels: give a table of them, --labels=FILE")
    return known, labels


def known_labels(known: Sequence[Scores]) -> Int8[np.ndarray, "N K"] | None:
    """The labels of the first of several `Scores` that has any."""
    return next((scores.labels for scores in known if scores.labels is not None), None)


def with_columns(scores: Scores, label_names: Sequence[str]) -> Scores:
    """`Scores` whose columns are in the order of these names, which are its own."""
    columns = [scores.label_names.index(name) for name in label_names]
    return scores._replace(
        scores=scores.scores[:, columns],
        label_names=tuple(label_names),
        labels=None if scores.labels is None else scores.labels[:, columns],
    )


def _in_order(scores, first):
    """Scores with rows and columns in the order of another's."""
    if first.names and scores.names and scores.names != first.names:
        if len(set(first.names)) < len(first.names):
            raise InputError("images of the same name come in different orders, and cannot be told apart")
        place = {name: row for row, name in enumerate(scores.names)}
        rows = [place[name] for name in first.names]
        labels = None if scores.labels is None else scores.labels[rows]
        scores = scores._replace(scores=scores.scores[rows], labels=labels)
    return with_columns(scores._replace(names=first.names), first.label_names)
