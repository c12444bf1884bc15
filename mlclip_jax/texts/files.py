"""Files of labelled texts: JSON Lines, such as `{"text": "a dog by a bus", "labels": ["dog", "bus"]}`."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int8

from mlclip_jax.data.sources import label_name
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_text, replacing
from mlclip_jax.options import nearest
from mlclip_jax.progress import note


def read_texts(
    path: str | os.PathLike, label_names: Sequence[str]
) -> tuple[tuple[str, ...], Int8[np.ndarray, "N K"]]:
    """The texts of a file and the labels that each is about; other keys of its lines are ignored.

    Args:
      path: of the file; a last line that was not written to its end, as by a process that was killed, is left
        out.
      label_names: K names.

    Returns:
      N texts, and int8 `(N, K)`, 1 where a text has a label.

    Raises:
      InputError: the file cannot be read or holds no text; or a line is no JSON, or has no text or no labels,
        or a label that is not among these.
    """
    column = {label_name(name): k for k, name in enumerate(label_names)}
    texts, rows, columns = [], [], []
    for number, line in read_objects(path):
        where = f"{path}, line {number}"
        text, labels = line.get("text"), line.get("labels")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{where} has no text: {text!r:.60}; write {{"text": "...", "labels": [...]}}')
        if not isinstance(labels, list) or not labels:
            raise InputError(f"{where} has no list of labels: {labels!r:.60}; name one, or remove the line")
        for name in map(label_name, labels):
            if name not in column:
                raise InputError(
                    f"{where} has the label {name!r:.60}, which is not among the {len(column)} labels"
                    f"{nearest(name, column)}; correct it, or add it to them"
                )
            rows.append(len(texts))
            columns.append(column[name])
        texts.append(text)
    if not texts:
        raise InputError(f"{path} holds no text; `mlclip generate` writes such files")
    values = np.zeros((len(texts), len(label_names)), np.int8)
    values[rows, columns] = 1
    return tuple(texts), values


def read_objects(path: str | os.PathLike) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON Lines, with the numbers of their lines; see `read_texts`.

    Raises:
      InputError: the file cannot be read, or a line is no object in JSON.
    """
    lines, objects = read_text(path).split("\n"), []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # what ends without a line break may be cut off
                note(f"{path}: the last line was not written to its end, and is left out: {line!r:.60}")
                break
            raise InputError(
                f"{path}, line {number} is no JSON ({error}): {line!r:.60}; write an object on each line"
            ) from error
        if not isinstance(value, dict):
            raise InputError(
                f"{path}, line {number} is no object: {line!r:.60}; write an object on each line"
            )
        objects.append((number, value))
    return objects


def save_texts(
    path: str | os.PathLike,
    texts: Sequence[str],
    labels: Int8[np.ndarray, "N K"],
    label_names: Sequence[str],
) -> None:
    """Writes labelled texts as a whole, for `read_texts`.

    Args:
      path: of the file.
      texts: N strings.
      labels: int8 `(N, K)`, 1 where a text has a label.
      label_names: K names.

    Raises:
      InputError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        for text, row in zip(texts, labels):
            file.write(line_of({"text": text, "labels": [label_names[k] for k in np.flatnonzero(row == 1)]}))


def line_of(value: dict[str, Any]) -> bytes:
    """An object as a line of a file: in ASCII, so that a line which is cut off is never invalid UTF-8."""
    return json.dumps(value).encode() + b"\n"
