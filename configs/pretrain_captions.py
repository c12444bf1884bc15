"""Pre-trains a small CLIP on any captioned images, such as a table with the columns filename and caption.

    mlclip pretrain --config=pretrain_captions --workdir=runs/clip \\
        --config.images.source=table:captions.csv,images=photographs

A column of labels, names joined by |, serves the auxiliary loss (--config.loss.auxiliary=3) and the mAP of
held-out images. The model is as small as the built-in one, with more room for words; every size can be set.
No figure is known for this recipe: a useful CLIP of photographs takes millions of them.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mlclip_jax import recipes
from mlclip_jax.configs import pretrain_scenes


def get_config(variant=""):
    """The recipe, which has no variants."""
    recipes.read_variant("pretrain_captions", variant, ("",), {})
    config = pretrain_scenes.get_config()
    config.recipe = "pretrain_captions"
    del config.scenes
    config.images = ConfigDict()
    config.images.source = placeholder(str)  # "table:captions.csv,images=photographs", or a dataset
    config.images.augment = ""  # "random_resized_crop,flip,cutout,rand_augment", or some of them
    config.evaluation.number = 100
    config.model.text_config.max_position_embeddings = 77
    config.vocabulary = 8_000
    config.loss.auxiliary = 0.0
    return config
