"""From the patches of images to scores of labels, step by step: TagCLIP's and PIAA's, each a pure function.

TagCLIP (AAAI 2024, arXiv 2312.12828; linyq2117/TagCLIP, `classify.py`) compares every patch with classes and
with words for what lies around objects, refines these scores by the tower's attention maps, and takes the
highest. PIAA (ICML 2026, arXiv 2605.25821; akang-wang/PIAA, `test.py`) has its own scores of patches, see
`gaussian.py`, and weighs the highest with those of the whole image.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from mlclip_jax.zero_shot.rules import l2_normalize

Classes = Float[Array | np.ndarray, "K D"]
PatchScores = Float[Array | np.ndarray, "N T K"]

# TagCLIP's: of 12 layers, the maps of the 9th to the 11th are averaged, where 4 vote for a pair of patches.
FIRST_LAYER, VOTES = 2 / 3, 1 / 3


def patch_probabilities(
    local_features: Float[Array | np.ndarray, "N T D"],
    class_embeddings: Classes,
    background: Float[Array | np.ndarray, "M D"] | None = None,
    scale: float = 100.0,
) -> Float[Array, "N T K"]:
    """What each patch shows, by a softmax over the classes and over words for the background.

    A patch of the sky gives its probability to "sky", where without such words it must give all of it to the
    classes.

    Args:
      background: embeddings of words that are no labels, by the same templates.
      scale: what cosines are multiplied by; CLIP's own is 100.

    Returns:
      Probabilities of the classes alone; those of a patch add up to at most 1.
    """
    num_classes = len(class_embeddings)
    names = class_embeddings if background is None else jnp.concatenate([class_embeddings, background])
    patches, names = l2_normalize(local_features), l2_normalize(names)
    cosines = jnp.einsum("ntd,kd->ntk", patches, names, precision="highest")
    return jax.nn.softmax(scale * cosines, axis=-1)[..., :num_classes]


def attention_affinity(maps: Float[Array | np.ndarray, "N layers T T"]) -> Float[Array, "N T T"]:
    """How much of each patch's score others give to it: the first of TagCLIP's two masks.

    It is the mean of the maps from two thirds of the depth to the last but one (layers 9 to 11 of 12), where
    a third of all layers (4 of 12) attend more than their own average does; elsewhere 0. Rows do not add up
    to 1, as in the source.

    Args:
      maps: of all layers, averaged over heads, among patches alone; `backbones.dense.Dense.maps`.
    """
    depth = maps.shape[1]
    first = min(math.floor(FIRST_LAYER * depth), max(depth - 2, 0))
    votes = jnp.sum(maps > jnp.mean(maps, axis=(2, 3), keepdims=True), axis=1)
    mean = jnp.mean(jnp.asarray(maps)[:, first : max(depth - 1, first + 1)], axis=1)
    return jnp.where(votes >= max(round(VOTES * depth), 1), mean, 0)


def refined(
    probabilities: PatchScores,
    affinity: Float[Array | np.ndarray, "N T T"],
    grid: tuple[int, int],
    *,
    by_class: bool = True,
) -> Float[Array, "N T K"]:
    """Scores of patches, made of those that they attend to: TagCLIP's dual-masking attention refinement.

    Scores are carried along `affinity` once; what comes out says where each class lies, see `class_boxes`,
    and from there alone the scores are carried anew, which is the second mask.

    Args:
      affinity: of `attention_affinity`.
      grid: rows and columns, T in all.
      by_class: whether to use the second mask.
    """
    with jax.default_matmul_precision("highest"):
        once = jnp.einsum("nts,nsk->ntk", affinity, probabilities)
        if not by_class:
            return once
        inside = class_boxes(once, grid)
        return jnp.einsum("nts,nsk->ntk", affinity, jnp.where(inside, probabilities, 0))


@functools.partial(jax.jit, static_argnames="grid")
def class_boxes(scores: PatchScores, grid: tuple[int, int]) -> Bool[Array, "N T K"]:
    """Which patches lie in a box around something of a class.

    Patches that score above the class's mean in their image fall into connected parts (across corners too),
    and each part has a box. The source's boxes lack the last row and column of the grid, by an oversight
    that is left out. Where all patches score alike, all are inside.
    """
    number, _, num_classes = scores.shape
    rows, columns = grid
    scores = jax.lax.stop_gradient(jnp.asarray(scores)).reshape(number, rows, columns, num_classes)
    mean = jnp.mean(scores, axis=(1, 2), keepdims=True)
    high = (scores > mean) | (jnp.max(scores, axis=(1, 2), keepdims=True) <= mean)

    # Top, bottom, left and right of what a patch is connected to, as maxima, spread until nothing changes.
    row, column = jnp.arange(rows)[:, None, None], jnp.arange(columns)[None, :, None]
    nowhere = -rows - columns
    extents = [jnp.where(high, own[None], nowhere) for own in (-row, row, -column, column)]
    extents = jnp.stack([jnp.broadcast_to(own, high.shape) for own in extents])

    def spread(state):
        extents, _ = state
        wider = jnp.where(high[None], _highest_around(extents, nowhere), nowhere)
        return wider, jnp.any(wider != extents)

    extents, _ = jax.lax.while_loop(lambda state: state[1], spread, (extents, jnp.array(True)))
    boxes = extents.reshape(4, number, rows * columns, num_classes).transpose(1, 3, 0, 2)
    inside = jax.vmap(jax.vmap(lambda own: _covered(*own, grid, nowhere)))(boxes)
    return inside.reshape(number, num_classes, rows * columns).transpose(0, 2, 1)


def pooled(probabilities: PatchScores, sharpness: float = math.inf) -> Float[Array, "N K"]:
    """Of an image's patches, the highest score of each class; or their mean by a softmax of the scores.

    Args:
      sharpness: what scores are multiplied by in the softmax; 0 is their mean, infinity their maximum, which
        both sources take.
    """
    if sharpness == math.inf:
        return jnp.max(jnp.asarray(probabilities), axis=1)
    return jnp.sum(jax.nn.softmax(sharpness * probabilities, axis=1) * probabilities, axis=1)


def merged(
    pooled_scores: Float[Array | np.ndarray, "N K"],
    global_cosines: Float[Array | np.ndarray, "N K"] | None = None,
    *,
    patch_scale: float = 0.0,
    global_weight: float = 0.1,
    global_scale: float = 80.0,
) -> Float[Array, "N K"]:
    """PIAA's adaptive aggregation: scores of the patches and of the whole image, both softmaxed over classes.

    Args:
      pooled_scores: of `pooled`.
      global_cosines: of whole images, or of the crop that fits best; None: patches alone count.
      patch_scale: what pooled scores are multiplied by in their softmax. PIAA's are nearly flat, and it takes
        200 on VOC, 400 on COCO and NUS-WIDE; 0 leaves them as they are, which suits those of text.
      global_weight: what the whole image counts; PIAA's 0.1.
      global_scale: of its softmax; PIAA's 80 on VOC and COCO, 10 on NUS-WIDE.
    """
    patches = jnp.asarray(pooled_scores)
    patches = jax.nn.softmax(patch_scale * patches, axis=1) if patch_scale else patches
    if global_cosines is None:
        return patches
    whole = jax.nn.softmax(global_scale * jnp.asarray(global_cosines), axis=1)
    return global_weight * whole + (1 - global_weight) * patches


def _highest_around(
    values: Int32[Array, "4 N rows columns K"], least: int
) -> Int32[Array, "4 N rows columns K"]:
    """The highest of each place and its eight neighbours, by rows and then by columns."""
    for axis in (2, 3):
        around = [(0, 0)] * values.ndim
        around[axis] = (1, 1)
        padded = jnp.pad(values, around, constant_values=least)
        size = values.shape[axis]
        shifted = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)]
        values = jnp.maximum(jnp.maximum(shifted[0], shifted[1]), shifted[2])
    return values


def _covered(top, bottom, left, right, grid, nowhere):
    """Which places of a grid lie in any of the boxes: ends are counted, then summed up along both axes."""
    there = (bottom > nowhere).astype(jnp.int32)
    top, left, bottom, right = (jnp.where(there > 0, own, 0) for own in (-top, -left, bottom, right))
    counts = jnp.zeros((grid[0] + 1, grid[1] + 1), jnp.int32)
    for row, row_sign in ((top, 1), (bottom + 1, -1)):
        for column, column_sign in ((left, 1), (right + 1, -1)):
            counts = counts.at[row, column].add(row_sign * column_sign * there)
    return jnp.cumsum(jnp.cumsum(counts, axis=0), axis=1)[:-1, :-1] > 0
