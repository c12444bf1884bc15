"""Scores by each template alone, made into one: the mean of scores or of ranks, or the highest."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mlclip_jax.ranges import NOT_NEGATIVE, POSITIVE, one_of
from mlclip_jax.texts.templates import fill
from mlclip_jax.zero_shot.aggregation import AGGREGATIONS, score_by_templates
from mlclip_jax.zero_shot.classifier import RULES
from mlclip_jax.zero_shot.prompts import Decided, Images, LabelTexts, ScoresAtOnce, check_several


class PerTemplate(ScoresAtOnce):
    """A rule of `classifier.RULES` for each template; `aggregation` makes one score of them.

    Args:
      by: a key of `aggregation.AGGREGATIONS`; the mean of embeddings is what all other rules take.
      rule, penalty, temperature: see `classifier.ZeroShot`.
    """

    TITLE = "Zero-shot, template by template"
    USES = "names"
    RANGES: ClassVar = {
        "by": one_of(AGGREGATIONS),
        "rule": one_of(RULES),
        "penalty": NOT_NEGATIVE,
        "temperature": POSITIVE,
    }

    def __init__(
        self, *, by: str = "scores", rule: str = "ridge", penalty: float = 3.0, temperature: float = 0.01
    ) -> None:
        self.by, self.rule, self.penalty, self.temperature = by, rule, penalty, temperature

    def check(self, labels: LabelTexts) -> None:
        """See `ScoresAtOnce`."""
        if self.rule != "cosine" or self.by == "ranks":
            check_several(self.TITLE, len(labels.names))

    def decide(self, images: Mapping[str, Images], labels: LabelTexts) -> Decided:
        """See `methods`."""
        per_template = (
            labels.encode([fill(template, [name]) for name in labels.names]) for template in labels.templates
        )
        scores = score_by_templates(
            images["image"],
            per_template,
            self.by,
            lambda image, classes: RULES[self.rule](image, classes, self.penalty, self.temperature),
        )
        return Decided(np.asarray(scores))
