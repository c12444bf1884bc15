"""Several processes of one run: how they start, agree, and fail together."""

import contextlib
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from mlclip_jax import progress
from mlclip_jax.errors import InputError
from mlclip_jax.files import locked

WEEK = 7 * 24 * 3600
PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")


def start_processes(values: flags.FlagValues, *, independent: bool = False) -> None:
    """Makes this process one of several, if the flags of `define_process_flags` say so.

    Comes before any use of a device. Only the first process prints results and progress; all print errors.

    Args:
      values: the parsed flags.
      independent: whether the processes work without another, and may end at quite different times.

    Raises:
      InputError: the flags do not belong together, or no cluster is found.
      SystemExit: the others cannot be reached.
    """
    given = {name: getattr(values, name) for name in PROCESS_FLAGS if getattr(values, name) is not None}
    if not given and not values.multihost:
        return
    if given and values.multihost:
        raise InputError(f"give either --multihost or --{', --'.join(PROCESS_FLAGS)}")
    if given and len(given) < len(PROCESS_FLAGS):
        missing = [f"--{name}" for name in PROCESS_FLAGS if name not in given]
        raise InputError(f"{', '.join(missing)} missing beside --{', --'.join(given)}")
    if given and ":" not in given["coordinator"]:
        raise InputError(f"--coordinator={given['coordinator']} lacks a port: give HOST:PORT")
    if given and given["process_id"] >= given["num_processes"]:
        raise InputError(
            f"invalid --process_id={given['process_id']}: of {given['num_processes']} processes "
            f"the last is {given['num_processes'] - 1}"
        )
    how: dict[str, Any] = {"shutdown_timeout_seconds": WEEK} if independent else {}
    if given:
        names = {"coordinator": "coordinator_address"}
        how |= {names.get(name, name): value for name, value in given.items()}
        how["cluster_detection_method"] = "deactivate"
    # JAX would take SIGTERM for itself from now on; it is asked to when the steps begin.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**how)
    except ValueError as error:
        if given:
            raise InputError(f"--coordinator={values.coordinator}: {' '.join(str(error).split())}") from error
        raise InputError(
            f"--multihost found no TPU pod, SLURM, Kubernetes or MPI here ({' '.join(str(error).split())}); "
            "give --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    except RuntimeError as error:  # which may pass: no mistake of the user's, and worth a restart
        raise SystemExit(f"cannot join the other processes: {' '.join(str(error).split())}") from error
    if not is_first():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
        progress.silence()


def is_first() -> bool:
    """Whether this process is the one that prints and writes files for all of them."""
    return jax.process_index() == 0


@contextlib.contextmanager
def all_or_none() -> Generator[None]:
    """What fails in this block on one process fails on all, so that none waits for another for ever.

    Every process must come here. Such blocks may be nested; nothing else within them may wait for the others.

    Raises:
      InputError: the block failed on another process.
    """
    try:
        yield
    except Exception as error:
        if not is_announced(error):
            all_processes(False)
            _announced[:] = [error]
        raise
    if not all_processes(True):
        _announced[:] = [InputError("another process failed; its own message says why")]
        raise _announced[0]


_announced: list[BaseException] = []  # the failure that all processes know of, once there is one


def is_announced(error: BaseException) -> bool:
    """Whether all processes know of a failure, and end because of it."""
    return any(error is known for known in _announced)


def check_shared(folder: str | os.PathLike) -> None:
    """Refuses a folder that not all processes see, as each has one of that name on its own disk.

    Raises:
      InputError: it is none of those that the first process writes in.
    """
    token = str(broadcast_from_first(np.uint32(secrets.randbits(32))))
    sign = Path(folder) / f".shared.{token}"
    with all_or_none():
        if is_first():
            sign.touch()
    try:
        with all_or_none():
            if not sign.exists():
                raise InputError(
                    f"{folder} is not the folder that process 0 sees; name one on storage that all share"
                )
    finally:
        if is_first():
            sign.unlink()


def check_alike(*content: object) -> None:
    """Refuses processes of one run that were given different configs or data.

    Args:
      content: what describes these; anything that JSON can hold.

    Raises:
      InputError: this process, or another, has other content than the first.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    own = np.frombuffer(digest, np.uint8)
    first = np.asarray(broadcast_from_first(own))
    with all_or_none():
        if not np.array_equal(own, first):
            raise InputError(
                f"process {jax.process_index()} has another config, or finds other data under the same "
                "names, than process 0; give all the same"
            )


@contextlib.contextmanager
def held_by_this_run(folder: str | os.PathLike) -> Generator[None]:
    """`files.locked` for all processes of this run: the first holds the folder.

    Raises:
      InputError: another run holds it.
    """
    with contextlib.ExitStack() as held:
        with all_or_none():
            if is_first():
                held.enter_context(locked(folder))
        yield


def all_processes(holds: bool) -> bool:
    """Whether something holds on every process; all of them must ask."""
    if jax.process_count() == 1:
        return bool(holds)
    return bool(multihost_utils.process_allgather(np.array(holds)).all())


def broadcast_from_first(value: Any) -> Any:
    """The first process's `value`, an array or number, on every process."""
    return multihost_utils.broadcast_one_to_all(value) if jax.process_count() > 1 else value
