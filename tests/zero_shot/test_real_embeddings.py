"""The rules on real embeddings of CLIP ViT-B/32: 179 photographs of COCO, of which 63 classes show in some.

mAP is scikit-learn's average precision, averaged over these classes; `a {name}` and 63 templates averaged.
"""

import numpy as np
import pytest
from real_data import CLASS_EMBEDDINGS, PHOTOGRAPHS, needs_real_data
from sklearn.metrics import average_precision_score

from mlclip_jax.zero_shot import (
    centred,
    cosine_scores,
    log_softmax_scores,
    mean_direction,
    ridge_scores,
    self_distilled_scores,
    standardise,
)

RULES = {
    "cosine": lambda x, t, _: cosine_scores(x, t),
    "softmax": lambda x, t, _: log_softmax_scores(cosine_scores(x, t)),
    "standardised": lambda x, t, _: standardise(cosine_scores(x, t)),
    "text centred on LVIS": lambda x, t, lvis: standardise(cosine_scores(x, centred(t, lvis))),
    "images centred on themselves": lambda x, t, _: standardise(
        cosine_scores(centred(x, mean_direction(x)), t)
    ),
    "ridge": lambda x, t, _: standardise(ridge_scores(x, t)),
    "ridge, text centred on LVIS": lambda x, t, lvis: standardise(ridge_scores(x, centred(t, lvis))),
    "self-distillation": lambda x, t, lvis: self_distilled_scores(x, t, x, lvis),
}
EXPECTED = {
    "cosine": (49.8, 54.3),
    "softmax": (57.7, 60.6),
    "standardised": (58.7, 60.5),
    "text centred on LVIS": (59.1, 61.0),
    "images centred on themselves": (58.8, 61.1),
    "ridge": (59.9, 62.3),
    "ridge, text centred on LVIS": (59.1, 62.7),
    "self-distillation": (61.7, 64.2),
}


def class_embeddings(name):
    with np.load(CLASS_EMBEDDINGS.with_name(f"{name}.npz")) as file:
        return file["embeddings"].astype(np.float32)


@needs_real_data
@pytest.mark.parametrize("suffix", ["", "_templates"])
@pytest.mark.parametrize("name", RULES)
def test_each_rule_reads_what_is_known_of_it(name, suffix):
    if not CLASS_EMBEDDINGS.with_name(f"lvis1203{suffix}.npz").exists():
        pytest.skip(f"needs the embeddings of LVIS beside {CLASS_EMBEDDINGS}")
    with np.load(PHOTOGRAPHS / "clip_vit_b32_embeddings.npz") as file:
        images, labels = file["image_embeddings"], file["labels"]
    classes, lvis = (class_embeddings(f"{of}{suffix}") for of in ("coco80", "lvis1203"))
    scores = np.asarray(RULES[name](images, classes, mean_direction(lvis)))
    shown = labels.any(axis=0)
    assert shown.sum() == 63
    figure = 100 * average_precision_score(labels[:, shown], scores[:, shown], average="macro")
    print(f"{name}{suffix}: {figure:.2f}")
    assert figure == pytest.approx(EXPECTED[name][suffix != ""], abs=0.1)
