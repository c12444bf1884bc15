"""Many runs of one recipe, over values of its keys: a table with mean and spread, a CSV, and a plot."""

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mlclip_jax.backbones import load_backbone_of
from mlclip_jax.distributed.processes import all_or_none, held_by_this_run, is_first
from mlclip_jax.errors import InputError
from mlclip_jax.evaluation import write_evaluation
from mlclip_jax.experiments.scenes import mean_and_spread
from mlclip_jax.files import make_folder, read_json, write_rows, write_text
from mlclip_jax.metrics import PROTOCOLS
from mlclip_jax.options import nearest
from mlclip_jax.recipes import check_same_run, flat_config, read_config
from mlclip_jax.report import markdown_table, plot_figures
from mlclip_jax.run_folders import EMBEDDED
from mlclip_jax.runs import read_run
from mlclip_jax.training.preparation import (
    MAY_CHANGE,
    check,
    check_trainable,
    prepare,
    with_loss_constants,
)
from mlclip_jax.training.step import ARGUMENTS
from mlclip_jax.training.together import may_train_together, runs_at_once, train_together
from mlclip_jax.training.train import train_prepared
from mlclip_jax.wording import counted

SEED = "seed"  # runs that differ in it alone are one row of the table
MAP = "mAP"
# Beside the arguments of the step, keys in which runs of one program may differ: what decides data alone.
DATA = ("texts.", "examples.", "perturbation.shift", "recipe", "init")
LENGTHS = ("texts.number", "examples.shots")  # which decide the steps of so many epochs


class Point(NamedTuple):
    """One run of a sweep: the values of the keys that vary, its config and its folder."""

    values: dict[str, Any]
    config: ConfigDict
    workdir: Path


def sweep(
    config: ConfigDict,
    over: Mapping[str, Sequence[Any]],
    workdir: str | os.PathLike,
    report: Callable[[str], object] | None = None,
    *,
    embedded: str | os.PathLike | None = None,
) -> list[dict[str, Any]]:
    """Trains a run for each combination of values, and scores it on the images of the recipe's `evaluation`.

    Runs that are one program train at once, see `training/together.py`, the others in turn. Leaves in
    `workdir` a folder for each run, as `train` does; and `sweep.csv` (a row a run), `table.md` (mean and
    standard deviation over seeds) and `sweep.png`. What is there already is not done again.

    Args:
      config: of a recipe.
      over: the values of each key that varies, see `read_over`.
      workdir: a folder.
      report: called with what a command prints at the end, as `print`.
      embedded: folder of embeddings that are made on the way, which several sweeps may share; by default in
        `workdir`.

    Returns:
      For each run the values of the keys that vary, and `mAP` in percent.

    Raises:
      InputError: a combination is no valid config, or what it names cannot be used.
      Preempted: the process received SIGTERM; what was trained is saved.
    """
    workdir = Path(workdir)
    with all_or_none():
        check_trainable(config)
        make_folder(workdir)
        if not any(config.get("evaluation", {}).values()):
            raise InputError("a sweep compares scores: set --config.evaluation.embeddings or .images")
        points = points_of(config, over, workdir)
        for point in points:  # before the first has trained for hours
            check(with_loss_constants(point.config), jax.device_count())
    load_backbone = _loading_once()
    embedded = workdir / EMBEDDED if embedded is None else Path(embedded)
    with held_by_this_run(workdir):
        with all_or_none():
            groups = groups_of([point for point in points if not is_scored(point)])
        for group in groups:
            _train_and_score(group, embedded, load_backbone)
        rows = [point.values | {MAP: _figure_of(point)} for point in points]
        said = _write(workdir, config, over, rows)
    if report:
        report(said)
    return rows


def read_over(given: Sequence[str], config: ConfigDict, flag: str = "over") -> dict[str, list[Any]]:
    r"""Reads what varies: "perturbation.radius=0,5,25", or "seed=0..4" for 0, 1, 2, 3 and 4.

    A comma within a value is written as `\,`.

    Args:
      given: of these.
      config: of the recipe, which has the keys and the types of their values.
      flag: by which they are given, for errors.

    Raises:
      InputError: a key is not there or comes twice, or a value is of another type or comes twice.
    """
    known, over = flat_config(config), {}
    for one in given:
        key, _, values = one.partition("=")
        if not values:
            raise InputError(f"--{flag}={one!r} gives no values; write --{flag}=perturbation.radius=0,5,25")
        if key not in known:
            raise InputError(f"--{flag}={key}: the recipe has no such key{nearest(key, known)}")
        if key in over:
            raise InputError(f"--{flag}={key} comes twice; give all of its values at once")
        bounds = re.fullmatch(r"(\d+)\.\.(\d+)", values)
        if bounds and isinstance(known[key], int):
            over[key] = list(range(int(bounds[1]), int(bounds[2]) + 1))
        else:
            parts = (part.replace("\\,", ",") for part in re.split(r"(?<!\\),", values))
            over[key] = [_typed(f"--{flag}={key}={part}", part, known[key]) for part in parts]
        if not over[key] or len(set(over[key])) < len(over[key]):
            raise InputError(
                f"--{flag}={one} gives {'a value twice' if over[key] else 'none'}; give each once"
            )
    if not over:
        raise InputError("a sweep varies something: give --over=perturbation.radius=0,5,25")
    return over


