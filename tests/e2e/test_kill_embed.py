"""`mlclip embed` as a real process, killed without warning: it resumes, and nothing is lost or repeated."""

import re
import signal

import jax
import numpy as np
from PIL import Image
from processes import kill_when, outputs_of, start, wait_until
from tiny_clip import write_clip

from mlclip_jax.cli import main
from mlclip_jax.embeddings.store import read_embeddings

NUMBER = 200


def test_killed_three_times_it_ends_the_same(tmp_path, capsys):
    clip = write_clip(tmp_path / "clip")
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    lines = ["filename,labels"]
    for i in range(NUMBER):
        Image.fromarray(random.integers(0, 256, (120, 160, 3), np.uint8)).save(
            tmp_path / f"images/{i:03}.jpg"
        )
        lines.append(f"{i:03}.jpg,{'odd' if i % 2 else 'even'}")
    for i in (17, 150):
        (tmp_path / f"images/{i:03}.jpg").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    command = [
        "embed",
        f"--backbone={clip}",
        "--batch_size=8",
        "--shard_rows=16",
        "--features=image,image_local",
    ]
    command.append(f"--images=table:{tmp_path / 'labels.csv'},images={tmp_path / 'images'}")
    assert main([*command, f"--output={tmp_path / 'undisturbed'}"]) == 0
    out = tmp_path / "out"
    command.append(f"--output={out}")
    how = {"num_devices": jax.device_count()}

    def done():
        return len(list(out.glob("metadata/*.parquet")))

    kill_when([start(command, **how)], lambda: (out / "manifest.json").is_file())  # before any shard
    process = start(command, **how)
    wait_until(lambda: done() >= 3, process)
    process.send_signal(signal.SIGTERM)
    [output] = outputs_of([process], 75)
    assert "mlclip embed: stopped on request; what is finished is kept" in output.splitlines()[-1]
    before = done()
    kill_when(  # while one is written
        [start(command, **how)], lambda: done() >= before + 2 and any(out.rglob(".*.tmp"))
    )
    assert 5 <= done() < NUMBER / 16
    kept = {path: path.read_bytes() for path in out.glob("metadata/*.parquet")}
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/*.npy")}
    capsys.readouterr()
    assert main(command) == 0
    last = "".join(capsys.readouterr())
    assert re.search(rf"{16 * len(kept)} of {NUMBER} images were embedded before", last)
    assert f"{NUMBER - 2} embeddings" in last

    ended, expected = read_embeddings(out), read_embeddings(tmp_path / "undisturbed")
    assert list(ended.features) == list(expected.features) == ["image", "image_local"]
    for name, feature in expected.features.items():
        np.testing.assert_array_equal(ended.features[name], feature)
    np.testing.assert_array_equal(ended.labels, expected.labels)
    assert ended.names == expected.names
    assert ended.names == tuple(f"{i:03}.jpg" for i in range(NUMBER) if i not in (17, 150))
    assert (out / "skipped.jsonl").read_text() == (tmp_path / "undisturbed/skipped.jsonl").read_text()
    for path, content in kept.items():  # what was finished is not made again
        assert path.read_bytes() == content
        number = path.stem.rpartition("_")[2]
        vectors = out / f"img_emb/img_emb_{number}.npy"
        assert vectors.stat().st_mtime_ns == times[vectors]
    assert not list(out.rglob("*.tmp"))
