"""The rows of tables: CSV, TSV, JSON and JSON Lines, as spreadsheets and other programs write them."""

import contextlib
import csv
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from mlclip_jax.errors import InputError
from mlclip_jax.files import read_json, read_text
from mlclip_jax.wording import counted


def read_rows(path: str | os.PathLike) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a table, all with the same keys, and remarks on how it was read.

    Args:
      path: `.jsonl` (an object per line), `.json` (a list of objects), or any other name: a CSV, whose cells
        are separated by tabs, commas or semicolons, whichever its first line has, or by what a line `sep=;`
        in front of that says.

    Raises:
      InputError: the file cannot be read, or is no such table.
    """
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
        rows, remarks = _read_csv(path)
    if not rows:
        raise InputError(f"{path} lists no image")
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            differing = ", ".join(map(str, row.keys() ^ rows[0].keys()))
            raise InputError(f"{path}, row {number + 1} has other columns than the first: {differing}")
    return rows, remarks


def _read_csv(path):
    """The rows of a CSV, and remarks."""
    text = read_text(path).strip("\n")
    if "\0" in text:
        raise InputError(f"{path} has zero bytes, as UTF-16 without its mark does; save it as UTF-8")
    if "\r" in text and "\n" not in text:
        raise InputError(f"{path} ends its lines by carriage returns alone; save it with line feeds")
    lines = [line + "\n" for line in text.split("\n")]  # at no other line breaks
    remarks = []
    if said := re.fullmatch(r"sep=(.)\s*", lines[0], re.IGNORECASE):  # as spreadsheets write it
        delimiter, lines = said[1], lines[1:]
    else:
        delimiter = _delimiter(lines)
        if delimiter == ";":
            remarks.append("its cells are separated by semicolons")
    try:
        cells, loose = [row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row], 0
    except csv.Error:
        cells, loose = _read_loose_csv(path, lines, delimiter)
    if loose:
        have = counted(loose, "row has", "rows have")
        remarks.append(f"{have} quotes that are not escaped, and were read by their separators")
    if not cells:
        return [], remarks
    header, *rows = cells
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise InputError(f"{path} has two columns {repeated[0]!r}; every column needs its own name")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(
                f"{path}, row {number + 1} ({row[0]}) has not one cell per column; join labels by |, "
                "or quote the cell that holds them and give separator=comma"
            )
    return [dict(zip(header, row)) for row in rows], remarks


def _delimiter(lines):
    """The sign between the cells: of those in the header, the first that gives all rows as many cells."""
    there = [sign for sign in "\t,;" if sign in lines[0]]
    for sign in there if len(there) > 1 else ():
        with contextlib.suppress(csv.Error):
            widths = {len(row) for row in csv.reader(lines, delimiter=sign, strict=True) if row}
            if len(widths) == 1 and widths != {1}:
                return sign
    return there[0] if there else ","


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


def _is_open(cell):
    """Whether a cell that begins with a quote continues in the next line, with quotes inside or without."""
    cell = cell.strip()
    return cell == '"' or (cell.count('"') % 2 == 1 and not cell.endswith('"'))
