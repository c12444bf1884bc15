"""The main job on the built-in world, from images to a table and a picture.

Read from top to bottom. Its parts are commands too: scenes, embed, train, evaluate, predict.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mlclip_jax import recipes
from mlclip_jax.backbones import load_backbone
from mlclip_jax.data.images import read_image
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.experiments.scenes import BACKBONE, COSINE, cosines, embedded_scenes, mean_and_spread, score
from mlclip_jax.files import make_folder, write_text
from mlclip_jax.metrics import PROTOCOLS
from mlclip_jax.report import draw_predictions, markdown_table
from mlclip_jax.runs import load, read_run
from mlclip_jax.texts.templates import CLASS_TEMPLATE
from mlclip_jax.training.train import train
from mlclip_jax.untrained import load_zero_shot
from mlclip_jax.zero_shot import modality_gap

# Scenes of these seeds and labels; the built-in CLIP was trained on another seed.
FOLDERS = {"train": (1, 4_000, LABELS), "test": (2, 1_000, LABELS), "other": (3, 1_000, OTHER_LABELS)}
# What the table calls each variant of the recipe.
METHODS = {
    "no_noise": "TaI-Adapter, no perturbation",
    "tai": "TaI-Adapter, random perturbation",
    "fc": "FC",
}
RIDGE = "zero-shot, ridge scores"
DRAWN = 24


def demo(
    workdir: str | os.PathLike, num_seeds: int = 1, report: Callable[[str], object] | None = None
) -> list[list[str]]:
    """Makes scenes, embeds them, trains three adapters, scores them on scenes that nothing has seen.

    Leaves in `workdir` the scenes and their embeddings, a run for each method and seed, `table.md` and
    `predictions.png`. What is there already is not done again.

    Args:
      workdir: a folder.
      num_seeds: how many times each adapter is trained; its mAP is then mean ± standard deviation.
      report: called with what a command prints on the way, as `print`.

    Returns:
      The table's rows.
    """
    workdir = Path(workdir)
    make_folder(workdir)
    backbone = load_backbone(BACKBONE)
    split = {name: embedded_scenes(workdir / name, backbone, *FOLDERS[name]) for name in FOLDERS}
    write_text(workdir / "labels.txt", "\n".join(LABELS) + "\n")

    seconds, runs, trained_on = {}, {}, {COSINE: "nothing"}
    for variant, method in METHODS.items():
        for seed in range(num_seeds):
            config = recipes.read(f"demo:{variant}")
            config.seed = seed
            config.texts.labels = str(workdir / "labels.txt")
            config.evaluation.embeddings = str(split["test"])
            config.evaluation.labels = str(workdir / "test/labels.csv")
            if "number" not in config.texts:
                config.examples.embeddings = str(split["train"])
                config.examples.labels = str(workdir / "train/labels.csv")
                trained_on[method] = f"{FOLDERS['train'][1]:,} images with labels"
            else:
                trained_on[method] = f"{config.texts.number:,} texts"
            folder = workdir / f"{variant}-seed{seed}"
            seconds.setdefault(method, []).append(_train_and_time(config, folder, report))
            runs.setdefault(method, []).append(read_run(folder))

    start = time.monotonic()
    class_embeddings = next(iter(runs.values()))[0].class_embeddings
    images = _labelled(workdir, "test", split, class_embeddings)
    figures = {COSINE: [score(cosines(images, class_embeddings), images)]}
    seconds[COSINE] = [time.monotonic() - start]
    start = time.monotonic()
    ridge = load_zero_shot(backbone, LABELS, templates=CLASS_TEMPLATE)
    figures[RIDGE], trained_on[RIDGE] = [score(ridge.score(images), images)], trained_on[COSINE]
    seconds[RIDGE] = [time.monotonic() - start]
    for method, own in runs.items():
        figures[method] = [score(run.score(images), images) for run in own]
    other_texts = embed_names(backbone, OTHER_LABELS, CLASS_TEMPLATE)
    other = _labelled(workdir, "other", split, other_texts)
    other_figure = score(cosines(other, other_texts), other)

    first_set, second_set = f"{len(LABELS)} labels", f"{len(OTHER_LABELS)} other labels"
    rows = [
        [method, trained_on[method], first_set, mean_and_spread(own), _in_seconds(seconds[method])]
        for method, own in figures.items()
    ]
    rows.append([COSINE, trained_on[COSINE], second_set, f"{other_figure:.1f}", "0"])
    table = markdown_table(["method", "trained on", "scored on", "mAP", "seconds"], rows)
    gap = float(modality_gap(*map(np.asarray, (images.vectors, class_embeddings.vectors))))
    notes = [
        f"{PROTOCOLS['ap']}; {len(images)} unseen scenes for each set of labels, 64x64 pixels.",
        f"Backbone: {BACKBONE}, prompt {CLASS_TEMPLATE!r}; distance between the modalities' means {gap:.2f}.",
        f"Seconds: to train and to encode texts, {num_seeds} seed{'s' * (num_seeds > 1)}, "
        f"on {jax.device_count()} {jax.devices()[0].device_kind} device{'s' * (jax.device_count() > 1)}.",
    ]
    said = "\n".join([table, "", *notes])
    write_text(workdir / "table.md", said + "\n")
    _draw(workdir, images)
    if report:
        report(f"\n{said}\n\n{workdir / 'table.md'}\n{workdir / 'predictions.png'}")
    return rows


def _train_and_time(config, folder, report):
    """Trains; returns the seconds that all of it took, in this call or an earlier one, or NaN."""
    record, fresh, start = folder / "seconds.json", not folder.exists(), time.monotonic()
    train(config, folder, score=False, report=report)
    if fresh:
        record.write_text(json.dumps(time.monotonic() - start), encoding="utf-8")
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else math.nan


def _labelled(workdir, name, split, class_embeddings):
    source = {"embeddings": split[name], "labels": workdir / name / "labels.csv"}
    return read_images(source, class_embeddings)


def _in_seconds(durations):
    mean = np.mean(durations)  # NaN where a training was stopped on its way
    return "not known" if math.isnan(mean) else f"{mean:.0f}"


def _draw(workdir, images):
    """The first test scenes, with what the perturbed adapter says of them, and what is true."""
    run = load(workdir / "tai-seed0")
    pictures = [read_image(workdir / "test/images" / name) for name in images.names[:DRAWN]]
    probabilities = run.predict(pictures)
    path = workdir / "predictions.png"
    truth = images.labels[:DRAWN]
    predicted = probabilities >= run.thresholds
    draw_predictions(path, pictures, probabilities, run.label_names, predicted=predicted, truth=truth)
