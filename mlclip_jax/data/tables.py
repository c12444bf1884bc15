"""Tables of images: their files, labels and captions, as people and other programs write them."""

import ast
import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from mlclip_jax.data.sources import Source, read_files
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_json, read_text

# What tables call their columns, in order of preference; capitals, blanks and underscores make no difference.
COLUMN_NAMES = {
    "file": ("filename", "filepath", "file", "imagename", "imagepath", "imageid", "image", "name"),
    "labels": ("labels", "label", "targets", "target", "tags"),
    "caption": ("caption", "captions", "text"),
    "split": ("split", "splitname"),
}
# What columns of one label hold, written as these; an empty cell is unknown.
VALUES = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1, "": -1}


def read_table(
    path: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    split: str | None = None,
    suffix: str = "",
    separator: str | None = None,
    names: str | os.PathLike | None = None,
    absent: str | int = 0,
) -> Source:
    """A `Source` of the images that a table lists, with labels, captions, or both.

    The columns are found by their names, see `COLUMN_NAMES`. Labels are in one column, or else in a column
    for each label, of 1 present, 0 absent and -1 unknown. An image may have several rows, one for each of
    its captions; they become neighbours. MMM-CLIP's and MultiCLIP's files are such tables, ASL's of NUS-WIDE,
    and, with `absent=-1`, hellowangqian's of VOC.

    Args:
      path: `.csv`, `.tsv`, `.jsonl` (an object per line) or `.json` (a list of objects). Quotes within the
        last cell of a row of a CSV need not be escaped.
      images: folder of the files; by default the table's own.
      split: the rows to take, by their column `split` or `split_name`; None: all. The labels are those of
        the whole table, so that all its splits have the same.
      suffix: what to add to the files' names, ".jpg" for names without one.
      separator: between labels in one cell; by default a bar, or blanks where all labels are numbers. A cell
        may also hold a list, ['cat', 'dog'], or of a 1, 0 or -1 for each label, which are then numbered.
      names: JSON file of an object from labels as they are in the table to their names; others are left out.
      absent: 0; or -1 in tables in which that is absent, and 0 unknown, as in PASCAL VOC's own lists.

    Raises:
      InputError: the table cannot be read, or is no such table.
    """
    if absent not in (0, -1):
        raise InputError(f"absent={absent!r} is not what tables have for absent labels: give 0 or -1")
    rows, remarks = _read_rows(path)
    columns = _find_columns(path, rows[0])
    labels, label_names = _table_labels(path, rows, columns, separator)
    unread = [key for key in rows[0] if key not in columns.values() and key.strip() not in label_names]
    if unread:
        remarks.append(f"columns that were not read: {', '.join(unread)}")
    if names is not None:
        labels, label_names = _renamed(names, labels, label_names)
    if absent == -1 and not np.any(labels == -1):
        raise InputError(f"invalid absent=-1: {path} has no label of -1; leave it out")
    if absent == -1:
        labels = np.where(labels == 1, labels, -1 - labels)
    elif np.sum(labels == -1) > np.sum(labels == 0):
        remarks.append("most labels are -1, which is unknown; where it means absent, give absent=-1")
    taken = range(len(rows))
    if "split" in columns and split is not None:
        there = [str(row[columns["split"]]) for row in rows]
        taken = [i for i in taken if there[i] == split]
        if not taken:
            raise InputError(f"{path} has no split {split!r}; it has {', '.join(sorted(set(there)))}")
    elif split is not None:
        raise InputError(f"{path} has no column that names splits, so split={split} cannot be taken")
    by_file = {}
    for i in taken:  # the rows of one image become neighbours, wherever the table has them
        by_file.setdefault(str(rows[i][columns["file"]]), []).append(i)
    taken = [i for own in by_file.values() for i in own] if "caption" in columns else list(taken)
    rows, labels = [rows[i] for i in taken], labels[taken]
    repeated = sum(len(own) > 1 for own in by_file.values())
    if repeated:
        remarks.append(f"{repeated} files have several rows, each of which is an example")
    captions = None
    if "caption" in columns:
        captions = [_text(path, row[columns["caption"]], "caption", "") for row in rows]
    title = f"{path}" if split is None else f"{path}, split={split}"
    files = [f"{_text(path, row[columns['file']], 'file')}{suffix}" for row in rows]
    folder = Path(path).parent if images is None else images
    return read_files(
        title, folder, files, labels=labels, label_names=label_names, captions=captions, remarks=remarks
    )


