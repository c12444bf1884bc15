"""Patch features of CLIP's vision transformer, with another attention in its last layers, and its own maps.

Local features as CLIP was trained mix what lies all over the image: nothing but the class token was ever
compared with a text. These forms let a patch attend to what resembles it instead. None has parameters of its
own, and all are differentiable pure functions of the tower and the pixels.

Published layers are those of towers of 12; in one of another depth they lie at the same share of it, see
`_at`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, UInt8

from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.backbones.clip import ImageTower
from mlclip_jax.backbones.transformer import ACTIVATIONS, Attention, Layer
from mlclip_jax.backbones.weights import Parameters
from mlclip_jax.errors import InputError
from mlclip_jax.options import nearest

Tokens = Float32[Array, "B T width"]
Grid = tuple[int, int]  # rows and columns of patches

PUBLISHED_DEPTH = 12  # of ViT-B, whose layers the sources name
# SC-CLIP's constants, `clip/model.py` of SuleBai/SC-CLIP; layers are counted from 1.
NEIGHBOURS, OUTLIERS = 30, 0.05  # of the local outlier factor, and the share of patches that are repaired
MIDDLE_LAYER, LOW_LAYER, FUSED_LAYERS = 9, 4, (4, 10)
THRESHOLD, CLASS_SHARE, CONTRAST = 0.4, 0.3, 3.0


class Dense(NamedTuple):
    """What `dense_features` gives of B images with T patches each.

    Attributes:
      embeddings: un-normalised, of the class token; whatever the form, those of `Backbone.image`.
      local: un-normalised, of the patches in row order.
      maps: of each layer, what a patch attends to among the patches, a mean over heads; rows add up to less
        than 1, as the class token has its share. None where they were not asked for.
    """

    embeddings: Float32[Array, "B D"]
    local: Float32[Array, "B T D"]
    maps: Float32[Array, "B layers T T"] | None


def dense_features(
    backbone: Backbone,
    parameters: Parameters,
    pixels: UInt8[Array | np.ndarray, "B H W 3"],
    form: str = "plain",
    *,
    maps: bool = False,
) -> Dense:
    """Embeddings, patch features by a form of attention, and attention maps, in one pass.

    Args:
      backbone: a CLIP with a vision transformer.
      parameters: of the backbone.
      pixels: of any height and width that the patch size divides; see `ImageProcessor.pixels`.
      form: one of `FORMS`.
      maps: whether to give the attention maps of all layers, the tower's own whatever the form.

    Raises:
      InputError: the backbone has no vision transformer, or there is no such form.
    """
    if form not in FORMS:
        raise InputError(f"no form of attention {form!r}{nearest(form, FORMS)}; there are {', '.join(FORMS)}")
    tower = getattr(backbone.module(parameters), "image", None)
    if not isinstance(tower, ImageTower):
        raise InputError(
            f"{backbone.origin.name} ({backbone.title}) has no attention among patches to change: "
            "choose a CLIP with a ViT, such as timm/vit_base_patch16_clip_224.openai"
        )
    with jax.default_matmul_precision("highest"):  # as `Backbone.image`
        return dense_tokens(tower, jnp.asarray(backbone.image_processor.normalise(pixels)), form, maps=maps)


def dense_tokens(
    tower: ImageTower, pixels: Float[Array, "B H W 3"], form: str, *, maps: bool = False
) -> Dense:
    """The same, of a tower and normalised pixels."""
    states = [tower.pre_norm(tower.patches(pixels))]
    for layer in tower.layers:
        states.append(layer(states[-1]))
    patch_height, patch_width = tower.patches.embedding.kernel_size
    grid = pixels.shape[1] // patch_height, pixels.shape[2] // patch_width
    stacked = None
    if maps:
        own = [attention_map(layer, state)[:, 1:, 1:] for layer, state in zip(tower.layers, states)]
        stacked = jnp.stack(own, axis=1)
    local = tower.project(FORMS[form](tower, states, grid))
    return Dense(tower.project(states[-1][:, 0]), local, stacked)


def attention_map(layer: Layer, tokens: Tokens) -> Float32[Array, "B T T"]:
    """What each token attends to in a layer that is given these tokens, a mean over its heads."""
    query, key, _ = _heads(layer.attention, layer.norm1(tokens))
    return jnp.mean(_softmax(query, key), axis=1)


def _plain(_tower, states, _grid):
    """Local features as they are: patches behind the last layer."""
    return states[-1][:, 1:]


def _value(tower, states, _grid):
    """In the last layer each patch attends to itself alone, so its value passes; what follows is as it was.

    Source: TagCLIP (AAAI 2024), `clip/clip_model.py`, which subtracts 100 from every other logit, and
    MaskCLIP (ECCV 2022) before it.
    """

    def attend(attention, tokens):
        return attention.out(attention.value(tokens)).astype(jnp.float32)

    return _last_layer(tower.layers[-1], states[-2], attend)[:, 1:]


def _sclip(tower, states, _grid):
    """In the last layer queries attend to queries and keys to keys, and both maps are added up.

    Source: SCLIP (ECCV 2024), `clip/model.py`, its correlative self-attention. The sum is not halved there,
    and neither is it here; residual and MLP stay.
    """

    def attend(attention, tokens):
        query, key, value = _heads(attention, tokens)
        return _merge(attention, _softmax(query, query) + _softmax(key, key), value)

    return _last_layer(tower.layers[-1], states[-2], attend)[:, 1:]


def _surgery(tower, states, _grid):
    """A second path beside the last six layers, in which values attend to values, without MLPs.

    Source: CLIP Surgery (2023, arXiv 2304.05653), `clip/clip_surgery_model.py`: it begins as the state before
    these layers, and each adds what its v-v attention makes of the original path. The class token takes part
    in the attention. The paper's feature surgery, which works on scores, is not here.
    """
    first = _at(PUBLISHED_DEPTH // 2, len(tower.layers))
    path = states[first]
    for layer, state in zip(list(tower.layers)[first:], states[first:]):
        value = _heads(layer.attention, layer.norm1(state))[2]
        path = path + _merge(layer.attention, _softmax(value, value), value)
    return path[:, 1:]


def _sc_clip(tower, states, grid):
    """SC-CLIP (2024, arXiv 2411.15869) whole, as its `clip/model.py` computes it:

    1. before the last layer, the patches that stand out by their local outlier factor become the mean of
       their neighbours, there and in the middle layer;
    2. patches are averaged with those that they resemble in the middle layer;
    3. the last layer has neither residual nor MLP, and its attention is the mean of keys to keys and
       of the middle layer's similarity; 0.3 of the class token is added;
    4. what comes out is averaged with what it resembles in a low layer;
    5. the same is made of the sum of the layers between, and added.

    The class token takes no part in the attention. Source and we look at each image by itself; PIAA's copy
    takes the outliers of a batch's first image for all of them.
    """
    depth, last = len(tower.layers), tower.layers[-1]
    before = states[depth - 1]
    outliers = _outliers(before[:, 1:])
    middle = _repaired(states[_at(MIDDLE_LAYER, depth)][:, 1:], outliers, grid)
    similar = _similarity(middle)
    low = _above(_similarity(states[_at(LOW_LAYER, depth)][:, 1:]))
    patches = _averaged(_repaired(before[:, 1:], outliers, grid), _above(similar))
    first, end = (_at(layer, depth) for layer in FUSED_LAYERS)
    fused = sum(states[first : end + 1])
    parts = []
    for tokens, class_token in ((patches, before[:, :1]), (fused[:, 1:], fused[:, :1])):
        attended = _similar_attention(last.attention, last.norm1(tokens), similar)
        parts.append(_averaged(attended + CLASS_SHARE * class_token, low))
    return parts[0] + parts[1]


FORMS: dict[str, Callable[[ImageTower, list[Tokens], Grid], Tokens]] = {
    "plain": _plain,
    "value": _value,
    "surgery": _surgery,
    "sclip": _sclip,
    "sc_clip": _sc_clip,
}


def _at(layer: int, depth: int) -> int:
    """Behind which layer of a tower of this depth lies what is behind `layer` of `PUBLISHED_DEPTH`."""
    return min(max(round(layer * depth / PUBLISHED_DEPTH), 1), depth - 1) if depth > 1 else 0


def _heads(attention: Attention, tokens: Tokens) -> list[Float32[Array, "B heads T head_width"]]:
    """Queries, keys and values."""
    batch, number, _ = tokens.shape
    shape = (batch, number, attention.num_heads, -1)
    made = (part(tokens).astype(jnp.float32) for part in (attention.query, attention.key, attention.value))
    return [jnp.swapaxes(each.reshape(shape), 1, 2) for each in made]


def _softmax(left: Array, right: Array) -> Float32[Array, "B heads T T"]:
    logits = jnp.einsum("bhtd,bhsd->bhts", left, right) / math.sqrt(left.shape[-1])
    return jax.nn.softmax(logits, axis=-1)


def _merge(attention: Attention, weights: Array, value: Array) -> Tokens:
    """Values by their weights, heads side by side, through the layer's output projection."""
    attended = jnp.swapaxes(jnp.einsum("bhts,bhsd->bhtd", weights, value), 1, 2)
    return attention.out(attended.reshape(*attended.shape[:2], -1)).astype(jnp.float32)


