"""Sweeps: runs together are the runs alone, nothing is done twice, and the table says what was found."""

import csv
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import train_arguments, write_embeddings

from mlclip_jax import InputError, recipes
from mlclip_jax.cli import main
from mlclip_jax.experiments.sweep import groups_of, points_of, read_over
from mlclip_jax.runs import read_run
from mlclip_jax.training.preparation import prepare
from mlclip_jax.training.together import train_together

RADII, SEEDS = (0.0, 3.0), (0, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("world"))


def arguments(world, workdir, *over, **changes):
    _, *rest = train_arguments(world, workdir, **changes)
    return ["sweep", *rest, *(f"--over={one}" for one in over)]


@pytest.fixture(scope="module")
def swept(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    assert main(arguments(world, workdir, "perturbation.radius=0,3", "seed=0..1")) == 0
    return workdir


def folder_of(workdir, radius, seed):
    return workdir / f"radius={radius}_seed={seed}"


def test_runs_together_are_the_runs_alone(world, swept, tmp_path):
    for radius, seed in itertools.product(RADII, SEEDS):
        alone = tmp_path / f"{radius}-{seed}"
        changes = {"seed": seed, "perturbation__radius": radius}
        assert main(train_arguments(world, alone, **changes)) == 0
        together = folder_of(swept, radius, seed)
        ours, theirs = (jax.tree.leaves(read_run(folder).parameters) for folder in (together, alone))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
        for name in ("config.json", "metrics.jsonl"):
            steps = [len((folder / name).read_text().splitlines()) for folder in (together, alone)]
            assert steps[0] == steps[1], name
        figures = [json.loads((folder / "evaluation.json").read_text()) for folder in (together, alone)]
        assert figures[0]["mAP"]["raw"] == pytest.approx(figures[1]["mAP"]["raw"], abs=1e-3)


def test_runs_side_by_side_on_a_device_are_the_runs_alone(world, swept, tmp_path):
    """As an accelerator computes them: twice as many runs as devices, of which some are the swept ones."""
    _, *rest = train_arguments(world, tmp_path)
    config = recipes.read("tai:embeddings")
    values = dict(flag.removeprefix("--config.").split("=", 1) for flag in rest if "." in flag.split("=")[0])
    config.update_from_flattened_dict(
        {key: read_over([f"{key}={value}"], config)[key][0] for key, value in values.items()}
    )
    over = {"perturbation.radius": [0.0, 3.0], "seed": list(range(jax.device_count()))}
    runs = [prepare(point.config, point.workdir) for point in points_of(config, over, tmp_path)]
    assert len(runs) == 2 * jax.device_count() > len(RADII) * len(SEEDS)
    train_together(runs)
    for radius, seed in itertools.product(RADII, SEEDS):
        folders = folder_of(tmp_path, radius, seed), folder_of(swept, radius, seed)
        ours, theirs = (jax.tree.leaves(read_run(folder).parameters) for folder in folders)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_the_table_has_mean_and_spread_over_seeds(swept):
    with (swept / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["perturbation.radius"]), int(row["seed"])) for row in rows] == list(
        itertools.product(RADII, SEEDS)
    )
    table = (swept / "table.md").read_text()
    for radius in RADII:
        own = [float(row["mAP"]) for row in rows if float(row["perturbation.radius"]) == radius]
        assert f"| {radius} | {np.mean(own):.1f} ± {np.std(own, ddof=1):.1f} |" in table
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_done_again(world, swept, capsys):
    written = folder_of(swept, 3.0, 1) / "evaluation.json"
    before = written.stat().st_mtime_ns
    assert main(arguments(world, swept, "perturbation.radius=0,3", "seed=0..1")) == 0
    assert written.stat().st_mtime_ns == before
    assert "| 3.0 |" in capsys.readouterr().out
    assert main(arguments(world, swept, "perturbation.radius=0,3", "seed=0..1", method__hidden=16)) == 2
    assert "holds a run with method.hidden 32, not 16" in capsys.readouterr().err


