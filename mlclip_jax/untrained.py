"""Runs of methods that are never trained: zero-shot classification by the names of labels alone."""

import os
import re
from collections.abc import Mapping, Sequence

from flax import nnx
from ml_collections import ConfigDict

from mlclip_jax import methods, recipes
from mlclip_jax.backbones import load_backbone
from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.errors import InputError
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.options import nearest
from mlclip_jax.runs import Run
from mlclip_jax.texts.label_sets import check_label_names
from mlclip_jax.texts.templates import read_templates


def load_zero_shot(
    backbone: Backbone | str | os.PathLike,
    label_names: Sequence[str],
    *,
    templates: str = "imagenet",
    rule: str = "ridge",
    penalty: float = 3.0,
    temperature: float = 0.01,
) -> Run:
    """Zero-shot classification by a backbone and names of labels, without training.

    Args:
      backbone: a `Backbone`, or the folder or name of one.
      label_names: K names.
      templates: what names are put into: a template, a set such as "imagenet" (CLIP's 80), or a file; over
        several, the embeddings of a name are averaged. See `texts.templates.read_templates`.
      rule: "ridge", "standardised", "cosine" or "softmax", see `zero_shot.classifier.ZeroShot`.
      penalty: of "ridge".
      temperature: of "cosine" and "softmax".

    Returns:
      A `Run` without a folder. Its `predict` gives scores (N, K), which are no probabilities: larger means
      more present.

    Raises:
      InputError: the backbone cannot be loaded, these are no names or templates, or there is no such rule.

    Example:
      >>> run = mlclip_jax.load_zero_shot("timm/vit_base_patch32_clip_224.openai", ["cat", "dog", "car"])
      >>> scores = run.predict(["photo.jpg"])  # (1, 3)
      >>> run.label_names[scores[0].argmax()]
      'dog'
    """
    settings = {"rule": rule, "penalty": penalty, "temperature": temperature}
    return load_untrained("zero_shot", backbone, label_names, templates=templates, settings=settings)


def load_untrained(
    recipe: str,
    backbone: Backbone | str | os.PathLike,
    label_names: Sequence[str],
    *,
    templates: str = "",
    settings: Mapping[str, object] | None = None,
) -> Run:
    """The same by the recipe of any method that is never trained.

    Args:
      recipe: `NAME:VARIANT`, whose `texts.templates` and `method` it begins with.
      backbone, label_names: as of `load_zero_shot`.
      templates: the same; empty: the recipe's.
      settings: of the method, in place of the recipe's.

    Raises:
      InputError: as of `load_zero_shot`; or the method needs training, or has no such setting.
    """
    config = recipes.read(recipe)
    config.method = ConfigDict(dict(config.method) | dict(settings or {}))
    method = methods.find(config.method)
    if method.trainable != ():
        raise InputError(
            f"{method.title} is trained before it labels images: give the folder of its run, --workdir=RUN"
        )
    for name, (holds, wanted) in method.ranges.items():
        value = method.settings[name]
        if not holds(value):
            near = nearest(value, re.findall(r"\w+", wanted)) if isinstance(value, str) else ""
            raise InputError(f"{method.title}: invalid {name}={value}{near}: must be {wanted}")
    check_label_names(label_names, "label_names")
    config.texts.templates = templates or config.texts.templates
    read_templates(config.texts.templates)
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone)
    config.backbone = backbone.origin.name
    class_embeddings = embed_names(backbone, label_names, config.texts.templates)
    module = method.make(class_embeddings.vectors, rngs=nnx.Rngs(0))
    graph, parameters, frozen = split_trainable(module, method.trainable)
    return Run(
        workdir=None,
        config=config,
        class_embeddings=class_embeddings,
        graph=graph,
        parameters=parameters,
        frozen=frozen,
        step=0,
        finished=True,
        checkpoint="latest",
        backbone=backbone,
    )
