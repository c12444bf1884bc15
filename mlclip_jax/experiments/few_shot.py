"""Every image adapter, on few and on many labelled images of the built-in world.

MMM-CLIP's splits: 70, 20, 10, 5 and 2 percent of 5,000 scenes are trained on, the rest is scored; adapters
that read class embeddings are also carried over to labels that they were not trained on.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from mlclip_jax import recipes
from mlclip_jax.backbones import load_backbone
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import read_embeddings, write_embeddings
from mlclip_jax.experiments.scenes import BACKBONE, COSINE, cosines, embedded_scenes, mean_and_spread, score
from mlclip_jax.files import make_folder, write_text
from mlclip_jax.metrics import PROTOCOLS
from mlclip_jax.report import markdown_table
from mlclip_jax.runs import read_run
from mlclip_jax.texts.templates import CLASS_TEMPLATE
from mlclip_jax.training.train import train

FRACTIONS = (0.70, 0.20, 0.10, 0.05, 0.02)
# Scenes of these seeds and labels; the built-in CLIP was trained on another seed, and so was the demo.
FEATURES = ("image", "image_local")  # that the methods read
FOLDERS = {"scenes": (4, 5_000, LABELS), "other": (5, 1_000, OTHER_LABELS)}
# What the table calls each variant of the recipe.
VARIANTS = {
    "fc_published": "FC, as published",
    "fc": "FC",
    "mld_published": "MLD, as published",
    "mld_pooled": "MLD, pooled features",
    "mld": "MLD, local features",
    "ml_decoder": "ML-Decoder, local features",
    "ml_decoder_text": "ML-Decoder, local features, text queries",
}


def few_shot(
    workdir: str | os.PathLike,
    num_seeds: int = 1,
    variants: Mapping[str, str] = VARIANTS,
    fractions: Sequence[float] = FRACTIONS,
    report: Callable[[str], object] | None = None,
) -> list[list[str]]:
    """Trains every method on every fraction of the scenes, and scores it on the rest and on other labels.

    Leaves in `workdir` the scenes and their embeddings, a run for each method, fraction and seed, and
    `table.md`. What is there already is not done again.

    Args:
      workdir: a folder.
      num_seeds: how many times each is trained; its mAP is then mean ± standard deviation.
      variants: which of the recipe, and what the table calls them.
      fractions: of the scenes, to train on.
      report: called with what a command prints on the way, as `print`.

    Returns:
      The table's rows.
    """
    workdir = Path(workdir)
    make_folder(workdir)
    backbone = load_backbone(BACKBONE)
    write_text(workdir / "labels.txt", "\n".join(LABELS) + "\n")
    scenes, cosines = _scenes(workdir, "scenes", backbone)
    other, other_cosines = _scenes(workdir, "other", backbone)
    every = np.arange(len(scenes))
    splits = {f: train_test_split(every, train_size=f, random_state=42) for f in fractions}

    paths = {f: workdir / f"train-{100 * f:.0f}.npz" for f in fractions}
    for fraction, path in paths.items():
        if not path.is_file() or read_embeddings(path).origin != scenes.origin:
            write_embeddings(path, scenes.select(splits[fraction][0]))

    own = [score(cosines[rest], scenes.select(rest)) for _, rest in splits.values()]
    rows = [[COSINE, *(f"{figure:.1f}" for figure in own), f"{score(other_cosines, other):.1f}"]]
    for variant, method in variants.items():
        cells, carried = [], ""
        for fraction, (_, rest) in splits.items():
            tested = scenes.select(rest)
            runs = [
                _train(workdir, variant, fraction, seed, paths[fraction], report) for seed in range(num_seeds)
            ]
            cells.append(mean_and_spread([score(run.score(tested), tested) for run in runs]))
            if fraction == fractions[0] and runs[0].method.open_vocabulary:
                runs = [run.with_backbone(backbone).with_labels(OTHER_LABELS) for run in runs]
                carried = mean_and_spread([score(run.score(other), other) for run in runs])
        rows.append([method, *cells, carried])

    header = ["method", *(f"{100 * f:.0f}/{100 - 100 * f:.0f}" for f in fractions), "other labels"]
    counts = ", ".join(f"{len(part):,}" for part, _ in splits.values())
    notes = [
        f"{PROTOCOLS['ap']}. Trained on {counts} of {len(every):,} scenes, scored on the rest; 24 labels; "
        f"{num_seeds} seed{'s' * (num_seeds > 1)}.",
        f"Other labels: trained on {100 * fractions[0]:.0f}%, and scored on {len(other):,} scenes of "
        f"{len(OTHER_LABELS)} labels that no adapter was trained on.",
        f"Backbone: {BACKBONE}, 64x64 pixels, prompt {CLASS_TEMPLATE!r}.",
    ]
    said = "\n".join([markdown_table(header, rows), "", *notes])
    write_text(workdir / "table.md", said + "\n")
    if report:
        report(f"\n{said}\n\n{workdir / 'table.md'}")
    return rows


def _scenes(workdir, name, backbone):
    """Embedded scenes with their labels, and the cosine of each with each label's text."""
    path = embedded_scenes(workdir / name, backbone, *FOLDERS[name], features=FEATURES)
    texts = embed_names(backbone, FOLDERS[name][2], CLASS_TEMPLATE)
    source = {"embeddings": path, "labels": workdir / name / "labels.csv"}
    images = read_images(source, texts, reads=FEATURES)
    return images, cosines(images, texts)


def _train(workdir, variant, fraction, seed, trained_on, report):
    config = recipes.read(f"few_shot:{variant}")
    config.seed = seed
    config.texts.labels = str(workdir / "labels.txt")
    config.examples.embeddings = str(trained_on)
    folder = workdir / f"{variant}-{100 * fraction:.0f}-seed{seed}"
    train(config, folder, report=report)
    return read_run(folder)
