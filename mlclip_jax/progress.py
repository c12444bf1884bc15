"""Progress, and what else a command says on the way, on the terminal; a library call says nothing unasked."""

import logging
import sys

from tqdm import tqdm

_log = logging.getLogger("mlclip_jax")
_bars = False
_said: set[str] = set()  # of what is said once, however often it comes up


class _Terminal(logging.Handler):
    """Prints on standard error, whichever that is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


_terminal = _Terminal()


def speak(*, quiet: bool = False) -> None:
    """From now on notes and bars are shown, as a command shows them; of quiet ones, warnings alone."""
    global _bars
    _bars = not quiet
    _said.clear()
    _log.setLevel(logging.WARNING if quiet else logging.INFO)
    _log.addHandler(_terminal)
    _log.propagate = False  # others give the root logger a handler, which would say it again


def silence() -> None:
    """From now on nothing is shown: another process of this run speaks for all."""
    global _bars
    _bars = False
    _log.setLevel(logging.CRITICAL)


def progress_bar(total: int, description: str, unit: str, done: int = 0) -> tqdm:
    """A bar with the remaining time, shown after two seconds, and only on a terminal; `done` at its start."""
    disable = None if _bars else True
    return tqdm(total=total, initial=done, desc=description, unit=unit, delay=2, disable=disable, leave=False)


def note(text: object, *, once: bool = False) -> None:
    """Says something, by the logger `mlclip_jax`: on standard error once a command lets it `speak`."""
    if once and str(text) in _said:
        return
    if once:
        _said.add(str(text))
    _log.info("%s", text)


def warn(text: object) -> None:
    """The same for what must not be missed, which Python's logging shows in library calls too."""
    _log.warning("warning: %s", text)
