"""Zero-shot classification: images are labelled by the names of labels alone.

    mlclip predict --method=zero_shot --backbone=timm/vit_base_patch32_clip_224.openai \\
        --classes=labels.txt --images=photographs

begins with this recipe, as `mlclip_jax.load_zero_shot` does. `mlclip train --config=zero_shot` refuses it: it
has nothing to train.

Variants, which are the rules:
  ridge         weights of a ridge regression on the class embeddings, standardised over the labels.
  standardised  cosines, standardised over the labels.
  cosine        cosines over the temperature, CLIP's own logits.
  softmax       log-probabilities of CLIP's softmax over the labels.

On 179 COCO photographs, 80 labels, CLIP ViT-B/32 and 63 templates, in this order: 62.3, 60.5, 54.3 and
60.6 mAP.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mlclip_jax import recipes

VARIANTS = ("ridge", "standardised", "cosine", "softmax")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`."""
    variant, _ = recipes.read_variant("zero_shot", variant, VARIANTS, {})
    config = ConfigDict()
    config.recipe = f"zero_shot:{variant}"
    config.backbone = placeholder(str)  # folder or hub name
    config.texts = ConfigDict({"templates": "imagenet"})  # as of `recipes.base`; here CLIP's 80
    config.method = recipes.method("zero_shot", rule=variant)
    return config
