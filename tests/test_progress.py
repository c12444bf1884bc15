"""Progress shows on a terminal after two seconds, with the time that remains, and nowhere else."""

import os
import pty
import subprocess
import sys
import termios

CODE = """
import time
from mlclip_jax.progress import progress_bar, speak
speak(quiet={quiet})
with progress_bar(8, "training", "steps") as bar:
    for _ in range(8):
        time.sleep({seconds} / 8)
        bar.update()
"""


def run_on_terminal(seconds, quiet=False):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-c", CODE.format(seconds=seconds, quiet=quiet)]
    subprocess.run(command, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # Linux: the other end is closed and all is read
        pass
    os.close(ours)
    return shown.decode()


def test_a_terminal_sees_the_remaining_time_of_what_takes_long():
    shown = run_on_terminal(3)
    assert "training" in shown
    assert "00:00<00:0" not in shown  # nothing in the first two seconds
    assert "<00:0" in shown
    assert run_on_terminal(0) == ""
    assert run_on_terminal(3, quiet=True) == ""


def test_library_calls_say_nothing_but_warnings():
    code = "from mlclip_jax.progress import note, warn; note('loaded'); warn('damaged')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"warning: damaged\n")


def test_a_command_says_everything_once():
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from mlclip_jax.progress import note, speak, warn\n"
        "speak(); note('loaded', once=True); note('loaded', once=True); warn('damaged')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b"loaded\nwarning: damaged\n"


def test_elsewhere_it_is_quiet():
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(seconds=3, quiet=False)], capture_output=True, check=True
    )
    assert done.stdout == done.stderr == b""
