"""Compiled programs are kept between processes: whole, replaced where damaged, only where they should be."""

import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import finish, free_address, outputs_of, start_python
from small_world import train_arguments, write_embeddings
from tiny_clip import write_clip

from mlclip_jax import compilation_cache

# What JAX found in its cache, and what it had to compile, said at the end.
COUNTED = """
import atexit, collections, jax
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.rpartition("/")[2]]))
atexit.register(lambda: print("hits", seen["cache_hits"], "misses", seen["cache_misses"]))
"""
PROGRAM = """
from mlclip_jax import compilation_cache
compilation_cache.enable()
print(jax.jit(lambda x: jax.numpy.sin(x) + 1)(2.0))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder of one's own, as a new user has it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def entries(home):
    return sorted(home.rglob("*-cache"))


def counts(output):
    """Hits and misses, which stand on the last line."""
    _, hits, _, misses = output.splitlines()[-1].split()
    return int(hits), int(misses)


def run(preamble="", **how):
    """A small program in a process of its own: its hits and misses, and what it complained of."""
    with tempfile.TemporaryFile("w+") as errors:
        [output] = outputs_of([start_python(COUNTED + preamble + PROGRAM, errors=errors, **how)])
        errors.seek(0)
        said = errors.read()
    assert output.startswith("1.909")
    return *counts(output), said


def test_the_second_start_of_a_command_compiles_nothing(tmp_path):
    """In the folder of all tests, so that the first start need not compile either, every time."""
    world = write_embeddings(tmp_path)
    _, second = (
        finish(
            train_arguments(world, tmp_path / str(number), train__steps=3), num_devices=1, preamble=COUNTED
        )
        for number in range(2)
    )
    hits, misses = counts(second)
    assert misses == 0
    assert hits > 10


@pytest.mark.usefixtures("home")
def test_every_process_of_a_run_keeps_its_programs():
    """Each has some of its own; the second start of all finds them."""
    preamble = "jax.distributed.initialize('{}', 2, {})\n"
    for start in range(2):
        address = free_address()
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(run, [preamble.format(address, process) for process in range(2)]))
        assert [misses > 0 for _, misses, _ in done] == [start == 0] * 2


@pytest.fixture
def embed(tmp_path):
    """A command that compiles something."""
    clip = write_clip(tmp_path / "clip")
    (tmp_path / "names.txt").write_text("dog\n")
    return [
        "embed",
        f"--backbone={clip}",
        f"--texts={tmp_path / 'names.txt'}",
        f"--output={tmp_path / 'out.npz'}",
    ]


def test_a_command_imports_jax_where_it_computes_and_keeps_what_it_compiles(home, embed, tmp_path):
    preamble = "import atexit, sys\natexit.register(lambda: print('jax' in sys.modules))\n"
    finish(embed, num_devices=1, fresh=True)  # where nothing has imported JAX before it
    assert entries(home)
    scenes = ["scenes", f"--output={tmp_path / 'scenes'}", "--number=1"]
    assert finish(scenes, preamble=preamble, fresh=True).endswith("False\n")


def test_a_flag_turns_it_off(home, embed):
    command = [*embed, "--nocompilation_cache"]
    assert counts(finish(command, num_devices=1, preamble=COUNTED)) == (0, 0)
    assert not home.exists()


def test_a_variable_turns_it_off(home, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    assert run() == (0, 0, "")
    assert not home.exists()


def test_a_variable_names_another_folder(home, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "other"))
    assert run()[0] == 0
    assert not home.exists()
    assert run()[1:] == (0, "")
    assert entries(tmp_path / "other")


def test_a_damaged_entry_is_replaced(home):
    """JAX says that it cannot read it, once, and does without."""
    run()
    for entry in entries(home):
        content = entry.read_bytes()
        entry.write_bytes(content[: len(content) // 2])
    _, _, said = run()
    assert said.count("UserWarning: Error reading persistent compilation cache entry") == len(entries(home))
    assert run()[1:] == (0, "")


DIES = """
import os, pathlib, signal
def die(self, content, write=pathlib.Path.write_bytes):
    write(self, content[:100])
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.write_bytes = die
"""


def test_a_process_that_is_killed_while_it_writes_leaves_no_entry(home):
    outputs_of([start_python(COUNTED + DIES + PROGRAM)], -signal.SIGKILL)
    assert entries(home) == []
    assert len(list(home.rglob("*.tmp"))) == 1
    assert run()[2] == ""


def test_a_full_disk_is_no_reason_to_stop(home):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    assert run(limit)[2] == ""
    assert list(home.rglob("*-cache")) == list(home.rglob("*.tmp")) == []


def test_a_folder_that_cannot_be_written_is_said_in_a_line(home):
    home.write_text("a file")
    hits, _, said = run(fresh=True)  # where nothing that was imported has set up logging
    assert hits == 0
    assert said.startswith(
        f"warning: compiled programs are not kept: cannot write {home}/mlclip_jax/compiled/"
    )
    assert said.count("\n") == 1


def test_the_oldest_entries_beyond_the_limit_are_removed(tmp_path):
    for number in range(5):
        path = tmp_path / str(number)
        path.write_bytes(bytes(10))
        os.utime(path, (0, 100 - number))
    compilation_cache._shrink(tmp_path, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    compilation_cache._shrink(tmp_path, 29)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_folders_are_for_one_kind_of_processor(home, monkeypatch):
    here = compilation_cache.folder()
    assert here.is_relative_to(home / "mlclip_jax")
    monkeypatch.setattr(compilation_cache, "_processor", lambda: "flags: another")
    assert compilation_cache.folder() != here
