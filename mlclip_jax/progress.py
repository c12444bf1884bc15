"""Progress, and what else a command says on the way, on the terminal."""

import sys

from tqdm import tqdm

_silent = False


def silence():
    """From now on nothing is shown: another process of this run speaks for all."""
    global _silent
    _silent = True


def progress_bar(total, description, unit, done=0):
    """A bar with the remaining time, shown after two seconds, and only on a terminal; `done` at its start."""
    disable = True if _silent else None
    return tqdm(total=total, initial=done, desc=description, unit=unit, delay=2, disable=disable, leave=False)


def note(text):
    """Says something on standard error."""
    if not _silent:
        print(text, file=sys.stderr)
