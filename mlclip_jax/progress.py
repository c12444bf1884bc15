"""Progress on the terminal."""

from tqdm import tqdm


def progress_bar(total, description, unit, done=0):
    """A bar with the remaining time, shown after two seconds, and only on a terminal; `done` at its start."""
    return tqdm(total=total, initial=done, desc=description, unit=unit, delay=2, disable=None, leave=False)
