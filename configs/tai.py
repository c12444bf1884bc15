"""TaI-Adapter: train on texts, score images (arXiv 2312.04160).

Its table 2 (zero-shot, CLIP RN50, 224 pixels, texts by an LLM): mAP 89.0 on VOC2007, 67.7 on COCO,
53.3 on NUS-WIDE.

    mlclip train --config=tai:embeddings --workdir=runs/tai \\
        --config.texts.class_embeddings=class_embeddings.npz --config.evaluation.embeddings=photographs.npz

    mlclip train --config=tai:templates --workdir=runs/tai \\
        --config.backbone=timm/vit_base_patch32_clip_224.openai --config.texts.labels=labels.txt \\
        --config.evaluation.images=photographs --config.evaluation.labels=photographs.csv

Variants:
  embeddings  texts are mixtures of class-text embeddings; no backbone is loaded.
  templates   texts are sentences that name 1 to 3 labels, encoded by the backbone.

`tai:embeddings,loss=asymmetric` sets another loss, whose constants are then `config.loss.*`.

The paper trains on 10,000 texts for 60 epochs (9,375 steps of 64) at a peak rate of 1e-4, radius 25. Here the
peak rate is 1e-3 over 3,000 steps. The radius is 12: about the distance between an image's embedding and that
of the class text nearest to it, which needs no label to measure.

Measured (variant embeddings, ViT-B/32, 179 COCO photographs, 80 labels): 57.7 mAP, plain cosine 49.8;
13 seconds on 2 CPU cores. README, "What it scores", has the protocol, the spread and the other settings.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mlclip_jax.recipes import read_variant

VARIANTS = ("embeddings", "templates")


def get_config(variant="embeddings"):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with `,loss=NAME`."""
    variant, loss = read_variant("tai", variant, VARIANTS, "binary_cross_entropy")
    config = ConfigDict()
    config.seed = 0
    config.max_skipped = 0.01  # fraction of the images that may be unreadable

    config.texts = ConfigDict()
    config.texts.number = 10_000
    config.texts.max_labels = 3  # a text names 1 to this many labels
    if variant == "embeddings":
        config.texts.class_embeddings = placeholder(str)  # .npz or .npy, a row per class
    else:
        config.backbone = placeholder(str)  # folder or hub name
        config.encoding = ConfigDict()  # how the backbone computes; what is left empty, it decides
        config.encoding.dtype = ""  # "float32" or "bfloat16"; by default float32 on CPUs, bfloat16 elsewhere
        config.encoding.image_size = ""  # "448", or "448x336" for height and width; by default its own
        config.encoding.resize = ""  # "crop" or "squash"; by default its own
        config.encoding.decode = ""  # "full" (default), or "reduced": JPEG files faster, and nearly the same
        config.encoding.position_embeddings = ""  # of a CLIP ResNet: "pooled" (default), "all" or "none"
        config.encoding.shard_parameters = False  # split over the devices, for large models
        config.texts.labels = placeholder(str)  # text file, a label per line; by default the images' own

    # Images to score; left empty, the run only trains.
    config.evaluation = ConfigDict()
    config.evaluation.embeddings = placeholder(str)  # a file or a folder, a row per image
    if variant == "templates":
        config.evaluation.images = placeholder(str)  # or a folder of images, or "voc:FOLDER,split=test"
    config.evaluation.labels = placeholder(str)  # a table, where these have no labels

    config.perturbation = ConfigDict()
    config.perturbation.radius = 12.0  # in units of the un-normalised embedding
    config.perturbation.sampling = "surface"

    config.adapter = ConfigDict()
    config.adapter.name = "tai"
    config.adapter.hidden = 512
    config.adapter.depth = 3
    config.adapter.dropout = 0.1
    config.adapter.dtype = "float32"  # of the products; or "bfloat16"
    config.loss = loss  # its name, and its constants

    config.optimizer = ConfigDict()  # AdamW, on every parameter, under a 1-cycle schedule
    config.optimizer.learning_rate = 1e-3  # the peak
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
