"""Tables of images: their files, labels and captions, as people and other programs write them."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from mlclip_jax.data.sources import Source, label_name, read_files
from mlclip_jax.data.table_labels import (
    labels_of_cells,
    labels_of_columns,
    unread_columns,
)
from mlclip_jax.data.table_rows import read_rows
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_json
from mlclip_jax.options import read_options, split_options
from mlclip_jax.progress import note
from mlclip_jax.wording import counted, listed

# What tables call their columns, in order of preference; capitals, blanks, dashes and underscores make no
# difference.
COLUMN_NAMES = {
    "image": (
        "filename",
        "filepath",
        "file",
        "imagename",
        "imagepath",
        "imagefile",
        "imageid",
        "imageindex",
        "image",
        "path",
        "fname",
        "name",
    ),
    "label": ("labels", "label", "targets", "target", "tags", "findinglabels"),
    "caption": ("caption", "captions", "text"),
    "split": ("split", "splitname"),
}
UNLISTED = ("refuse", "unknown")


def read_table(
    path: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    split: str | None = None,
    suffix: str = "",
    separator: str | None = None,
    names: str | os.PathLike | None = None,
    absent: str | int = 0,
    ignore: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
) -> Source:
    """A `Source` of the images that a table lists, with labels, captions, or both.

    The columns are found by their names, see `COLUMN_NAMES`. Labels are in one column (see
    `table_labels.labels_of_cells`), or else in a column for each label, of 1 present, 0 absent and -1 or
    nothing unknown (`table_labels.labels_of_columns`). An image may have several rows, one for each of
    its captions; they become neighbours. MMM-CLIP's and MultiCLIP's files are such tables, ASL's of NUS-WIDE,
    and, with `absent=-1`, hellowangqian's of VOC.

    Args:
      path: `.csv`, `.tsv`, `.jsonl` (an object per line) or `.json` (a list of objects), see
        `table_rows.read_rows`. Quotes within the last cell of a row of a CSV need not be escaped.
      images: folder of the files; by default the table's own.
      split: the rows to take, by their column `split` or `split_name`; None: all. The labels are those of
        the whole table, so that all its splits have the same.
      suffix: what to add to the files' names, ".jpg" for names without one.
      separator: between labels in one cell: comma, semicolon, space, slash, tab, bar, or any text; by default
        a bar, or blanks where all labels are numbers.
      names: JSON file of an object from labels as they are in the table to their names; others are left out.
      absent: 0; or -1 in tables in which that is absent, and 0 unknown, as in PASCAL VOC's own lists.
      ignore: columns that are no labels, whatever they hold, with a bar between them.
      image_column: the column of files, where it is called otherwise than `COLUMN_NAMES` has it.
      label_column: that of labels.
      caption_column: that of captions.

    Raises:
      InputError: the table cannot be read, or is no such table.
    """
    given = {"image": image_column, "label": label_column, "caption": caption_column}
    source, _ = _read_table(
        path,
        images=images,
        split=split,
        suffix=suffix,
        separator=separator,
        names=names,
        absent=absent,
        ignore=ignore,
        given=given,
    )
    return source


def open_table(table: str | os.PathLike) -> Source:
    """`read_table`, of what `read_labels` is given."""
    path, options = _options_of(table)
    del options["unlisted"]
    return read_table(path, **options)


def read_labels(
    table: str | os.PathLike, names: Sequence[str], label_names: Sequence[str]
) -> Int8[np.ndarray, "N K"]:
    """Labels of images by name, from a table; see `read_table`. What is guessed on the way is said.

    Args:
      table: the path of the table, or `table:PATH,option=value,...` with the options of `read_table`, and
        `unlisted`: of classes for which a table of columns has none, "refuse" (the default), or "unknown".
        Rows of files that are not in `names` are left out.
      names: the N images' file names, as the table has them.
      label_names: the K labels to read into columns.

    Returns:
      int8 `(N, K)` of 1, 0 and -1.

    Raises:
      InputError: the file is no such table, lacks a row for one of the examples or a column for one of the
        labels, has two different rows for an example, or holds a label that is not in `label_names`.
    """
    path, options = _options_of(table)
    unlisted = options.pop("unlisted")
    if unlisted not in UNLISTED:
        raise InputError(f"unlisted={unlisted!r} is neither {' nor '.join(UNLISTED)}")
    given = {what: options.pop(f"{what}_column") for what in ("image", "label", "caption")}
    known = [label_name(name) for name in label_names]
    source, complete = _read_table(path, given=given, known=known, **options)
    if complete is None:
        raise InputError(f"{path} needs a column of labels, or a column for each label")
    row_of = {}
    for row, name in enumerate(source.names):
        if not np.array_equal(source.labels[row_of.setdefault(name, row)], source.labels[row]):
            raise InputError(f"{path} has two different rows for {name}")
    missing = [name for name in names if name not in row_of]
    if missing:
        raise InputError(
            f"{path} has no row for {len(missing)} of {len(names)} images, the first {missing[0]}"
        )
    labels = source.labels[[row_of[name] for name in names]]
    for label, column in zip(source.label_names, labels.T):
        if label not in known and np.any(column == 1):
            name = names[int(np.argmax(column == 1))]
            raise InputError(f"{path}: label {label!r} of {name} is not one of the {len(known)} labels")
    remarks = list(source.remarks)
    without = [name for name in known if name not in source.label_names]
    if without and complete:
        if unlisted == "refuse":
            classes = counted(len(without), "class", "classes")
            raise InputError(
                f"{path} has no column for {classes}, {listed(without)}; add it, "
                f"or give table:{path},unlisted=unknown"
            )
        which = counted(len(without), "class is", "classes are")
        remarks.append(f"{which} unknown, without a column: {listed(without)}")
    elif without:
        remarks.append(
            f"{counted(len(without), 'class occurs', 'classes occur')} in no row: {listed(without)}"
        )
    for remark in remarks:
        note(f"{path}: {remark}")
    return labels_in_order(labels, source.label_names, known, -1 if complete else 0)


def labels_in_order(
    labels: Int8[np.ndarray, "N M"], given: Sequence[str], wanted: Sequence[str], missing: int = 0
) -> Int8[np.ndarray, "N K"]:
    """Columns of labels `(N, len(given))` as those of other names `(N, len(wanted))`, else `missing`."""
    column = {name: k for k, name in enumerate(given)}
    ordered = np.full((len(labels), len(wanted)), missing, np.int8)
    for k, name in enumerate(wanted):
        if name in column:
            ordered[:, k] = labels[:, column[name]]
    return ordered


def _options_of(table):
    """The path of a table, and its options: those behind it, and the defaults of all others."""
    parameters = inspect.signature(read_table).parameters.items()
    known = {name: own.default for name, own in parameters if name != "path"} | {"unlisted": UNLISTED[0]}
    if not str(table).startswith("table:"):
        return table, known
    path, given = split_options(str(table).removeprefix("table:"))
    return path, known | read_options("table:", given, known)


def _read_table(
    path, *, images, split, suffix, separator, names, absent, ignore, given, known=()
) -> tuple[Source, bool | None]:
    """`read_table`, with names that labels have; and `Labels.complete`, or None where it has no labels."""
    if str(absent) not in ("0", "-1"):
        raise InputError(f"absent={absent!r} is not what tables have for absent labels: give 0 or -1")
    rows, remarks = read_rows(path)
    columns = _find_columns(path, rows, given)
    left_out = set((ignore or "").split("|")) - {""}
    if left_out - rows[0].keys():
        raise InputError(f"{path} has no column {min(left_out - rows[0].keys())!r} to ignore")
    files = [_text(path, row[columns["image"]], "file") for row in rows]
    if "label" in columns:
        cells = [row[columns["label"]] for row in rows]
        found = labels_of_cells(path, cells, separator=separator, absent=int(absent), known=known)
    else:
        others = {
            key: [row[key] for row in rows]
            for key in rows[0]
            if key not in left_out and key not in columns.values()
        }
        found = labels_of_columns(path, others, files, absent=int(absent), known=known)
    remarks += found.remarks
    read = set(found.names) if "label" not in columns else set()
    unread = [key for key in rows[0] if key not in columns.values() and label_name(key) not in read]
    if unread:
        remarks.append(f"columns that were not read: {unread_columns(unread)}")
    labels, label_names = found.values, found.names
    if names is not None:
        labels, label_names = _renamed(names, labels, label_names)
    if int(absent) == 0 and np.sum(labels == -1) > np.sum(labels == 0):
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
        by_file.setdefault(files[i], []).append(i)
    taken = [i for own in by_file.values() for i in own] if "caption" in columns else list(taken)
    repeated = sum(len(own) > 1 for own in by_file.values())
    if repeated:
        remarks.append(
            f"{counted(repeated, 'file has', 'files have')} several rows, each of which is an example"
        )
    captions = None
    if "caption" in columns:
        captions = [_text(path, rows[i][columns["caption"]], "caption", "") for i in taken]
    title = f"{path}" if split is None else f"{path}, split={split}"
    folder = Path(path).parent if images is None else images
    source = read_files(
        title,
        folder,
        [f"{files[i]}{suffix}" for i in taken],
        labels=labels[taken],
        label_names=label_names,
        captions=captions,
        remarks=remarks,
    )
    return source, found.complete if found.names or "label" in columns else None


def plain_name(column: object) -> str:
    """A column's name as `COLUMN_NAMES` has it."""
    return "".join(sign for sign in str(column).lower() if sign not in " _-.")


