"""ML-Decoder, trained on images with labels (Ridnik et al., WACV 2023), here on a frozen CLIP's features.

    mlclip train --config=ml_decoder --workdir=runs/ml_decoder \\
        --config.backbone=timm/vit_base_patch32_clip_224.openai --config.texts.labels=labels.txt \\
        --config.examples.images=train --config.examples.labels=train.csv \\
        --config.evaluation.images=test --config.evaluation.labels=test.csv

Variants:
  frozen  random queries that are not trained, as published.
  learnt  the same, trained.
  text    a query for each label, from its text: labels by other class texts too, once it is trained.

`ml_decoder:text,loss=two_way` sets another loss, whose constants are then `config.loss.*`.

The decoder, its loss (ASL with a negative focus of 4 and a positive one of 0) and its peak rate are those of
the published code, which trains a TResNet along with it and reads 90.1 mAP on COCO at 448 pixels.
"""

from ml_collections import ConfigDict

from mlclip_jax.configs import mmm_clip
from mlclip_jax.recipes import read_variant

VARIANTS = ("frozen", "learnt", "text")


def get_config(variant="frozen"):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with `,loss=NAME`."""
    queries, loss = read_variant("ml_decoder", variant, VARIANTS, "asymmetric")
    if loss.name == "asymmetric":
        loss.gamma_positive = 0.0
    config = mmm_clip.get_config("mld")
    config.adapter = ConfigDict()
    config.adapter.name = "ml_decoder"
    config.adapter.features = "local"  # what the queries look at; or "pooled"
    config.adapter.queries = queries
    config.adapter.groups = 100  # queries at most, unless each label has its own
    config.adapter.width = 768
    config.adapter.num_heads = 8
    config.adapter.hidden = 2048
    config.adapter.dropout = 0.1
    config.adapter.dtype = "float32"  # of the products; or "bfloat16"
    config.loss = loss  # its name, and its constants
    config.optimizer.learning_rate = 1e-4  # the peak
    config.optimizer.weight_decay = 1e-4
    return config
