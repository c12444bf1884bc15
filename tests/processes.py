"""The program as real processes, which tests start, wait for and kill."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time

PLATFORM = os.environ.get("MLCLIP_TEST_PLATFORM", "cpu")
PATIENCE = 600  # seconds after which a process is taken to hang: many times what the slowest machine needs
# A suite that a shell runs in the background is told to ignore Ctrl-C, and would pass that on.
# The program needs no torch, which transformers would import, in 1.7 seconds, where the tests have it.
PROGRAM = """
import signal, sys
sys.modules["torch"] = None
signal.signal(signal.SIGINT, signal.default_int_handler)
from mlclip_jax.cli import run
run()
"""
# A preamble for what is to be asked to stop: however fast the machine, it is still at its steps by then.
SLOWLY = """
import time
from mlclip_jax.training.metric_log import Log
def add_slowly(self, step, metrics, add=Log.add):
    time.sleep(0.2)
    add(self, step, metrics)
Log.add = add_slowly
"""


def start(arguments, *, num_devices=None, preamble=""):
    """Starts the program, on devices of its own, after some lines of Python; see `outputs_of`."""
    devices = {} if num_devices is None else {"JAX_NUM_CPU_DEVICES": str(num_devices)}
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
    process = subprocess.Popen(
        [sys.executable, "-c", preamble + PROGRAM, *map(str, arguments)],
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "JAX_PLATFORMS": PLATFORM, **devices},
    )
    process.output = output
    return process


def free_address():
    """Where processes of one run may meet: a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start_together(arguments, num_processes, *, num_devices=1, preamble="", own=()):
    """Starts the program as several processes of one run, each with as many devices.

    The last has arguments of its `own` too.
    """
    shared = [*arguments, f"--coordinator={free_address()}", f"--num_processes={num_processes}"]
    flags = [[*shared, f"--process_id={i}"] for i in range(num_processes)]
    flags[-1] += own
    return [start(given, num_devices=num_devices, preamble=preamble) for given in flags]


def outputs_of(processes, code=0, timeout=PATIENCE):
    """What processes printed, once each has ended with this code; killed where they do not end.

    None stands for any code but 0, as of those that notice that another was killed.
    """
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        outputs = [_read(process) for process in processes]
    codes = [process.returncode for process in processes]
    assert all(codes) if code is None else codes == [code] * len(codes), "\n".join(outputs)
    return outputs


def _read(process):
    with process.output as file:
        file.seek(0)
        return file.read().decode()


def finish(arguments, **how):
    return outputs_of([start(arguments, **how)])[0]


def finish_together(arguments, num_processes, **how):
    return outputs_of(start_together(arguments, num_processes, **how))


def wait_until(condition, *processes, seconds=PATIENCE):
    """Waits for a condition while the processes run."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            outputs_of(processes, "none: what is waited for did not happen", timeout=0.1)
        time.sleep(0.002)


def kill_when(processes, condition):
    """SIGKILL to all as soon as the condition holds."""
    wait_until(condition, *processes)
    for process in processes:
        process.kill()
    outputs_of(processes, None)
