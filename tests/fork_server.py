"""A process that has imported what the program imports, and becomes the program as often as it is asked to.

Importing takes seconds, forking milliseconds. `processes.py` starts such servers, and says what they get.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys

# Of other packages: this one's modules are imported by each program, as they are by a user's. Not those that
# start threads (pyarrow), nor those that read variables which tests set (transformers: of the hub).
IMPORTED = """
jax jax.experimental.multihost_utils flax.nnx optax orbax.checkpoint scipy.special PIL.Image tokenizers
ml_collections
""".split()


def serve(requests):
    """Returns the text of a program in the process that is to run it, and never in the server.

    A request is JSON with the descriptors of its standard output, its standard error and a pipe: it is told
    the process's id, and its exit code once it has ended, less than 0 if by a signal: four bytes each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then close the socket
    sys.modules["torch"] = None  # the program needs none, and some of these would import it in 1.7 seconds
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that processes share these pages
    running = {}
    while True:
        waiting = select.poll()
        for descriptor in (requests.fileno(), *running):
            waiting.register(descriptor, select.POLLIN)
        for descriptor, _ in waiting.poll():
            if descriptor in running:
                process, pipe = running.pop(descriptor)
                _, status = os.waitpid(process, 0)
                _tell(pipe, os.waitstatus_to_exitcode(status))
                os.close(descriptor)
                os.close(pipe)
                continue
            request, descriptors, *_ = socket.recv_fds(requests, 1 << 20, 3)
            if not request:  # the tests are over
                sys.exit()
            output, errors, pipe = descriptors
            process = os.fork()
            if not process:
                inherited = [pipe, *running, *(pipe for _, pipe in running.values())]
                requests.close()
                return _become(json.loads(request), output, errors, inherited)
            _tell(pipe, process)
            running[os.pidfd_open(process)] = process, pipe
            os.close(output)
            os.close(errors)


def _tell(pipe, number):
    os.write(pipe, number.to_bytes(4, "little", signed=True))


def _become(request, output, errors, inherited):
    import jax

    os.dup2(output, 1)
    os.dup2(errors, 2)
    for descriptor in {output, errors, *inherited}:
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, value in request["jax"].items():  # variables that JAX has read already
        jax.config.update(name, value)
    sys.argv[1:] = request["arguments"]
    return request["text"]
