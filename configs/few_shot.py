"""The image adapters on the built-in world, sized for its 128 dimensions: what `mlclip few_shot` trains.

    mlclip few_shot --workdir=runs/few_shot --seeds=5
    mlclip train --config=few_shot:mld --workdir=runs/mld \\
        --config.texts.labels=labels.txt --config.examples.embeddings=train.npz

Variants, each trained 300 steps whatever the number of images:
  fc, fc_published, mld, mld_pooled, mld_published   of recipe mmm_clip; mld_pooled attends to the embedding
  ml_decoder, ml_decoder_text                        of recipe ml_decoder, with frozen and with text queries

MLD's peak rate was chosen on other scenes, as the better of 1e-3 and 3e-4; the others' were not searched for.
Figures: docs/results.md.
"""

from mlclip_jax import recipes
from mlclip_jax.configs import ml_decoder, mmm_clip

VARIANTS = ("mld", "mld_pooled", "mld_published", "fc", "fc_published", "ml_decoder", "ml_decoder_text")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with `,loss=NAME`."""
    name, options = recipes.read_variant("few_shot", variant, VARIANTS, {"loss": ""})
    loss = f",loss={options['loss']}" if options["loss"] else ""
    if name.startswith("ml_decoder"):
        config = ml_decoder.get_config(("text" if name == "ml_decoder_text" else "frozen") + loss)
        config.method.width = 128
        config.optimizer.learning_rate = 1e-3
    else:
        config = mmm_clip.get_config(("mld" if name == "mld_pooled" else name) + loss)
    config.recipe = f"few_shot:{name}{loss}"
    if name == "mld_pooled":
        config.method.features = "pooled"
    if name == "mld_published":
        config.optimizer.learning_rate = 1e-3
    if "hidden" in config.method:
        config.method.hidden = 256
    config.backbone = "scenes-clip"
    config.train.steps = 300
    return config
