"""TaI-Adapter: train on texts, score images (arXiv 2312.04160).

Its table 2 (zero-shot, CLIP RN50, 224 pixels, texts by an LLM): mAP 89.0 on VOC2007, 67.7 on COCO,
53.3 on NUS-WIDE.

    mlclip train --config=tai:embeddings --workdir=runs/tai \\
        --config.texts.class_embeddings=class_embeddings.npz --config.evaluation.embeddings=photographs.npz

    mlclip train --config=tai:templates --workdir=runs/tai \\
        --config.backbone=timm/vit_base_patch32_clip_224.openai --config.texts.labels=labels.txt \\
        --config.evaluation.images=photographs --config.evaluation.labels=photographs.csv

Variants:
  embeddings  texts are mixtures of class embeddings; no backbone is loaded.
  templates   texts are sentences that name 1 to 3 labels, encoded by the backbone.

`tai:embeddings,loss=asymmetric` sets another loss, whose constants are then `config.loss.*`.

The paper trains on 10,000 texts for 60 epochs (9,375 steps of 64) at a peak rate of 1e-4, radius 25. Here the
peak rate is 1e-3 over 3,000 steps. The radius is 12: about the distance between an image's embedding and that
of the class text nearest to it, which needs no label to measure.

Measured (variant embeddings, ViT-B/32, 179 COCO photographs, 80 labels): 57.7 mAP, plain cosine 49.8;
13 seconds on 2 CPU cores. docs/results.md has the protocol, the spread and the other settings.
"""

from ml_collections.config_dict import placeholder

from mlclip_jax import recipes

VARIANTS = ("embeddings", "templates")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with `,loss=NAME`."""
    config, variant, _ = recipes.base("tai", variant, VARIANTS)
    config.texts.number = 10_000
    config.texts.max_labels = 3  # a text names 1 to this many labels
    config.texts.share = 1.0  # of each batch; the others are images, those of `examples`
    config.examples = recipes.labelled_images()  # to train on beside the texts, where the share leaves room
    if variant == "embeddings":
        del config.backbone, config.encoding, config.texts.labels
        del config.evaluation.images, config.examples.images
        config.texts.class_embeddings = placeholder(str)  # .npz or .npy, a row per class
    config.method = recipes.method("tai")
    config.perturbation.radius = 12.0
    config.perturbation.rows = "texts"
    return config
