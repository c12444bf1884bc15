"""Labels as tables have them: names and lists in one column, or a column of numbers for each label."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8

from mlclip_jax.data.sources import label_name
from mlclip_jax.data.table_cells import NUMBER, is_missing, number_of, structure_of
from mlclip_jax.errors import InputError
from mlclip_jax.wording import counted, listed

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "slash": "/", "space": " ", "bar": "|"}


class Labels(NamedTuple):
    """The labels of the N rows of a table.

    Attributes:
      values: int8 of 1 present, 0 absent and -1 unknown.
      names: of the K labels.
      remarks: how the cells were read, where they could be read otherwise.
      complete: whether the table says of each of its labels whether a row has it, so that a label which it
        does not know is unknown; false of lists of those that are present, where such a label is absent.
    """

    values: Int8[np.ndarray, "N K"]
    names: list[str]
    remarks: list[str]
    complete: bool


def labels_of_columns(
    where: object,
    columns: Mapping[str, Sequence[Any]],
    files: Sequence[Any],
    *,
    absent: int = 0,
    known: Collection[str] = (),
) -> Labels:
    """Labels from a column of numbers for each.

    Which columns those are: with `known`, the ones that have such a name, and those that hold nothing but
    numbers of labels; without, the ones of whose cells half are numbers of labels or more, and those of
    numbers from -1 to 1. A number of a label is 1, 0 or -1, in any notation, true or false; cells without a
    value (`MISSING`) are unknown.

    Args:
      where: the table, for errors.
      columns: cells by the columns' names.
      files: of the rows, for errors.
      absent: the number that means absent: 0, or -1, where 0 means unknown.
      known: names that the labels have.

    Raises:
      InputError: a column of a label holds anything else, or two have one name.
    """
    numbers = {key: [number_of(cell) for cell in cells] for key, cells in columns.items()}
    keys = [key for key, own in numbers.items() if _is_label(key, own, known)]
    names = [label_name(key) for key in keys]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{where} has two columns of the label {repeated[0]!r}")
    values = np.zeros((len(files), len(keys)), np.int8)
    for column, key in zip(values.T, keys):
        for row, number in enumerate(numbers[key]):
            if not _is_value(number):
                raise InputError(
                    f"{where}, row {row + 1} ({files[row]}): {columns[key][row]!r:.60} in the column {key!r} "
                    f"is none of 1, 0, -1 and nothing; correct it, or leave that column out with ignore={key}"
                )
            column[row] = _entry(number, absent)
    _check_absent(where, absent, [number for key in keys for number in numbers[key]])
    return Labels(values, names, [], True)


def labels_of_cells(
    where: object,
    cells: Sequence[Any],
    *,
    separator: str | None = None,
    absent: int = 0,
    known: Collection[str] = (),
) -> Labels:
    """Labels from one column, whose cells hold names, lists of names, a number for each label, or objects.

    Args:
      where: the table, for errors.
      cells: text, or what JSON has: lists, and objects of a number (1, 0, -1) for each label. Lists may be
        written in text, as JSON, Python or NumPy print them.
      separator: between names in a text, itself or a word of `SEPARATORS`; by default a bar, or blanks where
        all are numbers.
      absent: the number that means absent in lists and objects: 0, or -1, where 0 means unknown.
      known: names that the labels have; text that is one of them is a label, whatever it looks like.

    Raises:
      InputError: a cell is nothing of these, or two are of different kinds.
    """
    read = [structure_of(where, row, cell, known) for row, cell in enumerate(cells)]
    objects = [isinstance(cell, dict) for cell in read]
    if any(objects):
        if not all(own or is_missing(cell) for own, cell in zip(objects, read)):
            row = next(row for row, cell in enumerate(read) if not isinstance(cell, dict | None))
            raise InputError(f"{where}, row {row + 1}: {cells[row]!r:.60} is no object, as other labels are")
        return _labels_of_objects(where, read, absent)
    lists = [cell for cell in read if isinstance(cell, list)]
    elements = [element for own in lists for element in own]
    if elements and not any(isinstance(element, str) for element in elements):
        return _labels_of_numbers(where, cells, read, absent)
    return _labels_of_names(where, read, separator, absent, known)


def _labels_of_objects(where, cells, absent):
    """Of objects from labels to numbers."""
    names = list(dict.fromkeys(label_name(key) for cell in cells if cell for key in cell))
    column = {name: k for k, name in enumerate(names)}
    numbers = [(row, key, number_of(cell[key])) for row, cell in enumerate(cells) if cell for key in cell]
    for row, key, number in numbers:
        if not _is_value(number):
            value = cells[row][key]
            raise InputError(
                f"{where}, row {row + 1}: {value!r:.60} of the label {key!r} is none of 1, 0, -1 and null"
            )
    _check_absent(where, absent, [number for *_, number in numbers])
    complete = not all(number == 1 for *_, number in numbers)
    values = np.full((len(cells), len(names)), -1 if complete else 0, np.int8)
    for row, key, number in numbers:
        values[row, column[label_name(key)]] = _entry(number, absent)
    remarks = []
    lacking = sum(len(cell or ()) < len(names) for cell in cells)
    if lacking and complete:
        remarks.append(f"{counted(lacking, 'row lacks', 'rows lack')} some labels, which are unknown there")
    return Labels(values, names, remarks, complete)


def _labels_of_numbers(where, cells, lists, absent):
    """Of lists of a number for each label, or of labels' numbers."""
    there = [(row, own) for row, own in enumerate(lists) if not is_missing(own)]
    for row, own in there:
        if not isinstance(own, list):
            raise InputError(f"{where}, row {row + 1}: {cells[row]!r:.60} is no list, as other labels are")
        for element in own:
            if number_of(element) is None:
                raise InputError(f"{where}, row {row + 1}: {element!r:.60} in a list of labels is no label")
    numbers = [[number_of(element) for element in own] for _, own in there]
    indices = all(type(element) is int and element >= 0 for _, own in there for element in own)
    indices = indices and all(len(set(own)) == len(own) for own in numbers)
    same_length = len({len(own) for own in numbers}) == 1
    if same_length and all(_is_value(number) for own in numbers for number in own):
        _check_absent(where, absent, [number for own in numbers for number in own])
        values = np.full((len(lists), len(numbers[0])), -1, np.int8)
        for (row, _), own in zip(there, numbers):
            values[row] = [_entry(number, absent) for number in own]
        remarks = []
        if indices:
            remarks.append(
                f"{lists[there[0][0]]} was read as 1 or 0 for each label; "
                'were it the numbers of labels, write them as text, ["0"]'
            )
        return Labels(values, [str(k) for k in range(values.shape[1])], remarks, True)
    if indices:
        names = [[str(element) for element in own] if isinstance(own, list) else [] for own in lists]
        _check_absent(where, absent, ())
        return _of_present(names, [])
    for (row, own), values in zip(there, numbers):
        odd = next((element for element, value in zip(own, values) if not _is_value(value)), None)
        if odd is not None:
            raise InputError(
                f"{where}, row {row + 1}: {odd!r:.60} in a list of labels is none of 1, 0 and -1"
            )
    row, own = next((row, own) for row, own in there if len(own) != len(numbers[0]))
    raise InputError(
        f"{where}, row {row + 1} has a list of {counted(len(own), 'number')}, row {there[0][0] + 1} one of "
        f"{len(numbers[0])}; each needs one for each label"
    )


