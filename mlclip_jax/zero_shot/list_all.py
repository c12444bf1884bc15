"""List-all: every combination of the classes is a prompt, and an image has the classes of its nearest.

Source: MMM-CLIP, "Multi-method to Prompt CLIP", method 2 ("a simple combination of classes without using
templates or embellishments"); its code is Kaggle/list-all.py, whose prompts are `prompts.write_published`.
There all 2^n prompts are held at once, which ends with n = 20 in "CUDA out of memory".
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from mlclip_jax.errors import InputError
from mlclip_jax.progress import progress_bar
from mlclip_jax.zero_shot.prompts import (
    NOTHING,
    CountCut,
    Decided,
    Encode,
    Images,
    Write,
    spaced,
    write_names,
)
from mlclip_jax.zero_shot.rules import l2_normalize

TITLE = "List-all"

MOST_CLASSES = 20  # 1,048,576 prompts; each further class doubles them
IMAGES_AT_ONCE = 256  # against a chunk of prompts


class _Seen(NamedTuple):
    """What is kept of the prompts seen so far, for each image.

    `present` and `absent` are log-sum-exps of logits over the combinations with and without each class, less
    the highest logit: their difference loses fewer digits than that of two large numbers.
    """

    highest: Float32[Array, " N"]
    combination: Int32[Array, " N"]  # of the highest, bit k being class k
    present: Float32[Array, "N K"]
    absent: Float32[Array, "N K"]


def list_all(
    image_embeddings: Images,
    encode: Encode,
    class_names: Sequence[str],
    *,
    write: Write = write_names,
    nothing: str = NOTHING,
    logit_scale: float = 100.0,
    chunk: int = 4096,
    count_cut: CountCut | None = None,
) -> Decided:
    """Scores and decides classes by all 2^K combinations; it reads image embeddings and 2^K prompts.

    Decided are the classes of the prompt with the highest cosine, by their index. A score is the log-odds of
    a class under CLIP's softmax over all prompts: the log of the probability of all combinations with it over
    that of all without it. Prompts are encoded in chunks, of which nothing stays but these sums, so that
    memory does not grow with their number.

    Args:
      image_embeddings: float `(N, D)`, of any length.
      encode: embeds texts, such as `Backbone.encode_texts`; called once for each chunk.
      class_names: K names, at most `MOST_CLASSES`.
      write: how a combination is written, such as those of `prompts.FORMS`.
      nothing: the prompt of the empty combination.
      logit_scale: of the backbone; 100 in CLIP.
      chunk: prompts at once, rounded down to a power of two; it changes nothing but time and memory.
      count_cut: such as `Tokenizer.count_cut`; None: prompts are not checked for their lengths.

    Raises:
      InputError: there are too many classes, or their names are invalid; or the prompt of all of them is
        longer than the encoder's context.
    """
    names = spaced(class_names)
    number = len(names)
    check_number(number)
    if chunk < 1:
        raise InputError(f"invalid chunk {chunk}: must be at least 1")
    if count_cut is not None and count_cut([nothing, *write([names])]):
        raise InputError(
            f"{TITLE}: the prompt of all {number} classes is longer than the text encoder's context; choose "
            "a shorter form of prompts, or Top-all with few classes in a prompt"
        )
    size = 1 << min(number, chunk.bit_length() - 1)

    def prompts_of(combinations):
        several = [_members(combination, names) for combination in combinations]
        written = iter(write([members for members in several if members]))
        return [next(written) if members else nothing for members in several]

    images = l2_normalize(image_embeddings)
    seen = _nothing_seen(len(images), number)
    with progress_bar(2**number, "List-all", "prompts") as bar:
        for start in range(0, 2**number, size):
            texts = l2_normalize(encode(prompts_of(range(start, start + size))))
            seen = _see(seen, images, texts, jnp.int32(start), jnp.float32(logit_scale))
            bar.update(size)
    chosen = np.asarray(seen.combination)
    prompts = {int(combination): prompts_of([int(combination)])[0] for combination in np.unique(chosen)}
    return Decided(
        np.asarray(seen.present) - np.asarray(seen.absent),
        (chosen[:, None] >> np.arange(number) & 1).astype(bool),
        tuple(prompts[int(combination)] for combination in chosen),
    )


def check_number(number: int) -> None:
    """Refuses more classes than have a countable number of combinations.

    Raises:
      InputError: there are more than `MOST_CLASSES`.
    """
    if number > MOST_CLASSES:
        raise InputError(
            f"{TITLE} of {number} classes has 2^{number} prompts, and takes {MOST_CLASSES} classes at most; "
            "choose Top-all, which has as many prompts an image as classes"
        )


def _members(combination, names):
    return [name for k, name in enumerate(names) if combination >> k & 1]


def _nothing_seen(num_images, num_classes):
    lowest = jnp.full(num_images, -jnp.inf, jnp.float32)
    sums = jnp.full((num_images, num_classes), -jnp.inf, jnp.float32)
    return _Seen(lowest, jnp.zeros(num_images, jnp.int32), sums, sums)


@jax.jit
def _see(
    seen: _Seen,
    images: Float[Array, "N D"],
    texts: Float[Array, "M D"],
    start: Int32[Array, ""],
    logit_scale: Float32[Array, ""],
) -> _Seen:
    """Adds M prompts, of the combinations from `start` on; M is a power of two that divides it."""

    def see(of_image):
        seen, image = of_image
        logits = logit_scale * jnp.matmul(texts, image, precision="highest")
        place = jnp.argmax(logits).astype(jnp.int32)
        higher = logits[place] > seen.highest  # of equal ones the first, whatever the chunks
        highest = jnp.where(higher, logits[place], seen.highest)
        combination = jnp.where(higher, start + place, seen.combination)
        present, absent = _sums(logits - highest, start, seen.present.shape[0])
        before = seen.highest - highest
        return _Seen(
            highest,
            combination,
            jnp.logaddexp(seen.present + before, present),
            jnp.logaddexp(seen.absent + before, absent),
        )

    return jax.lax.map(see, (seen, images), batch_size=IMAGES_AT_ONCE)


def _sums(logits, start, num_classes):
    """Log-sum-exps over the combinations with each class, and over those without it, `(K,)` each.

    Combinations are halved by their highest bit and then added, so that all classes together cost no more
    than two passes over the prompts.
    """
    low = logits.shape[0].bit_length() - 1  # classes over which the combinations of a chunk differ
    present, absent = [], []
    for _ in range(low):
        without, within = jnp.split(logits, 2)
        present.insert(0, jax.nn.logsumexp(within))
        absent.insert(0, jax.nn.logsumexp(without))
        logits = jnp.logaddexp(without, within)
    for k in range(low, num_classes):
        there = (start >> k & 1).astype(bool)
        present.append(jnp.where(there, logits[0], -jnp.inf))
        absent.append(jnp.where(there, -jnp.inf, logits[0]))
    return jnp.stack(present), jnp.stack(absent)
