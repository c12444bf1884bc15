"""Images with labels, to train on or to score: embeddings from files, or images that are embedded now."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.pipeline import MAX_SKIPPED
from mlclip_jax.data.sources import Source
from mlclip_jax.data.tables import labels_in_order, read_labels
from mlclip_jax.distributed.processes import all_or_none
from mlclip_jax.embeddings.embed import embed_images
from mlclip_jax.embeddings.rows import blocks
from mlclip_jax.embeddings.store import PIXELS, Embeddings, read_embeddings
from mlclip_jax.errors import InputError

JOINT = ("image", "image_local", "text", "text_local")  # features of the width of class embeddings


def read_images(
    source: Mapping | ConfigDict,
    class_embeddings: Embeddings,
    load_backbone: Callable[[], Backbone] | None = None,
    folder: str | os.PathLike | None = None,
    *,
    purpose: str = "score",
    flag: str = "--",
    reads: Sequence[str] = ("image",),
    max_skipped: float = MAX_SKIPPED,
) -> Embeddings:
    """The images to score, or to train on: their labels have the columns of `class_embeddings`.

    Args:
      source: a mapping with `embeddings` (a file, or a folder of shards) or `images` (a folder, or what
        `datasets.open_images` opens), and `labels` (a table, where these have none, or to replace them).
      class_embeddings: of the classes.
      load_backbone: called without arguments where there are images to embed.
      folder: where to keep the embeddings of images, so that they are made once.
      purpose: what they are for, which errors name.
      flag: what the flags begin with that name these files.
      reads: the features that are needed; the result has these, and `image` where there is such, from which
        plain cosine is computed.
      max_skipped: fraction of the images that may be unreadable.

    Raises:
      InputError: these embeddings were made by another backbone, have another width or lack a feature;
        or the images have no labels, or labels of other classes.
    """
    if source.get("embeddings") and source.get("images"):
        raise InputError(f"give either {flag}embeddings=FILE or {flag}images=FOLDER")
    split = source.get("embeddings") or source.get("images")
    if not split:
        raise InputError(f"no images to {purpose}: give {flag}embeddings=FILE or {flag}images=FOLDER")
    if PIXELS in reads:
        raise InputError(
            "this method reads the images themselves, and no embeddings: write its scores by `mlclip predict "
            "--scores=FILE`, and give those, --scores=FILE"
        )
    wanted = tuple(dict.fromkeys(("image", *reads)))
    if source.get("embeddings"):
        images = read_embeddings(split, reads=wanted)
    else:
        if load_backbone is None or folder is None:
            raise ValueError("images need a backbone to embed them with, and a folder to keep that in")
        opened = open_images(split)
        made = embed_once(opened, load_backbone(), folder, features=wanted, max_skipped=max_skipped)
        images = read_embeddings(made)
    missing = [name for name in reads if name not in images.features]
    if missing:
        raise InputError(
            f"{split} holds no {missing[0]}, which this method reads, but {', '.join(images.features)}; "
            f"embed with --features={','.join(wanted)}"
        )
    images = images.replace(features=images.only(name for name in wanted if name in images.features))
    width = class_embeddings.vectors.shape[1]
    for name, feature in images.features.items():
        if name in JOINT and feature.shape[-1] != width:
            raise InputError(
                f"{split}: {name} is {feature.shape[-1]} wide, the class embeddings {width}; "
                "both must come from one backbone"
            )
    made_by, classes_by = images.origin.encoder, class_embeddings.origin.encoder
    if made_by and classes_by and made_by.sha256 != classes_by.sha256:
        raise InputError(
            f"{split} was made by {made_by}, the class embeddings by {classes_by}; "
            "both must come from one backbone"
        )
    label_names = tuple(class_embeddings.names or ())
    labels = _aligned_labels(source.get("labels"), split, images, label_names, flag)
    if not any(np.any(block == 1) for block in blocks(labels)):
        raise InputError(f"{split}: no image has any of the {len(label_names)} labels, so no mAP exists")
    return images.replace(
        labels=labels, label_names=label_names, origin=images.origin.replace(split=str(split))
    )


def embed_once(
    source: Source,
    backbone: Backbone,
    folder: str | os.PathLike,
    *,
    features: Sequence[str] = ("image",),
    max_skipped: float = MAX_SKIPPED,
) -> Path:
    """The embeddings of a source, made now or before, in a subfolder of `folder` that is named after both."""
    origin = backbone.image_origin.replace(name="", revision="").to_dict()  # its hash tells which it is
    known = [source.folder, source.digest, source.changes(), origin, list(features)]
    known = json.dumps(known, sort_keys=True)
    folder = Path(folder) / hashlib.sha256(known.encode()).hexdigest()[:16]
    with all_or_none():  # of several processes, each embeds its share
        embed_images(backbone, source, folder, features=features, max_skipped=max_skipped)
    return folder


def _aligned_labels(path, split, images, label_names, flag):
    if path:
        if images.names is None:
            raise InputError(f"{split} does not name its images, so {path} cannot be matched with them")
        return read_labels(path, images.names, label_names)
    if images.labels is None:
        raise InputError(f"{split} holds no labels: give a CSV of them, {flag}labels=FILE")
    if images.label_names is None:
        if images.labels.shape[1] != len(label_names):
            raise InputError(
                f"{split} has {images.labels.shape[1]} columns of labels for {len(label_names)} classes, "
                "and no label_names to match them by"
            )
        return images.labels
    missing = sorted(set(label_names) ^ set(images.label_names))
    if missing:
        raise InputError(
            f"{split} and the class embeddings name different classes: {len(missing)} are in only one of "
            f"them, such as {missing[0]!r}"
        )
    if tuple(label_names) == tuple(images.label_names):
        return images.labels
    return labels_in_order(np.asarray(images.labels), images.label_names, label_names)
