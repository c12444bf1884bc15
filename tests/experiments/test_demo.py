"""The demo in small: every part of it is the real one, on fewer scenes and steps."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from mlclip_jax import recipes
from mlclip_jax.cli import main
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS
from mlclip_jax.experiments import demo


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """The demo with a twentieth of the scenes and few steps: its folder, and what it printed.

    It was made where another demo had been stopped.
    """
    folder = tmp_path_factory.mktemp("demo")
    (folder / "test/images").mkdir(parents=True)
    (folder / "test/images/000000.jpg").write_bytes(b"a file that a stopped demo left")

    def short(recipe, read=recipes.read):
        config = read(recipe)
        if "train" not in config:  # which trains nothing
            return config
        config.train.steps = 100
        if not recipe.startswith("demo:fc"):
            config.texts.number = 500
        return config

    folders = {name: (seed, number // 20, labels) for name, (seed, number, labels) in demo.FOLDERS.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "FOLDERS", folders)
        patched.setattr(recipes, "read", short)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(["demo", f"--workdir={folder}", "--seeds=2"]) == 0
        yield folder, printed.getvalue()


def test_its_runs_are_evaluated_without_further_flags(demonstrated, capsys):
    folder, _ = demonstrated
    run = folder / "tai-seed0"
    assert main(["evaluate", f"--workdir={run}", "--bootstrap=10"]) == 0
    assert "50, " in capsys.readouterr().out
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["unit"] == "percent; coverage_error in labels; thresholds are probabilities"
    assert evaluation["mAP"]["raw"] == evaluation["raw"]["ap"] > 50
    with (run / "per_class.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(LABELS)
    ap = [row["ap"] for row in evaluation["per_class"] if row["support"]]
    assert np.mean(ap) == pytest.approx(evaluation["raw"]["ap"], abs=1e-3)
    for row, known in zip(rows, evaluation["per_class"]):
        assert row == {name: "" if value is None else str(value) for name, value in known.items()}
        assert (known["known"], known["threshold"]) == (50, 0.5)
    assert np.mean([row["F1"] for row in evaluation["per_class"]]) == pytest.approx(
        evaluation["raw"]["mean_F1"], abs=1e-3
    )


def test_it_ends_with_a_table_and_a_picture(demonstrated):
    folder, printed = demonstrated
    table = (folder / "table.md").read_text()
    assert table in printed
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"
    ]
    assert rows[0] == ["method", "trained on", "scored on", "mAP", "seconds"]
    methods = [row[0] for row in rows[2:]]
    assert methods == ["plain cosine", demo.RIDGE, *demo.METHODS.values(), "plain cosine"]
    assert [row[2] for row in rows[2:]] == [f"{len(LABELS)} labels"] * 5 + [
        f"{len(OTHER_LABELS)} other labels"
    ]
    data = ["nothing", "nothing", "500 texts", "500 texts", "200 images with labels", "nothing"]
    assert [row[1] for row in rows[2:]] == data
    figures = [float(row[3].split(" ± ")[0]) for row in rows[2:]]
    assert all("±" in row[3] for row in rows[4:7])
    assert min(figures) > 50
    assert "average precision as in scikit-learn" in table
    with Image.open(folder / "predictions.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 1000


def test_what_is_there_is_not_done_again_and_what_is_half_there_is(demonstrated):
    folder, _ = demonstrated
    table = (folder / "table.md").read_text()
    times = {
        path: path.stat().st_mtime_ns for path in [*folder.glob("*.npz"), *folder.rglob("checkpoints/*")]
    }
    assert len(list(folder.glob("*.npz"))) == 3
    demo.demo(folder, 2)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    # The seconds are those of the training, not those of finding it done; cosine is scored again.
    again = (folder / "table.md").read_text()
    assert trained_rows(again) == trained_rows(table)
    assert len(trained_rows(table)) == len(demo.METHODS)


def trained_rows(table):
    return [line for line in table.splitlines() if any(title in line for title in demo.METHODS.values())]
