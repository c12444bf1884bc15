"""Top-all: classes are ranked, and an image has the first few of them, as many as its nearest prompt names.

Source: MMM-CLIP, "Multi-method to Prompt CLIP", method 3; its code is Kaggle/top-all.py, which encodes every
image twice, and every prompt for every image.
"""

import bisect
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int

from mlclip_jax.errors import InputError
from mlclip_jax.wording import counted
from mlclip_jax.zero_shot.prompts import (
    NOTHING,
    CountCut,
    Decided,
    Encode,
    Images,
    Write,
    encode_distinct,
    spaced,
    write_names,
    write_photos,
)
from mlclip_jax.zero_shot.rules import cosine_scores, l2_normalize

TITLE = "Top-all"

TEXTS_AT_ONCE = 4096  # whose embeddings are held
PAIRS_AT_ONCE = 4096  # of an image and a prompt, whose embeddings stand beside one another


def top_all(
    image_embeddings: Images,
    encode: Encode,
    class_names: Sequence[str],
    *,
    write_class: Write = write_photos,
    write: Write = write_names,
    nothing: str = NOTHING,
    deepest: int | None = None,
    logit_scale: float = 100.0,
    count_cut: CountCut | None = None,
) -> Decided:
    """Scores and decides classes by nested combinations; it reads image embeddings and K + 1 prompts of each.

    First the cosines of prompts of single classes rank them. Then an image's prompts are those of its first
    class, of its first two, and so on, and of nothing; decided are the classes of the one with the highest
    cosine, by their index. Equal prompts of different images are encoded once.

    A score is the log-odds of a class under CLIP's softmax over an image's prompts: the log of the
    probability of the combinations with it over that of those without it. It falls from rank to rank. A class
    beyond the deepest combination is in none: its score is that of the last class in it, less as much as its
    logit in the ranking is lower.

    Args:
      image_embeddings: float `(N, D)`, of any length.
      encode: embeds texts, such as `Backbone.encode_texts`.
      class_names: K names.
      write_class: writes the prompts that rank, of combinations of one class.
      write: writes the prompts of nested combinations, whose classes are in the order of the ranking.
      nothing: the prompt of no class.
      deepest: classes in the longest combination; None: all, as in the source; 0: as many as fit the
        encoder's context, by `count_cut`.
      logit_scale: of the backbone; 100 in CLIP.
      count_cut: such as `Tokenizer.count_cut`; None: prompts are not checked for their lengths.

    Raises:
      InputError: `deepest` or the names are invalid, or a prompt is longer than the encoder's context.
    """
    names = spaced(class_names)
    if deepest is not None and deepest < 0:
        raise InputError(f"invalid deepest {deepest}: must be at least 0")
    depth = min(deepest or len(names), len(names))
    single = write_class([[name] for name in names])
    _check_lengths([*single, nothing], count_cut, depth)
    embeddings = encode_distinct(encode, [*single, nothing])
    logits = np.float32(logit_scale) * np.asarray(cosine_scores(image_embeddings, embeddings))
    ranking = np.argsort(-logits[:, :-1], axis=1, kind="stable")
    if deepest == 0 and count_cut is not None:
        depth = _deepest_that_fits(ranking, names, write, count_cut)
    prompts, places = _nested_prompts(ranking[:, :depth], names, write)
    _check_lengths(prompts, count_cut, depth)
    images = np.asarray(l2_normalize(image_embeddings))
    nested = np.float32(logit_scale) * _cosines_of_pairs(images, encode, prompts, places)
    # Of equal ones the first, nothing being the last, as in the source.
    chosen = np.argmax(np.concatenate([nested, logits[:, -1:]], axis=1), axis=1)
    has = np.where(chosen < depth, chosen + 1, 0)
    ranked_logits = np.take_along_axis(logits[:, :-1], ranking, axis=1)
    ranked_scores = _ranked_scores(logits[:, -1:], nested, ranked_logits)
    scores = np.empty_like(ranked_scores)
    np.put_along_axis(scores, ranking, ranked_scores, axis=1)
    labels = np.empty(ranking.shape, bool)
    np.put_along_axis(labels, ranking, np.arange(len(names)) < has[:, None], axis=1)
    nearest = (prompts[row[d - 1]] if d else nothing for row, d in zip(places, has))
    return Decided(scores, labels, tuple(nearest))


