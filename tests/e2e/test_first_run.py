"""The main job on real photographs: a real modality gap, a real mAP."""

import csv
import json

import numpy as np
import pytest
from real_data import CLASS_EMBEDDINGS, PHOTOGRAPHS, VOCABULARY, needs_real_data
from tiny_clip import VIT_B_32, read_merges, write_clip
from tiny_models import RN50, case_weights, write_settings, write_weights

from mlclip_jax.cli import main
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import read_embeddings
from mlclip_jax.evaluation import evaluate
from mlclip_jax.runs import read_run

pytestmark = needs_real_data
EMBEDDINGS = PHOTOGRAPHS / "clip_vit_b32_embeddings.npz"


def train(workdir, steps):
    arguments = [
        "train",
        "--config=tai:embeddings",
        f"--workdir={workdir}",
        f"--config.texts.class_embeddings={CLASS_EMBEDDINGS}",
        f"--config.evaluation.embeddings={EMBEDDINGS}",
        f"--config.train.steps={steps}",
    ]
    assert main(arguments) == 0
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A third of the recipe's steps."""
    return train(tmp_path_factory.mktemp("run"), 1_000)


def rows_of(run):
    runs = [read_run(run)]
    images = read_images({"embeddings": EMBEDDINGS}, runs[0].class_embeddings)
    described, compared = evaluate(runs, images, num_samples=200)
    assert described["classes"].startswith("63 of 80 ")
    return {(row["method"], row["scoring"]): row for row in compared}


def test_trained_on_texts_it_ranks_photographs_better_than_cosine(run):
    rows = rows_of(run)
    # Computed apart from this package, with scikit-learn.
    assert rows["cosine zero-shot", "raw"]["mAP"] == pytest.approx(49.8205, abs=1e-3)
    assert rows["cosine zero-shot", "standardised"]["mAP"] == pytest.approx(58.6670, abs=1e-3)
    trained = rows["TaI-Adapter", "raw"]
    assert trained["mAP"] > 53
    assert trained["over_cosine"][1] > 0  # the lower bound of the paired interval
    assert rows["TaI-Adapter", "fused"]["mAP"] > 57


@pytest.mark.slow  # half a minute
def test_the_recipe_reaches_the_readmes_figures(tmp_path):
    """Within three standard deviations of its table's five seeds."""
    rows = rows_of(train(tmp_path, 3_000))
    assert rows["TaI-Adapter", "raw"]["mAP"] == pytest.approx(57.7, abs=1.2)
    assert rows["TaI-Adapter", "standardised"]["mAP"] == pytest.approx(58.2, abs=0.9)
    assert rows["TaI-Adapter", "fused"]["mAP"] == pytest.approx(59.6, abs=0.6)


def test_labels_from_a_table_are_those_in_the_embeddings(run, capsys):
    figures = []
    table = f"--labels={PHOTOGRAPHS / 'labels.csv'}"
    for source in ([], [table], [f"--embeddings={EMBEDDINGS}", table]):
        assert main(["evaluate", f"--workdir={run}", "--bootstrap=1", *source]) == 0
        capsys.readouterr()
        figures.append(json.loads((run / "evaluation.json").read_text())["mAP"])
    assert figures[0] == figures[1] == figures[2]


def write_vit_b_32(folder):
    return write_clip(folder, VIT_B_32, merges=read_merges(VOCABULARY))


def write_rn50(folder):
    write_weights(folder, "open_clip", case_weights("rn50"))
    write_settings(folder, "open_clip", RN50)
    return folder


@pytest.mark.slow  # parity/ holds the same towers to torch's
@pytest.mark.parametrize(("write", "width"), [(write_vit_b_32, 512), (write_rn50, 1024)])
@pytest.mark.parametrize("number", [32, 179])
def test_photographs_pass_a_full_size_clip(tmp_path, capsys, write, width, number):
    clip = write(tmp_path / "clip")
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((PHOTOGRAPHS / "images").glob("*.jpg"))[:number]:
        (images / path.name).symlink_to(path)
    output = tmp_path / "out.npz"
    assert main(["embed", f"--backbone={clip}", f"--images={images}", f"--output={output}"]) == 0
    assert f"{number} embeddings in {output}: image ({width})" in capsys.readouterr().out
    stored = read_embeddings(output)
    with (PHOTOGRAPHS / "labels.csv").open() as file:
        assert set(stored.names) <= {row["filename"] for row in csv.DictReader(file)}
    assert len(np.unique(stored.vectors, axis=0)) == number
