"""MMM-CLIP's adapters, trained on images with labels.

    mlclip train --config=mmm_clip:fc --workdir=runs/fc \\
        --config.backbone=timm/vit_base_patch32_clip_224.openai --config.texts.labels=labels.txt \\
        --config.examples.embeddings=train.npz --config.examples.labels=train.csv \\
        --config.evaluation.embeddings=test.npz --config.evaluation.labels=test.csv

Variants:
  fc   one fully connected layer on the image embedding.

Measured on the built-in world: README, "See it work".
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mlclip_jax.errors import InputError


def get_config(variant="fc"):
    """The recipe; `variant` is "fc"."""
    if variant != "fc":
        raise InputError(f"recipe mmm_clip has no variant {variant!r}; it has fc")
    config = ConfigDict()
    config.seed = 0
    config.backbone = placeholder(str)  # folder or hub name
    config.encoding = ConfigDict()  # how the backbone computes; what is left empty, it decides
    config.encoding.dtype = ""  # "float32" or "bfloat16"; by default float32 on CPUs, bfloat16 elsewhere
    config.encoding.image_size = ""  # "448", or "448x336" for height and width; by default its own
    config.encoding.resize = ""  # "crop" or "squash"; by default its own
    config.encoding.positions = ""  # of a CLIP ResNet: "pooled" (default), "all" or "none"
    config.encoding.shard_parameters = False  # split over the devices, for large models

    config.texts = ConfigDict()
    config.texts.labels = placeholder(str)  # text file, a label per line

    # Images to train on.
    config.examples = ConfigDict()
    config.examples.embeddings = placeholder(str)  # .npz or .npy, a row per image
    config.examples.images = placeholder(str)  # or a folder of images
    config.examples.labels = placeholder(str)  # .csv, unless the .npz holds labels

    # Images to score; left empty, the run only trains.
    config.evaluation = ConfigDict()
    config.evaluation.embeddings = placeholder(str)
    config.evaluation.images = placeholder(str)
    config.evaluation.labels = placeholder(str)

    config.perturbation = ConfigDict()
    config.perturbation.radius = 0.0  # what trains on images has no gap to cross
    config.perturbation.sampling = "surface"

    config.adapter = ConfigDict()
    config.adapter.name = "fc"

    config.optimizer = ConfigDict()  # AdamW under a 1-cycle schedule
    config.optimizer.learning_rate = 1e-2  # the peak
    config.optimizer.weight_decay = 0.01

    config.train = ConfigDict()
    config.train.steps = 3_000
    config.train.batch_size = 64  # over all devices
    config.train.parallel = "shard_map"  # or "pmap"
    config.train.log_every = 100  # steps
    config.train.evaluate_every = 0  # steps; 0: only at the end
    config.train.checkpoint_every = 1_000  # steps
    return config
