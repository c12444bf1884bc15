"""The adapters of the demo: the built-in CLIP, on the built-in world.

    mlclip train --config=demo:tai --workdir=runs/tai --config.texts.labels=labels.txt

`bash launch/demo.sh` trains all three, and scores them on scenes that nothing has seen; it sets the paths
that are left open here.

Variants:
  tai       TaI-Adapter, trained on sentences, perturbed.
  no_noise  the same, not perturbed.
  fc        FC, trained on images with labels: what the others may hope for.

The radius is the mean distance between a scene's embedding and that of the class text nearest to it, which
needs no label to measure. Figures: README.
"""

from mlclip_jax import recipes
from mlclip_jax.configs import mmm_clip, tai

RADIUS = 23.0
VARIANTS = ("tai", "no_noise", "fc")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with `,loss=NAME`."""
    name, options = recipes.read_variant("demo", variant, VARIANTS, {"loss": "binary_cross_entropy"})
    loss = f",loss={options['loss']}"
    config = mmm_clip.get_config("fc" + loss) if name == "fc" else tai.get_config("templates" + loss)
    config.recipe = f"demo:{name}{loss}"
    config.backbone = "scenes-clip"
    config.perturbation.radius = RADIUS if name == "tai" else 0.0
    return config