def _find_columns(path, rows, given):
    """What a table calls its columns: a dict with some of the keys of `COLUMN_NAMES`."""
    plain = {plain_name(column): column for column in reversed(rows[0])}
    columns = {}
    for what, accepted in COLUMN_NAMES.items():
        if given.get(what):
            if given[what] not in rows[0]:
                there = ", ".join(map(str, rows[0]))
                raise InputError(f"{path} has no column {given[what]!r}; it has {there}")
            columns[what] = given[what]
            continue
        found = next((plain[name] for name in accepted if name in plain), None)
        if found is not None and found not in columns.values():
            columns[what] = found
    if "image" not in columns:
        wanted, there = ", ".join(COLUMN_NAMES["image"]), ", ".join(map(str, rows[0]))
        raise InputError(
            f"{path} needs a column of files, one of {wanted}; it has {there}: name one by image_column="
        )
    caption = columns.get("caption")
    if caption and not given.get("caption"):
        others = [key for key in rows[0] if key != columns["image"]]
        numbers = [key for key in others if {str(row[key]) for row in rows} <= {"0", "1", "-1"}]
        if caption in numbers and len(numbers) > 1:
            del columns["caption"]  # a label that is called text, among others
    return columns


def _text(path, cell, what, missing=None):
    """A cell that is text or a number, as text that can be encoded; `missing` for none."""
    if (cell is None or cell != cell) and missing is not None:  # NaN, as pandas writes in place of text
        return missing
    if not isinstance(cell, str | int | float) or cell != cell:
        raise InputError(f"{path}: {cell!r:.60} is no {what}")
    return str(cell).encode("utf-8", "backslashreplace").decode()


def _renamed(path, labels, label_names):
    """Labels by other names, from a JSON object of old to new ones; those that it leaves out are dropped."""
    new_names = read_json(path)
    if not isinstance(new_names, dict) or not all(isinstance(name, str) for name in new_names.values()):
        raise InputError(f'{path} must hold an object from labels to names, {{"1": "person"}}')
    missing = [name for name in new_names if name not in label_names]
    if missing:
        raise InputError(f"{path} names labels that no image has, such as {missing[0]!r}")
    kept = [k for k, name in enumerate(label_names) if name in new_names]
    renamed = [label_name(new_names[label_names[k]]) for k in kept]
    twice = [name for name in renamed if not name or renamed.count(name) > 1]
    if twice:
        raise InputError(f"{path} gives two labels the name {twice[0]!r}, or none; each needs its own")
    return labels[:, kept], renamed
