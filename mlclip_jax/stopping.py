"""What SIGTERM, by which schedulers stop a process, means to a command."""

import contextlib
import signal
import threading
from collections.abc import Generator

from mlclip_jax.errors import Preempted


@contextlib.contextmanager
def stop_at_once_on_request() -> Generator[None]:
    """Within the block SIGTERM ends what the process does by `Preempted`, wherever it is.

    For what leaves its files whole at any moment: the same command, started again, resumes. Of several
    processes each stops for itself.
    """

    def stop(*_):
        raise Preempted(
            "stopped on request; what is finished is kept, and the same command resumes from there"
        )

    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
