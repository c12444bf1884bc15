"""What the experiments on the built-in world share: its scenes, embedded, and how figures are written."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.data.scenes import Scenes, write_scenes
from mlclip_jax.data.sources import read_folder
from mlclip_jax.embeddings.embed import embed_in_memory
from mlclip_jax.embeddings.store import Embeddings, read_embeddings, write_embeddings
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.zero_shot import cosine_scores

BACKBONE = "scenes-clip"
COSINE = "plain cosine"


def embedded_scenes(
    folder: Path,
    backbone: Backbone,
    seed: int,
    number: int,
    label_names: Sequence[str],
    features: Sequence[str] = ("image",),
) -> Path:
    """Writes scenes as JPEG files, and embeds them as any photographs; returns the embeddings' file."""
    path = folder.with_suffix(".npz")
    scenes = Scenes(seed, number, label_names=label_names)
    origin = backbone.image_origin.replace(source=scenes.digest)
    if not path.is_file() or read_embeddings(path).origin != origin:
        if folder.exists():  # what a stopped demo left
            shutil.rmtree(folder)
        write_scenes(scenes, folder)
        embeddings = embed_in_memory(backbone, read_folder(folder / "images"), features=features)
        write_embeddings(path, embeddings.replace(origin=origin))
    return path


def cosines(images: Embeddings, class_embeddings: Embeddings) -> Float[Array, "N K"]:
    """Plain cosine of every image with every class."""
    return cosine_scores(np.asarray(images.vectors), np.asarray(class_embeddings.vectors))


def score(scores: Float[Array | np.ndarray, "N K"], images: Embeddings) -> float:
    """mAP in percent."""
    return 100 * float(mean_average_precision(scores, np.asarray(images.labels))[0])


def mean_and_spread(figures: Sequence[float]) -> str:
    """Figures of several seeds as "97.6 ± 0.1", of one as "97.6"."""
    spread = f" ± {np.std(figures, ddof=1):.1f}" if len(figures) > 1 else ""
    return f"{np.mean(figures):.1f}{spread}"
