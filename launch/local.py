"""Runs a command of mlclip as several processes on this machine.

    python launch/local.py --num_processes=2 --devices_per_process=1 train --config=tai --workdir=runs/tai

Once a process has failed, the others are ended after a short grace. A run that crashed is started again, up
to --max_restarts times; so is one that stopped in good order (exit code 75), unless the launcher itself was
told to stop. SIGTERM and Ctrl-C are handed on to all processes; a second one ends them at once. No process
outlives the launcher, however that ends.
"""

import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import command
from absl import flags

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Each such end takes a signal from outside; so many mean that something keeps sending it.
MAX_STOPS = 100


def define_flags(values):
    flags.DEFINE_integer("num_processes", 2, "how many processes", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "devices_per_process", 0, "CPU devices of each; 0: what JAX finds", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "gpus_per_process", 0, "GPUs of each, its own; 0: all see all", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "max_restarts", 0, "how often to start again after a crash", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "grace_seconds",
        30.0,
        "how long the others keep running once one failed",
        lower_bound=0,
        flag_values=values,
    )


def launch(values, order):
    environments = [device_variables(values, process) for process in range(values.num_processes)]
    if values.dry_run:
        for words, variables in zip(process_commands(order, values.num_processes), environments):
            print(
                " ".join(
                    [
                        *(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
                        shlex.join(words),
                    ]
                )
            )
        return 0
    return supervise(
        lambda: process_commands(order, values.num_processes),
        environments,
        values.max_restarts,
        values.grace_seconds,
    )


def device_variables(values, process):
    """The environment variables that give a process its devices.

    Raises:
      InputError: both kinds of device are asked for, or more GPUs than this process may use.
    """
    number = values.gpus_per_process
    if values.devices_per_process and number:
        raise command.InputError("give either --devices_per_process, of the CPU, or --gpus_per_process")
    if values.devices_per_process:
        return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(values.devices_per_process)}
    if not number:
        return {}
    needed = number * values.num_processes
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [str(i) for i in range(needed)] if visible is None else visible.split(",") if visible else []
    if len(ids) < needed:
        raise command.InputError(
            f"CUDA_VISIBLE_DEVICES={visible} names {len(ids)} GPUs, where {values.num_processes} processes "
            f"with {number} each need {needed}; give fewer"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(ids[process * number : (process + 1) * number])}


def process_commands(order, number):
    """The command line of each process; they meet at a port that is free now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meeting = [f"--coordinator=localhost:{port}", f"--num_processes={number}"]
    return [
        [sys.executable, "-m", "mlclip_jax", *order.words(*meeting, f"--process_id={process}")]
        for process in range(number)
    ]


def supervise(make_commands, environments, max_restarts, grace_seconds):
    """Runs processes to their end, again where that helps; returns the exit code.

    Args:
      make_commands: called before every start; gives the command line of each process.
      environments: a dict of environment variables for each process, beside those of the launcher.
      max_restarts: how often to start again after a crash.
      grace_seconds: how long the others may keep running once a process has failed.
    """
    events = queue.SimpleQueue()  # of ends, (process, exit code), and of orders to stop, (None, signal)
    for number in SIGNALS:
        signal.signal(number, lambda number, _: events.put((None, number)))
    stops = crashes = 0
    while True:
        code, told = run_once(make_commands(), environments, grace_seconds, events)
        if told or code in (0, 2):
            return code
        stops += code == command.RESTART
        crashes += code != command.RESTART
        if stops > MAX_STOPS or crashes > max_restarts:
            return code
        command.say(f"starting again after exit code {code}")


def run_once(commands, environments, grace_seconds, events):
    """Starts processes, and waits until all have ended.

    Returns:
      The exit code of the first that failed, or 0; and whether the launcher was asked to stop.
    """
    # Processes are started into the group of this guard, which kills the group, itself included, once its
    # standard input ends: when that is closed below, and also when the launcher is killed.
    guard = subprocess.Popen(["sh", "-c", "read -r _; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0)
    threads, running, codes = [], {}, []
    told, deadline = False, None
    try:
        for i, (words, variables) in enumerate(zip(commands, environments)):
            pipe = subprocess.PIPE if len(commands) > 1 else None
            running[i] = process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                env=os.environ | variables,
                process_group=guard.pid,
            )
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                if source:
                    threads.append(threading.Thread(target=pass_on, args=(source, target, f"[{i}] ")))
            threads.append(threading.Thread(target=lambda i=i, p=process: events.put((i, p.wait()))))
        for thread in threads:
            thread.start()
        while running:
            try:
                i, value = events.get(timeout=deadline and max(0, deadline - time.monotonic()))
            except queue.Empty:
                command.say(f"ending the others, {grace_seconds:g} seconds after the first")
                guard.stdin.close()
                deadline = None
                continue
            if i is None and told:
                guard.stdin.close()
            elif i is None:
                told = True
                for process in running.values():
                    process.send_signal(value)
            else:
                del running[i]
                code = value if value >= 0 else 128 - value  # as shells count signals
                if code and not any(codes):
                    deadline = time.monotonic() + grace_seconds
                    if not told and code not in (2, command.RESTART):
                        command.say(f"process {i} ended with exit code {code}")
                codes.append(code)
    finally:
        guard.stdin.close()
        guard.wait()
    for thread in threads:
        thread.join()
    # What is left in the queue is an order that came after the last end.
    return next((code for code in codes if code), 0), told or not events.empty()


def pass_on(source, target, prefix):
    """Copies lines as they come, each behind a prefix, and drops them once nobody reads the copy."""
    with source:
        for line in source:
            try:
                target.buffer.write(prefix.encode() + line.rstrip(b"\n") + b"\n")
                target.buffer.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())


if __name__ == "__main__":
    command.run(define_flags, launch)
