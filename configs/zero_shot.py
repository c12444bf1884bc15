"""Zero-shot classification: images are labelled by the names of labels alone.

    mlclip predict --method=zero_shot --backbone=timm/vit_base_patch32_clip_224.openai \\
        --classes=labels.txt --images=photographs [--rule=VARIANT]
    mlclip evaluate --config=zero_shot:all --config.backbone=... --images=FOLDER --labels=FILE
    mlclip train --config=zero_shot --config.backbone=... --config.texts.labels=labels.txt --workdir=RUN

begin with this recipe, as `mlclip_jax.load_zero_shot` does. Nothing is trained: the last one writes a run,
which `predict`, `evaluate` and `calibrate` take as they take a trained one.

Variants, which are the rules:
  ridge           weights of a ridge regression on the class embeddings, standardised over the labels.
  standardised    cosines, standardised over the labels.
  cosine          cosines over the temperature, CLIP's own logits.
  softmax         log-probabilities of CLIP's softmax over the labels.
  mean_scores, mean_ranks, highest_scores
                  ridge by each template alone, and the mean of scores or of ranks, or the highest score.
  centred         ridge, of class embeddings less what a vocabulary of everyday nouns has in common.
  compound        cosines with names and with pairs of them, fused as in SPARC.
  local           cosines with the whole image and with its patches, as in TaI-DPT.
  self_distilled  ridge, and what scores of a bank of unlabelled images teach: bank=FOLDER, a folder of
                  embeddings; by default the images themselves.
  patches         cosines with patches, by SC-CLIP's attention and beside words for the background, and with
                  the whole image; tagclip and piaa are these methods' steps (`mlclip_jax/patches.py`). piaa
                  needs unlabelled=FOLDER or many images at once, and has constants for each data set.
  yes_no, yes_no_without, yes_no_no, list_all, top_all, language_model
                  MMM-CLIP's prompting methods; the last needs answers=FILE, and model= and address= for
                  captions that are not in it.
  yes_no_published, list_all_published, top_all_published
                  the same as its code has them.
  all             each of them, for `mlclip evaluate`.

On 179 COCO photographs, 80 labels, CLIP ViT-B/32 and 63 templates, the first four read 62.3, 60.5, 54.3 and
60.6 mAP.
"""

from ml_collections import ConfigDict

from mlclip_jax import recipes

RULES = {
    "ridge": ("zero_shot", {"rule": "ridge"}),
    "standardised": ("zero_shot", {"rule": "standardised"}),
    "cosine": ("zero_shot", {"rule": "cosine"}),
    "softmax": ("zero_shot", {"rule": "softmax"}),
    "mean_scores": ("zero_shot_per_template", {"by": "scores"}),
    "mean_ranks": ("zero_shot_per_template", {"by": "ranks"}),
    "highest_scores": ("zero_shot_per_template", {"by": "maximum"}),
    "centred": ("zero_shot_centred", {}),
    "compound": ("zero_shot_compound", {}),
    "local": ("zero_shot_local", {}),
    "self_distilled": ("self_distilled", {}),
    "patches": ("zero_shot_patches", {}),
    "tagclip": ("zero_shot_patches", {"attention": "value", "refine": True, "global_weight": 0.0}),
    "piaa": ("zero_shot_patches", {"gaussian": True, "background": False}),
    "yes_no": ("yes_no", {}),
    "yes_no_without": ("yes_no", {"absent": "without"}),
    "yes_no_no": ("yes_no", {"absent": "no"}),
    "yes_no_published": ("yes_no", {"published": True}),
    "list_all": ("list_all", {}),
    "list_all_published": ("list_all", {"published": True}),
    "top_all": ("top_all", {}),
    "top_all_published": ("top_all", {"published": True}),
    "language_model": ("language_model_top_all", {}),
}
VARIANTS = (*RULES, "all")
# Options, and the methods that have them as settings.
OPTIONS = {"bank": "", "unlabelled": "", "answers": "", "model": "", "address": ""}


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`, with its options."""
    variant, options = recipes.read_variant("zero_shot", variant, VARIANTS, OPTIONS)
    config = recipes.frozen_base("zero_shot", variant, options, OPTIONS)
    config.texts.templates = "imagenet"  # CLIP's 80
    given = {key: value for key, value in options.items() if value}
    if variant == "all":
        config.rules = tuple(RULES)
        config.options = ConfigDict(options)
    else:
        name, settings = RULES[variant]
        config.method = recipes.method(name, **settings, **given)
    return config
