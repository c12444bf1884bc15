"""Labels for images that nothing was trained on, from the shell and from Python."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from real_data import PHOTOGRAPHS, needs_real_data
from tiny_clip import write_clip

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.cli import main
from mlclip_jax.commands.predict import write_predictions
from mlclip_jax.configs import demo
from mlclip_jax.data.scenes import LABELS, Scenes, write_scenes
from mlclip_jax.data.sources import label_name
from mlclip_jax.data.tables import COLUMN_NAMES, plain_name, read_labels, read_table
from mlclip_jax.scores import read_scores
from mlclip_jax.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """TaI on the built-in CLIP, shortly trained."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    config = demo.get_config("tai")
    config.texts.update(labels=str(folder / "labels.txt"), number=1_000)
    config.train.steps = 400
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(Scenes(9, 40), folder)
    return folder


def test_a_run_loads_and_labels_images(run):
    predictor = mlclip_jax.load(run)
    assert predictor.label_names == LABELS
    scenes = list(Scenes(9, 200))
    probabilities = predictor.predict([scene.image for scene in scenes])
    assert probabilities.shape == (200, len(LABELS))
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    assert (probabilities <= 1).all()
    present = np.stack([scene.labels for scene in scenes]) == 1
    # Far more probable where they are than where they are not.
    assert probabilities[present].mean() > 3 * probabilities[~present].mean()


def test_csv_and_json_lines_say_what_python_says(run, scenes, tmp_path, capsys):
    files = sorted((scenes / "images").iterdir())
    expected = mlclip_jax.load(run).predict(files)
    arguments = ["predict", f"--workdir={run}", f"--images={scenes / 'images'}", "--threshold=0.3"]
    for name in ("x.csv", "x.jsonl"):
        assert main([*arguments, f"--output={tmp_path / name}"]) == 0
    assert f"40 images, {len(LABELS)} labels: {tmp_path / 'x.csv'}" in capsys.readouterr().out
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [line["file"] for line in lines] == [str(file) for file in files]
    for row, line, probabilities in zip(rows, lines, expected):
        np.testing.assert_allclose([float(row[name]) for name in LABELS], probabilities, atol=1e-4)
        np.testing.assert_allclose([line["probabilities"][name] for name in LABELS], probabilities, atol=1e-4)
        present = [name for name, p in zip(LABELS, probabilities) if p >= 0.3]
        assert row["labels"].split("|") == (present or [""])
        assert line["labels"] == present


def test_scores_are_written_as_a_file(run, scenes, tmp_path):
    files = sorted((scenes / "images").iterdir())
    arguments = ["predict", f"--workdir={run}", f"--images={scenes / 'images'}", f"--output={tmp_path}/x.csv"]
    assert main([*arguments, f"--scores={tmp_path / 'x.npz'}"]) == 0
    scores = read_scores(tmp_path / "x.npz")
    assert scores.names == tuple(map(str, files))
    assert scores.label_names == LABELS
    loaded = mlclip_jax.load(run)
    np.testing.assert_allclose(loaded.probabilities(scores.scores), loaded.predict(files), atol=1e-6)


def test_the_most_probable_labels_of_each_image(run, scenes, tmp_path):
    arguments = ["predict", f"--workdir={run}", f"--images={scenes / 'images'}", "--top_k=2"]
    assert main([*arguments, f"--output={tmp_path / 'x.jsonl'}"]) == 0
    for line in map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines()):
        probabilities = list(line["probabilities"].values())
        least = sorted(probabilities)[-2]
        assert len(line["labels"]) == 2
        assert all(line["probabilities"][name] >= least for name in line["labels"])


