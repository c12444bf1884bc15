"""What a recipe names: class embeddings, examples to train on, and images to score."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from mlclip_jax import methods
from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.limited_labels import choose_shots, hide_labels
from mlclip_jax.data.tables import open_table
from mlclip_jax.distributed.processes import all_or_none, is_first
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import Embeddings, embedding_files, read_embeddings, write_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.perturbation import shift_texts
from mlclip_jax.progress import note, warn
from mlclip_jax.provenance import fingerprint, hash_names
from mlclip_jax.run_folders import random_buffers
from mlclip_jax.runs import read_run
from mlclip_jax.texts.label_sets import check_label_names, read_names
from mlclip_jax.texts.mixtures import mix_class_embeddings
from mlclip_jax.texts.sources import check_coverage, label_sets, training_texts
from mlclip_jax.texts.templates import CLASS_TEMPLATE
from mlclip_jax.training.examples import Examples
from mlclip_jax.wording import counted

DROWNED = 5  # times as long as embeddings, noise leaves nothing of them; the published radius is 2.5 times


def read_data(
    config: ConfigDict, folder: Path, load_backbone: Callable[[], Backbone]
) -> tuple[Embeddings, Examples, Embeddings | None]:
    """What a recipe names: class embeddings, examples, and images to score or None.

    Args:
      config: of the recipe.
      folder: where embeddings are kept that are made on the way; several runs may share it.
      load_backbone: called where there is something to embed.

    Raises:
      InputError: something of it is missing, or cannot be used.
    """
    backbone = functools.cache(load_backbone)
    class_embeddings = read_class_embeddings(config, backbone)
    method = methods.find(config.method)

    def read(source, **how):
        return read_images(
            source,
            class_embeddings,
            backbone,
            folder,
            reads=method.reads,
            max_skipped=config.max_skipped,
            **how,
        )

    scored = None
    if any(config.evaluation.values()):
        scored = read(config.evaluation, flag="--config.evaluation.")
    # A recipe without texts trains on images alone.
    share = config.texts.get("share", 1.0 if "number" in config.texts else 0.0)
    shift = config.perturbation.shift
    given = any(config.get("examples", {}).get(name) for name in ("embeddings", "images"))
    if given and share == 1 and not shift:
        raise InputError("--config.texts.share=1 leaves no room for the images of config.examples; lower it")
    texts = images = None
    if share != 1 or shift:
        images = read(config.examples, flag="--config.examples.", purpose="train on")
        images = with_limited_labels(images, config.examples, config.seed)
    if share != 0:
        texts = read_training_texts(config, class_embeddings, backbone, folder)
        if shift and images is not None:
            texts = shifted(texts, images, shift)
    examples = Examples(texts, images if share != 1 else None, method.reads, share, seen_images=images)
    if share != -1:
        examples.num_texts(config.train.batch_size)
    for radius, rows in {"radius": texts, "image_radius": examples.images}.items():
        if config.perturbation[radius] and rows is None:
            raise InputError(
                f"--config.perturbation.{radius}={config.perturbation[radius]:g} moves nothing, as the run "
                f"trains on {examples}; set it to 0"
            )
        if rows is not None:
            _warn_of_noise(f"--config.perturbation.{radius}", config.perturbation[radius], rows)
    return class_embeddings, examples, scored


def _warn_of_noise(flag, radius, rows):
    """Embeddings are often stored L2-normalised, and radii are meant for those that are not."""
    length = float(np.median(np.linalg.norm(np.asarray(rows.vectors[:1000], np.float64), axis=1)))
    if radius > DROWNED * length:
        warn(
            f"{flag}={radius:g} is noise {radius / max(length, 1e-12):.0f} times as long as the embeddings "
            f"it is added to (median {length:.2g}): if they are L2-normalised, store them as the backbone "
            "gives them, or lower the radius"
        )


def with_limited_labels(images: Embeddings, settings: ConfigDict, seed: int) -> Embeddings:
    """The images to train on, of which few are left for each label, or whose labels are known in part.

    Args:
      images: with labels (N, K).
      settings: the recipe's `examples`: `shots` and `known`.
      seed: decides which images are left.

    Raises:
      InputError: a label has fewer images than `shots`, or no label is known of any image.
    """
    labels, names = np.asarray(images.labels), tuple(images.label_names or ())
    if settings.shots:
        images = images.select(choose_shots(labels, settings.shots, seed, names))
        labels = np.asarray(images.labels)
        note(f"{counted(len(images), 'image')} to train on, {settings.shots} or more of each label")
    if settings.known < 1:
        labels = hide_labels(labels, settings.known)
        if not (labels == 1).any():
            raise InputError(
                f"--config.examples.known={settings.known:g} leaves none of the {len(images)} images a label "
                "that is known; raise it"
            )
        images = images.replace(labels=labels)
        note(f"{counted(len(images), 'image')} to train on; {(labels >= 0).mean():.1%} of labels are known")
    return images


def shifted(texts: Embeddings, images: Embeddings, where: str) -> Embeddings:
    """Texts moved to where images of their labels are expected; see `perturbation.shift_texts`."""
    image_labels = np.asarray(images.labels)
    vectors, moved = shift_texts(
        np.asarray(texts.vectors), np.asarray(texts.labels), np.asarray(images.vectors), image_labels, where
    )
    without = int((~(image_labels == 1).any(axis=0)).sum())
    note(
        f"shifted {counted(int(moved.sum()), 'text')} towards the images of their labels, and "
        f"{(~moved).sum():,} not; {counted(without, 'label')} known of no image"
    )
    return texts.replace(features={**texts.features, "text": vectors})


def read_class_embeddings(config: ConfigDict, backbone: Callable[[], Backbone]) -> Embeddings:
    """The labels and the embedding of each one's name, with their hashes as `origin`."""
    if "class_embeddings" in config.texts:
        path = config.texts.class_embeddings
        known = read_embeddings(path, "text")
        if known.names is None:
            raise InputError(f"{path} does not name its classes; store their names in an array called names")
        if "text" not in known.features:
            raise InputError(f"{path} holds {', '.join(known.features)}, and no embeddings of class names")
        origin = fingerprint(path, "", embedding_files(path)).replace(
            backbone=known.origin, labels=hash_names(known.names)
        )
        vectors = np.asarray(known.features["text"])
        class_embeddings = Embeddings({"text": vectors}, tuple(known.names), origin=origin)
    else:
        names, path = label_names_of(config)
        class_embeddings = embed_names(backbone(), names, config.texts.get("templates") or CLASS_TEMPLATE)
    check_label_names(class_embeddings.names, path)
    return class_embeddings


