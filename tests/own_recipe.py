"""A recipe of somebody else's: mlclip train --config=own_recipe.py:images,rank=4 ..."""

from mlclip_jax import recipes

VARIANTS = ("images",)


def get_config(variant=""):
    """The recipe."""
    config, variant, options = recipes.base(__file__, variant, VARIANTS, rank=8)
    config.examples = recipes.training_images()
    config.backbone = "scenes-clip"
    config.method = recipes.method("low_rank", rank=options["rank"])
    config.train.update(steps=60, batch_size=8, log_every=10, checkpoint_every=20)
    return config