def _last_layer(layer: Layer, tokens: Tokens, attend: Callable[[Attention, Tokens], Tokens]) -> Tokens:
    """A layer as it is, but for its attention."""
    tokens = tokens + attend(layer.attention, layer.norm1(tokens))
    inner = ACTIVATIONS[layer.activation](layer.fc1(layer.norm2(tokens)))
    return tokens + layer.fc2(inner).astype(jnp.float32)


def _similar_attention(attention: Attention, tokens: Tokens, similar: Float32[Array, "B T T"]) -> Tokens:
    """The mean of two maps: keys to keys, and patches to those more similar than the image's average."""
    _, key, value = _heads(attention, tokens)
    logits = CONTRAST * (similar - jnp.mean(similar, axis=(1, 2), keepdims=True))
    by_likeness = jax.nn.softmax(jnp.where(logits < 0, -jnp.inf, logits), axis=-1)
    return _merge(attention, (_softmax(key, key) + by_likeness[:, None]) / 2, value)


def _similarity(patches: Tokens) -> Float32[Array, "B T T"]:
    unit = patches / jnp.linalg.norm(patches, axis=-1, keepdims=True)
    return jnp.einsum("btd,bsd->bts", unit, unit)


def _above(similar: Array) -> Array:
    return jnp.where(similar < THRESHOLD, 0, similar)


