"""Progress, and what else a command says on the way, on the terminal."""

import sys

from tqdm import tqdm

_silent = False


def silence() -> None:
    """From now on nothing is shown: another process of this run speaks for all."""
    global _silent
    _silent = True


def progress_bar(total: int, description: str, unit: str, done: int = 0) -> tqdm:
    """A bar with the remaining time, shown after two seconds, and only on a terminal; `done` at its start."""
    disable = True if _silent else None
    return tqdm(total=total, initial=done, desc=description, unit=unit, delay=2, disable=disable, leave=False)


def note(text: object) -> None:
    """Says something on standard error."""
    if not _silent:
        print(text, file=sys.stderr)
