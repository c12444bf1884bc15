"""Yes or No: each class is decided alone, between a prompt that it is there and one that it is not.

Source: MMM-CLIP, "Multi-method to Prompt CLIP", method 1; its code is Kaggle/yes-no.py. They differ: the
text has "A photo of nothing" for every class, the code "A photo without a" and the class, without a blank
between them (see `published.py`).
"""

from collections.abc import Sequence

import numpy as np

from mlclip_jax.errors import InputError
from mlclip_jax.options import nearest
from mlclip_jax.texts.templates import fill
from mlclip_jax.zero_shot.prompts import Decided, Encode, Images, encode_distinct, spaced
from mlclip_jax.zero_shot.rules import cosine_scores

TITLE = "Yes or No"

PRESENT = "A photo of a {}"
# Prompts that a class is not there: of the paper, of its code, and of its introduction.
ABSENT = {"nothing": "A photo of nothing", "without": "A photo without a {}", "no": "A photo of no {}"}


def yes_no(
    image_embeddings: Images,
    encode: Encode,
    class_names: Sequence[str],
    *,
    absent: str = "nothing",
    logit_scale: float = 100.0,
) -> Decided:
    """Scores and decides each class by a pair of prompts; it reads image embeddings and 2 K prompts.

    A score is the log-odds of the pair under CLIP's softmax: `logit_scale` times the difference of the
    cosines. A class is decided to be present where its score is above 0.

    Args:
      image_embeddings: float `(N, D)`, of any length.
      encode: embeds texts, such as `Backbone.encode_texts`.
      class_names: K names.
      absent: which prompt says that a class is not there, a key of `ABSENT`.
      logit_scale: of the backbone; 100 in CLIP.

    Raises:
      InputError: there is no such prompt, or the names are invalid.
    """
    if absent not in ABSENT:
        raise InputError(f"no prompt absent={absent!r}{nearest(absent, ABSENT)}; choose {', '.join(ABSENT)}")
    names = spaced(class_names)
    yes, no = ([fill(template, [name]) for name in names] for template in (PRESENT, ABSENT[absent]))
    return decide_pairs(image_embeddings, encode, yes, no, logit_scale=logit_scale)


def decide_pairs(
    image_embeddings: Images, encode: Encode, yes: Sequence[str], no: Sequence[str], *, logit_scale: float
) -> Decided:
    """The same of any K prompts that say yes, and K that say no."""
    cosines = np.asarray(cosine_scores(image_embeddings, encode_distinct(encode, [*yes, *no])))
    scores = np.float32(logit_scale) * (cosines[:, : len(yes)] - cosines[:, len(yes) :])
    return Decided(scores, scores > 0)
