"""What the value of a setting may be: a test, and the same in words for an error."""

import math
from collections.abc import Callable, Iterable
from typing import Any

Range = tuple[Callable[[Any], bool], str]

AT_LEAST_0 = (lambda number: number >= 0, "at least 0")
AT_LEAST_1 = (lambda number: number >= 1, "at least 1")
POSITIVE = (lambda number: 0 < number < math.inf, "finite and positive")
NOT_NEGATIVE = (lambda number: 0 <= number < math.inf, "finite and not negative")
FRACTION = (lambda fraction: 0 <= fraction <= 1, "in [0, 1]")
BOOLEAN = (lambda value: isinstance(value, bool), "True or False")
BELOW_1 = (lambda rate: 0 <= rate < 1, "in [0, 1)")


def one_of(values: Iterable[str]) -> Range:
    """A range of words, of which "" is none."""
    return (lambda value: value in values, f"one of {', '.join(word or 'empty' for word in values)}")
