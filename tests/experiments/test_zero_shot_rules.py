"""The table of every rule on the same images."""

import csv

import numpy as np
import pytest

from mlclip_jax import recipes
from mlclip_jax.cli import main
from mlclip_jax.data.scenes import LABELS
from mlclip_jax.errors import InputError
from mlclip_jax.experiments import zero_shot_rules
from mlclip_jax.experiments.zero_shot_rules import compare_rules
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.untrained import load_zero_shot
from mlclip_jax.zero_shot.published import published_map

TEMPLATE = "a photo of {labels}."
NUMBER = 200  # images


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    images = f"--images=scenes:test,number={NUMBER}"
    given = ["embed", "--backbone=scenes-clip", images, f"--output={folder / 'images'}"]
    assert main([*given, "--features=image,image_local"]) == 0
    return folder / "images"


def config_of(variant, embedded, labels=None):
    config = recipes.read(f"zero_shot:{variant}")
    config.backbone, config.texts.templates = "scenes-clip", TEMPLATE
    config.evaluation.embeddings = str(embedded)
    config.texts.labels = labels
    return config


def test_every_rule_has_a_row_or_a_reason(embedded, tmp_path, capsys):
    from mlclip_jax.embeddings.store import read_embeddings

    output = tmp_path / "rules.csv"
    given = ["evaluate", "--config=zero_shot:all", "--config.backbone=scenes-clip", "--bootstrap=50"]
    given += [f"--config.texts.templates={TEMPLATE}", f"--embeddings={embedded}", f"--output={output}"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    rules = recipes.read("zero_shot:all").rules
    with output.open() as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"plain cosine", *rules}
    left_out = {rule for rule, row in rows.items() if row["left_out"]}
    many = {"list_all", "list_all_published", "top_all_published"}
    assert left_out == many | {"language_model", "patches", "tagclip", "piaa"}
    for rule, row in rows.items():
        assert (f"{rule} is left out: {row['left_out']}" in printed) == (rule in left_out)
    # The figures are those of runs of their own.
    images = read_embeddings(embedded, reads=("image_local",))
    labels = np.asarray(images.labels)
    for rule in ("ridge", "local", "yes_no", "self_distilled"):
        run = load_zero_shot("scenes-clip", LABELS, rule=rule, templates=TEMPLATE)
        decided = run.decide(images)
        own = 100 * float(mean_average_precision(decided.scores, labels)[0])
        assert float(rows[rule]["mAP"]) == pytest.approx(own, abs=0.01)
        assert float(rows[rule]["lower"]) < own < float(rows[rule]["upper"])
        assert float(rows[rule]["ms_an_image"]) > 0
        difference = own - float(rows["plain cosine"]["mAP"])
        assert float(rows[rule]["over_cosine"]) == pytest.approx(difference, abs=0.01)
    assert float(rows["yes_no"]["published_mAP"]) == pytest.approx(
        100 * published_map(run_of("yes_no").decide(images).labels, labels), abs=0.01
    )
    assert rows["ridge"]["published_mAP"] == ""


def run_of(rule):
    return load_zero_shot("scenes-clip", LABELS, rule=rule, templates=TEMPLATE)


def test_one_rule_alone(embedded):
    rows = compare_rules(config_of("softmax", embedded), num_samples=20)
    assert [row["rule"] for row in rows] == ["plain cosine", "softmax"]


def test_what_cannot_be_measured_is_refused(embedded):
    with pytest.raises(InputError, match="no file of captions is named"):
        compare_rules(config_of("language_model", embedded), num_samples=20)
    config = config_of("ridge", embedded)
    config.backbone = None
    with pytest.raises(InputError, match="this run names no backbone"):
        compare_rules(config, num_samples=20)


def test_local_features_of_many_images_are_not_made_on_the_way(monkeypatch):
    config = config_of("all", "")
    config.evaluation.embeddings, config.evaluation.images = None, "scenes:test,number=30"
    config.rules = ("ridge", "local")
    assert not any(row["left_out"] for row in compare_rules(config, num_samples=20))
    monkeypatch.setattr(zero_shot_rules, "LOCAL_BYTES", 30 * 64 * 4 * 100)  # of less than their width
    *_, local = compare_rules(config, num_samples=20)
    assert local["left_out"].startswith("the images have no image_local, which it reads; embed them by")
