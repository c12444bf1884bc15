"""The grammar of recipes and datasets: `NAME:FIRST,key=value,...`, FIRST being a variant or path."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlclip_jax.errors import InputError

YES_OR_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def split_options(text: str) -> tuple[str, list[str]]:
    r"""What comes first, and the options behind it: a comma ends either where `key=` follows.

    A comma behind a backslash ends nothing: `a\,b=c.csv` is a path with `,b=` in it.
    """
    first, *options = (part.replace("\\,", ",") for part in re.split(r"(?<!\\),(?=\w+=)", text))
    return first, options


def read_options(owner: str, given: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a recipe or a format of datasets.

    Args:
      owner: whose they are, in words.
      given: `key=value` each.
      known: those that there are, with their defaults, whose types values have; None is one of a string.

    Returns:
      Those that are given.

    Raises:
      InputError: one is unknown, comes twice, or has a value of another type.
    """
    options = {}
    for one in given:
        name, _, value = one.partition("=")
        if name not in known:
            listed = ", ".join(key if known[key] in (None, "") else f"{key}={known[key]}" for key in known)
            raise InputError(
                f"{owner} has no option {name!r}{nearest(name, known)}; its options, and defaults: "
                f"{listed or 'none'}"
            )
        if name in options:
            raise InputError(f"{owner} is given {name}= twice, as {options[name]!r} and {value!r}; give one")
        options[name] = _typed(owner, name, value, known[name])
    return options


def nearest(name: object, known: Iterable[str]) -> str:
    """` (did you mean X?)`, where one of the known names is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _typed(owner, name, value, default):
    if isinstance(default, bool):
        if value.lower() not in YES_OR_NO:
            raise InputError(f"{owner} takes yes or no as {name}, not {value!r}")
        return YES_OR_NO[value.lower()]
    if isinstance(default, int):
        if not re.fullmatch(r"[+-]?\d{1,9}", value):
            raise InputError(f"{owner} takes a whole number as {name}, not {value!r}")
        return int(value)
    if isinstance(default, float):
        try:
            return float(value)
        except ValueError:
            raise InputError(f"{owner} takes a number as {name}, not {value!r}") from None
    return value