def test_a_sweep_resumes_where_a_part_of_it_was_stopped(world, swept, tmp_path):
    """One run is further than the others, and finished without a score; the result is the same."""
    ahead = folder_of(tmp_path, 3.0, 1)
    assert main(train_arguments(world, ahead, seed=1)) == 0
    (ahead / "evaluation.json").unlink()
    assert main(arguments(world, tmp_path, "perturbation.radius=0,3", "seed=0..1")) == 0
    assert (tmp_path / "table.md").read_text() == (swept / "table.md").read_text()


@pytest.mark.parametrize(
    ("over", "number"),
    [
        ({"perturbation.radius": [0.0, 1.0], "seed": [0, 1], "optimizer.learning_rate": [0.1, 0.2]}, 1),
        ({"texts.number": [100, 200], "texts.max_labels": [1, 2], "texts.share": [1.0, 0.5]}, 1),
        ({"perturbation.sampling": ["surface", "interior"], "seed": [0, 1]}, 2),
        ({"method.hidden": [8, 16], "train.steps": [10, 20], "seed": [0, 1]}, 4),
    ],
)
def test_runs_that_are_one_program_make_a_group(over, number):
    points = points_of(recipes.read("tai:embeddings"), over, Path("sweep"))
    groups = groups_of(points)
    assert len(groups) == number
    assert sum(map(len, groups)) == len(points) == np.prod([len(values) for values in over.values()])
    assert len({point.workdir for point in points}) == len(points)


def test_epochs_of_other_numbers_of_texts_are_other_programs():
    config = recipes.read("tai:embeddings")
    config.train.epochs = 2.0
    assert len(groups_of(points_of(config, {"texts.number": [100, 200]}, Path("sweep")))) == 2


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True), st.integers(0, 9), st.integers(0, 9)
)
def test_values_are_read_as_the_key_has_them(numbers, first, more):
    config = recipes.read("tai:embeddings")
    listed, bounds = ",".join(map(str, numbers)), f"{first}..{first + more}"
    over = read_over([f"train.steps={listed}", f"seed={bounds}", f"perturbation.radius={listed}"], config)
    assert over["train.steps"] == numbers
    assert over["seed"] == list(range(first, first + more + 1))
    assert over["perturbation.radius"] == list(map(float, numbers))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("perturbation.radios=1", r"the recipe has no such key \(did you mean perturbation.radius\?\)"),
        ("perturbation.radius", "gives no values; write --over=perturbation.radius=0,5,25"),
        ("perturbation.radius=a", "invalid --over=perturbation.radius=a: must be a number"),
        ("seed=0,x", "invalid --over=seed=x: must be a whole number"),
        ("optimizer.nesterov=maybe", "invalid --over=optimizer.nesterov=maybe: must be true or false"),
        ("seed=1,1", "--over=seed=1,1 gives a value twice"),
        ("seed=3..1", "--over=seed=3..1 gives none"),
    ],
)
def test_what_varies_nothing_is_refused(over, message):
    with pytest.raises(InputError, match=message):
        read_over([over], recipes.read("tai:embeddings"))


def test_a_key_twice_none_at_all_and_invalid_values_are_refused(world, tmp_path, capsys):
    with pytest.raises(InputError, match="--over=seed comes twice"):
        read_over(["seed=1", "seed=2"], recipes.read("tai:embeddings"))
    for over, message in (
        ((), "a sweep varies something"),
        (("perturbation.radius=0,-1",), "invalid --config.perturbation.radius=-1.0: must be finite"),
        (("perturbation.sampling=surface,inside",), "invalid --config.perturbation.sampling=inside"),
    ):
        assert main(arguments(world, tmp_path / "x", *over)) == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "x").glob("*/checkpoints"))
    assert main(arguments(world, tmp_path / "y", "seed=0,1", evaluation__embeddings="")) == 2
    assert "a sweep compares scores: set --config.evaluation.embeddings" in capsys.readouterr().err


def test_a_comma_within_a_value():
    config = recipes.read("tai:templates")
    over = read_over([r"texts.sources=templates:1\,imagenet:2,templates"], config)
    assert over == {"texts.sources": ["templates:1,imagenet:2", "templates"]}
