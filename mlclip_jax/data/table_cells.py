"""What a cell of a table says: a number, a list or an object, as JSON, Python, NumPy or pandas writes it."""

import ast
import json
import math
import re
from collections.abc import Collection
from typing import Any

from mlclip_jax.data.sources import label_name
from mlclip_jax.errors import InputError

# Cells of no value, in lower case, as pandas, R and spreadsheets write them.
MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null"})
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
# An element of a list as Python and NumPy print it, and the comma, blank or end that must follow.
ELEMENT = re.compile(
    r"""\s*(?:np\.\w+\()?(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\w.+-]+)\)?(?:\s*,|\s+|$)""",
    re.DOTALL,
)
WORDS = {"true": True, "false": False, "none": None, "null": None, "nan": math.nan}


def structure_of(where: object, row: int, cell: Any, known: Collection[str]) -> Any:
    """A cell, or the list or object that is written in it.

    Args:
      where: the table, for errors.
      row: of the cell, from 0, for errors.
      cell: what the table has.
      known: names of labels, which are no lists, whatever they look like.

    Raises:
      InputError: it begins as a list does, and is none.
    """
    if not isinstance(cell, str) or label_name(cell) in known:
        return cell
    text = cell.strip()
    if text[:1] in ("[", "{", "("):
        try:
            found = json.loads(text)
            if isinstance(found, list | dict):
                return found
        except (ValueError, RecursionError):
            pass
    if text.startswith("[") or re.match(r"(array|list|set|frozenset|tuple|Index|Series)\([\[({]", text):
        inside = text[1:-1] if text.startswith("[") and text.endswith("]") else None
        found = None if inside is None else _elements(inside)
        if found is None:
            raise InputError(f"{where}, row {row + 1}: {cell!r:.60} is no list of labels")
        return found
    if text[:1] in ("{", "("):
        try:
            found = ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return cell
        if isinstance(found, dict):
            return found
        joined = re.search(r"""['"]\s*['"]""", text)  # which Python would read as one
        if isinstance(found, set | tuple) and not joined:
            return sorted(found, key=str) if isinstance(found, set) else list(found)
    return cell


def _elements(text):
    """The elements of a list as Python and NumPy print them; None of any other text."""
    found, place, text = [], 0, text.strip()
    while place < len(text):
        match = ELEMENT.match(text, place)
        if match is None:
            return None
        value, place = match["value"], match.end()
        if value[0] in "'\"":
            try:
                found.append(ast.literal_eval(value))
            except (SyntaxError, ValueError):
                return None
        elif value.lower() in WORDS:
            found.append(WORDS[value.lower()])
        elif NUMBER.fullmatch(value):
            found.append(int(value) if re.fullmatch(r"[+-]?\d{1,18}", value) else float(value))
        else:
            return None
    return found


def number_of(cell: Any) -> float | None:
    """A cell as a number, NaN for one without a value; None of any other."""
    if cell is None:
        return math.nan
    if isinstance(cell, bool | int | float):
        try:
            return float(cell)
        except OverflowError:
            return math.inf
    if not isinstance(cell, str):
        return None
    text = cell.strip().lower()
    if text in MISSING:
        return math.nan
    if text in ("true", "false"):
        return float(text == "true")
    return float(text) if NUMBER.fullmatch(text) else None


def is_missing(cell: Any) -> bool:
    """Whether a cell has no value."""
    number = number_of(cell)
    return number is not None and math.isnan(number)