def _labels_of_names(where, read, separator, absent, known):
    """Of names, in lists or in text."""
    texts = [cell.strip() for cell in read if isinstance(cell, str) and cell.strip()]
    texts = [text for text in texts if label_name(text) not in known]
    numbers = all(re.fullmatch(r"[+-]?\d+(\s+[+-]?\d+)*", text) for text in texts if not is_missing(text))
    sign = SEPARATORS.get(separator or ("space" if numbers else "bar"), separator)
    counts = Counter()
    present = [_names_in(where, row, cell, sign, known, counts) for row, cell in enumerate(read)]
    remarks = []
    if counts["missing"]:
        have = counted(counts["missing"], "label that says", "labels that say")
        remarks.append(
            f'{have} nothing (nan, None, NA) became none; write ["nan"] for a label of such a name'
        )
    if counts["whole"]:
        remarks.append(f"{counted(counts['whole'], 'label')} of whole numbers lost the point: 3.0 became 3")
    values = _of_number_texts(present, absent)
    if values is not None:
        _check_absent(where, absent, [float(name) for own in present for name in own])
        remarks.append("labels of 0 and 1 that repeat in a row were read as a number for each label")
        return Labels(values, [str(k) for k in range(values.shape[1])], remarks, True)
    _check_absent(where, absent, ())
    labels = _of_present(present, remarks)
    if set(labels.names) == {"0", "1"} and not known:
        remarks.append(
            "its labels are called 0 and 1; for one label that is present or not, name a column after it"
        )
    remarks += _on_separators(texts, sign, labels.names, separator is not None)
    return labels


