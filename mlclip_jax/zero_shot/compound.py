"""Compound prompts, which name two labels at once, beside the prompts of single labels.

Source: SPARC (CVPR 2025). It finds that the highest of a label's compound scores ranks images worse than the
second highest: one prompt may fit by its other label alone. Two of its steps are left out, as both look at
all images to be scored: standardising each prompt over them, and weighing a label's sorted scores by their
first principal component. Here an image is scored by itself.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float, Float32, Int

from mlclip_jax.errors import InputError
from mlclip_jax.ranges import AT_LEAST_1
from mlclip_jax.texts.templates import CLASS_TEMPLATE, fill
from mlclip_jax.wording import counted
from mlclip_jax.zero_shot.prompts import Decided, Images, LabelTexts, ScoresAtOnce, check_several
from mlclip_jax.zero_shot.rules import blocks, cosine_scores

Scores = Float[Array | np.ndarray, "N pairs"]
Pairs = Int[np.ndarray, "pairs 2"]
SCORES_AT_ONCE = 2**24
MOST_LABELS = 256  # 32,640 pairs of them


class CompoundPrompts(ScoresAtOnce):
    """Cosine with each name, and with every pair of names; see `fuse_compounds`.

    Args:
      place: which of a label's scores counts, the highest being 1.
      template: what pairs are put into.
    """

    TITLE = "Compound prompts"
    USES = "names, and prompts of two"
    RANGES: ClassVar = {"place": AT_LEAST_1}

    def __init__(self, *, place: int = 2, template: str = CLASS_TEMPLATE) -> None:
        self.place, self.template = place, template

    def check(self, labels: LabelTexts) -> None:
        """See `ScoresAtOnce`."""
        number = len(labels.names)
        check_several(self.TITLE, number)
        if number > MOST_LABELS:
            raise InputError(
                f"{self.TITLE} of {number} labels are {number * (number - 1) // 2:,} pairs, too many to "
                f"encode; give at most {MOST_LABELS} labels, or choose rule=ridge"
            )

    def decide(self, images: Mapping[str, Images], labels: LabelTexts) -> Decided:
        """See `methods`."""
        pairs = np.stack(np.triu_indices(len(labels.names), k=1), axis=1)
        prompts = compound_prompts(labels.names, pairs, self.template)
        of_pairs = labels.encode(prompts)

        scores = np.empty((len(images["image"]), len(labels.names)), np.float32)
        for start, block in blocks(images["image"], len(pairs), SCORES_AT_ONCE):
            single, compound = (cosine_scores(block, texts) for texts in (labels.embeddings, of_pairs))
            scores[start : start + len(block)] = fuse_compounds(single, compound, pairs, self.place)
        return Decided(scores)


def compound_prompts(label_names: Sequence[str], pairs: Pairs, template: str = CLASS_TEMPLATE) -> list[str]:
    """A prompt for each pair of labels, "a photo of a dog and an umbrella."; see `templates.fill`."""
    return [fill(template, [label_names[a], label_names[b]]) for a, b in pairs]


def weakened_maximum(
    compound_scores: Scores, pairs: Pairs, num_labels: int, place: int = 2
) -> Float32[np.ndarray, "N K"]:
    """Of the prompts that name a label, the score of the second highest, or of another place.

    Args:
      compound_scores: of each prompt.
      pairs: the two labels that each prompt names, by number.
      num_labels: K.
      place: 1 is the highest; a label with fewer prompts gets its lowest.

    Raises:
      InputError: a label is in no pair.
    """
    scores = np.asarray(compound_scores, np.float32)
    fused = np.empty((len(scores), num_labels), np.float32)
    for label in range(num_labels):
        own = scores[:, (pairs == label).any(axis=1)]
        if not own.shape[1]:
            raise InputError(
                f"label {label} is in none of the {counted(len(pairs), 'compound prompt')}; "
                "give each label a pair"
            )
        at = max(own.shape[1] - place, 0)
        fused[:, label] = np.partition(own, at, axis=1)[:, at]
    return fused


def fuse_compounds(
    single_scores: Float[Array | np.ndarray, "N K"], compound_scores: Scores, pairs: Pairs, place: int = 2
) -> Float32[np.ndarray, "N K"]:
    """Mean of single scores and the weakened maximum of compound ones, as SPARC weighs them.

    Both are standardised by the mean and deviation of the image's single scores.
    """
    single = np.asarray(single_scores, np.float32)
    mean, deviation = single.mean(axis=1, keepdims=True), single.std(axis=1, keepdims=True)
    compound = weakened_maximum(compound_scores, pairs, single.shape[1], place)
    return ((single + compound) / 2 - mean) / np.where(deviation > 0, deviation, 1)