def _check_lengths(prompts, count_cut, depth):
    cut = 0 if count_cut is None else count_cut(prompts)
    if cut:
        raise InputError(
            f"{TITLE}: {cut:,} of {counted(len(prompts), 'prompt')} would be cut to the text encoder's "
            f"context; set deepest to less than {depth}, or choose a shorter form of prompts"
        )


def _deepest_that_fits(ranking, names, write, count_cut):
    """The depth from which on a prompt is cut, less 1; a combination is longer than what it holds."""

    def is_cut(depth):
        combinations = dict.fromkeys(map(tuple, ranking[:, :depth].tolist()))
        return count_cut(write([[names[k] for k in ranked] for ranked in combinations])) > 0

    return max(1, bisect.bisect_left(range(1, len(names) + 1), True, key=is_cut))


def _nested_prompts(
    ranking: Int[np.ndarray, "N depth"], names: Sequence[str], write: Write
) -> tuple[list[str], Int[np.ndarray, "N depth"]]:
    """The distinct prompts of all images, and which of them each image has at each depth."""
    numbers = {}
    combinations = np.empty(ranking.shape, np.int64)
    for row, ranked in zip(combinations, ranking.tolist()):
        for depth in range(len(ranked)):
            row[depth] = numbers.setdefault(tuple(ranked[: depth + 1]), len(numbers))
    written = write([[names[k] for k in combination] for combination in numbers])
    distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(written))}
    return list(distinct), np.array([distinct[prompt] for prompt in written], np.int64)[combinations]


def _cosines_of_pairs(
    images: Float32[np.ndarray, "N D"],
    encode: Encode,
    prompts: Sequence[str],
    places: Int[np.ndarray, "N depth"],
) -> Float32[np.ndarray, "N depth"]:
    """Cosines of each image with its own prompts, of which a chunk of embeddings is held at once."""
    cosines = np.empty(places.size, np.float32)
    order = np.argsort(places, axis=None, kind="stable")
    starts = range(0, len(prompts), TEXTS_AT_ONCE)
    bounds = np.searchsorted(places.ravel()[order], [*starts, len(prompts)])
    for start, first, last in zip(starts, bounds, bounds[1:]):
        texts = np.asarray(l2_normalize(encode(prompts[start : start + TEXTS_AT_ONCE])))
        for pairs in _pieces(order[first:last]):
            own = texts[places.ravel()[pairs] - start]
            cosines[pairs] = np.einsum("nd,nd->n", images[pairs // places.shape[1]], own)
    return cosines.reshape(places.shape)


def _pieces(pairs) -> Iterator[np.ndarray]:
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        yield pairs[start : start + PAIRS_AT_ONCE]


def _ranked_scores(
    nothing: Float32[np.ndarray, "N 1"],
    nested: Float32[np.ndarray, "N depth"],
    ranked: Float32[np.ndarray, "N K"],
) -> Float32[np.ndarray, "N K"]:
    """The log-odds of the class at each rank."""
    logits = np.concatenate([nothing, nested], axis=1).astype(np.float64)
    without = np.logaddexp.accumulate(logits, axis=1)[:, :-1]
    within = np.logaddexp.accumulate(logits[:, ::-1], axis=1)[:, -2::-1]
    depth = nested.shape[1]
    last = (within - without)[:, -1:]
    beyond = last + ranked[:, depth:].astype(np.float64) - ranked[:, depth - 1 : depth].astype(np.float64)
    return np.concatenate([within - without, beyond], axis=1).astype(np.float32)
