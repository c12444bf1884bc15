"""Compiled programs, kept between processes: the second start of a command compiles nothing.

JAX does the keeping; here are a place for it, entries that are whole or absent, and a limit.
"""

import contextlib
import hashlib
import os
import platform
import secrets
from pathlib import Path
from typing import Any

import jax

from mlclip_jax.jax_private import LRUCache, cache, compiler, distributed
from mlclip_jax.progress import warn

# These are fields and functions that JAX's types do not let anybody read or replace.
settings: Any = jax.config
kept: Any = cache
compiling: Any = compiler
MAX_BYTES = 4 << 30  # the oldest entries beyond it are removed

_write_on_the_first = compiler._cache_write


def enable(*, wanted: bool = True) -> None:
    """Keeps the programs that this process compiles, and takes those that earlier ones compiled.

    In `folder()`, unless JAX was told of another (`JAX_COMPILATION_CACHE_DIR`) or to keep nothing
    (`JAX_ENABLE_COMPILATION_CACHE=false`). Comes before anything is compiled.

    Args:
      wanted: False to keep and take nothing.
    """
    if not wanted:
        settings.update("jax_enable_compilation_cache", False)
    if not settings.jax_enable_compilation_cache:
        return
    if settings.jax_compilation_cache_dir is None:
        place = folder()
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write there can run programs here
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(None, "permission denied")
        except OSError as error:
            warn(
                f"compiled programs are not kept: cannot write {place} ({error.strerror}); "
                "JAX_COMPILATION_CACHE_DIR names another folder"
            )
            return
        _shrink(place, MAX_BYTES)
        settings.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A run has hundreds of small programs: each far below JAX's one second, together most of its start.
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    kept.get_file_cache = _open
    if "://" not in settings.jax_compilation_cache_dir:
        compiling._cache_write = _write_on_every_process


def folder() -> Path:
    """Where compiled programs are kept: a folder for each kind of processor within the user's cache folder.

    A program for one processor may crash another, and homes are shared.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = hashlib.sha256(_processor().encode()).hexdigest()[:8]
    return Path(base) / "mlclip_jax" / "compiled" / f"{platform.machine()}-{kind}"


def _processor():
    """What tells processors with different instructions apart."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _shrink(place, max_bytes):
    """Removes the oldest files of a folder until those that are left have `max_bytes` together."""
    total = 0
    for seconds, size, path in sorted(_files(place), reverse=True):
        del seconds
        total += size
        if total > max_bytes:
            with contextlib.suppress(OSError):
                Path(path).unlink()


def _files(place):
    for entry in os.scandir(place):
        with contextlib.suppress(FileNotFoundError):  # another process removes some too
            if entry.is_file(follow_symlinks=False):
                status = entry.stat()
                yield status.st_mtime, status.st_size, entry.path


class _WholeEntries(LRUCache):
    """JAX's own writes in place, so that a kill leaves half an entry, which it never replaces."""

    def put(self, key, value):
        if self.eviction_enabled or "://" in str(self.path):  # a limit of JAX's own, or storage of objects
            super().put(key, value)
            return
        # An entry of this key that is there already could not be read: JAX asks before it compiles.
        place = Path(self.path)
        temporary = place / f".{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            temporary.write_bytes(value)
            temporary.replace(place / f"{key}-cache")
        except OSError:  # such as a full disk, which must not end a run that has its program already
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _write_on_every_process(*entry):
    """JAX leaves it to the first, but others have programs and, on other hosts, disks of their own."""
    state = distributed.global_state
    own, state.process_id = state.process_id, 0
    try:
        _write_on_the_first(*entry)
    finally:
        state.process_id = own


def _open(path):
    return _WholeEntries(path, max_size=settings.jax_compilation_cache_max_size), path
