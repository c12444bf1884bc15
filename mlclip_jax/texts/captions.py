"""Captions as training texts: read from files, and labelled by what they name."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int8

from mlclip_jax.data.sources import read_lines
from mlclip_jax.data.table_rows import read_rows
from mlclip_jax.data.tables import COLUMN_NAMES, plain_name
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_json
from mlclip_jax.progress import note, progress_bar
from mlclip_jax.texts.naming import label_finder
from mlclip_jax.wording import counted, listed

TABLES = (".csv", ".tsv", ".jsonl", ".json")


def read_captions(path: str | os.PathLike, *, caption_column: str | None = None) -> list[str]:
    """Captions from a file, in its order. Those that are blank are left out, and said.

    Args:
      path: COCO's `captions_train2017.json`; a table with a column of captions (CSV, TSV, JSON or JSON Lines,
        see `table_rows.read_rows`), which needs no images; or another text file, with a caption on each line.
      caption_column: of a table, where it is called otherwise than caption, captions or text.

    Raises:
      InputError: the file cannot be read, or has no captions.
    """
    suffix = Path(path).suffix.lower()
    content = read_json(path) if suffix == ".json" else None
    if isinstance(content, dict):
        cells = _coco_captions(path, content)
    elif suffix in TABLES:
        cells = _column_of_captions(path, caption_column)
    else:
        cells = read_lines(path)
    captions = []
    for number, cell in enumerate(cells):
        if not isinstance(cell, str) and cell is not None and cell == cell:  # pandas writes NaN for none
            raise InputError(f"{path}, caption {number + 1}: {cell!r:.60} is no text; correct or remove it")
        if isinstance(cell, str) and cell.strip():
            captions.append(cell.strip())
    if not captions:
        raise InputError(f"{path} holds no caption that is not blank")
    if len(captions) < len(cells):
        note(f"{path}: left out {counted(len(cells) - len(captions), 'blank caption')} of {len(cells):,}")
    return captions


def label_captions(
    captions: Sequence[str],
    label_names: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
    *,
    spacy_model: str | None = None,
) -> tuple[Int[np.ndarray, " N"], Int8[np.ndarray, "N K"]]:
    """The labels that captions name, as `naming.label_finder` has it.

    Captions that name no label are left out, and said; so are labels that no caption names.

    Args:
      captions: any number of them.
      label_names: K names.
      synonyms: other names of labels, by label; see `naming.read_synonyms`.
      spacy_model: a model of spaCy that tells nouns from verbs; see `naming.label_finder`.

    Returns:
      The indices of the N captions that name a label, int64 `(N,)`, and their labels, int8 `(N, K)`: 1 named,
      0 not named.

    Raises:
      InputError: no caption names a label, or an argument is invalid.
    """
    find = label_finder(label_names, synonyms, spacy_model=spacy_model)
    named = []
    with progress_bar(len(captions), "labelling captions", "captions") as bar:
        for own in find(captions):
            named.append(own)
            bar.update()
    kept = [i for i, own in enumerate(named) if own]
    if not kept:
        raise InputError(
            f"none of {counted(len(captions), 'caption')} names a label, such as {label_names[0]!r}; "
            "give synonyms, or captions in English of what the labels are"
        )
    labels = np.zeros((len(kept), len(label_names)), np.int8)
    for row, i in zip(labels, kept):
        row[named[i]] = 1
    if len(kept) < len(captions):
        number = len(captions) - len(kept)
        note(f"left out {counted(number, 'caption')} of {len(captions):,} that name no label")
    unnamed = [name for name, column in zip(label_names, labels.T) if not column.any()]
    if unnamed:
        note(f"no caption names {counted(len(unnamed), 'label')}: {listed(unnamed)}")
    return np.array(kept), labels


def _coco_captions(path, content):
    entries = content.get("annotations")
    if not isinstance(entries, list) or not all(
        isinstance(own, dict) and "caption" in own for own in entries
    ):
        raise InputError(f"{path} has no annotations with captions; give COCO's captions_train2017.json")
    return [own["caption"] for own in entries]


def _column_of_captions(path, given):
    rows, remarks = read_rows(path)
    plain = {plain_name(column): column for column in reversed(rows[0])}
    found = next((plain[name] for name in COLUMN_NAMES["caption"] if name in plain), None)
    column = found if given is None else given
    if column not in rows[0]:
        wanted = given or " or ".join(COLUMN_NAMES["caption"])
        there = ", ".join(map(str, rows[0]))
        raise InputError(f"{path} has no column {wanted}; it has {there}: name one by caption_column=")
    for remark in remarks:
        note(f"{path}: {remark}")
    return [row[column] for row in rows]
