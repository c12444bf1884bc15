"""TaI-Adapter's tables and figures, the published figures beside ours (arXiv 2312.04160)."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mlclip_jax import recipes
from mlclip_jax.backbones import load_backbone_of
from mlclip_jax.data.datasets import open_images
from mlclip_jax.embeddings.labelled import embed_once, read_images
from mlclip_jax.errors import InputError
from mlclip_jax.experiments.centroids import compare_centroids
from mlclip_jax.experiments.scenes import COSINE, cosines, mean_and_spread, score
from mlclip_jax.experiments.sweep import MAP, SEED, points_of, read_over, sweep
from mlclip_jax.experiments.tai_published import (
    ADAPTER,
    DATASETS,
    EXPERIMENTS,
    FROM_FILES,
    KNOWN,
    METHOD,
    NUMBER,
    NUMBERS,
    RADIUS,
    SAMPLING,
    SCENES,
    SHOTS,
    SOURCES,
    UNTRAINED,
)
from mlclip_jax.files import make_folder, read_json, write_rows, write_text
from mlclip_jax.metrics import PROTOCOLS
from mlclip_jax.options import nearest, split_options
from mlclip_jax.progress import note
from mlclip_jax.report import markdown_table, plot_figures
from mlclip_jax.run_folders import EMBEDDED
from mlclip_jax.texts.captions import label_captions
from mlclip_jax.texts.files import save_texts
from mlclip_jax.training.inputs import read_class_embeddings
from mlclip_jax.wording import counted

DATASET = "dataset"
TITLES = {  # what tables and plots call the keys
    KNOWN: "fraction of labels known",
    SHOTS: "images of each label",
    NUMBER: "number of texts",
    RADIUS: "radius",
    SAMPLING: "sampling",
    SOURCES: "texts from",
}


def reproduce(
    name: str,
    data: str | os.PathLike,
    workdir: str | os.PathLike,
    num_seeds: int = 1,
    *,
    datasets: Sequence[str] = (),
    texts: Sequence[str] = (),
    changes: Sequence[str] = (),
    report: Callable[[str], object] | None = None,
) -> list[dict[str, Any]]:
    """Reproduces a table or figure of the paper on the datasets that are there.

    Leaves in `workdir` a sweep for each dataset, in a folder of its name; `table.md`, `figures.csv` (a row a
    run), and `figure.png`, or a picture for each dataset where images are drawn. What is there already is not
    done again.

    Args:
      name: a key of `EXPERIMENTS`.
      data: folder that holds the paper's datasets, whose recipes are then as published; or "scenes", the
        built-in world, with our own settings.
      workdir: a folder.
      num_seeds: how many times each adapter is trained.
      datasets: which of the experiment's; by default all that are there.
      texts: files of texts to compare, of the experiments in `FROM_FILES`.
      changes: other values of the recipe's keys, "train.steps=200"; see `sweep.read_over`. A key that varies
        may have several.
      report: called with what a command prints at the end, as `print`.

    Returns:
      The rows of `figures.csv`.

    Raises:
      InputError: there is no such experiment or dataset, none of its datasets is there, or a value is
        invalid.
      Preempted: the process received SIGTERM; what was trained is saved.
    """
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise InputError(f"no table or figure {name!r}{nearest(name, EXPERIMENTS)}; there are {known}")
    if texts and name not in FROM_FILES:
        wanted = " and ".join(FROM_FILES)
        raise InputError(f"--texts={texts[0]} is for {wanted}; for {name} give --set={SOURCES}={texts[0]}")
    experiment, workdir = EXPERIMENTS[name], Path(workdir)
    there = datasets_there(name, data, datasets)
    make_folder(workdir)
    over = dict(experiment.over)
    if name in FROM_FILES:
        over[SOURCES] = _sources(name, data, texts, workdir)

    rows, protocols = [], []
    for dataset in there:
        config, own_over = with_changes(_recipe(dataset, data, experiment.task), over, changes)
        if name in UNTRAINED:
            picture = workdir / f"{dataset}.png"
            own, protocol = compare_centroids(config, own_over[KNOWN], picture, workdir / EMBEDDED)
        else:
            own, protocol = _train(config, own_over, dataset, data, num_seeds, changes, workdir)
        rows += [{DATASET: dataset, **row} for row in own]
        protocols.append(f"{DATASETS[dataset]}: {protocol}.")
    if name in UNTRAINED:
        table = markdown_table(list(rows[0]), [[*map(_written, row.values())] for row in rows])
        pictures = [workdir / f"{dataset}.png" for dataset in there]
    else:
        pictures = [workdir / "figure.png"]
        table = _compare(experiment, there, rows, pictures[0])
        seeds = counted(num_seeds, "seed")
        protocols.insert(0, f"{PROTOCOLS['ap']}, in percent; mean and standard deviation over {seeds}.")
    changed = f"Changed: {' '.join(changes)}." if changes else ""
    notes = [*protocols, _settings(name, data, config), _what_is_published(experiment, there)]
    notes = filter(None, [*notes, experiment.remark, changed])
    title = f"TaI-Adapter (arXiv 2312.04160), {experiment.title}."
    said = "\n\n".join(["  \n".join([title, *notes]), table])
    sheet = workdir / "figures.csv"
    write_rows(sheet, rows)
    write_text(workdir / "table.md", said + "\n")
    if report:
        report("\n".join([said, "", *map(str, (workdir / "table.md", sheet, *pictures))]))
    return rows


def datasets_there(name: str, data: str | os.PathLike, wanted: Sequence[str] = ()) -> list[str]:
    """Which of an experiment's datasets are there; those that are not are said.

    Args:
      name: a key of `EXPERIMENTS`.
      data: a folder, or "scenes".
      wanted: which of them; by default all.

    Raises:
      InputError: the experiment has no such dataset, or none is there.
    """
    known = (SCENES,) if data == SCENES else EXPERIMENTS[name].datasets
    for dataset in wanted:
        if dataset not in known:
            near = nearest(dataset, known)
            raise InputError(f"{name} has no dataset {dataset!r}{near} in {data}; it has {', '.join(known)}")
    there, missing = [], []
    for dataset in wanted or known:
        spec = _recipe(dataset, data, "zero_shot").evaluation.images
        folder, _ = split_options(spec.partition(":")[2])
        if dataset == SCENES or Path(folder).is_dir():
            there.append(dataset)
        else:
            missing.append(f"{DATASETS[dataset]} ({folder})")
    if not there:
        raise InputError(
            f"--data={data} holds none of {', '.join(missing)}: lay one out as docs/datasets.md says, or "
            f"give --data={SCENES}"
        )
    for one in missing:
        note(f"left out {one}, which is not there")
    return there


def _recipe(dataset, data, task):
    own = "" if dataset == SCENES else f",published=yes,data={data}"
    return recipes.read(f"tai:{dataset},task={task}{own}")


def with_changes(
    config: ConfigDict, over: Mapping[str, Sequence[Any]], changes: Sequence[str]
) -> tuple[ConfigDict, dict[str, Sequence[Any]]]:
    """A recipe, and the keys that vary with their values, once some values are changed.

    Args:
      config: which is changed too.
      over: the keys that vary.
      changes: "KEY=VALUE", or "KEY=VALUE,VALUE" of a key that varies.

    Raises:
      InputError: there is no such key, or a value is invalid.
    """
    over = dict(over)
    for key, values in (read_over(changes, config, "set") if changes else {}).items():
        if key == SEED:
            raise InputError(f"--set={SEED} is no change: give --seeds, how many times each is trained")
        if key in over:
            over[key] = values
        elif len(values) == 1:
            config.update_from_flattened_dict({key: values[0]})
        else:
            varied = ", ".join(over)
            raise InputError(f"--set={key} has {len(values)} values, and only {varied} varies; give one")
    return config, over


def _sources(name, data, texts, workdir):
    """The sources of texts that are compared."""
    if data == SCENES and not texts:
        path = workdir / f"captions-{max(NUMBERS)}.jsonl"
        if not path.is_file():
            scenes = open_images(f"scenes:train,number={max(NUMBERS)}")
            captions, label_names = scenes.captions or (), scenes.label_names or ()
            kept, labels = label_captions(captions, label_names)
            save_texts(path, [captions[i] for i in kept], labels, label_names)
        return ["templates", "imagenet", str(path)]
    if not texts:
        raise InputError(
            f"{name} compares files of texts: write some by `mlclip generate --config=texts:language_model`, "
            "and give --texts=FILE,FILE"
        )
    sources = [*EXPERIMENTS[name].over[SOURCES], *texts]
    if len(set(map(_named, sources))) < len(sources):
        raise InputError(f"--texts={','.join(texts)} has files of one name; give each another")
    return sources


def _train(config, over, dataset, data, num_seeds, changes, workdir):
    """The runs of one dataset: a row for each, and its protocol."""
    seeds, embedded = {SEED: list(range(num_seeds))}, workdir / EMBEDDED
    config, scored_on = on_embeddings(config, embedded), config.evaluation.images
    varied = {key: list(values) for key, values in over.items() if key != METHOD}
    rows, first = [], []

    def run(config, varied, folder, **values):
        rows.extend(values | row for row in sweep(config, varied | seeds, folder, embedded=embedded))
        first.append(points_of(config, varied | seeds, folder)[0].workdir)

    for key in {KNOWN, SHOTS} & varied.keys():
        if 0 in varied[key]:
            zero, _ = with_changes(_recipe(dataset, data, "zero_shot"), over, changes)
            zero.encoding, zero.texts.per_combination = config.encoding, config.texts.per_combination
            zero.examples, zero.evaluation = recipes.training_images(), config.evaluation
            run(zero, {}, workdir / dataset / "zero_shot", **{key: 0})
            varied[key] = [value for value in varied[key] if value]
    if all(varied.values()):
        run(config, varied, workdir / dataset / "sweep")
    if METHOD in over:
        class_embeddings = read_class_embeddings(config, lambda: load_backbone_of(config))
        images = read_images(config.evaluation, class_embeddings)
        figure = score(cosines(images, class_embeddings), images)
        rows = [{METHOD: COSINE, SEED: "", MAP: figure}, *({METHOD: ADAPTER, **row} for row in rows)]
    protocol = read_json(first[0] / "evaluation.json")["protocol"]
    number, _, place = protocol["images"].partition(", ")
    said = f"{int(number):,} images of {scored_on or place}, {protocol['image size']} pixels"
    return rows, f"{said}; prompt {protocol['class texts']}; backbone {protocol['backbone']}"


def on_embeddings(config: ConfigDict, folder: Path) -> ConfigDict:
    """A recipe on embeddings of its images, made once: to open a dataset takes longer than many a run.

    Args:
      config: of the recipe.
      folder: of embeddings.

    Raises:
      InputError: the images or the backbone cannot be used.
    """
    config = ConfigDict(config.copy_and_resolve_references())
    backbone = load_backbone_of(config)
    for part in (config.examples, config.evaluation):
        if part.images:
            source, allowed = open_images(part.images), config.max_skipped
            part.embeddings = str(embed_once(source, backbone, folder, max_skipped=allowed))
            part.images = None
    return config


def _compare(experiment, datasets, rows, path):
    """The table of what was trained, the published figures beside it; and the plot."""
    keys, figures = [DATASET, *experiment.over], {}
    for row in rows:
        figures.setdefault(tuple(_named(row[key]) for key in keys), []).append(row[MAP])
    published = {
        (DATASETS[dataset], _named(value)): figure
        for dataset in datasets
        for value, figure in zip(*experiment.over.values(), experiment.published.get(dataset, ()))
    }
    header = [*(TITLES.get(key, key) for key in keys), MAP]
    plot_figures(path, header[:-1], figures, f"{MAP} (%)", reference=published)
    cells = [[*map(_written, values), mean_and_spread(own)] for values, own in figures.items()]
    if published:
        header += ["published", "difference"]
        for (values, own), line in zip(figures.items(), cells):
            known = published.get(values, math.nan)
            both = (f"{known:.1f}", f"{np.mean(own) - known:+.1f}")
            line += both if values in published else ("", "")
    return markdown_table(header, cells)


def _named(value):
    """A value as tables and plots name it."""
    if isinstance(value, str):
        return DATASETS.get(value) or Path(value).stem
    return value


def _written(value):
    return value if isinstance(value, str) else f"{value:,g}"


def _settings(name, data, config):
    if data == SCENES:
        return "Settings: our own for the built-in world, not the published ones."
    if name in UNTRAINED:
        return ""
    texts = (
        "" if name in FROM_FILES else f" Texts: from {config.texts.sources}; the paper's are by Vicuna-33b."
    )
    return (
        "Settings: as published. What the paper leaves open is our own: the dropout rate, the number of "
        f"labels in a text, the share of images in a batch.{texts}"
    )


def _what_is_published(experiment, datasets):
    if SCENES in datasets:
        return "The paper has no figures of the built-in world."
    return "" if experiment.published else "The paper gives no numbers here, but a picture."
