"""MMM-CLIP's adapters, trained on images with labels.

    mlclip train --config=mmm_clip:fc --workdir=runs/fc \\
        --config.backbone=timm/vit_base_patch32_clip_224.openai --config.texts.labels=labels.txt \\
        --config.examples.embeddings=train.npz --config.examples.labels=train.csv \\
        --config.evaluation.embeddings=test.npz --config.evaluation.labels=test.csv

Variants:
  fc             one fully connected layer on the image embedding, and each label's cosine beside it.
  fc_published   as published: the first class's text beside the embedding; sigmoid and mean squared error.
  mld            cross-attention from the class embeddings to the image's local features.
  mld_published  as published: to its embedding; the logit is a mean over channels; 3 blocks, as in
                 its code, without dropout.

`mmm_clip:mld,loss=asymmetric` sets another loss, whose constants are then `config.loss.*`. With
`--config.examples.embeddings`, local features come from `mlclip embed --features=image,image_local`.

Measured on the built-in world: docs/results.md.
"""

from mlclip_jax import recipes

VARIANTS = ("fc", "fc_published", "mld", "mld_published")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with `,loss=NAME`."""
    default_loss = "mean_squared_error" if variant.startswith("fc_published") else "binary_cross_entropy"
    config, variant, _ = recipes.base("mmm_clip", variant, VARIANTS, loss=default_loss)
    config.examples = recipes.training_images()  # to train on
    config.method = {
        "fc": recipes.method("fc"),
        "fc_published": recipes.method("fc", text="first"),
        "mld": recipes.method("mld"),
        "mld_published": recipes.method("mld", features="pooled", readout="mean", blocks=3, dropout=0.0),
    }[variant]
    config.optimizer.learning_rate = 1e-2 if variant.startswith("fc") else 3e-4  # the peak
    return config
