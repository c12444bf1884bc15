"""Ridge scores of class embeddings that are centred on a broad vocabulary."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mlclip_jax.ranges import NOT_NEGATIVE
from mlclip_jax.texts.label_sets import read_names
from mlclip_jax.texts.templates import fill
from mlclip_jax.texts.vocabulary import everyday_nouns
from mlclip_jax.zero_shot.prompts import (
    Decided,
    Encode,
    Images,
    LabelTexts,
    ScoresAtOnce,
    check_several,
)
from mlclip_jax.zero_shot.rules import centred, mean_direction, ridge_scores, standardise


class CentredRidge(ScoresAtOnce):
    """What all texts have in common is taken from the class embeddings; then `rules.ridge_scores`.

    Args:
      penalty: of the ridge regression.
      vocabulary: file of names, one a line; empty: `texts.vocabulary.everyday_nouns`.
    """

    TITLE = "Ridge scores, centred on a vocabulary"
    USES = "names, and a vocabulary"
    RANGES: ClassVar = {"penalty": NOT_NEGATIVE}

    def __init__(self, *, penalty: float = 3.0, vocabulary: str = "") -> None:
        self.penalty = penalty
        self.nouns = read_names(vocabulary) if vocabulary else everyday_nouns()

    def check(self, labels: LabelTexts) -> None:
        """See `ScoresAtOnce`."""
        check_several(self.TITLE, len(labels.names))

    def known(self, labels: LabelTexts) -> Iterable[bytes]:
        """See `ScoresAtOnce`."""
        del labels
        return [name.encode() for name in self.nouns]

    def decide(self, images: Mapping[str, Images], labels: LabelTexts) -> Decided:
        """See `methods`."""
        mean = vocabulary_mean(labels.encode, self.nouns, labels.templates)
        scores = ridge_scores(images["image"], centred(labels.embeddings, mean), self.penalty)
        return Decided(np.asarray(standardise(scores)))


def vocabulary_mean(encode: Encode, nouns: Sequence[str], templates: Sequence[str]) -> Float[Array, " D"]:
    """The mean direction of nouns in templates.

    Each noun is put into one template, these in turn: of thousands of nouns the mean is that over all
    templates, for a fraction of the texts.
    """
    texts = [fill(templates[i % len(templates)], [noun]) for i, noun in enumerate(nouns)]
    return mean_direction(jnp.asarray(encode(texts)))
