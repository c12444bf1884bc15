"""Features to scores: a method over any number of images, split over processes."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from mlclip_jax.distributed.sharding import gather_rows, own_rows
from mlclip_jax.embeddings.rows import Rows
from mlclip_jax.nnx_boundary import merge_module
from mlclip_jax.progress import progress_bar

SCORED = 4096, 1 << 28  # images that are scored at once, and bytes of their features, at most
TOGETHER = 256  # of these, images that run through the method as one batch


@functools.partial(jax.jit, static_argnums=0)
def method_scores(
    graph: nnx.GraphDef, parameters: dict, frozen: dict, features: Mapping[str, Float[Array, "N ..."]]
) -> Float32[Array, "N K"]:
    """Logits of a method, for features by name."""
    method = merge_module(graph, parameters, frozen)

    def score(row):
        return method({name: feature[None] for name, feature in row.items()})[0]

    # In batches: a method may need K x hidden numbers for each image.
    return jax.lax.map(score, features, batch_size=TOGETHER)


def score_images(
    graph: nnx.GraphDef,
    parameters: dict,
    frozen: dict,
    features: Mapping[str, Float[np.ndarray | Rows, "N ..."]],
) -> Float32[np.ndarray, "N K"]:
    """`method_scores` for features of images, which may be larger than memory.

    Each process scores its share, and all get the scores of all; so every process must call this.
    """
    number = len(next(iter(features.values())))
    row_bytes = sum(4 * math.prod(feature.shape[1:]) for feature in features.values())
    most, most_bytes = SCORED
    most = max(1, min(most, most_bytes // row_bytes))
    own = own_rows(number, TOGETHER)
    scores = []
    for start in range(own.start, max(own.stop, own.start + 1), most):  # once for the shape, at least
        rows = slice(start, min(start + most, own.stop))
        part = {name: np.asarray(feature[rows]) for name, feature in features.items()}
        scores.append(method_scores(graph, parameters, frozen, part))
    return gather_rows(np.concatenate(scores), number, TOGETHER)


def gather_batches(
    batches: Iterable[tuple[Int[np.ndarray, " B"], Mapping[str, np.ndarray]]],
    make: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    number: int,
) -> tuple[Int[np.ndarray, " N"], dict[str, np.ndarray]]:
    """What is made of batches of features, one behind another, without the rows that are no images.

    Args:
      batches: indices of images, -1 where there is none, and their features; see `embed.encode_source`.
      make: from the features of a batch to arrays with a row for each image.
      number: of images, for the progress bar.
    """
    kept, parts = [], []
    with progress_bar(number, "labelling", "images") as bar:
        for indices, features in batches:
            there = indices >= 0
            kept.append(indices[there])
            parts.append({name: array[there] for name, array in make(features).items()})
            bar.update(int(there.sum()))
    return np.concatenate(kept), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
