"""What ends a run before its last step: a request to save and stop, and a process that makes no progress."""

import contextlib
import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator

import jax
from jax.experimental import multihost_utils

from mlclip_jax.jax_private import distributed  # which alone can begin to listen after the start


@contextlib.contextmanager
def listening_for_stop() -> Generator[Callable[[], bool]]:
    """Within the block SIGTERM is a request to save and stop, which schedulers send before they pre-empt.

    Yields:
      A function, to be called by all processes equally often: whether one of them received it. It
      turns true at the same call on all.
    """
    if jax.distributed.is_initialized():
        # From here on JAX listens, and finds out which call comes next on all processes.
        jax.config.update("jax_enable_preemption_service", True)
        if distributed.global_state.preemption_sync_manager is None:
            distributed.global_state.initialize_preemption_sync_manager()
        calls = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
    elif threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield lambda: False
    else:
        received = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: received.set())
        try:
            yield received.is_set
        finally:
            signal.signal(signal.SIGTERM, before)
        if received.is_set():  # when there was nothing left to save: whoever listened before shall know
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def ending_when_stalled(seconds: float) -> Generator[Callable[[int], None]]:
    """Ends the process, with the stacks of its threads, once it has made no progress for so long.

    A process that waits for one that hangs or is gone may wait for ever, and would hold its machine as long.

    Args:
      seconds: 0 for never.

    Yields:
      `renew(step)`, to be called whenever there was progress.
    """
    if not seconds:
        yield lambda _: None
        return
    ended, last, when = threading.Event(), time.monotonic(), "its start"
    terminal = sys.__stderr__ or 2

    def renew(step):
        nonlocal last, when
        last, when = time.monotonic(), f"step {step}"
        # Should the interpreter's lock be held, this ends the process without it, a little later.
        faulthandler.dump_traceback_later(1.1 * seconds + 1, exit=True, file=terminal)

    def watch():
        while not ended.wait(min(1, seconds / 10)):
            if time.monotonic() - last > seconds:
                print(
                    f"error: process {jax.process_index()} of {jax.process_count()} has made no progress for "
                    f"{seconds} seconds, since {when}: it hangs, or waits for one that does; its threads:",
                    file=sys.__stderr__,
                    flush=True,
                )
                faulthandler.dump_traceback(file=terminal, all_threads=True)
                os._exit(1)

    renew(0)
    when = "its start"
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield renew
    finally:
        ended.set()
        faulthandler.cancel_dump_traceback_later()
