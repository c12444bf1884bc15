"""Scores by patches as a rule: the same as their function gives, by every door that takes images."""

import json
from pathlib import Path

import numpy as np
import pytest

import mlclip_jax
from mlclip_jax import recipes
from mlclip_jax.cli import main
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.scenes import LABELS, Scenes, write_scenes
from mlclip_jax.embeddings.embed import encode_images
from mlclip_jax.errors import InputError
from mlclip_jax.experiments.zero_shot_rules import compare_rules
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.patches import PatchSettings, patch_scores
from mlclip_jax.scores import read_scores

TEMPLATE = "a photo of {labels}."
SCENES = "scenes:test,number=40"
# What each variant sets of `PatchSettings`.
STEPS = {
    "patches": {},
    "tagclip": {"attention": "value", "refine": True, "global_weight": 0.0},
    "piaa": {"gaussian": True, "background": False},
}


@pytest.fixture(scope="module")
def backbone():
    return mlclip_jax.load_backbone("scenes-clip")


def expected(backbone, rule):
    settings = PatchSettings(templates=TEMPLATE, **STEPS[rule])
    return patch_scores(backbone, open_images(SCENES), LABELS, settings)


@pytest.mark.parametrize("rule", STEPS)
def test_a_dataset_is_scored_as_the_function_scores_it(tmp_path, rule, backbone):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    given = [
        "predict",
        "--method=zero_shot",
        f"--rule={rule}",
        f"--templates={TEMPLATE}",
        f"--images={SCENES}",
    ]
    given += ["--backbone=scenes-clip", f"--classes={tmp_path / 'labels.txt'}"]
    assert main([*given, f"--scores={tmp_path / 'x.npz'}", f"--output={tmp_path / 'x.jsonl'}"]) == 0
    found = read_scores(tmp_path / "x.npz").scores
    np.testing.assert_allclose(found, expected(backbone, rule), rtol=1e-5, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [len(line["labels"]) for line in lines] == [3] * 40


def test_in_python_it_takes_images_and_no_embeddings(backbone):
    run = mlclip_jax.load_zero_shot(backbone, LABELS, rule="patches", templates=TEMPLATE)
    source = open_images(SCENES)
    files = [source.read(i) for i in range(3)]
    np.testing.assert_allclose(run.predict(files), expected(backbone, "patches")[:3], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="Zero-shot by patches reads images themselves, and no embed"):
        run.score(encode_images(backbone, files))


def test_it_has_its_rows_in_the_table(backbone):
    config = recipes.read("zero_shot:all")
    config.backbone, config.texts.templates, config.evaluation.images = "scenes-clip", TEMPLATE, SCENES
    config.rules = ("patches",)  # which reads no embeddings
    rows = {row["rule"]: row for row in compare_rules(config, num_samples=20)}
    labels = open_images(SCENES).labels
    own = 100 * float(mean_average_precision(expected(backbone, "patches"), labels)[0])
    assert rows["patches"]["mAP"] == pytest.approx(own, abs=0.01)


def test_commands_that_read_embeddings_say_what_to_do(tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    own = ["--config.backbone=scenes-clip", f"--config.texts.templates={TEMPLATE}"]
    own += [f"--config.texts.labels={tmp_path / 'labels.txt'}", f"--workdir={tmp_path / 'run'}"]
    assert main(["train", "--config=zero_shot:patches", *own]) == 0
    capsys.readouterr()
    assert main(["calibrate", f"--workdir={tmp_path / 'run'}", f"--images={SCENES}"]) == 2
    assert "this method reads the images themselves" in capsys.readouterr().err
    scores = tmp_path / "x.npz"
    assert main(["predict", f"--workdir={tmp_path / 'run'}", f"--images={SCENES}", f"--scores={scores}"]) == 0
    np.testing.assert_array_equal(read_scores(scores).labels, open_images(SCENES).labels)
    assert main(["calibrate", f"--workdir={tmp_path / 'run'}", f"--scores={scores}"]) == 0
    assert mlclip_jax.load(tmp_path / "run").gives_probabilities


def test_one_damaged_file_is_left_out_and_listed(tmp_path):
    write_scenes(Scenes(9, 4), tmp_path)
    (tmp_path / "images/000001.jpg").write_bytes(b"no image")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    given = ["predict", "--method=zero_shot", "--rule=patches", f"--templates={TEMPLATE}"]
    given += [
        f"--images={tmp_path / 'images'}",
        "--backbone=scenes-clip",
        f"--classes={tmp_path / 'labels.txt'}",
    ]
    output = tmp_path / "x.jsonl"
    assert main([*given, f"--output={output}", "--max_skipped=0.5"]) == 0
    files = [json.loads(line)["file"] for line in output.read_text().splitlines()]
    assert [Path(file).name for file in files] == ["000000.jpg", "000002.jpg", "000003.jpg"]
    assert "000001.jpg" in Path(f"{output}.skipped.jsonl").read_text()


def test_without_words_for_the_background_one_label_is_no_choice(backbone):
    with pytest.raises(InputError, match="Zero-shot by patches compares the labels of an image with one"):
        mlclip_jax.load_zero_shot(backbone, ["moon"], rule="patches", background=False)
    one = mlclip_jax.load_zero_shot(backbone, ["moon"], rule="patches", templates=TEMPLATE)
    assert one.predict([np.zeros((64, 64, 3), np.uint8)]).shape == (1, 1)


def test_what_images_teach_one_another_is_not_calibrated(tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    own = ["--config.backbone=scenes-clip", f"--config.texts.templates={TEMPLATE}"]
    own += [f"--config.texts.labels={tmp_path / 'labels.txt'}", f"--workdir={tmp_path / 'run'}"]
    assert main(["train", "--config=zero_shot:self_distilled", *own]) == 0
    assert main(["calibrate", f"--workdir={tmp_path / 'run'}", f"--images={SCENES}"]) == 2
    assert (
        "scores an image by those beside it, and a calibration holds for no others" in capsys.readouterr().err
    )
