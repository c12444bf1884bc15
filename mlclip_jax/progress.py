"""Progress on the terminal."""

from tqdm import tqdm


def progress_bar(total, description, unit):
    """A bar with the remaining time, shown after two seconds, and only on a terminal."""
    return tqdm(total=total, desc=description, unit=unit, delay=2, disable=None, leave=False)
