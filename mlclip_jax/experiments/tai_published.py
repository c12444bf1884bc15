"""What TaI-Adapter publishes: its tables and figures, each as an experiment (arXiv 2312.04160)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlclip_jax.experiments.scenes import COSINE

SCENES = "scenes"
DATASETS = {"voc2007": "VOC 2007", "coco2014": "MS-COCO", "nus_wide": "NUS-WIDE", SCENES: "built-in world"}
ALL, VOC_AND_COCO, COCO = ("voc2007", "coco2014", "nus_wide"), ("voc2007", "coco2014"), ("coco2014",)

METHOD = "method"  # what varies in table 2; all else are keys of the recipe
KNOWN, SHOTS, NUMBER = "examples.known", "examples.shots", "texts.number"
RADIUS, SAMPLING, SOURCES = "perturbation.radius", "perturbation.sampling", "texts.sources"
ADAPTER = "TaI-Adapter"
TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
NUMBERS = (500, 1_000, 3_000, 10_000)  # of texts of files: of fewer, some of 80 labels would have none
ENSEMBLE = (
    "The published figures are of ensembles with {}, ours of TaI-Adapter alone; `mlclip ensemble` makes one "
    "of a run's scores.npz and another method's."
)
UNTRAINED_REMARK = "Nothing is trained. The paper does not say which dataset it draws."
ZERO = "At 0 no image is used: texts are perturbed as in zero-shot learning"


class Experiment(NamedTuple):
    """A table or figure of the paper.

    Attributes:
      title: what it is about.
      task: of the recipe.
      datasets: that the paper has it for.
      over: the keys that vary and their values. Zero `KNOWN` or `SHOTS` is the zero-shot task.
      published: by dataset, a figure for each value of the one key that varies.
      remark: what else must be known of it.
    """

    title: str
    task: str
    datasets: Sequence[str]
    over: Mapping[str, Sequence[Any]]
    published: Mapping[str, Sequence[float]] = {}
    remark: str = ""


EXPERIMENTS = {
    "tai_table1": Experiment(
        "table 1, partial labels",
        "partial_labels",
        ALL,
        {KNOWN: TENTHS},
        {
            "voc2007": (93.8, 94.7, 95.1, 95.2, 95.3, 95.3, 95.4, 95.6, 95.7),
            "coco2014": (82.1, 82.9, 83.5, 84.0, 84.4, 84.7, 84.9, 85.1, 85.1),
            "nus_wide": (59.5, 61.9, 62.8, 63.2, 63.2, 63.1, 63.5, 64.2, 65.0),
        },
        ENSEMBLE.format("DualCoOp"),
    ),
    "tai_table2": Experiment(
        "table 2, zero-shot",
        "zero_shot",
        ALL,
        {METHOD: (COSINE, ADAPTER)},
        {"voc2007": (77.3, 89.0), "coco2014": (49.7, 67.7), "nus_wide": (37.4, 53.3)},
        f"Beside {COSINE} stands what the paper publishes for CLIP.",
    ),
    "tai_table3": Experiment(
        "table 3, few-shot",
        "few_shot",
        VOC_AND_COCO,
        {SHOTS: (1, 2, 4, 8, 16)},
        {"voc2007": (90.0, 91.5, 92.2, 93.5, 93.9), "coco2014": (70.5, 70.7, 71.4, 72.0, 72.7)},
        ENSEMBLE.format("CoOp"),
    ),
    "tai_fig5a": Experiment(
        "figure 5a, numbers of texts", "zero_shot", ALL, {NUMBER: (100, 300, 1_000, 3_000, 10_000)}
    ),
    "tai_fig5b": Experiment(
        "figure 5b, sources of texts", "zero_shot", COCO, {SOURCES: ("templates",), NUMBER: NUMBERS}
    ),
    "tai_fig5c": Experiment(
        "figure 5c, texts of several language models", "zero_shot", COCO, {SOURCES: (), NUMBER: NUMBERS}
    ),
    "tai_fig6a": Experiment(
        "figure 6a, radius and sampling of the perturbation",
        "zero_shot",
        COCO,
        {
            RADIUS: (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 35.0),
            SAMPLING: ("surface", "interior", "interior_by_radius"),
        },
        remark="Of the paper's two, the interior must be `interior_by_radius`; `interior` is by volume.",
    ),
    "tai_fig6b": Experiment(
        "figure 6b, few-shot without CoOp",
        "few_shot",
        VOC_AND_COCO,
        {SHOTS: (0, 1, 2, 4, 8, 16)},
        remark=f"{ZERO}.",
    ),
    "tai_fig6c": Experiment(
        "figure 6c, partial labels without DualCoOp",
        "partial_labels",
        ALL,
        {KNOWN: (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)},
        remark=f"{ZERO} (its radius too, which the paper does not say), and not shifted.",
    ),
    "tai_fig7": Experiment(
        "figure 7, estimated centroids",
        "partial_labels",
        ALL,
        {KNOWN: (0.5,)},
        remark=f"{UNTRAINED_REMARK} Nor does it say how many labels are known in this figure.",
    ),
    "tai_fig10": Experiment(
        "figure 10, estimated centroids", "partial_labels", ALL, {KNOWN: TENTHS}, remark=UNTRAINED_REMARK
    ),
}
UNTRAINED = ("tai_fig7", "tai_fig10")
FROM_FILES = ("tai_fig5b", "tai_fig5c")
