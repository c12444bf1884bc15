"""Where images of some labels lie, and where partial labels let them be expected (TaI-Adapter)."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from mlclip_jax.backbones import load_backbone_of
from mlclip_jax.data.limited_labels import hide_labels
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.files import replacing
from mlclip_jax.perturbation import shift_texts
from mlclip_jax.training.inputs import read_class_embeddings
from mlclip_jax.wording import counted

COMBINATIONS = 8  # that are drawn: those with most images
MOST = 150  # images of each that are drawn


def compare_centroids(
    config: ConfigDict, known: Sequence[float], path: str | os.PathLike, embedded: str | os.PathLike
) -> tuple[list[dict[str, Any]], str]:
    """Compares true centroids with those that are estimated from partial labels, and draws both.

    The true centroid of a combination of labels is the mean of the images that have exactly these; the
    estimated one is where its texts would be shifted to, see `perturbation.shift_texts`.

    Args:
      config: of the recipe, for partial labels.
      known: fractions of the labels that are known, a panel for each.
      path: of the PNG to write.
      embedded: folder of embeddings.

    Returns:
      For each fraction the mean distance of the centroids, and how many of the estimated ones lie nearest to
      their own true one; and what the images are, in words.

    Raises:
      InputError: what the config names cannot be used, or the file cannot be written.
    """
    backbone = load_backbone_of(config)
    class_embeddings = read_class_embeddings(config, lambda: backbone)
    images = read_images(
        config.examples,
        class_embeddings,
        lambda: backbone,
        embedded,
        purpose="draw",
        flag="--config.examples.",
        max_skipped=config.max_skipped,
    )
    vectors, labels = np.asarray(images.vectors), np.asarray(images.labels)
    combinations, which = most_frequent(labels == 1, COMBINATIONS)
    true = np.stack([vectors[which == i].mean(axis=0) for i in range(len(combinations))])
    estimated, rows = [], []
    for fraction in known:
        # A text that is alone in its combination moves to the very point.
        moved, found = shift_texts(
            np.zeros_like(true),
            combinations.astype(np.int8),
            vectors,
            hide_labels(labels, fraction),
            config.perturbation.shift,
        )
        estimated.append(np.where(found[:, None], moved, np.nan))
        distances = np.linalg.norm(true[None] - moved[:, None], axis=-1)
        own = np.diagonal(distances)[found]
        nearest = int((distances.argmin(axis=1) == np.arange(len(true)))[found].sum())
        rows.append(
            {
                "fraction of labels known": fraction,
                "distance to the true centroid": round(float(own.mean()), 2),
                f"nearest to their own, of {len(true)}": nearest,
            }
        )
    names = [
        " + ".join(name for name, has in zip(class_embeddings.names or (), own) if has)
        for own in combinations
    ]
    _draw(path, vectors, which, true, estimated, known, names)
    counts = np.bincount(which[which >= 0])
    between = np.linalg.norm(true[:, None] - true[None], axis=-1)[~np.eye(len(true), dtype=bool)].mean()
    said = (
        f"the {counted(len(true), 'combination')} of labels with most images ({counts.min():,} to "
        f"{counts.max():,} of {len(vectors):,} of {images.origin.split}), whose true centroids are "
        f"{between:.2f} apart; estimated by {config.perturbation.shift!r}, and drawn by t-SNE with at most "
        f"{MOST} images each; embeddings of {backbone.origin}"
    )
    return rows, said


def most_frequent(
    present: Bool[np.ndarray, "N K"], number: int
) -> tuple[Bool[np.ndarray, "C K"], Int[np.ndarray, " N"]]:
    """The combinations of labels that most images have, and which of them each image has, -1 for none.

    Args:
      present: which labels each image has.
      number: of combinations, of one label or more.
    """
    combinations, which, counts = np.unique(present, axis=0, return_inverse=True, return_counts=True)
    counts[~combinations.any(axis=1)] = 0
    chosen = np.argsort(-counts, kind="stable")[:number]
    chosen = chosen[counts[chosen] > 0]
    place = np.full(len(combinations), -1)
    place[chosen] = np.arange(len(chosen))
    return combinations[chosen], place[which.reshape(-1)]


def on_a_plane(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
    """Points by t-SNE, the same for the same vectors."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)


def _draw(path, vectors, which, true, estimated, known, names):
    """A panel for each fraction: images, true centroids and estimated ones, on one plane."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = np.concatenate([np.flatnonzero(which == i)[:MOST] for i in range(len(true))])
    centroids = np.concatenate([true, *estimated])
    is_there = np.isfinite(centroids).all(axis=1)
    points = on_a_plane(np.concatenate([vectors[drawn], centroids[is_there]]))
    stars = np.full((len(centroids), 2), np.nan)
    stars[is_there] = points[len(drawn) :]
    stars = stars.reshape(-1, len(true), 2)

    columns = math.ceil(math.sqrt(len(known)))
    side = 6.4 if columns == 1 else 3.2
    figure = Figure(
        figsize=(columns * side, math.ceil(len(known) / columns) * side + 1), layout="constrained"
    )
    FigureCanvasAgg(figure)
    colours = [f"C{i}" for i in range(len(true))]
    for place, fraction in enumerate(known):
        axes = figure.add_subplot(math.ceil(len(known) / columns), columns, place + 1, xticks=[], yticks=[])
        for i, (name, colour) in enumerate(zip(names, colours)):
            own = points[: len(drawn)][which[drawn] == i]
            axes.scatter(*own.T, s=9, alpha=0.6, color=colour, linewidths=0, label=name)
        axes.scatter(*stars[0].T, s=60, marker="X", c=colours, edgecolors="k", label="true centroid")
        own = stars[1 + place]
        axes.scatter(*own.T, s=120, marker="*", c=colours, edgecolors="k", label="estimated centroid")
        axes.set_title(f"{fraction:.0%} of labels known", fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, markerscale=1.5)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
