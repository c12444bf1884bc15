"""The text files that come with the package; `data/README.md` has their sources and licences."""

import functools
import importlib.resources


@functools.cache
def shipped_lines(name: str) -> tuple[str, ...]:
    """The lines of a file of `texts/data`."""
    file = importlib.resources.files("mlclip_jax.texts") / "data" / name
    return tuple(file.read_text(encoding="utf-8").splitlines())