def _typed(given, text, example):
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    try:
        if isinstance(example, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(example)(text) if type(example) in kinds else text
    except (KeyError, ValueError):
        raise InputError(f"invalid {given}: must be {kinds[type(example)]}") from None


def points_of(config: ConfigDict, over: Mapping[str, Sequence[Any]], workdir: Path) -> list[Point]:
    """The runs of a sweep, one for each combination of values, each in a folder that is named after these."""
    points = []
    for values in itertools.product(*over.values()):
        own = dict(zip(over, values))
        changed = ConfigDict(config.copy_and_resolve_references())
        changed.update_from_flattened_dict(own)
        # Without commas, which separate folders in other commands' flags.
        name = "_".join(f"{key.rpartition('.')[2]}={value}" for key, value in own.items())
        points.append(Point(own, changed, workdir / re.sub(r"[^\w.=+-]", "_", name)))
    if len({point.workdir for point in points}) < len(points):  # values that only differ in odd characters
        points = [
            point._replace(workdir=workdir / f"{number:04}_{point.workdir.name}")
            for number, point in enumerate(points)
        ]
    return points


def groups_of(points: Sequence[Point]) -> list[list[Point]]:
    """Points in groups whose runs are one program."""
    groups = {}
    for point in points:
        may_differ = (*ARGUMENTS, *DATA)
        program = {
            key: value
            for key, value in flat_config(point.config).items()
            if not key.startswith(may_differ) or (key in LENGTHS and point.config.train.epochs)
        }
        groups.setdefault(json.dumps(program, sort_keys=True), []).append(point)
    return list(groups.values())


def is_scored(point: Point) -> bool:
    """Whether a point's run is there, finished, and scored on the images that its config names.

    Raises:
      InputError: its folder holds a run of another config.
    """
    if not (point.workdir / "evaluation.json").is_file():
        return False
    check_same_run(point.workdir, with_loss_constants(point.config), (*MAY_CHANGE, "train.steps"))
    return read_config(point.workdir).evaluation.to_dict() == point.config.evaluation.to_dict()


def _train_and_score(points, embedded, load_backbone):
    """Trains the points of a group, as many at once as the devices have room for."""

    def prepared(point):
        return prepare(point.config, point.workdir, embedded=embedded, load_backbone=load_backbone)

    while points:
        runs = [prepared(points[0])]
        number = runs_at_once(runs[0]) if may_train_together(runs[0]) else 1
        if number > 1:
            runs += map(prepared, points[1:number])
            # Where some of them were stopped at another step, they wait.
            runs = [run for run in runs if run.latest_step == runs[0].latest_step]
            train_together(runs)
        else:
            train_prepared(runs[0], score=False)
        trained = [read_run(run.workdir) for run in runs]
        with all_or_none():
            for run, one in zip(runs, trained):
                if run.images is not None:
                    write_evaluation(one, run.images)
        done = {run.workdir for run in runs}
        points = [point for point in points if point.workdir not in done]


def _loading_once():
    """What loads the backbone of a config, each only once."""

    @functools.cache
    def load(known):
        return load_backbone_of(ConfigDict(json.loads(known)))

    def load_backbone(config):
        known = {key: config[key] for key in ("backbone", "encoding") if key in config}
        return load(ConfigDict(known).to_json(sort_keys=True))

    return load_backbone


def _figure_of(point):
    return read_json(point.workdir / "evaluation.json")[MAP]["raw"]


def _write(workdir, config, over, rows):
    """Writes the table, the CSV and the plot of a finished sweep; returns the table and where they are."""
    keys = [key for key in over if key != SEED]
    figures = {}
    for row in rows:
        figures.setdefault(tuple(row[key] for key in keys), []).append(row[MAP])
    cells = [[*map(str, values), mean_and_spread(own)] for values, own in figures.items()]
    scored_on = config.evaluation.get("images") or config.evaluation.embeddings
    seeds = counted(len(over.get(SEED, [config.seed])), "seed")
    notes = [
        f"{PROTOCOLS['ap']}; mean and standard deviation over {seeds}.",
        f"Recipe {config.recipe}, scored on {scored_on}.",
    ]
    said = "\n".join([markdown_table([*keys, MAP], cells), "", *notes])
    names = "table.md", "sweep.csv", "sweep.png"
    table, sheet, plot = (workdir / name for name in names)
    if is_first():
        write_text(table, said + "\n")
        write_rows(sheet, rows)
        plot_figures(plot, keys, figures, f"{MAP} (%)")
    return "\n".join([said, "", *map(str, (table, sheet, plot))])
