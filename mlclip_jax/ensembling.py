"""Scores of several methods or seeds made into one, by the name of the rule."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from mlclip_jax.errors import InputError
from mlclip_jax.zero_shot import standardise

Scores = Float[np.ndarray, "N K"]
TAI_DPT_WEIGHT = 0.9  # of the other method


def tai_adapter(scores: Sequence[Scores]) -> Scores:
    """The first's probabilities, and the others scaled to [0, 1], averaged (TaI-Adapter, section 8).

    Each of the others is scaled over its whole matrix. The first are logits, of which the sigmoid is taken,
    unless all of them lie in [0, 1].
    """
    first, *others = scores
    probabilities = first if 0 <= first.min() <= first.max() <= 1 else expit(first)
    return np.mean([probabilities, *map(_to_unit_interval, others)], axis=0)


def tai_dpt(scores: Sequence[Scores]) -> Scores:
    """Both scaled to [0, 1] over the whole matrix, the second weighing 0.9 (TaI-DPT, `ensemble_score.py`).

    Raises:
      InputError: there are not two.
    """
    if len(scores) != 2:
        raise InputError(f"tai_dpt weighs two methods, and was given {len(scores)}; give two, or tai_adapter")
    first, second = map(_to_unit_interval, scores)
    return (1 - TAI_DPT_WEIGHT) * first + TAI_DPT_WEIGHT * second


def standardised(scores: Sequence[Scores]) -> Scores:
    """Each standardised image by image, then averaged; see `zero_shot.standardise`."""
    return np.mean([np.asarray(standardise(one)) for one in scores], axis=0)


def mean(scores: Sequence[Scores]) -> Scores:
    """The scores as they come, averaged: what seeds of one method are made into."""
    return np.mean(scores, axis=0)


ENSEMBLES: dict[str, Callable[[Sequence[Scores]], Scores]] = {
    "tai_adapter": tai_adapter,
    "tai_dpt": tai_dpt,
    "standardised": standardised,
    "mean": mean,
}


def _to_unit_interval(scores):
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low if high > low else 1)
