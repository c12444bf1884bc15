"""TaI-Adapter's tables and figures: as published, beside ours, on what is there."""

import csv
import json

import numpy as np
import pytest
from absl.flags import FlagValues
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlclip_jax import InputError, recipes
from mlclip_jax.cli import main
from mlclip_jax.commands import reproduce as command
from mlclip_jax.data.benchmarks import VOC_LABELS
from mlclip_jax.experiments import tai_adapter
from mlclip_jax.experiments.centroids import most_frequent
from mlclip_jax.experiments.sweep import MAP
from mlclip_jax.experiments.tai_adapter import datasets_there, with_changes
from mlclip_jax.experiments.tai_published import ALL, EXPERIMENTS, METHOD
from mlclip_jax.report import plot_figures

SHORT = (
    "train.steps=20",
    "train.batch_size=8",
    "method.hidden=16",
    r"evaluation.images=scenes:test\,number=30",
)
FEW = (*SHORT, r"examples.images=scenes:train\,number=150", "texts.number=200")


def reproduce(name, workdir, *changes, data="scenes", flags=()):
    settings = [f"--set={change}" for change in changes]
    return main(["reproduce", name, f"--data={data}", f"--workdir={workdir}", *flags, *settings])


def rows_of(workdir):
    with (workdir / "figures.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_voc(folder):
    """Random images in PASCAL VOC's layout, each label in two images of either split."""
    generator = np.random.default_rng(0)
    voc = folder / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (voc / name).mkdir(parents=True)
    for split in ("trainval", "test"):
        names = [f"{split}{i}" for i in range(20)]
        (voc / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for i, name in enumerate(names):
            kinds = (VOC_LABELS[i].replace(" ", ""), VOC_LABELS[(i + 1) % 20].replace(" ", ""))
            objects = "".join(f"<object><name>{kind}</name></object>" for kind in kinds)
            (voc / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
            pixels = generator.integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(voc / f"JPEGImages/{name}.jpg")
    return folder


@pytest.mark.parametrize(
    ("name", "dataset", "figures"),
    [
        ("tai_table1", "voc2007", "93.8 94.7 95.1 95.2 95.3 95.3 95.4 95.6 95.7"),
        ("tai_table1", "coco2014", "82.1 82.9 83.5 84.0 84.4 84.7 84.9 85.1 85.1"),
        ("tai_table1", "nus_wide", "59.5 61.9 62.8 63.2 63.2 63.1 63.5 64.2 65.0"),
        ("tai_table2", "voc2007", "77.3 89.0"),
        ("tai_table2", "coco2014", "49.7 67.7"),
        ("tai_table2", "nus_wide", "37.4 53.3"),
        ("tai_table3", "voc2007", "90.0 91.5 92.2 93.5 93.9"),
        ("tai_table3", "coco2014", "70.5 70.7 71.4 72.0 72.7"),
    ],
)
def test_published_figures_are_the_papers(name, dataset, figures):
    experiment = EXPERIMENTS[name]
    assert " ".join(f"{figure:.1f}" for figure in experiment.published[dataset]) == figures
    [values] = experiment.over.values()
    assert len(values) == len(figures.split())
    assert set(experiment.published) == set(experiment.datasets)


def test_the_averages_of_table_1_are_the_papers():
    means = {name: np.mean(own) for name, own in EXPERIMENTS["tai_table1"].published.items()}
    assert [round(float(means[name]), 1) for name in ALL] == [95.1, 84.1, 62.9]


def test_the_flag_names_every_experiment():
    values = FlagValues()
    command.define_flags(values, [])
    assert all(name in str(values["name"].help) for name in EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_varies_keys_that_its_recipe_has(name):
    experiment = EXPERIMENTS[name]
    for dataset in experiment.datasets:
        config = recipes.read(f"tai:{dataset},task={experiment.task},published=yes")
        known = recipes.flat_config(config)
        for key, values in experiment.over.items():
            assert key == METHOD or all(isinstance(v, type(known[key])) for v in values)


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("partial")
    assert reproduce("tai_fig6c", workdir, *FEW, "examples.known=0,0.5", flags=["--seeds=2"]) == 0
    return workdir


def test_at_zero_nothing_is_shifted(partial):
    rows = rows_of(partial)
    assert [(row["examples.known"], row["seed"]) for row in rows] == [
        ("0", "0"),
        ("0", "1"),
        ("0.5", "0"),
        ("0.5", "1"),
    ]
    folders = {"zero_shot": "zero_shot/seed=0", "partial_labels": "sweep/known=0.5_seed=0"}
    for task, folder in folders.items():
        config, recipe = (
            recipes.read_config(partial / "scenes" / folder),
            recipes.read(f"tai:scenes,task={task}"),
        )
        assert config.perturbation == recipe.perturbation
        assert config.perturbation.shift == ("" if task == "zero_shot" else "regression")
        assert config.texts.per_combination == 2


def test_the_table_has_mean_and_spread_and_says_what_was_done(partial):
    rows, table = rows_of(partial), (partial / "table.md").read_text()
    for value in ("0", "0.5"):
        own = [float(row[MAP]) for row in rows if row["examples.known"] == value]
        assert f"| built-in world | {value} | {np.mean(own):.1f} ± {np.std(own, ddof=1):.1f} |" in table
    for said in (
        "mAP: average precision as in scikit-learn",
        "standard deviation over 2 seeds",
        "30 images of scenes:test,number=30, 64x64 pixels; prompt 'a photo of {labels}.'",
        "backbone scenes-clip (sha256 ",
        "The paper has no figures of the built-in world.",
        "Changed: train.steps=20 ",
    ):
        assert said in table
    assert "published |" not in table
    assert (partial / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_done_again(partial, capsys):
    written = {path: path.stat().st_mtime_ns for path in (partial / "scenes").glob("*/*/evaluation.json")}
    assert len(written) == 4
    before = (partial / "table.md").read_text()
    assert reproduce("tai_fig6c", partial, *FEW, "examples.known=0,0.5", flags=["--seeds=2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert (partial / "table.md").read_text() == before
    assert str(partial / "figure.png") in capsys.readouterr().out


def test_published_figures_stand_beside_ours(tmp_path, capsys):
    """On images in VOC's layout, with the published settings but for size and length."""
    data = write_voc(tmp_path / "data")
    changes = ("backbone=scenes-clip", "encoding.image_size=64", "method.hidden=16", "train.epochs=0")
    changes += ("train.steps=20", "texts.number=200")
    assert reproduce("tai_table2", tmp_path / "runs", *changes, data=data) == 0
    said = capsys.readouterr()
    for dataset in ("MS-COCO", "NUS-WIDE"):
        assert f"left out {dataset}" in said.err
    rows = rows_of(tmp_path / "runs")
    assert [row["method"] for row in rows] == ["plain cosine", "TaI-Adapter"]
    for row, published in zip(rows, (77.3, 89.0)):
        ours = float(row[MAP])
        cells = f"| VOC 2007 | {row['method']} | {ours:.1f} | {published} | {ours - published:+.1f} |"
        assert cells in said.out
    run = tmp_path / "runs/voc2007/sweep/seed=0"
    config = recipes.read_config(run)
    assert (config.perturbation.radius, config.method.depth, config.optimizer.learning_rate) == (25, 4, 1e-4)
    assert json.loads((run / "evaluation.json").read_text())[MAP]["raw"] == float(rows[1][MAP])
    assert "Settings: as published." in said.out
    assert "Texts: from templates; the paper's are by Vicuna-33b." in said.out


def test_sources_of_texts_are_compared(tmp_path):
    names = [f"{source}.jsonl" for source in ("seven", "thirteen")]
    for seed, name in enumerate(names):
        own = ["--config=texts:templates", f"--output={tmp_path / name}", f"--config.seed={seed}"]
        labels = tmp_path / "labels.txt"
        labels.write_text("\n".join(tai_adapter.open_images("scenes:test,number=1").label_names or ()))
        assert main(["generate", *own, f"--config.labels={labels}", "--config.number=200"]) == 0
    texts = "--texts=" + ",".join(str(tmp_path / name) for name in names)
    assert reproduce("tai_fig5c", tmp_path / "w", *SHORT, "texts.number=100", flags=[texts]) == 0
    table = (tmp_path / "w/table.md").read_text()
    for source in ("seven", "thirteen"):
        assert f"| built-in world | {source} | 100 | " in table


def test_centroids_are_compared_and_drawn(tmp_path, capsys):
    changes = (r"examples.images=scenes:train\,number=150\,difficulty=plain", "examples.known=0.1,0.9")
    assert reproduce("tai_fig10", tmp_path, *changes) == 0
    few, most = rows_of(tmp_path)
    distance = "distance to the true centroid"
    assert float(few[distance]) > float(most[distance])
    assert "8 combinations of labels with most images" in capsys.readouterr().out
    with Image.open(tmp_path / "scenes.png") as picture:
        assert picture.width > picture.height > 300


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_the_most_frequent_combinations(num_images, num_labels, number, seed):
    present = np.random.default_rng(seed).random((num_images, num_labels)) < 0.4
    combinations, which = most_frequent(present, number)
    counts = {}
    for row in map(tuple, present):
        counts[row] = counts.get(row, 0) + any(row)
    expected = sorted((count for count in counts.values() if count), reverse=True)[:number]
    assert [counts[tuple(row)] for row in combinations] == expected
    assert np.bincount(which[which >= 0], minlength=len(combinations)).tolist() == expected
    assert all((present[i] == combinations[place]).all() for i, place in enumerate(which) if place >= 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tai_table4"], r"no table or figure 'tai_table4' (did you mean tai_table"),
        ([], "no table or figure ''; there are tai_table1, "),
        (["tai_table1", "tai_table2"], "unexpected argument 'tai_table2'"),
        (["tai_fig6a", "--datasets=voc2007"], "tai_fig6a has no dataset 'voc2007'"),
        (["tai_fig6a", "--texts=a.jsonl"], "--texts=a.jsonl is for tai_fig5b and tai_fig5c"),
        (["tai_fig6a", "--set=train.step=2"], "--set=train.step: the recipe has no such key (did you mean"),
        (["tai_fig6a", "--set=train.steps=2,3"], "has 2 values, and only perturbation.radius, "),
        (["tai_fig6a", "--set=seed=2"], "--set=seed is no change: give --seeds"),
        (["tai_fig6a", "--set=train.steps=x"], "invalid --set=train.steps=x: must be a whole number"),
    ],
)
def test_what_is_invalid_is_refused_in_a_line(tmp_path, capsys, arguments, message):
    workdir = tmp_path / "w"
    assert main(["reproduce", *arguments, "--data=scenes", f"--workdir={workdir}"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("mlclip reproduce: error: ")
    assert said.count("\n") == 1
    assert not list(workdir.rglob("*.npz"))


def test_datasets_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"holds none of VOC 2007 \(.*\), MS-COCO \(.*\), NUS-WIDE \(.*\)"):
        datasets_there("tai_table1", tmp_path)
    with pytest.raises(InputError, match=r"has no dataset 'voc' \(did you mean voc2007\?\)"):
        datasets_there("tai_table1", tmp_path, ["voc"])
    (tmp_path / "coco").mkdir()
    assert datasets_there("tai_table1", tmp_path) == ["coco2014"]
    with pytest.raises(InputError, match="tai_fig5c compares files of texts: write some by `mlclip generate"):
        tai_adapter.reproduce("tai_fig5c", tmp_path, tmp_path / "w")
    with pytest.raises(InputError, match="has files of one name"):
        tai_adapter.reproduce("tai_fig5c", tmp_path, tmp_path / "w", texts=["a/x.jsonl", "b/x.jsonl"])


def test_values_of_a_key_that_varies_are_replaced():
    config = recipes.read("tai:scenes")
    over = {"perturbation.radius": (0.0, 5.0)}
    changed, replaced = with_changes(config, over, ["perturbation.radius=1,2,3", "train.steps=7"])
    assert (replaced, changed.train.steps) == ({"perturbation.radius": [1.0, 2.0, 3.0]}, 7)
    assert over == {"perturbation.radius": (0.0, 5.0)}


@pytest.mark.parametrize(
    ("keys", "figures", "reference"),
    [
        (["dataset", "radius"], {("a", 0.0): [1.0, 2.0], ("a", 25.0): [3.0]}, {("a", 0.0): 2.0}),
        (["dataset", "texts.number"], {(d, n): [1.0] for d in "ab" for n in (100, 10_000)}, {}),
        (["dataset", "method"], {("a", "x"): [1.0, 2.0], ("a", "y"): [3.0]}, {("a", "y"): 2.0}),
    ],
)
def test_figures_are_plotted(tmp_path, keys, figures, reference):
    plot_figures(tmp_path / "x.png", keys, figures, "mAP (%)", reference=reference)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (640, 440)
