"""Runs without training: loaded from names alone, carried to others, compared, calibrated."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_clip import write_clip

import mlclip_jax
from mlclip_jax import InputError, calibration, recipes
from mlclip_jax.backbones import load_backbone
from mlclip_jax.cli import main
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS, Scenes
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.embeddings.store import Embeddings, write_embeddings
from mlclip_jax.evaluation import evaluate
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.provenance import UNKNOWN
from mlclip_jax.untrained import check_untrained
from mlclip_jax.zero_shot import cosine_scores, ridge_scores, standardise
from mlclip_jax.zero_shot.yes_no import yes_no

TEMPLATE = "a photo of {labels}."


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("scenes-clip")


@pytest.fixture(scope="module")
def run(backbone):
    return mlclip_jax.load_zero_shot(backbone, LABELS, templates=TEMPLATE)


@pytest.fixture(scope="module")
def images(backbone):
    scenes = list(Scenes(3, 60))
    vectors = backbone.encode_images([scene.image for scene in scenes])
    labels = np.stack([scene.labels for scene in scenes]).astype(np.int8)
    return Embeddings({"image": vectors}, labels=labels, label_names=LABELS, origin=UNKNOWN)


def test_it_scores_by_names_alone(run, backbone, images):
    assert repr(run).startswith(f"Run(Zero-shot, nothing trained, {len(LABELS)} labels, on scenes-clip")
    classes = embed_names(backbone, LABELS, TEMPLATE).vectors
    expected = np.asarray(standardise(ridge_scores(images.vectors, classes)))
    np.testing.assert_allclose(run.score(images), expected, rtol=1e-4, atol=1e-4)
    scenes = [scene.image for scene in Scenes(3, 2)]
    # Scores, as there are no probabilities.
    np.testing.assert_allclose(run.predict(scenes), expected[:2], rtol=1e-3, atol=1e-3)
    assert mean_average_precision(run.score(images), images.labels)[0] > 0.9


def test_eighty_templates_are_its_default(backbone):
    classes = embed_names(backbone, ["anchor", "moon"], "imagenet")
    run = mlclip_jax.load_zero_shot(backbone, ["anchor", "moon"], rule="cosine")
    np.testing.assert_array_equal(run.class_embeddings.vectors, classes.vectors)
    image = next(iter(Scenes(3, 1))).image
    expected = cosine_scores(backbone.encode_images([image]), classes.vectors) / 0.01
    np.testing.assert_allclose(run.predict([image]), expected, rtol=1e-4)


def test_other_labels_get_the_same_templates(run, backbone):
    other = run.with_labels(OTHER_LABELS)
    again = mlclip_jax.load_zero_shot(backbone, OTHER_LABELS, templates=TEMPLATE)
    scenes = [scene.image for scene in Scenes(3, 2, label_names=OTHER_LABELS)]
    np.testing.assert_array_equal(other.predict(scenes), again.predict(scenes))


def test_it_is_compared_with_plain_cosine_and_leaves_no_file(run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, rows = evaluate([run], images, num_samples=10)
    assert any("Zero-shot" in str(row) for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_calibrated_it_gives_probabilities(run, images):
    for ask in (lambda: run.thresholds, lambda: run.probabilities(run.score(images))):
        with pytest.raises(InputError, match="the scores of Zero-shot are no probabilities: choose the high"):
            ask()
    scores = run.score(images)
    calibrated = dataclasses.replace(run, calibration=calibration.fit(scores, images.labels))
    assert repr(calibrated).endswith("calibrated)")
    probabilities = calibrated.probabilities(scores)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    right = (probabilities >= calibrated.thresholds) == (images.labels == 1)
    assert right.mean() > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rule": "rigde"},
            r"recipe zero_shot has no variant 'rigde' \(did you mean ridge\?\); it has ridge",
        ),
        ({"rule": "all"}, "rule=all is all rules, and images are labelled by one: name it"),
        (
            {"rule": "yes_no", "absent": "nothign"},
            r"Yes or No: invalid absent=nothign \(did you mean nothing",
        ),
        ({"penality": 1.0}, r"Zero-shot has no setting 'penality' \(did you mean penalty\?\); it has rule"),
        ({"penalty": -1.0}, r"^Zero-shot: invalid penalty=-1\.0: must be finite and not negative$"),
        ({"penalty": "3"}, r"^Zero-shot: invalid penalty='3': must be of type float, such as 3\.0$"),
        ({"rule": "top_all", "deepest": 2.5}, r"invalid deepest=2\.5: must be of type int, such as 0"),
        ({"temperature": 0.0}, r"invalid temperature=0\.0: must be finite and positive$"),
        ({"templates": "imagnet"}, r"no set of templates or file 'imagnet' \(did you mean imagenet\?\)"),
        ({"label_names": ["cat", "cat"]}, "names 'cat' more than once"),
        ({"label_names": []}, "must be a list of names"),
    ],
)
def test_what_cannot_be_is_refused_before_a_backbone_is_loaded(changes, message):
    given = {"backbone": "/nowhere", "label_names": ["cat", "dog"]} | changes
    with pytest.raises(InputError, match=message):
        mlclip_jax.load_zero_shot(**given)


def test_what_needs_training_and_other_backbones_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="TaI-Adapter is trained before it labels images: give the folder"):
        check_untrained(recipes.read("tai"))
    with pytest.raises(InputError, match=r"Zero-shot embedded its labels by scenes-clip .*, not by .*; name"):
        run.with_backbone(write_clip(tmp_path / "clip"))


def test_a_prompting_method_decides_by_itself_and_takes_other_labels(backbone, images):
    run = mlclip_jax.load_zero_shot(backbone, LABELS, rule="yes_no", templates=TEMPLATE)
    expected = yes_no(images.vectors, backbone.encode_texts, LABELS)
    decided = run.decide(images)
    np.testing.assert_allclose(decided.scores, expected.scores, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(decided.labels, expected.labels)
    two = run.with_labels(LABELS[:2])
    np.testing.assert_allclose(two.score(images), expected.scores[:, :2], rtol=1e-4, atol=1e-3)
    # Calibrated, it decides by its probabilities.
    calibrated = dataclasses.replace(run, calibration=calibration.fit(decided.scores, images.labels))
    by_probability = calibrated.probabilities(decided.scores) >= calibrated.thresholds
    np.testing.assert_array_equal(calibrated.decide(images).labels, by_probability)
    assert (by_probability != decided.labels).any()


def test_no_templates_are_the_template_of_all_methods(backbone):
    run = mlclip_jax.load_zero_shot(backbone, LABELS, templates="")
    assert run.class_embeddings.origin.template == TEMPLATE


def test_runs_of_other_templates_are_not_compared(run, backbone, images):
    other = mlclip_jax.load_zero_shot(backbone, LABELS, rule="cosine", templates="imagenet")
    with pytest.raises(InputError, match="have different class embeddings; evaluate them one by one"):
        evaluate([run, other], images, num_samples=10)


def test_one_label_is_no_choice(run):
    with pytest.raises(InputError, match="rule=ridge compares the labels of an image with one another"):
        run.with_labels(["anchor"])
    assert run.with_labels(["anchor", "moon"]).label_names == ("anchor", "moon")


@pytest.mark.parametrize("rule", ["ridge", "yes_no"])
def test_its_run_is_taken_as_a_trained_one_is(tmp_path, images, capsys, rule):
    """Written by `train`; then evaluated, calibrated, evaluated again, and read."""
    names, embedded, workdir = tmp_path / "labels.txt", tmp_path / "images.npz", tmp_path / "run"
    names.write_text("\n".join(LABELS))
    write_embeddings(embedded, images)
    own = [f"--config=zero_shot:{rule}", f"--config.texts.templates={TEMPLATE}", f"--workdir={workdir}"]
    begin = ["train", *own, "--config.backbone=scenes-clip", f"--config.texts.labels={names}"]
    assert main([*begin, f"--config.evaluation.embeddings={embedded}"]) == 0
    printed = capsys.readouterr().out
    assert "of 24 labels, which needs no training" in printed
    assert "over cosine" in printed
    before = json.loads((workdir / "evaluation.json").read_text())
    assert "expected_calibration_error" not in before["raw"]
    assert ("exact_match" in before["raw"]) == (rule == "yes_no")
    assert "threshold" not in before["per_class"][0]
    run = mlclip_jax.load(workdir)
    assert repr(run).startswith(f"Run({run.method.title}, {workdir}, nothing trained, 24 labels")
    alone = mlclip_jax.load_zero_shot("scenes-clip", LABELS, rule=rule, templates=TEMPLATE)
    np.testing.assert_array_equal(run.score(images), alone.score(images))
    assert not run.gives_probabilities
    assert main(["calibrate", f"--workdir={workdir}", f"--embeddings={embedded}"]) == 0
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    after = json.loads((workdir / "evaluation.json").read_text())
    assert after["raw"]["expected_calibration_error"] < 20
    assert after["mAP"] == before["mAP"]
    assert mlclip_jax.load(workdir).gives_probabilities
    # Begun again, it stays as it is; another rule has no place there.
    assert main(begin) == 0
    assert mlclip_jax.load(workdir).gives_probabilities
    capsys.readouterr()
    # Nor have other templates, though their file has the same name.
    digest = mlclip_jax.load(workdir).digest
    templates = tmp_path / "templates.txt"
    other = ["train", own[0], "--config.backbone=scenes-clip", f"--workdir={tmp_path / 'b'}"]
    other += [f"--config.texts.templates={templates}", f"--config.texts.labels={names}"]
    for text, code in (("art of the {}.", 0), ("art of the {}.", 0), ("a photo of a {}.", 2)):
        templates.write_text(text)
        assert main(other) == code
    assert "holds a run of other templates" in capsys.readouterr().err
    assert mlclip_jax.load(tmp_path / "b").digest != digest
    assert main(["train", "--config=zero_shot:softmax", *begin[2:]]) == 2
    assert "holds a run with method." in capsys.readouterr().err
