"""MMM-CLIP's adapters, trained on images with labels.

    mlclip train --config=mmm_clip:fc --workdir=runs/fc \\
        --config.backbone=timm/vit_base_patch32_clip_224.openai --config.texts.labels=labels.txt \\
        --config.examples.embeddings=train.npz --config.examples.labels=train.csv \\
        --config.evaluation.embeddings=test.npz --config.evaluation.labels=test.csv

Variants:
  fc             one fully connected layer on the image embedding, and each label's cosine beside it.
  fc_published   as published: the first class's text beside the embedding; sigmoid and mean squared error.
  mld            the labels' texts look at the image's local features.
  mld_published  as published: they look at its embedding; the logit is a mean over channels; 3 blocks, as in
                 its code, without dropout.

`mmm_clip:mld,loss=asymmetric` sets another loss, whose constants are then `config.loss.*`. With
`--config.examples.embeddings`, local features come from `mlclip embed --local`.

Measured on the built-in world: README, "See it work".
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mlclip_jax.recipes import read_variant

VARIANTS = ("fc", "fc_published", "mld", "mld_published")


def get_config(variant="fc"):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with `,loss=NAME`."""
    default_loss = "mean_squared_error" if variant.startswith("fc_published") else "binary_cross_entropy"
    variant, loss = read_variant("mmm_clip", variant, VARIANTS, default_loss)
    published = variant.endswith("published")
    config = ConfigDict()
    config.seed = 0
    config.max_skipped = 0.01  # fraction of the images that may be unreadable
    config.backbone = placeholder(str)  # folder or hub name
    config.encoding = ConfigDict()  # how the backbone computes; what is left empty, it decides
    config.encoding.dtype = ""  # "float32" or "bfloat16"; by default float32 on CPUs, bfloat16 elsewhere
    config.encoding.image_size = ""  # "448", or "448x336" for height and width; by default its own
    config.encoding.resize = ""  # "crop" or "squash"; by default its own
    config.encoding.decode = ""  # "full" (default), or "reduced": JPEG files faster, and nearly the same
    config.encoding.position_embeddings = ""  # of a CLIP ResNet: "pooled" (default), "all" or "none"
    config.encoding.shard_parameters = False  # split over the devices, for large models

    config.texts = ConfigDict()
    config.texts.labels = placeholder(str)  # text file, a label per line; by default the images' own

    # Images to train on.
    config.examples = ConfigDict()
    config.examples.embeddings = placeholder(str)  # a file or a folder, a row per image
    config.examples.images = placeholder(str)  # or a folder of images, or "voc:FOLDER,split=trainval"
    config.examples.labels = placeholder(str)  # a table, where these have no labels

    # Images to score; left empty, the run only trains.
    config.evaluation = ConfigDict()
    config.evaluation.embeddings = placeholder(str)
    config.evaluation.images = placeholder(str)
    config.evaluation.labels = placeholder(str)

    config.perturbation = ConfigDict()
    config.perturbation.radius = 0.0  # what trains on images has no gap to cross
    config.perturbation.sampling = "surface"

    config.adapter = ConfigDict()
    if variant.startswith("fc"):
        config.adapter.name = "fc"
        config.adapter.text = "first" if published else "cosine"
    else:
        config.adapter.name = "mld"
        config.adapter.features = "pooled" if published else "local"
        config.adapter.readout = "mean" if published else "projection"
        config.adapter.blocks = 3 if published else 1
        config.adapter.num_heads = 4
        config.adapter.hidden = 2048
        config.adapter.dropout = 0.0 if published else 0.4
    config.adapter.dtype = "float32"  # of the products; or "bfloat16"
    config.loss = loss  # its name, and its constants

    config.optimizer = ConfigDict()  # AdamW, on every parameter, under a 1-cycle schedule
    config.optimizer.learning_rate = 1e-2 if config.adapter.name == "fc" else 3e-4  # the peak
    config.optimizer.weight_decay = 0.01

    config.train = ConfigDict()
    config.train.steps = 3_000
    config.train.batch_size = 64  # over all devices
    config.train.parallel = "shard_map"  # or "pmap"
    config.train.label_shards = (
        1  # devices that share the labels, for many thousands; the batch has the others
    )
    config.train.log_every = 100  # steps
    config.train.evaluate_every = 0  # steps; 0: only at the end
    config.train.checkpoint_every = 1_000  # steps
    config.train.max_skipped_steps = 0  # with a loss or gradient that is not finite; one more ends the run
    config.train.stall_seconds = 1_800  # without progress, until a process ends; 0: never
    return config
