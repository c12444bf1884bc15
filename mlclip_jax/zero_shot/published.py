"""MMM-CLIP's prompting methods as its code has them, with their faults, to compare with.

Source: Kaggle/yes-no.py, list-all.py, top-all.py and fc-adapter.py (its metric). What differs from the
methods of this package:

- Yes or No has no blank before the class: "A photo of acat" against "A photo without acat".
- List-all and Top-all take a class for present whose name occurs in the nearest prompt, wherever: who
  predicts a motorcycle predicts "cycle" too.
- Scores are the decisions, 0 or 1, and mAP is the area under their precision-recall curve by trapezoids. So
  scored, whoever predicts nothing reads (1 + prevalence) / 2: 55.9 on Kaggle's labels, 53.5 on VOC 2007's.

For language models there is no code; their prompts are `llm_prompts.caption_writer`'s, decoded likewise.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.zero_shot.list_all import list_all
from mlclip_jax.zero_shot.prompts import (
    CountCut,
    Decided,
    Encode,
    Images,
    Write,
    spaced,
    write_names,
    write_photos,
    write_published,
)
from mlclip_jax.zero_shot.top_all import top_all
from mlclip_jax.zero_shot.yes_no import decide_pairs

PROTOCOL = "trapezoid"  # of `metrics.PROTOCOLS`, over decisions


def yes_no_as_published(
    image_embeddings: Images, encode: Encode, class_names: Sequence[str], *, logit_scale: float = 100.0
) -> Decided:
    """`yes_no` without the blank before the class; scores are 0 and 1."""
    yes, no = ([before + name for name in class_names] for before in ("A photo of a", "A photo without a"))
    return _hard(decide_pairs(image_embeddings, encode, yes, no, logit_scale=logit_scale).labels)


def list_all_as_published(
    image_embeddings: Images,
    encode: Encode,
    class_names: Sequence[str],
    *,
    logit_scale: float = 100.0,
    chunk: int = 4096,
    count_cut: CountCut | None = None,
) -> Decided:
    """`list_all` with the prompts of its code, decoded by names that occur in them; scores are 0 and 1."""
    chosen = list_all(
        image_embeddings,
        encode,
        class_names,
        write=write_published,
        logit_scale=logit_scale,
        chunk=chunk,
        count_cut=count_cut,
    )
    return _hard(decode_by_substring(chosen.prompts, spaced(class_names)), chosen.prompts)


def top_all_as_published(
    image_embeddings: Images,
    encode: Encode,
    class_names: Sequence[str],
    *,
    write_class: Write = write_photos,
    write: Write = write_names,
    logit_scale: float = 100.0,
    count_cut: CountCut | None = None,
) -> Decided:
    """`top_all` of all classes, decoded by names that occur in prompts; scores are 0 and 1."""
    chosen = top_all(
        image_embeddings,
        encode,
        class_names,
        write_class=write_class,
        write=write,
        logit_scale=logit_scale,
        count_cut=count_cut,
    )
    return _hard(decode_by_substring(chosen.prompts, spaced(class_names)), chosen.prompts)


def decode_by_substring(prompts: Sequence[str], class_names: Sequence[str]) -> Bool[np.ndarray, "N K"]:
    """Which names occur in each prompt, also within other words."""
    return np.array([[name in prompt for name in class_names] for prompt in prompts], bool).reshape(
        len(prompts), len(class_names)
    )


def published_map(decided: Bool[np.ndarray, "N K"], labels: Int[np.ndarray, "N K"]) -> float:
    """What the source calls mAP, of decisions, in [0, 1]; labels are int in {1, 0, -1}."""
    return float(mean_average_precision(decided.astype(np.float32), labels, PROTOCOL)[0])


def _hard(labels, prompts=()):
    return Decided(labels.astype(np.float32), labels, prompts)
