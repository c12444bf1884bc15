"""TaI-Adapter: train on texts, score images (arXiv 2312.04160).

Its table 2 (zero-shot, CLIP RN50, 224 pixels, texts by an LLM): mAP 89.0 on VOC2007, 67.7 on COCO,
53.3 on NUS-WIDE.

    mlclip train --config=tai:embeddings --workdir=runs/tai \\
        --config.texts.class_embeddings=class_embeddings.npz --config.evaluation.embeddings=photographs.npz

    mlclip train --config=tai:templates --workdir=runs/tai \\
        --config.backbone=timm/vit_base_patch32_clip_224.openai --config.texts.labels=labels.txt \\
        --config.evaluation.images=photographs --config.evaluation.labels=photographs.csv

    mlclip train --config=tai:voc2007,task=few_shot,shots=4,published=yes --workdir=runs/voc

Variants:
  embeddings  texts are mixtures of class embeddings; no backbone is loaded.
  templates   texts are sentences that name 1 to 3 labels, or come from files (`texts.sources`), and are
              encoded by the backbone.
  voc2007, coco2014, nus_wide  the same, on these images: `data=FOLDER` holds them as docs/datasets.md says.
  scenes      the same on the built-in world, made hard.

Options, written behind the variant:
  task=zero_shot       no image is trained on (default).
  task=few_shot        images are trained on beside the texts, of which `shots=1` for each label are left;
                       they are perturbed too (equation 6).
  task=partial_labels  before they are perturbed, texts are shifted towards the images of their labels, of
                       which a fraction `known=0.3` is known (equations 7 to 10).
  published=yes        what the paper states: RN50, images resized into 224 x 224 (448 x 448 for partial
                       labels), 60 epochs of 10,000 texts, a peak rate of 1e-4, radius 25 (10 once shifted),
                       and the size of the adapter that its table 4 implies.
  loss=asymmetric      another loss, whose constants are then `config.loss.*`.

Otherwise the peak rate is 1e-3 over 3,000 steps. The radius is 12: about the distance between an image's
embedding and that of the class text nearest to it, which needs no label to measure.

A development figure (variant embeddings, ViT-B/32, 179 COCO photographs, 80 labels): 57.7 mAP, plain cosine
49.8, and 58.7 once standardised; 13 seconds on 2 CPU cores. docs/results.md has the protocol, the spread, the
other settings, and photographs that nothing was chosen on.
"""

from ml_collections.config_dict import placeholder

from mlclip_jax import recipes
from mlclip_jax.data.published_splits import PUBLISHED_SPLITS

VARIANTS = ("embeddings", "templates", *PUBLISHED_SPLITS)
TASKS = ("zero_shot", "few_shot", "partial_labels")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`, perhaps with options behind it."""
    defaults = {"task": "zero_shot", "shots": 1, "known": 0.3, "published": False, "data": "data"}
    config, variant, options = recipes.base("tai", variant, VARIANTS, **defaults)
    recipes.check_choice("tai", "task", options["task"], TASKS)
    config.texts.number = 10_000
    config.texts.max_labels = 3  # a text from templates names 1 to this many labels
    config.texts.size_weights = ""  # how often 1, 2, 3 labels, as in "3,2,1"; by default all alike
    config.texts.per_combination = 1  # texts of the same labels
    config.texts.sources = "templates"  # or files of texts, and their shares: "templates:0.5,texts.jsonl:0.5"
    config.texts.share = 1.0  # of each batch; the others are `examples`; -1: all are shuffled together
    config.examples = recipes.training_images()  # to train on beside the texts, or to shift them by
    config.method = recipes.method("tai")
    config.perturbation.radius = 12.0
    if options["published"]:
        as_published(config, options["task"])
    if variant == "scenes":
        config.backbone = "scenes-clip"
        config.texts.max_labels = 5  # these images show up to six objects
        config.perturbation.radius = 23.0  # by the same rule
    set_task(config, options)
    if variant == "embeddings":
        del config.backbone, config.encoding
        del config.texts.labels, config.texts.templates, config.texts.sources
        del config.evaluation.images, config.examples.images
        config.texts.class_embeddings = placeholder(str)  # .npz or .npy, a row per class
    if variant in PUBLISHED_SPLITS:
        trained_on, scored = (images.format(options["data"]) for images in PUBLISHED_SPLITS[variant])
        config.evaluation.images = scored
        if options["task"] != "zero_shot":
            config.examples.images = trained_on
    return config


def set_task(config, options):
    """What a task changes: which images are trained on, which labels of theirs are known, what moves."""
    if options["task"] == "few_shot":
        config.texts.share = -1.0  # texts and images are shuffled together
        config.examples.shots = options["shots"]
        config.perturbation.image_radius = 1.0
    if options["task"] == "partial_labels":
        # Alone in its combination, a text would become the shifted centroid itself (equation 10).
        config.texts.per_combination = 2
        config.examples.known = options["known"]
        config.perturbation.shift = "regression"
        if options["published"]:
            config.perturbation.update(shift="mean", radius=10.0)


def as_published(config, task):
    """The paper's section 4.1, and the adapter's size by its table 4; it states no dropout rate."""
    config.backbone = "timm/resnet50_clip.openai"
    config.encoding.resize = "squash"
    config.encoding.image_size = "448" if task == "partial_labels" else "224"
    config.method = recipes.method("tai", hidden=2048, depth=4)
    config.perturbation.radius = 25.0
    config.optimizer.learning_rate = 1e-4
    config.train.epochs = 60.0
