"""The program as real processes, which tests start, wait for and kill."""

import signal
import subprocess
import sys
import time

# A suite that a shell runs in the background is told to ignore Ctrl-C, and would pass that on.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from mlclip_jax.cli import run
run()
"""


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(arguments):
    process = start(arguments)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output.decode()
    return output.decode()


def kill_when(process, condition):
    """SIGKILL as soon as the condition holds."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
