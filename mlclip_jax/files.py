"""Files: read or refused in one line, written whole or not at all."""

import contextlib
import csv
import fcntl
import json
import os
import secrets
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlclip_jax.errors import InputError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Generator[Path]:
    """Yields a temporary path beside `path`; once the block has succeeded, renames it to `path`.

    Raises:
      InputError: the place cannot be written.
    """
    path = Path(path)
    # Other machines may write here, with processes of the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a rename may otherwise reach the disk before the content
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose a writable location"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: str | os.PathLike, process: int = 0) -> Generator[None]:
    """Holds a folder for this process alone; the lock ends with the process, however that ends.

    Args:
      folder: must be there.
      process: number of this process among those that share the folder.

    Raises:
      InputError: another process holds it.
    """
    with (Path(folder) / (f".lock-{process}" if process else ".lock")).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"another process is writing in {folder}; wait for it, or name another"
            ) from error
        yield


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file, whole or not at all; see `replacing`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV with a column for each key of the first row, whole or not at all; see `replacing`."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder, and checks that files can be written in it.

    Raises:
      InputError: they cannot.
    """
    if not str(path) or "://" in str(path):
        raise InputError(f"cannot write in {str(path)!r}: name a folder of this machine")
    probe = Path(path) / f".writable.{os.getpid()}-{secrets.token_hex(4)}"  # as above
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write in {path}: {error.strerror or error}; choose a writable folder"
        ) from error


def read_text(path: str | os.PathLike) -> str:
    """A text file in UTF-8, or in UTF-16 that is marked as such; its line breaks are as they are there.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: {error}; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path} as JSON: {error}") from error
