"""What terminals, pipes and full disks do to the program's output."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import PROGRAM
from small_world import train_arguments, write_embeddings

from mlclip_jax.cli import COMMANDS, main
from mlclip_jax.runs import read_run


def run_program(arguments, *, environment=None, stdout=subprocess.PIPE):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **(environment or {})},
        check=False,
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of labels in the letters of several alphabets."""
    path = tmp_path_factory.mktemp("table") / "x.csv"
    path.write_text("filename,labels\na,Żaba|犬\nb,犬\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_a_terminal_lacks_are_escaped(table, encoding):
    done = run_program(
        ["data", "describe", f"--images=table:{table}"], environment={"PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    expected = "Żaba 犬".encode(encoding, "backslashreplace").split()
    assert all(name in done.stdout for name in expected)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["predict", "--help"], ["data", "describe", "--images=table:{}"]]
)
def test_a_full_disk_is_one_line(table, arguments):
    with open("/dev/full", "wb") as full:  # noqa: PTH123 (a device)
        done = run_program([argument.format(table) for argument in arguments], stdout=full)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.strip().endswith(b"error: cannot write to standard output: No space left on device")


def test_a_pipe_that_is_closed_early_is_no_error(table):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = run_program(["data", "describe", f"--images=table:{table}"], stdout=closed)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_terminal_and_keeps_names_and_texts_apart(name, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*name.split(), "--help"]) == 0
    usage, flags = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"mlclip {name} ")
    for line in [*usage.splitlines(), *flags.splitlines()]:
        assert len(line) <= width
        assert not line.startswith("  --") or "  " in line.strip(), line


def test_quiet_says_warnings_alone(tmp_path, capsys):
    world = write_embeddings(tmp_path)
    arguments = train_arguments(world, tmp_path / "run", train__steps=4)
    assert main([*arguments, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "trained 4 steps" in captured.out
    assert main(arguments) == 0
    assert "resuming from step 4 of 4" in capsys.readouterr().err


def test_more_steps_continue_a_run_whose_schedule_has_no_end(tmp_path, capsys):
    world = write_embeddings(tmp_path)

    def train(folder, steps, schedule):
        settings = {"train__steps": steps, "schedule__name": schedule, "evaluation__embeddings": ""}
        return main(train_arguments(world, tmp_path / folder, **settings))

    assert train("constant", 4, "constant") == train("constant", 8, "constant") == 0
    assert "resuming from step 4 of 8" in capsys.readouterr().err
    assert train("whole", 8, "constant") == 0
    continued, whole = (read_run(tmp_path / folder).parameters for folder in ("constant", "whole"))
    jax.tree.map(np.testing.assert_array_equal, continued, whole)
    capsys.readouterr()
    assert train("cosine", 4, "cosine") == 0
    assert train("cosine", 8, "cosine") == 2
    error = capsys.readouterr().err
    assert "holds a run with train.steps 4, not 8 (more steps would stretch its schedule, cosine;" in error
    assert train("constant", 4, "constant") == 2
    assert "train.steps 8, not 4: give what it has" in capsys.readouterr().err