def _averaged(patches: Tokens, weights: Float32[Array, "B T T"]) -> Tokens:
    weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-6)
    return jnp.einsum("bts,bsd->btd", weights, patches)


def _outliers(patches: Tokens) -> Bool[Array, "B T"]:
    """The 5% of an image's patches with the largest local outlier factor.

    As the source has it, a patch's own distance to its furthest neighbour is its reach, whichever of the
    neighbours is asked: the factor is that distance times the mean of the neighbours' inverses.
    """
    patches = jax.lax.stop_gradient(patches)  # a choice of patches has no gradient
    squares = jnp.sum(patches**2, axis=-1)
    products = jnp.einsum("btd,bsd->bts", patches, patches)
    distances = squares[:, :, None] + squares[:, None, :] - 2 * products
    number = patches.shape[1]
    neighbours = min(NEIGHBOURS, number - 1)
    # A patch is no neighbour of its own.
    distances = jnp.where(jnp.eye(number, dtype=bool)[None], jnp.inf, jnp.maximum(distances, 0))
    negative, nearest_places = jax.lax.top_k(-distances, neighbours)
    reach = jnp.maximum(-negative[..., -1], 1e-6)
    inverse = jax.vmap(lambda own, places: (1 / own)[places])(reach, nearest_places)
    factor = reach * jnp.mean(inverse, axis=-1)
    return factor > jnp.quantile(factor, 1 - OUTLIERS, axis=1, keepdims=True)


def _repaired(patches: Tokens, outliers: Bool[Array, "B T"], grid: Grid) -> Tokens:
    """Outliers as the mean of those of their eight neighbours that are none; without such, as they are."""
    on_grid = (len(patches), *grid)
    sound = ~outliers.reshape(*on_grid, 1)
    kept = jnp.where(sound, patches.reshape(*on_grid, -1), 0)
    total, number = _around(kept), _around(sound.astype(patches.dtype))
    mean = (total / jnp.maximum(number, 1)).reshape(patches.shape)
    replaced = outliers & (number.reshape(outliers.shape) > 0)
    return jnp.where(replaced[..., None], mean, patches)


def _around(values: Float[Array, "B rows columns C"]) -> Float[Array, "B rows columns C"]:
    """Sums over the eight neighbours on the grid, with nothing beyond its edge."""
    padded = jnp.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] - values
