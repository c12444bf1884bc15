"""`mlclip predict` from names of labels alone, and the labels of highest score."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import mlclip_jax
from mlclip_jax.cli import main
from mlclip_jax.commands.predict import highest
from mlclip_jax.data.scenes import LABELS, Scenes, write_scenes
from mlclip_jax.scores import read_scores

TEMPLATE = "a photo of {labels}."


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_scenes(Scenes(9, 12), folder)
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "twice.txt").write_text("moon\nmoon\n")
    (folder / "empty.txt").write_text("\n")
    return folder


def arguments(world, **changes):
    values = {
        "method": "zero_shot",
        "backbone": "scenes-clip",
        "classes": world / "labels.txt",
        "templates": TEMPLATE,
        "images": world / "images",
    } | changes
    return ["predict", *(f"--{name}={value}" for name, value in values.items() if value is not None)]


def test_two_images_without_any_training(world, capsys):
    files = sorted((world / "images").iterdir())[:2]
    two = arguments(world, images=files[0], templates=None)
    assert main([*two, f"--images={files[1]}"]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (header, *rows)]
    assert cells[0] == ["image", "labels", "highest scores"]
    run = mlclip_jax.load_zero_shot("scenes-clip", LABELS)
    for row, file, scores in zip(cells[1:], files, run.predict(files)):
        best = np.argsort(-scores, kind="stable")
        assert row[0] == str(file)
        assert row[1].split(", ") == [LABELS[k] for k in sorted(best[:3])]
        assert row[2] == ", ".join(f"{LABELS[k]} {scores[k]:.2f}" for k in best[:5])


def test_what_is_written_says_that_these_are_scores(world, tmp_path, capsys):
    written = {name: tmp_path / name for name in ("x.jsonl", "x.csv", "x.npz", "x.png")}
    given = arguments(world, rule="cosine", top_k=2, scores=written["x.npz"], picture=written["x.png"])
    for name in ("x.jsonl", "x.csv"):
        assert main([*given, f"--output={written[name]}"]) == 0
    lines = [json.loads(line) for line in written["x.jsonl"].read_text().splitlines()]
    with written["x.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = read_scores(written["x.npz"])
    assert scores.origin.startswith("Zero-shot, ")
    for line, row, own in zip(lines, rows, scores.scores, strict=True):
        assert list(line) == ["file", "labels", "scores"]
        np.testing.assert_allclose(list(line["scores"].values()), own, atol=1e-3)
        best = [LABELS[k] for k in sorted(np.argsort(-own)[:2])]
        assert line["labels"] == row["labels"].split("|") == best
    with Image.open(written["x.png"]) as picture:
        assert picture.width > 500
    # The file of scores is evaluated like anybody's, by a table of the images as they were named.
    table = (f"{name},{LABELS[i]}\n" for i, name in enumerate(scores.names or ()))
    (tmp_path / "labels.csv").write_text("filename,labels\n" + "".join(table))
    capsys.readouterr()
    assert main(["evaluate", f"--scores={written['x.npz']}", f"--labels={tmp_path / 'labels.csv'}"]) == 0
    assert "mAP" in capsys.readouterr().out


def test_the_backbone_computes_as_it_is_told(world, tmp_path):
    given = arguments(world, rule="cosine", image_size=48, scores=tmp_path / "x.npz")
    assert main(given) == 0
    small = mlclip_jax.load_backbone("scenes-clip", image_size=(48, 48))
    run = mlclip_jax.load_zero_shot(small, LABELS, rule="cosine", templates=TEMPLATE)
    expected = run.predict(sorted((world / "images").iterdir()))
    np.testing.assert_allclose(read_scores(tmp_path / "x.npz").scores, expected, rtol=1e-4, atol=1e-3)


def test_template_and_templates_are_one_flag(world, tmp_path):
    seed = "This is a photo of a {}."
    given = arguments(world, templates=None, template=seed, rule="cosine", scores=tmp_path / "x.npz")
    assert main(given) == 0
    run = mlclip_jax.load_zero_shot("scenes-clip", LABELS, rule="cosine", templates=seed)
    expected = run.predict(sorted((world / "images").iterdir()))
    np.testing.assert_allclose(read_scores(tmp_path / "x.npz").scores, expected, rtol=1e-4, atol=1e-3)


def test_a_threshold_is_a_score(world, tmp_path):
    given = arguments(world, threshold=1.5, scores=tmp_path / "x.npz", output=tmp_path / "x.jsonl")
    assert main(given) == 0
    scores = read_scores(tmp_path / "x.npz").scores
    for line, own in zip((tmp_path / "x.jsonl").read_text().splitlines(), scores, strict=True):
        assert json.loads(line)["labels"] == [LABELS[k] for k in np.flatnonzero(own >= 1.5)]


def test_the_highest_and_of_equal_ones_the_first():
    scores = np.array([[0.1, 0.5, 0.5, 0.5], [3.0, 1.0, 2.0, 0.0]], np.float32)
    np.testing.assert_array_equal(highest(scores, 2), [[0, 1, 1, 0], [1, 0, 1, 0]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": None}, "give either --workdir=RUN, or --method=zero_shot, which needs no training"),
        ({"workdir": "runs/x"}, "give either --workdir=RUN, or --method=zero_shot"),
        ({"method": None, "workdir": "runs/x"}, "--templates is of --method=zero_shot: leave it out"),
        ({"image_size": "big"}, "image_size 'big' is no size: write 448"),
        ({"method": "zero_shto"}, "no method 'zero_shto' without training (did you mean zero_shot?)"),
        (
            {"method": "fc"},
            "no method 'fc' without training: give --method=zero_shot, or the folder of a run",
        ),
        ({"classes": None}, "--method=zero_shot needs --classes=FILE, a label per line"),
        ({"backbone": None}, "--method=zero_shot needs --backbone=FOLDER_OR_NAME"),
        ({"classes": "twice.txt"}, "names 'moon' more than once"),
        ({"classes": "empty.txt"}, "empty.txt"),
        (
            {"rule": "sofmax"},
            "recipe zero_shot has no variant 'sofmax' (did you mean softmax?); it has ridge",
        ),
        ({"rule": "list_all"}, "List-all of 24 classes has 2^24 prompts, and takes 20 classes at most"),
        ({"rule": "language_model"}, "no file of captions is named; give answers=FILE"),
        ({"templates": "a photo."}, "has no place for the name"),
        ({"top_k": 0}, "--top_k"),
        ({"top_k": 25}, "--top_k=25 is more than the 24 labels; give at most 24"),
        ({"top_k": 2, "threshold": 1}, "--top_k and --threshold both choose the labels of an image"),
        ({"checkpoint": "best"}, "--checkpoint is of a trained run: leave it out with --method"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(world, capsys, monkeypatch, changes, words):
    monkeypatch.chdir(world)
    assert main(arguments(world, **changes)) == 2
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if not line.startswith("scenes-clip: CLIP")]
    assert words in errors[0]
    assert len(errors) == 1


def test_a_prompting_method_decides(world, tmp_path):
    given = arguments(world, rule="yes_no", scores=tmp_path / "x.npz", output=tmp_path / "x.jsonl")
    assert main(given) == 0
    scores = read_scores(tmp_path / "x.npz").scores
    for line, own in zip((tmp_path / "x.jsonl").read_text().splitlines(), scores, strict=True):
        assert json.loads(line)["labels"] == [LABELS[k] for k in np.flatnonzero(own > 0)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sweep --config=zero_shot --workdir=x --over=method.penalty=1,2", "Zero-shot has nothing to train"),
        ("evaluate --config=tai", "is trained before it scores images: give the folder of its run"),
        (
            "evaluate",
            "give one of --workdir=RUN[,RUN...], --scores=FILE[,FILE...] and --config=zero_shot:all",
        ),
        ("evaluate --workdir=x --output=x.csv", "--output is of --config"),
    ],
)
def test_there_is_nothing_to_train(capsys, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