def read_labels(
    path: str | os.PathLike, names: Sequence[str], label_names: Sequence[str]
) -> Int8[np.ndarray, "N K"]:
    """Labels of images by name, from a table; see `read_table`.

    Args:
      path: the table; rows of files that are not in `names` are left out.
      names: the N images' file names, as the table has them.
      label_names: the K labels to read into columns.

    Returns:
      int8 `(N, K)` of 1, 0 and -1.

    Raises:
      InputError: the file is no such table, lacks a row for one of the examples, has two different rows for
        one, or holds a label that is not in `label_names`.
    """
    table = read_table(path)
    if not table.label_names:
        raise InputError(f"{path} needs a column of labels, or a column for each label")
    row_of = {}
    for row, name in enumerate(table.names):
        if not np.array_equal(table.labels[row_of.setdefault(name, row)], table.labels[row]):
            raise InputError(f"{path} has two different rows for {name}")
    missing = [name for name in names if name not in row_of]
    if missing:
        raise InputError(
            f"{path} has no row for {len(missing)} of {len(names)} images, the first {missing[0]}"
        )
    labels = table.labels[[row_of[name] for name in names]]
    for label, column in zip(table.label_names, labels.T):
        if label not in label_names and np.any(column == 1):
            name = names[int(np.argmax(column == 1))]
            raise InputError(f"{path}: label {label!r} of {name} is not one of the {len(label_names)} labels")
    return labels_in_order(labels, table.label_names, label_names)


def labels_in_order(
    labels: Int8[np.ndarray, "N M"], given: Sequence[str], wanted: Sequence[str]
) -> Int8[np.ndarray, "N K"]:
    """Columns of labels `(N, len(given))` as those of other names `(N, len(wanted))`; unnamed ones are 0."""
    column = {name: k for k, name in enumerate(given)}
    ordered = np.zeros((len(labels), len(wanted)), np.int8)
    for k, name in enumerate(wanted):
        if name in column:
            ordered[:, k] = labels[:, column[name]]
    return ordered


def _read_rows(path):
    """The rows of a table, a list of dicts with the same keys, and remarks."""
    suffix, remarks = Path(path).suffix.lower(), []
    if suffix in (".jsonl", ".json"):
        if suffix == ".json":
            rows = read_json(path)
        else:
            try:
                rows = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
            except (ValueError, RecursionError) as error:
                raise InputError(f"cannot read {path} as JSON Lines: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path} must hold objects, one for each image")
    else:
        rows, loose = _read_csv(path)
        if loose:
            remarks.append(f"{loose} rows have quotes that are not escaped, and were read by their commas")
    if not rows:
        raise InputError(f"{path} lists no image")
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            differing = ", ".join(map(str, row.keys() ^ rows[0].keys()))
            raise InputError(f"{path}, row {number + 1} has other columns than the first: {differing}")
    return rows, remarks


def _read_csv(path):
    """The rows of a CSV, and how many were read by their commas because their quotes were not in order."""
    lines = [line + "\n" for line in read_text(path).strip("\n").split("\n")]  # at no other line breaks
    delimiter = "\t" if "\t" in lines[0] else ","
    try:
        cells, loose = [row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row], 0
    except csv.Error:
        cells, loose = _read_loose_csv(path, lines, delimiter)
    if not cells:
        return [], 0
    header, *rows = cells
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise InputError(f"{path} has two columns {repeated[0]!r}; every column needs its own name")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(
                f"{path}, row {number + 1} ({row[0]}) has not one cell per column; "
                "join labels by |, and quote a cell that holds a comma"
            )
    return [dict(zip(header, row)) for row in rows], loose


def _read_loose_csv(path, lines, delimiter):
    """As `csv.reader`, and last cells in quotes may hold quotes that are not escaped; and how many do."""
    header = next(csv.reader(lines[:1], delimiter=delimiter))
    cells, loose, lines = [header], 0, iter(lines[1:])
    for line in lines:
        if not line.strip():
            continue
        *first, last = line.split(delimiter, len(header) - 1)
        quoted = len(first) == len(header) - 1 and last.startswith('"')
        while quoted and _is_open(last):  # it holds a line break
            following = next(lines, None)
            if following is None:
                raise InputError(f"cannot read {path}, row {len(cells)}: a quote is opened, and never closed")
            last += following
        try:
            cells += csv.reader([delimiter.join([*first, last])], delimiter=delimiter, strict=True)
        except csv.Error as error:
            if not quoted:
                raise InputError(f"cannot read {path}, row {len(cells)} as CSV: {error}") from error
            first = next(csv.reader([delimiter.join(first)], delimiter=delimiter))
            last = last.rstrip()
            cells.append([*first, last[1:-1].replace('""', '"') if last.endswith('"') else last])
            loose += 1
    return cells, loose


