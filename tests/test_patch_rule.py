"""Scores by patches as a rule: the same as their function gives, by every door that takes images."""

import json

import numpy as np
import pytest

import mlclip_jax
from mlclip_jax import recipes
from mlclip_jax.cli import main
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.scenes import LABELS
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
    "tagclip": {"attention": "value", "refine": True},
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
    with pytest.raises(InputError, match="Zero-shot by patches reads the images themselves, and no embed"):
        run.score(encode_images(backbone, files))


def test_it_has_its_rows_in_the_table(backbone):
    config = recipes.read("zero_shot:all")
    config.backbone, config.texts.templates, config.evaluation.images = "scenes-clip", TEMPLATE, SCENES
    config.rules = ("ridge", "patches")
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
    with np.load(scores, allow_pickle=False) as known:
        arrays = dict(known) | {"labels": open_images(SCENES).labels}
    np.savez(scores, **arrays)
    assert main(["calibrate", f"--workdir={tmp_path / 'run'}", f"--scores={scores}"]) == 0
    assert mlclip_jax.load(tmp_path / "run").gives_probabilities
