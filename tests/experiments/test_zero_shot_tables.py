"""Zero-shot classification by patches, step by step, on a tiny built-in world."""

import csv
import dataclasses

import numpy as np
import pytest
from absl.flags import FlagValues

from mlclip_jax.cli import main
from mlclip_jax.commands import reproduce as command
from mlclip_jax.comparison import compare_steps
from mlclip_jax.experiments import tai_published, zero_shot_tables
from mlclip_jax.experiments.zero_shot_published import BENCHMARKS, NATIVE, SCENES, STEPS
from mlclip_jax.experiments.zero_shot_tables import patch_settings, settings_of
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.scores import read_scores

FEW = ("images=scenes:test,number=24", "unlabelled=scenes:train,number=40", "batch_size=16", "short_side=48")
# The steps of one kind each, as each kind is compiled.
KEPT = {key: STEPS[key] for key in STEPS if key not in ("surgery", "sclip", "tagclip", "chosen")}


def reproduce(name, workdir, *changes, data="scenes", flags=()):
    settings = [f"--set={change}" for change in changes]
    return main(["reproduce", name, f"--data={data}", f"--workdir={workdir}", *flags, *settings])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero_shot_tables, "STEPS", KEPT)
        assert reproduce("zero_shot_coco2014", workdir, *FEW) == 0
    return workdir


def test_every_step_has_a_row_its_scores_and_its_gain(table):
    with (table / "figures.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["step"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(KEPT)
    for key, row in rows.items():
        known = read_scores(table / f"{key}.npz")
        assert known.scores.shape == known.labels.shape == (24, 24)
        figure = 100 * float(mean_average_precision(known.scores, known.labels)[0])
        assert float(row["mAP"]) == pytest.approx(figure)
        assert row["over"] == STEPS[key].over
        if row["over"]:
            assert float(row["gain"]) == pytest.approx(figure - float(rows[row["over"]]["mAP"]), abs=1e-4)
            assert float(row["lower"]) < float(row["gain"]) < float(row["upper"])
    said = (table / "table.md").read_text()
    for key, row in rows.items():
        title = STEPS[key].title + (", native aspect ratio" if key == NATIVE else "")
        assert f"| {title} | {float(row['mAP']):.1f} | " in said
    for part in (
        "24 images of scenes:test,number=24, 64x64 pixels (at native aspect ratio 48 on the shorter side); ",
        "class texts 'a photo of {labels}.'; backbone scenes-clip.",
        "learns from 40 images of scenes:train,number=40, without their labels",
        "Nothing is published of the built-in world.",
    ):
        assert part in said


def test_steps_are_different_scores(table):
    scores = {key: read_scores(table / f"{key}.npz").scores for key in KEPT}
    for key, own in scores.items():
        for other, others in scores.items():
            assert key == other or np.abs(own - others).max() > 1e-5, (key, other)


def test_each_step_switches_one_thing():
    settings = settings_of(BENCHMARKS["zero_shot_coco2014"], "data")
    for key, step in STEPS.items():
        if step.over and step.over in STEPS and STEPS[step.over].over:
            own, before = (dataclasses.asdict(patch_settings(k, settings)) for k in (key, step.over))
            changed = {name for name in own if own[name] != before[name]}
            wanted = {"short_side" if name == NATIVE else name for name in step.settings}
            assert changed == wanted, key
    assert patch_settings("merged", settings).patch_scale == 400
    assert patch_settings(NATIVE, settings).short_side == 384
    assert patch_settings("attention", settings | {"attention": "sclip"}).attention == "sclip"
    assert patch_settings(NATIVE, settings_of(SCENES, "scenes")) is None


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("zero_shot_voc2007", "79.9 91.7 92.5"),
        ("zero_shot_coco2014", "55.5 70.9 73.2 +1.8"),
        ("zero_shot_nus_wide", "40.9 50.6"),
    ],
)
def test_published_figures_stand_beside_their_steps(name, figures):
    published = BENCHMARKS[name].published
    assert " ".join(figure.value for figure in published.values()) == figures
    assert published.keys() <= STEPS.keys()


def test_every_name_is_one_that_a_module_knows():
    values = FlagValues()
    command.define_flags(values, [])
    assert all(name in str(values["name"].help) for name in command.EXPERIMENTS)
    assert command.EXPERIMENTS.keys() == tai_published.EXPERIMENTS.keys() | BENCHMARKS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zero_shot_voc"], "no table or figure 'zero_shot_voc' (did you mean zero_shot_voc2007?)"),
        (["zero_shot_voc2007", "--datasets=voc2007"], "--datasets=voc2007 is for tai_ tables"),
        (["zero_shot_voc2007", "--seeds=2"], "--seeds=2: zero_shot_voc2007 draws nothing"),
        (["zero_shot_voc2007", "--set=short=2"], "has no option 'short' (did you mean short_side?)"),
        (["zero_shot_voc2007", "--set=scale=-1"], "invalid scale=-1.0: must be finite and not negative"),
        (["zero_shot_voc2007", "--set=attention=scclip"], "invalid attention=scclip (did you mean s"),
    ],
)
def test_what_is_invalid_is_refused_in_a_line(tmp_path, capsys, arguments, message):
    assert main(["reproduce", *arguments, "--data=scenes", f"--workdir={tmp_path / 'w'}"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_a_benchmark_that_is_not_there(tmp_path, capsys):
    assert reproduce("zero_shot_nus_wide", tmp_path / "w", data=tmp_path) == 2
    said = capsys.readouterr().err
    assert f"NUS-WIDE is not there ({tmp_path}/nus-wide): lay it out as docs/datasets.md says" in said


def test_gains_are_over_the_step_before():
    """Scores that rank perfectly, randomly, and the same again."""
    random = np.random.default_rng(0)
    labels = (random.random((60, 3)) < 0.4).astype(np.int8)
    noise = random.normal(size=labels.shape).astype(np.float32)
    methods = {"noise": noise, "truth": labels.astype(np.float32), "again": 2 * noise}
    compared = compare_steps(methods, {"truth": "noise", "again": "noise"}, labels, num_samples=50)
    assert compared["truth"][0] == pytest.approx(100)
    assert compared["noise"][1] is None
    gain, lower, upper = compared["truth"][1]
    assert gain == pytest.approx(100 - compared["noise"][0])
    assert 0 < lower < gain < upper
    assert compared["again"][1] == pytest.approx([0, 0, 0])
