"""Runs of methods that are never trained: zero-shot classification by the names of labels alone."""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mlclip_jax import methods, recipes
from mlclip_jax.backbones import load_backbone, load_backbone_of
from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.comparison import describe_comparison
from mlclip_jax.distributed.processes import all_or_none, check_alike, check_shared, is_first
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import PIXELS, read_embeddings, write_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.evaluation import evaluate
from mlclip_jax.files import make_folder
from mlclip_jax.options import nearest
from mlclip_jax.run_folders import EMBEDDED
from mlclip_jax.runs import Run, untrained_run
from mlclip_jax.texts.label_sets import check_label_names
from mlclip_jax.texts.templates import CLASS_TEMPLATE, read_templates
from mlclip_jax.training.inputs import read_class_embeddings
from mlclip_jax.wording import counted

RECIPE = "zero_shot"


def load_zero_shot(
    backbone: Backbone | str | os.PathLike,
    label_names: Sequence[str],
    *,
    rule: str = "ridge",
    templates: str = "imagenet",
    **settings: object,
) -> Run:
    """Zero-shot classification by a backbone and names of labels, without training.

    Args:
      backbone: a `Backbone`, or the folder or name of one.
      label_names: K names.
      rule: a variant of the recipe `zero_shot`: "ridge", "cosine", "yes_no", "list_all" and more, see
        `configs/zero_shot.py`; with its options, "self_distilled,bank=FILE".
      templates: what names are put into: a template, a set such as "imagenet" (CLIP's 80), or a file; over
        several, the embeddings of a name are averaged. See `texts.templates.read_templates`.
      settings: of the method, in place of the recipe's, such as `penalty=1.0` of "ridge".

    Returns:
      A `Run` without a folder. Its `predict` gives scores (N, K), which are no probabilities: larger means
      more present.

    Raises:
      InputError: the backbone cannot be loaded, these are no names or templates, or there is no such rule or
        setting.

    Example:
      >>> run = mlclip_jax.load_zero_shot("timm/vit_base_patch32_clip_224.openai", ["cat", "dog", "car"])
      >>> scores = run.predict(["photo.jpg"])  # (1, 3)
      >>> run.label_names[scores[0].argmax()]
      'dog'
    """
    config = check_zero_shot(label_names, rule=rule, templates=templates, **settings)
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone)
    config.backbone = backbone.origin.name
    run = untrained_run(config, embed_names(backbone, label_names, templates or CLASS_TEMPLATE))
    return dataclasses.replace(run, backbone=backbone)


def check_zero_shot(
    label_names: Sequence[str], *, rule: str, templates: str, **settings: object
) -> ConfigDict:
    """What `load_zero_shot` checks before it loads a backbone; the arguments are its own.

    Returns:
      The config of the rule.

    Raises:
      InputError: as of `load_zero_shot`.
    """
    config = recipes.read(f"{RECIPE}:{rule}")
    if "method" not in config:
        raise InputError(f"rule={rule} is all rules, and images are labelled by one: name it")
    config.method = ConfigDict(dict(config.method) | settings)
    config.texts.templates = templates
    check_untrained(config)
    check_label_names(label_names, "label_names")
    return config


def is_untrained(config: ConfigDict) -> bool:
    """Whether a recipe's method is never trained."""
    settings = config.get("method")
    return "rules" in config or (isinstance(settings, ConfigDict) and not methods.find(settings).trains)


def check_untrained(config: ConfigDict) -> None:
    """Checks the recipe of a method that is never trained.

    Raises:
      InputError: its method is trained, or has no such setting; or a template is none.
    """
    method = methods.find(config.method)
    if method.trains:
        raise InputError(
            f"{method.title} is trained before it labels images: give the folder of its run, --workdir=RUN"
        )
    defaults = methods.find({"name": config.method.name}).settings
    for name, value in method.settings.items():
        kind = type(defaults[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(
                f"{method.title}: invalid {name}={value!r}: must be of type {kind.__name__}, such as "
                f"{defaults[name]!r}"
            )
    for name, (holds, wanted) in method.ranges.items():
        value = method.settings[name]
        if not holds(value):
            near = nearest(value, re.findall(r"\w+", wanted)) if isinstance(value, str) else ""
            raise InputError(f"{method.title}: invalid {name}={value}{near}: must be {wanted}")
    read_templates(config.texts.templates or CLASS_TEMPLATE)
    if method.at_once:
        method.make()  # which checks the files that its settings name


def write_untrained(
    config: ConfigDict, workdir: str | os.PathLike, *, report: Callable[[str], object] | None = None
) -> None:
    """Writes the run of a method that has nothing to train, which every command takes as a trained one.

    Leaves in `workdir` the `config.json` and `classes.npz` (the labels and their embeddings), and
    `evaluation.json` where the config names images to score.

    Args:
      config: a recipe's `ml_collections.ConfigDict`.
      workdir: folder of this run alone, made if it is missing.
      report: called with what a command prints at the end, as `print`.

    Raises:
      InputError: the recipe, what it names, or the folder cannot be used.
    """
    if "rules" in config:
        raise InputError("this recipe is of all rules, and a run has one: name it, --config=zero_shot:ridge")
    check_untrained(config)
    report = report or (lambda _: None)
    workdir = Path(workdir)
    with all_or_none():
        make_folder(workdir)
        if (workdir / "config.json").is_file():
            recipes.check_same_run(workdir, config, ("recipe", "evaluation."))
    check_shared(workdir)
    with all_or_none():
        class_embeddings = read_class_embeddings(config, lambda: load_backbone_of(config))
        run = untrained_run(config, class_embeddings, workdir)
        if any(config.evaluation.values()) and PIXELS in run.method.reads:
            raise InputError(
                f"{run.method.title} reads the images themselves: leave config.evaluation empty, and write "
                "scores by `mlclip predict --scores=FILE`"
            )
        if (workdir / "classes.npz").is_file():
            _check_same_labels(workdir, class_embeddings)
    check_alike(class_embeddings.origin.to_dict())
    with all_or_none():
        if is_first():
            recipes.write_config(workdir, config)
            write_embeddings(workdir / "classes.npz", class_embeddings)
    report(
        f"{workdir}: {run.method.title} of {counted(len(run.label_names), 'label')}, which needs no training"
    )
    if any(config.evaluation.values()):
        images = read_images(
            config.evaluation,
            class_embeddings,
            run.loaded_backbone,
            workdir / EMBEDDED,
            reads=run.method.reads,
            flag="--config.evaluation.",
            max_skipped=config.max_skipped,
        )
        report(describe_comparison(*evaluate([run], images)))


def _check_same_labels(workdir, class_embeddings):
    """Refuses a folder whose labels are embedded otherwise: a calibration there would not fit."""
    there, here = read_embeddings(workdir / "classes.npz").origin, class_embeddings.origin
    for what in ("labels", "template", "sha256"):
        if getattr(there, what) != getattr(here, what):
            was = {"labels": "other labels", "template": "other templates", "sha256": "another backbone"}[
                what
            ]
            raise InputError(f"{workdir} holds a run of {was}: give those, or another --workdir")