def test_files_and_folders_and_a_picture(run, scenes, tmp_path, capsys):
    (scenes / "notes.txt").write_text("no image")
    one = scenes / "images/000003.jpg"
    arguments = [
        f"--images={one}",
        f"--images={scenes}",
        f"--output={tmp_path}/deep/x.csv",
        f"--picture={tmp_path}/x.png",
    ]
    assert main(["predict", f"--workdir={run}", *arguments]) == 0
    captured = capsys.readouterr()
    assert "41 images" in captured.out
    assert "2 files in the folders are no images, and left out" in captured.err  # labels.csv too
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 500
    with (tmp_path / "deep/x.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["file"] == str(one)


def test_without_an_output_a_table_is_printed(run, scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = scenes / "images/000003.jpg"
    assert main(["predict", f"--workdir={run}", f"--images={file}", "--threshold=0.3"]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["image", "labels", "most probable"]
    image, present, probable = (cell.strip() for cell in row.split("|")[1:-1])
    [probabilities] = mlclip_jax.load(run).predict([file])
    assert image == str(file)
    assert present.split(", ") == [LABELS[k] for k in np.flatnonzero(probabilities >= 0.3)]
    best = np.argsort(-probabilities)[:5]
    assert probable == ", ".join(f"{LABELS[k]} {probabilities[k]:.2f}" for k in best)
    assert list(tmp_path.iterdir()) == []


NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).map(label_name).filter(bool),
    min_size=1,
    max_size=4,
    unique=True,
)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@given(names=NAMES, data=st.data())
def test_what_is_written_is_read_back(tmp_path_factory, suffix, names, data):
    path = tmp_path_factory.mktemp("x") / f"x{suffix}"
    rows = st.lists(st.booleans(), min_size=len(names), max_size=len(names))
    check_round_trip(path, names, np.array(data.draw(st.lists(rows, min_size=1, max_size=4))))


@pytest.mark.parametrize(
    "names", [["file", "c"], ["a|b", "c"], ["1 2", "3"], ["3.0"], ["nan", "x"], ["['x']"], ["1", "0"]]
)
def test_odd_names_are_read_back(tmp_path, names):
    check_round_trip(tmp_path / "x.csv", names, np.eye(len(names), dtype=bool))


def check_round_trip(path, names, labels):
    files = [f"{i}.jpg" for i in range(len(labels))]
    wanted = (path, files, labels.astype(float), names, labels)
    if path.suffix == ".csv" and any(
        plain_name(name) in taken for taken in COLUMN_NAMES.values() for name in names
    ):
        with pytest.raises(
            InputError, match=r"as columns of other things are in a CSV: write a \.jsonl file"
        ):
            write_predictions(*wanted)
        return
    write_predictions(*wanted)
    table = read_table(path)
    back = [{table.label_names[k] for k in np.flatnonzero(row == 1)} for row in table.labels]
    assert back == [{names[k] for k in np.flatnonzero(row)} for row in labels]
    np.testing.assert_array_equal(read_labels(path, files, names), labels)


@needs_real_data
def test_every_photograph_is_read(run, tmp_path):
    images = PHOTOGRAPHS / "images"
    assert main(["predict", f"--workdir={run}", f"--images={images}", f"--output={tmp_path}/x.jsonl"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert len({line["file"] for line in lines}) == len(lines) == 179


def test_another_backbone_is_refused(run, tmp_path):
    clip = write_clip(tmp_path / "clip")
    with pytest.raises(InputError, match=r"was trained on scenes-clip .*, not on .*; name the backbone"):
        mlclip_jax.load(run, backbone=clip)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output": "x.txt"}, "its name must end in .csv or .jsonl"),
        ({"output": Path(__file__).parent}, "commands: it is a folder; give a file"),
        ({"images": "https://example.org/x.jpg"}, "is a URL: download what it names"),
        ({"images": "*.jpg"}, "nothing matches *.jpg: give the folder, or leave the quotes away"),
        ({"picture": "x.jpg"}, "its name must end in .png"),
        ({"images": "nowhere"}, "no such folder of images: nowhere"),
        ({"images": ""}, "an empty name among the images"),
        ({"workdir": "nowhere"}, "nowhere holds no run"),
        ({"threshold": "1.5"}, "--threshold"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run, scenes, tmp_path, capsys, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    values = {"workdir": run, "images": scenes / "images", "output": "x.csv"} | change
    assert main(["predict", *(f"--{name}={value}" for name, value in values.items())]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
