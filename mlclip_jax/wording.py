"""Small things that messages need."""

from collections.abc import Iterable


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 image`, `2,000 images`; `several` where more than an s differs, as in `2 files have`."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def listed(names: Iterable[object], most: int = 4) -> str:
    """The first names of several, `a, b, c, d, ...`."""
    names = list(names)
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