def begin_from(
    workdir: str | os.PathLike, parameters: dict, class_embeddings: Embeddings
) -> tuple[dict, dict, str]:
    """Another run's parameters, to begin with: `config.init`.

    Args:
      workdir: of that run.
      parameters: what this run would begin with, whose shapes they must have.
      class_embeddings: of this run, which may be others where the method allows it.

    Returns:
      The parameters, the random buffers that belong to them, and the SHA-256 of that run.

    Raises:
      InputError: there is no such run, it was trained on another backbone or with other settings of its
        method, or its method knows its own labels alone.
    """
    run = read_run(workdir, calibrated=False)
    if run.label_names != class_embeddings.names and not run.method.open_vocabulary:
        raise InputError(
            f"--config.init={workdir} holds {run.method.title}, which knows no labels but those it was "
            f"trained on; give the same labels ({methods.with_open_vocabulary()} take others)"
        )
    encoder = class_embeddings.origin.encoder
    if run.trained_on and encoder and run.trained_on.sha256 != encoder.sha256:
        raise InputError(
            f"--config.init={workdir} was trained on {run.trained_on}, and this run would be on {encoder}; "
            "both must have one backbone"
        )
    there, here = (
        {path: array.shape for path, array in flatten_dict(of, sep=".").items()}
        for of in (run.parameters, parameters)
    )
    for path in sorted(there.keys() | here.keys()):
        if there.get(path) != here.get(path):
            raise InputError(
                f"--config.init={workdir} holds {run.method.title}, whose parameters do not fit: {path} is "
                f"{there.get(path, 'absent')} there, and {here.get(path, 'absent')} here"
            )
    return jax.tree.map(np.asarray, run.parameters), random_buffers(run.frozen), run.digest


def label_names_of(config: ConfigDict) -> tuple[list[str], str | os.PathLike]:
    """The labels that a recipe names in a file, or else those of its images; and where they come from.

    Raises:
      InputError: neither has any.
    """
    if config.texts.labels:
        return read_names(config.texts.labels), config.texts.labels
    for source in (config.get("examples", {}), config.evaluation):
        path = source.get("embeddings") or source.get("images")
        names = None
        if source.get("labels"):
            path = source["labels"]
            names = open_table(path).label_names
        elif source.get("embeddings"):
            names = read_embeddings(path).label_names
        elif source.get("images"):
            names = open_images(path).label_names
        if names:
            check_label_names(names, path)
            return list(names), path
    raise InputError(
        "the recipe leaves texts.labels open, and its images have no labels: "
        "set --config.texts.labels=FILE, a label per line"
    )


def read_training_texts(
    config: ConfigDict, class_embeddings: Embeddings, backbone: Callable[[], Backbone], folder: Path
) -> Embeddings:
    """The training texts, with labels (N, K)."""
    label_names = tuple(class_embeddings.names or ())
    if "class_embeddings" in config.texts:
        labels = label_sets(config.texts, config.texts.number, len(label_names), config.seed)
        check_coverage(labels, label_names, config.texts)
        return Embeddings(
            {"text": mix_class_embeddings(labels, np.asarray(class_embeddings.vectors))}, labels=labels
        )
    texts, labels = training_texts(config.texts, label_names, config.seed)
    # Encoding takes minutes, and is done once for the same texts.
    path = folder / f"texts-{hash_names(texts)[:16]}.npz"
    with all_or_none():
        if is_first() and not _holds_texts(path, texts, backbone):
            features = {"text": backbone().encode_texts(texts)}
            known = Embeddings(features, texts, labels, label_names, origin=backbone().origin)
            write_embeddings(path, known)
    return read_embeddings(path).replace(labels=labels)


def _holds_texts(path, texts, backbone):
    """Whether a file holds the embeddings of exactly these texts by this backbone."""
    if not path.is_file():
        return False
    stored = read_embeddings(path)
    return stored.names == texts and stored.origin == backbone().origin
