"""The demo in small: every part of it is the real one, on fewer scenes and steps."""

import numpy as np
import pytest
from PIL import Image

from mlclip_jax import demo
from mlclip_jax.cli import main
from mlclip_jax.configs import demo as recipe
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS


@pytest.fixture
def small(monkeypatch):
    """A tenth of the scenes, a sixth of the steps."""
    folders = {name: (seed, number // 10, labels) for name, (seed, number, labels) in demo.FOLDERS.items()}
    monkeypatch.setattr(demo, "FOLDERS", folders)

    def get_config(variant, get_config=recipe.get_config):
        config = get_config(variant)
        config.train.steps = 500
        if variant != "fc":
            config.texts.number = 2_000
        return config

    monkeypatch.setattr(recipe, "get_config", get_config)


@pytest.mark.usefixtures("small")
def test_it_ends_with_a_table_and_a_picture(tmp_path, capsys):
    assert main(["demo", f"--workdir={tmp_path}", "--seeds=2"]) == 0
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"
    ]
    assert rows[0] == ["method", "trained on", "scored on", "mAP", "seconds"]
    methods = [row[0] for row in rows[2:]]
    assert methods == ["plain cosine", *demo.METHODS.values(), "plain cosine"]
    assert [row[2] for row in rows[2:]] == [f"{len(LABELS)} labels"] * 4 + [
        f"{len(OTHER_LABELS)} other labels"
    ]
    data = ["nothing", "2,000 texts", "2,000 texts", "400 images with labels", "nothing"]
    assert [row[1] for row in rows[2:]] == data
    figures = [float(row[3].split(" ± ")[0]) for row in rows[2:]]
    assert all("±" in row[3] for row in rows[3:6])
    assert min(figures) > 50
    assert "average precision as in scikit-learn" in table
    with Image.open(tmp_path / "predictions.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 1000


@pytest.mark.usefixtures("small")
def test_what_is_there_is_not_done_again_and_what_is_half_there_is(tmp_path):
    (tmp_path / "test/images").mkdir(parents=True)
    (tmp_path / "test/images/000000.jpg").write_bytes(b"a file that a stopped demo left")
    first = demo.demo(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert len(times) == 3
    again = demo.demo(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")} == times
    assert [row[:4] for row in again] == [row[:4] for row in first]
    # The seconds are those of the training, not those of finding it done.
    assert [row[4] for row in again[1:]] == [row[4] for row in first[1:]]