def _names_in(where, row, cell, sign, known, counts):
    """The labels that a cell names; counts those without a value, and whole numbers written with a point."""
    own = cell if isinstance(cell, list) else [cell]
    if isinstance(cell, str) and label_name(cell) not in known:
        own = cell.split() if sign == " " else cell.split(sign)
    names = []
    for element in own:
        fraction = isinstance(element, float) and not math.isnan(element) and not element.is_integer()
        if fraction or isinstance(element, bool | dict | list):
            raise InputError(
                f"{where}, row {row + 1}: {element!r:.60} is no label, which text or a number is"
            )
        name = label_name("" if element is None else element)
        as_written = name in known or (isinstance(cell, list) and isinstance(element, str))
        if not as_written and is_missing(name):
            counts["missing"] += isinstance(element, str) and bool(name)
            continue
        if not as_written and re.fullmatch(
            r"\d+\.0+", name
        ):  # as pandas writes numbers, where some are missing
            name, _, _ = name.partition(".")
            counts["whole"] += 1
        if name:
            names.append(name)
    return names


def _of_present(present: Sequence[Collection[str]], remarks: list[str]) -> Labels:
    """Of the names that each row has: numbers in their order, other names in the alphabet's."""
    names = sorted(set().union(*present), key=lambda name: (not name.isdigit(), len(name), name))
    if not all(name.isdigit() for name in names):
        names.sort()
    column = {name: k for k, name in enumerate(names)}
    values = np.zeros((len(present), len(names)), np.int8)
    for row, own in zip(values, present):
        row[[column[name] for name in own]] = 1
    return Labels(values, names, remarks, False)


def _of_number_texts(present, absent):
    """Values of rows such as ["0", "1", "0"], which can be nothing but a number for each label; else None."""
    there = [own for own in present if own]
    if len({len(own) for own in there}) != 1 or all(len(set(own)) == len(own) for own in there):
        return None
    if not all(NUMBER.fullmatch(name) and _is_value(float(name)) for own in there for name in own):
        return None
    values = np.full((len(present), len(there[0])), -1, np.int8)
    for row, own in zip(values, present):
        if own:
            row[:] = [_entry(float(name), absent) for name in own]
    return values


def _on_separators(texts, sign, names, given):
    """A remark, where another sign may separate labels."""
    names, split = set(names), any(sign in text for text in texts)
    pieces = [piece.strip() for text in texts for piece in text.split(sign)]
    if given and texts and not split:
        return [f"no cell has the separator {sign!r}"]
    others = {}
    for word, other in SEPARATORS.items():
        held = [piece for piece in pieces if other in piece] if other != sign else []
        parts = {part.strip() for text in held for part in text.split(other)} & names
        if parts:
            hold = counted(len(held), "label holds", "labels hold")
            return [
                f"{hold} {other!r}, and {min(parts)!r} is a label by itself: "
                f"if that separates labels, give separator={word}"
            ]
        if held and not split:
            others[word] = held
    for word, held in others.items():
        return [
            f"no cell has {sign!r} between labels, and {held[0]!r:.60} was read as one label: if "
            f"{SEPARATORS[word]!r} separates labels, give separator={word}"
        ]
    return []


def _is_value(number):
    return number is not None and (math.isnan(number) or number in (1, 0, -1))


def _entry(number, absent):
    """1, 0 or -1, for a number of a table in which `absent` means that."""
    if math.isnan(number):
        return -1
    return int(number) if absent == 0 or number == 1 else -1 - int(number)


def _is_label(key, numbers, known):
    """Whether a column of these numbers is that of a label, see `labels_of_columns`."""
    if label_name(key) in known:
        return True
    there = [number for number in numbers if number is None or not math.isnan(number)]
    if not there or _is_index(key, numbers):
        return False
    values = sum(map(_is_value, there))
    if known:
        return values == len(there)
    return 2 * values >= len(there) or all(number is not None and -1 <= number <= 1 for number in there)


def _is_index(key, numbers):
    """Whether a column numbers the rows: one without a name, as pandas writes its index, or called so."""
    name = str(key).strip().lower()
    if not name or re.fullmatch(r"unnamed: \d+", name):
        return True
    counts = None not in numbers and len(set(numbers)) == len(numbers)
    return counts and name in ("index", "id", "idx", "row", "no", "level_0")


def _check_absent(where, absent, numbers):
    if absent == -1 and -1 not in numbers:
        raise InputError(f"invalid absent=-1: {where} has no label of -1; leave it out")


def unread_columns(keys: Iterable[object]) -> str:
    """Columns that were not read, for a remark."""
    return listed((str(key).strip() or "one without a name" for key in keys), most=8)
