"""The command line as a user meets it: what it says, how fast, and how it refuses."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import PATIENCE
from small_world import train_arguments, write_embeddings
from tiny_clip import write_clip

from mlclip_jax import calibration, choices, ensembling
from mlclip_jax.choices import CALIBRATIONS, THRESHOLD_RULES
from mlclip_jax.cli import COMMANDS, main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def refused(capsys, arguments, message):
    """The command exits with code 2 and one line on stderr that holds the message."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err), captured.err
    # Devices, and a backbone that was loaded on the way, have said so.
    *before, line = captured.err.strip().splitlines()
    assert all(", SHA-256 " in said or said.startswith("4 devices (cpu)") for said in before)
    assert line.startswith(f"mlclip {arguments[0]}: error: ")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, mlclip_jax, mlclip_jax.cli\n"
        "assert mlclip_jax.cli.main(['--help']) == 0\n"
        "print([m for m in ('jax', 'flax', 'numpy', 'transformers', 'absl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name, (_, summary) in COMMANDS.items():
        assert f"{name:<15}{summary}" in done.stdout


HEAVY = """
jax flax orbax transformers tokenizers sklearn scipy pyarrow matplotlib grain optax tensorflow_datasets
""".split()


def test_every_command_lists_its_flags_and_imports_nothing_heavy():
    """In one process, one command after the other, so that the first that imports something is named."""
    code = f"""
import contextlib, io, sys
import mlclip_jax.backbones
from mlclip_jax.cli import COMMANDS, main
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*name.split(), "--help"]) == 0
    assert f"mlclip {{name}} " in said.getvalue(), name
    assert "--workdir" in said.getvalue() or "--output" in said.getvalue(), name
    print(name, sorted(set({HEAVY}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name in COMMANDS]


def test_choices_of_flags_are_what_there_is():
    assert list(CALIBRATIONS) == list(calibration.METHODS)
    assert list(THRESHOLD_RULES) == list(calibration.RULES)
    assert list(choices.ENSEMBLES) == list(ensembling.ENSEMBLES)


def test_a_refusal_of_the_real_program():
    command = [Path(sys.executable).with_name("mlclip"), "train", "--config=tai", "--config.train.stps=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'steps'?" in done.stderr


def test_commands_that_do_not_exist(capsys):
    refused(
        capsys,
        ["trian"],
        r"no such command \(did you mean train\?\); there are train, sweep, evaluate, pretrain, ensemble, "
        "calibrate, predict, embed, data describe, scenes",
    )
    assert main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x"], "--config is missing"),
        (["--config=tai"], "--workdir is missing"),
        (
            ["--config=tia", "--workdir=x"],
            r"no recipe 'tia' \(did you mean tai\?\): neither a file nor one of .*tai",
        ),
        (["--config=tai:pixels", "--workdir=x"], "no variant 'pixels'; it has embeddings, templates"),
        (
            ["--config=tai", "--workdir=x", "--config.train.stps=3"],
            r"no such config key: 'stps'; did you mean 'steps'\\?",
        ),
        (
            ["--config=tai", "--workdir=x", "--config.trian.steps=3"],
            r"no such config key: 'trian'; did you mean 'train'\\?",
        ),
        (
            ["--config=tai", "--workdir=x", "--config.train.steps=many"],
            "--config.train.steps must be a whole number; got 'many'",
        ),
        (["--config=tai", "--wokdir=x"], r"there is no flag --wokdir \(did you mean --workdir\?\)"),
        (["--config=tai", "--workdir=x", "surplus"], "unexpected argument 'surplus'"),
        (["--config=tai", "--workdir=x"], "leaves texts.class_embeddings open: set --config.texts.class_emb"),
        (["--config=tai:templates", "--workdir=x"], "leaves backbone open: set --config.backbone"),
    ],
)
def test_flags_and_keys(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", *arguments], message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("perturbation.radius", -1.0, "must be finite and not negative"),
        ("perturbation.sampling", "inside", "must be one of surface, interior, interior_by_radius"),
        ("method.dropout", 1.0, r"must be in \[0, 1\)"),
        ("method.depth", 0, "must be at least 1"),
        ("optimizer.learning_rate", 0.0, "must be finite and positive"),
        ("train.batch_size", 6, "must be positive, and a multiple of the 4 devices"),
        ("train.parallel", "threads", "must be one of shard_map, pmap"),
        ("train.steps", 0, "must be from 1 to"),
    ],
)
def test_impossible_values(capsys, world, tmp_path, key, value, message):
    refused(
        capsys,
        train_arguments(world, tmp_path / "run", **{key: value}),
        f"{key}={value}: {message}",
    )


def test_recipes_of_ones_own(capsys, tmp_path):
    (tmp_path / "syntax.py").write_text("def get_config(:")
    (tmp_path / "type.py").write_text("def get_config():\n    return 1 + 'a'")
    (tmp_path / "value.py").write_text("def get_config(arg):\n    raise ValueError('no such arg ' + arg)")
    for name, message in [
        ("syntax.py", "invalid syntax|expected"),
        ("type.py", "TypeError: unsupported operand"),
        ("value.py:x", "ValueError: no such arg x"),
    ]:
        refused(capsys, ["train", f"--config={tmp_path / name}", "--workdir=x"], message)


def test_embeddings_that_do_not_fit(capsys, world, tmp_path):
    narrow = write_embeddings(tmp_path, width=16) / "images.npz"
    arguments = train_arguments(world, tmp_path / "run", evaluation__embeddings=narrow)
    refused(capsys, arguments, "image is 16 wide, the class embeddings 32; both must come from one backbone")

    with np.load(world / "images.npz") as images:
        arrays = dict(images)
    arrays["image_embeddings"][5, 3] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    arguments = train_arguments(world, tmp_path / "run", evaluation__embeddings=tmp_path / "nan.npz")
    refused(capsys, arguments, r"nan\.npz: 1 of 60 embeddings hold NaN or infinity, the first in row 5")

    arrays["image_embeddings"][5, 3] = 0
    arrays["class_names"] = ["cat", "dog", "owl", "bus", "kite", "shears"]
    np.savez(tmp_path / "other.npz", **arrays)
    arguments = train_arguments(world, tmp_path / "run", evaluation__embeddings=tmp_path / "other.npz")
    refused(capsys, arguments, "name different classes: 2 are in only one of them, such as 'scissors'")

    arrays["class_names"] = ["cat", "dog", "owl", "bus", "kite", "scissors"]
    arrays["labels"][:] = 0
    np.savez(tmp_path / "none.npz", **arrays)
    arguments = train_arguments(world, tmp_path / "run", evaluation__embeddings=tmp_path / "none.npz")
    refused(capsys, arguments, "no image has any of the 6 labels")

    del arrays["labels"], arrays["class_names"]
    np.savez(tmp_path / "bare.npz", **arrays)
    arguments = train_arguments(world, tmp_path / "run", evaluation__embeddings=tmp_path / "bare.npz")
    refused(capsys, arguments, "holds no labels: give a CSV of them")

    arguments = train_arguments(world, tmp_path / "run", texts__class_embeddings=tmp_path / "nowhere.npz")
    refused(capsys, arguments, r"no such file of embeddings: .*nowhere\.npz")

    arguments = train_arguments(world, tmp_path / "run", texts__number=5)
    refused(capsys, arguments, "1 label has no text among the 5 to train on: scissors; raise texts.number$")


def test_a_workdir_that_cannot_be_written(capsys, world, tmp_path):
    (tmp_path / "file").touch()
    refused(
        capsys,
        train_arguments(world, tmp_path / "file" / "run"),
        "cannot write in .*file/run: Not a directory",
    )


def test_a_workdir_of_another_run(capsys, world, tmp_path):
    assert main(train_arguments(world, tmp_path, train__steps=20)) == 0
    capsys.readouterr()
    arguments = train_arguments(world, tmp_path, train__steps=20, method__hidden=64)
    refused(
        capsys,
        arguments,
        "holds a run with method.hidden 32, not 64: give what it has, or",
    )


def test_a_checkpoint_of_another_backbone(capsys, tmp_path):
    """The same command, where the class texts have been made anew."""
    world = write_embeddings(tmp_path, seed=0)
    assert main(train_arguments(world, tmp_path / "run")) == 0
    capsys.readouterr()
    write_embeddings(tmp_path, seed=1)
    refused(
        capsys,
        train_arguments(world, tmp_path / "run"),
        r"was trained on .*class_embeddings\.npz \(sha256 .*\), not on .*class_embeddings\.npz \(sha256 ",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "workdir"),
        (["--workdir=nowhere"], "nowhere holds no run: it has no config.json; train there first"),
        (["--workdir=nowhere", "--bootstrap=0"], "bootstrap=0"),
    ],
)
def test_evaluate_without_a_run(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["evaluate", *arguments], message)


def test_embed_refuses(capsys, clip, tmp_path):
    images, texts = tmp_path / "images", tmp_path / "texts.txt"
    images.mkdir()
    texts.write_text("a dog\n")
    embed = ["embed", f"--backbone={clip}", f"--output={tmp_path / 'out.npz'}"]
    refused(capsys, embed, "give either --images=FOLDER or --texts=FILE")
    refused(capsys, [*embed, f"--images={images}"], "no image in .*images: looked for .jpg, .png")
    refused(capsys, [*embed, f"--images={tmp_path / 'none'}"], "no such folder of images")
    refused(capsys, [*embed, f"--texts={texts}", "--template=a photo of a {labels}."], "repeats an article")
    refused(capsys, [*embed, f"--texts={texts}", "--template=a photo"], "has no place for the name")
    refused(capsys, [*embed, f"--texts={texts}", "--template={labels} {x}"], "cannot be filled")
    refused(capsys, [*embed, f"--texts={texts}", "--template={} and {}"], "has 2 places for the name")
    refused(capsys, [*embed, f"--texts={texts}", "--template=imagenets"], "did you mean imagenet")
    Image.new("RGB", (30, 30)).save(images / "good.png")
    (images / "bad.jpg").write_bytes(b"not an image")
    unreadable = r"1 of 2 images cannot be read, and max_skipped=0.01 allows .*bad\.jpg \(no image format"
    refused(capsys, [*embed, f"--images={images}"], unreadable)
    nowhere = ["embed", "--backbone=/nowhere/clip", f"--output={tmp_path / 'out.npz'}", f"--texts={texts}"]
    refused(capsys, nowhere, "no such folder of a backbone: /nowhere/clip")
    refused(
        capsys,
        [*embed, f"--texts={texts}", f"--output={tmp_path / 'out.txt'}"],
        r"out\.txt: give a folder, or a file whose name ends in \.npz",
    )
    assert not (tmp_path / "out.npz").exists()


def test_a_start_that_failed_can_be_mended(capsys, world, tmp_path):
    """A mistyped path leaves nothing behind that would refuse the right one."""
    wrong = train_arguments(world, tmp_path / "run", texts__class_embeddings=tmp_path / "none.npz")
    refused(capsys, wrong, "no such file of embeddings")
    assert main(train_arguments(world, tmp_path / "run")) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--multihost", "--process_id=0"], "give either --multihost or --coordinator, --num_processes"),
        (["--coordinator=localhost:1"], "--num_processes, --process_id missing beside --coordinator"),
        (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], "lacks a port: give HOST:PORT"),
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
            "of 2 processes the last is 1",
        ),
    ],
)
def test_flags_of_processes_that_do_not_belong_together(tmp_path, capsys, given, message):
    assert main(["train", "--config=tai", f"--workdir={tmp_path}", *given]) == 2
    assert message in capsys.readouterr().err


COMMANDED = """
import time
from mlclip_jax.cli import main

def test_it(tmp_path):
    assert main(["train", "--config=tai", f"--workdir={tmp_path}"]) == 2
    print("READY", flush=True)
    time.sleep(600)
"""


def test_a_program_that_ran_a_command_ends_when_told_to(tmp_path):
    """SIGTERM is a command's while it runs; afterwards it is what it was, for pytest and others."""
    (tmp_path / "test_it.py").write_text(COMMANDED)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", tmp_path / "test_it.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert any("READY" in line for line in process.stdout)
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