def _text(path, cell, what, missing=None):
    """A cell that is text or a number, as text that can be encoded; `missing` for none."""
    if cell is None and missing is not None:
        return missing
    if not isinstance(cell, str | int | float):
        raise InputError(f"{path}: {cell!r:.60} is no {what}")
    return str(cell).encode("utf-8", "backslashreplace").decode()


def _is_open(cell):
    """Whether a cell that begins with a quote continues in the next line, with quotes inside or without."""
    cell = cell.strip()
    return cell == '"' or (cell.count('"') % 2 == 1 and not cell.endswith('"'))


def _find_columns(path, row):
    """What a table calls its columns: a dict with some of the keys of `COLUMN_NAMES`."""
    plain = {str(column).lower().replace("_", "").replace(" ", ""): column for column in reversed(row)}
    columns = {}
    for what, accepted in COLUMN_NAMES.items():
        found = next((plain[name] for name in accepted if name in plain), None)
        if found is not None:
            columns[what] = found
    if "file" not in columns:
        wanted = ", ".join(COLUMN_NAMES["file"])
        raise InputError(f"{path} needs a column of files, one of {wanted}; it has {', '.join(row)}")
    return columns


def _table_labels(path, rows, columns, separator):
    """Labels int8 (N, K), and their names; K = 0 where the table has none."""
    if "labels" in columns:
        cells = [_list_of(path, row[columns["labels"]]) for row in rows]
        if (labels := _label_columns(cells)) is not None:
            return labels, [str(k) for k in range(labels.shape[1])]
        numbers = all(isinstance(cell, str) and cell.replace(" ", "").isdigit() for cell in cells if cell)
        separator = separator or (" " if numbers else "|")
        present = [_split_labels(cell, separator) for cell in cells]
        label_names = sorted(set().union(*present), key=lambda name: (not name.isdigit(), len(name), name))
        if not all(name.isdigit() for name in label_names):
            label_names.sort()
        column = {label: k for k, label in enumerate(label_names)}
        labels = np.zeros((len(rows), len(column)), np.int8)
        for row, own in zip(labels, present):
            row[[column[label] for label in own]] = 1
        return labels, label_names
    others = [key for key in rows[0] if key not in columns.values()]
    values = {key: [_plain(row[key]) for row in rows] for key in others}
    label_names = [key for key in others if set(values[key]) <= VALUES.keys() and set(values[key]) != {""}]
    names = [key.strip() for key in label_names]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{path} has two columns of the label {repeated[0]!r}")
    labels = np.zeros((len(rows), len(names)), np.int8)
    for column, key in zip(labels.T, label_names):
        column[:] = [VALUES[value] for value in values[key]]
    return labels, names


def _plain(cell):
    return "" if cell is None else str(cell).strip().lower()


def _list_of(path, cell):
    """A cell, or the list that is written in it."""
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return cell
    try:
        return ast.literal_eval(cell.strip())
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: {cell!r:.60} is no list of labels") from error


def _label_columns(cells):
    """Labels int8 (N, K) of cells that are lists of a 1, 0 or -1 for each label; None of any others."""
    if not all(isinstance(cell, list) and len(cell) == len(cells[0]) for cell in cells):
        return None
    if not all(type(value) is int and -1 <= value <= 1 for cell in cells for value in cell):
        return None
    return np.array(cells, np.int8)


def _split_labels(cell, separator):
    """A cell's labels: those of a list, or names with a separator between them."""
    cells = cell if isinstance(cell, list) else str(cell if cell is not None else "").split(separator)
    return {str(label).strip() for label in cells if str(label).strip()}


def _renamed(path, labels, label_names):
    """Labels by other names, from a JSON object of old to new ones; those that it leaves out are dropped."""
    new_names = read_json(path)
    if not isinstance(new_names, dict):
        raise InputError(f'{path} must hold an object from labels to names, {{"1": "person"}}')
    missing = [name for name in new_names if name not in label_names]
    if missing:
        raise InputError(f"{path} names labels that no image has, such as {missing[0]!r}")
    kept = [k for k, name in enumerate(label_names) if name in new_names]
    return labels[:, kept], [str(new_names[label_names[k]]) for k in kept]
