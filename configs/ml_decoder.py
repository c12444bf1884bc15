"""ML-Decoder, trained on images with labels (Ridnik et al., WACV 2023), here on a frozen CLIP's features.

    mlclip train --config=ml_decoder --workdir=runs/ml_decoder \\
        --config.backbone=timm/vit_base_patch32_clip_224.openai --config.texts.labels=labels.txt \\
        --config.examples.images=train --config.examples.labels=train.csv \\
        --config.evaluation.images=test --config.evaluation.labels=test.csv

Variants:
  frozen  random queries that are not trained, as published.
  learnt  the same, trained.
  text    a query for each label, from its text: labels by other class embeddings too, once it is trained.

`ml_decoder:text,loss=two_way` sets another loss, whose constants are then `config.loss.*`.

The decoder, its loss (ASL with a negative focus of 4 and a positive one of 0) and its peak rate are those of
the published code, which trains a TResNet along with it and reads 90.1 mAP on COCO at 448 pixels.
"""

from mlclip_jax import recipes

VARIANTS = ("frozen", "learnt", "text")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with `,loss=NAME`."""
    config, variant, options = recipes.base("ml_decoder", variant, VARIANTS, loss="asymmetric")
    config.examples = recipes.training_images()  # to train on
    config.method = recipes.method("ml_decoder", queries=variant)
    if options["loss"] == "asymmetric":
        config.loss.gamma_positive = 0.0
    config.optimizer.learning_rate = 1e-4  # the peak
    config.optimizer.weight_decay = 1e-4
    return config
