"""The program as real processes, which tests start, wait for and kill."""

import atexit
import contextlib
import functools
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

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
# A server, see fork_server.py: what it returns is the text of a program, in the process that is to run it.
SERVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fork_server, socket
del sys.path[0]
exec(fork_server.serve(socket.socket(fileno=int(sys.argv[1]))))
"""
# Variables that the interpreter, or what a server has imported, reads once. JAX's can be set anew.
READ_EARLY = ("PYTHON", "LC_", "LANG", "LD_", "XLA_", "TF_", "TPU_", "LIBTPU_", "OMP_", "OPENBLAS_", "MKL_")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}


def start(arguments, *, num_devices=None, preamble="", variables=None, fresh=False):
    """Starts the program, on devices of its own, after some lines of Python; see `start_python`."""
    devices = {} if num_devices is None else {"JAX_NUM_CPU_DEVICES": str(num_devices)}
    return start_python(
        preamble + PROGRAM, arguments, variables={**(variables or {}), **devices}, fresh=fresh
    )


def start_python(text, arguments=(), *, variables=None, errors=None, fresh=False):
    """Starts a process that runs lines of Python; see `outputs_of`.

    Args:
      variables: of its environment, beside those of this process.
      errors: the file of what goes to standard error, if not where standard output goes.
      fresh: True for an interpreter that has imported nothing, where a test is about imports.
    """
    environment = {**os.environ, "JAX_PLATFORMS": PLATFORM, **(variables or {})}
    arguments = list(map(str, arguments))
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
    if fresh or not _can_fork(environment):
        process = subprocess.Popen(
            [sys.executable, "-c", text, *arguments],
            stdout=output,
            stderr=errors or subprocess.STDOUT,
            env=environment,
        )
    else:
        request = {
            "text": text,
            "arguments": arguments,
            "environment": environment,
            "folder": str(Path.cwd()),
        }
        process = Forked(request | {"jax": _jax_settings(environment)}, output, errors or output)
    process.output = output
    return process


def _can_fork(environment):
    """Whether a fork of a server is as a process that was started with these variables."""
    if PLATFORM != "cpu" or sys.platform != "linux":
        return False
    differ = {name for name, _ in environment.items() ^ ENVIRONMENT.items()}
    unknown = (
        name for name in environment if name.startswith("JAX_") and name.lower() not in jax.config.values
    )
    return not any(name.startswith(READ_EARLY) for name in differ) and not any(unknown)


def _jax_settings(environment):
    """What JAX's variables say, which a server's JAX has read already, as JAX takes it."""
    settings = {}
    for name, value in environment.items():
        if name.startswith("JAX_"):
            is_text = isinstance(jax.config.values[name.lower()], str | None)
            settings[name.lower()] = value if is_text else json.loads(value.lower())
    return settings


@functools.cache
def _servers():
    """Sockets of two servers by turns.

    Strings hash otherwise in each, so that an order of sets is not the same by chance in two processes of a
    run, nor in one that resumes.
    """
    return itertools.cycle([_start_server(), _start_server()])


def _start_server():
    """The socket of a server, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            env=ENVIRONMENT | {"JAX_PLATFORMS": PLATFORM},
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


class Forked:
    """A process that a server forked, which is asked and told what a `subprocess.Popen` is."""

    def __init__(self, request, output, errors):
        self._pipe, theirs = os.pipe()
        descriptors = [output.fileno(), errors.fileno(), theirs]
        socket.send_fds(next(_servers()), [json.dumps(request).encode()], descriptors)
        os.close(theirs)
        self.pid = self._read()
        self.returncode = None

    def _read(self):
        content = os.read(self._pipe, 4)
        assert content, "the fork server has ended"
        return int.from_bytes(content, "little", signed=True)

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._pipe], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = self._read()
            os.close(self._pipe)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


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
