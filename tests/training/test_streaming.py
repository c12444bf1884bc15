"""Training on more than memory holds: the same steps and the same result as with all of it on the device."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from clip_cases import images
from PIL import Image
from tiny_clip import config_with, write_clip

import mlclip_jax
from mlclip_jax.cli import main
from mlclip_jax.configs import mmm_clip
from mlclip_jax.data.tables import read_table
from mlclip_jax.embeddings.embed import embed_images
from mlclip_jax.embeddings.store import MANIFEST, read_embeddings, shard_path
from mlclip_jax.runs import read_run
from mlclip_jax.training import loop
from mlclip_jax.training.train import train

LABELS = ("cat", "dog", "owl")


def write_table(folder, number):
    """Images of noise, and a table with a column for each label."""
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = [",".join(["filename", *LABELS])]
    for i in range(number):
        image = np.roll(images()[i % 5], random.integers(0, 30), axis=1)
        Image.fromarray(image).save(folder / f"{i:02}.png")
        present = (str(int(i % (k + 2) == 0)) for k in range(len(LABELS)))
        lines.append(",".join([f"{i:02}.png", *present]))
    (folder / "table.csv").write_text("\n".join(lines))
    return folder / "table.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    write_clip(folder / "clip", config_with({"text_config.max_position_embeddings": 77}))
    source = read_table(write_table(folder / "photographs", 23))
    backbone = mlclip_jax.load_backbone(folder / "clip")
    embed_images(
        backbone, source, folder / "embedded", features=("image", "image_local"), batch_size=4, shard_rows=8
    )
    return folder


def small_config(folder, variant):
    config = mmm_clip.get_config(variant)
    config.backbone = str(folder / "clip")
    config.train.update(steps=12, batch_size=8, log_every=5, checkpoint_every=10)
    config.examples.embeddings = str(folder / "embedded")
    if variant == "mld":
        config.method.update(hidden=16, num_heads=2)
    return config


@pytest.mark.parametrize(
    ("variant", "read_at_once"), [("fc", 1), pytest.param("mld", 1 << 20, marks=pytest.mark.slow)]
)  # one step, and many
def test_streamed_or_on_the_device_it_is_the_same_run(folder, tmp_path, monkeypatch, variant, read_at_once):
    expected = train(small_config(folder, variant), tmp_path / "on_device")
    monkeypatch.setattr(loop, "ON_DEVICE", 0)
    monkeypatch.setattr(loop, "READ_AT_ONCE", read_at_once)
    streamed = train(small_config(folder, variant), tmp_path / "streamed")
    # The keys' biases have no gradient but rounding, of which Adam makes steps.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), streamed, expected)
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("on_device", "streamed")]
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert read_run(tmp_path / "streamed").class_embeddings.names == LABELS


def test_one_command_embeds_trains_and_scores(folder, tmp_path, capsys):
    """From a table of images, without a file of labels; the embeddings are made once."""
    table = folder / "photographs/table.csv"
    command = [
        "train",
        "--config=mmm_clip:fc",
        f"--workdir={tmp_path / 'run'}",
        f"--config.backbone={folder / 'clip'}",
        f"--config.examples.images=table:{table},ratio=70/30,part=train",
        f"--config.evaluation.images=table:{table},ratio=70/30,part=test",
        "--config.train.steps=20",
        "--config.train.batch_size=8",
    ]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "trained 20 steps on 16 images about 3 labels" in output
    assert "table.csv,ratio=70/30,part=test" in output
    assert len(list((tmp_path / "run/embedded").iterdir())) == 2
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", "--bootstrap=5"]) == 0
    assert "all 7 were embedded before" in capsys.readouterr().err


MEASURED = """
import re, sys, threading, time
from pathlib import Path
from mlclip_jax.training import loop
from mlclip_jax.cli import main

worst = [0]

def watch():
    while True:
        status = Path("/proc/self/status").read_text()
        worst.append(int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]))
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
loop.ON_DEVICE = int(sys.argv[2])
code = main(sys.argv[3:])
time.sleep(0.1)
Path(sys.argv[1]).write_text(str(max(worst)))
sys.exit(code)
"""


def write_shards(folder, number, width, rows=1 << 17):
    """Embeddings of noise in float16, with labels, as `mlclip embed` leaves them."""
    random = np.random.default_rng(0)
    block = random.normal(size=(rows, width)).astype(np.float16)
    for kind in ("img_emb", "labels"):
        (folder / kind).mkdir(parents=True)
    for shard, start in enumerate(range(0, number, rows)):
        own = min(rows, number - start)
        np.save(shard_path(folder, "img_emb", shard), np.roll(block, shard, axis=1)[:own])
        np.save(shard_path(folder, "labels", shard), random.integers(0, 2, (own, len(LABELS)), np.int8))
    manifest = {"version": 1, "complete": True, "kind": "img_emb", "origin": None, "dtype": "float16"}
    manifest |= {"embeddings": number, "label_names": list(LABELS), "local": False}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("number", "on_device", "steps", "gigabytes"),
    [
        (100_000, 1 << 20, 50, 1),  # 0.1 GB in files
        pytest.param(10_000_000, loop.ON_DEVICE, 2_000, 2, marks=pytest.mark.slow),  # 10 GB in files
    ],
)
def test_an_adapter_learns_from_more_than_memory_may_hold(tmp_path, number, on_device, steps, gigabytes):
    """What counts is memory that no file stands behind, of the whole process."""
    write_clip(tmp_path / "clip", config_with({"projection_dim": 512}))
    write_shards(tmp_path / "embedded", number, 512)
    assert read_embeddings(tmp_path / "embedded").vectors.shape == (number, 512)
    command = [
        "train",
        "--config=mmm_clip:fc",
        f"--workdir={tmp_path / 'run'}",
        f"--config.backbone={tmp_path / 'clip'}",
        f"--config.examples.embeddings={tmp_path / 'embedded'}",
        f"--config.train.steps={steps}",
        "--config.train.batch_size=512",
        f"--config.train.checkpoint_every={steps}",
    ]
    measured = tmp_path / "kilobytes"
    program = [sys.executable, "-c", MEASURED, str(measured), str(on_device), *command]
    assert subprocess.run(program, check=False).returncode == 0
    kilobytes = int(measured.read_text())
    print(f"\n{number:,} embeddings: RssAnon at most {kilobytes / 2**20:.2f} GiB")
    assert kilobytes < gigabytes << 20
