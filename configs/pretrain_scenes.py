"""Pre-trains a small CLIP on the built-in world: this made the built-in CLIP.

    mlclip pretrain --config=pretrain_scenes --workdir=runs/scenes-clip

Variants:
  full   the built-in CLIP. Its figures and its time are in mlclip_jax/backbones/scenes_clip/README.md.
  short  the same on a few small scenes: seconds, to see that everything works.
"""

from ml_collections import ConfigDict

from mlclip_jax import recipes
from mlclip_jax.data.scenes import DEFAULT

VARIANTS = ("full", "short")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`."""
    variant, _ = recipes.read_variant("pretrain_scenes", variant, VARIANTS, {})
    config = ConfigDict()
    config.recipe = f"pretrain_scenes:{variant}"
    config.seed = 0
    config.max_skipped = 0.01  # fraction of the images that may be unreadable

    config.scenes = ConfigDict()  # see data/scenes.py
    config.scenes.seed = 1_000_000
    config.scenes.number = 1_000_000
    config.scenes.partial = 0.5  # this fraction of captions names only part of the objects
    config.scenes.difficulty = ConfigDict(DEFAULT._asdict())

    config.evaluation = ConfigDict()
    config.evaluation.number = 2_000  # the source's last examples, at least; never trained on

    config.model = ConfigDict()  # as in Hugging Face's config.json of a CLIP
    config.model.projection_dim = 128
    config.model.logit_scale_init_value = 2.6592  # log(1 / 0.07)
    config.model.vision_config = ConfigDict()
    config.model.vision_config.image_size = 64
    config.model.vision_config.patch_size = 8
    config.model.vision_config.hidden_size = 128
    config.model.vision_config.intermediate_size = 256
    config.model.vision_config.num_hidden_layers = 4
    config.model.vision_config.num_attention_heads = 2
    config.model.text_config = ConfigDict()
    config.model.text_config.max_position_embeddings = 32
    config.model.text_config.hidden_size = 128
    config.model.text_config.intermediate_size = 256
    config.model.text_config.num_hidden_layers = 2
    config.model.text_config.num_attention_heads = 2
    config.vocabulary = 1_000  # tokens, at most

    config.loss = ConfigDict()
    config.loss.max_scale = 100.0  # of the cosines: one over the lowest temperature
    config.loss.auxiliary = 3.0  # weight of the image tower's own multi-label loss; 0: contrastive alone

    config.optimizer = recipes.optimizer(
        name="muon", learning_rate=3e-3, weight_decay=0.05, b2=0.98, nesterov=True, max_norm=1.0
    )
    config.schedule = recipes.schedule(name="cosine", warmup=300)
    config.train = recipes.training(
        steps=4_000, batch_size=128, log_every=20, evaluate_every=500, checkpoint_every=500
    )
    del config.train.epochs, config.train.label_shards, config.train.best_by

    if variant == "short":
        config.scenes.number = 2_000
        config.evaluation.number = 200
        config.model.vision_config.num_hidden_layers = 1
        config.model.text_config.num_hidden_layers = 1
        config.schedule.warmup = 5
        config.train.steps = 20
        config.train.batch_size = 32
        config.train.log_every = 5
        config.train.checkpoint_every = 10
        config.train.evaluate_every = 0
    return config
