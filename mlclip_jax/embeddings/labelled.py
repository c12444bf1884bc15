"""Images with labels, to train on or to score: embeddings from files, or images that are embedded now."""

import hashlib
import json
from pathlib import Path

import numpy as np

from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.pipeline import MAX_SKIPPED
from mlclip_jax.data.tables import labels_in_order, read_labels
from mlclip_jax.distributed.processes import all_or_none
from mlclip_jax.embeddings.embed import embed_images, image_origin
from mlclip_jax.embeddings.store import blocks, read_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.training.checkpoints import describe


def read_images(
    source,
    class_embeddings,
    load_backbone,
    folder,
    *,
    purpose="score",
    flag="--",
    local=False,
    max_skipped=MAX_SKIPPED,
):
    """The images to score, or to train on: `Embeddings` whose labels have the columns of `class_embeddings`.

    Args:
      source: a mapping with `embeddings` (a file, or a folder of shards) or `images` (a folder, or what
        `datasets.open_images` opens), and `labels` (a table, where these have none, or to replace them).
      class_embeddings: `Embeddings` of the classes.
      load_backbone: called without arguments where images have to be embedded.
      folder: where to keep the embeddings of images, so that they are made once.
      purpose: what they are for, which errors name.
      flag: what the flags begin with that name these files.
      local: whether local features are needed too.
      max_skipped: fraction of the images that may be unreadable.

    Raises:
      InputError: these embeddings were made by another backbone, have another width or lack local features;
        or the images have no labels, or labels of other classes.
    """
    if source.get("embeddings") and source.get("images"):
        raise InputError(f"give either {flag}embeddings=FILE or {flag}images=FOLDER")
    split = source.get("embeddings") or source.get("images")
    if not split:
        raise InputError(f"no images to {purpose}: give {flag}embeddings=FILE or {flag}images=FOLDER")
    if source.get("embeddings"):
        images = read_embeddings(split)
    else:
        opened = open_images(split)
        images = embedded_once(opened, load_backbone(), folder, local=local, max_skipped=max_skipped)
    if local and images.local is None:
        raise InputError(f"{split} holds no local features, which this adapter reads; embed with --local")
    if not local:
        images = images._replace(local=None)
    expected_width = class_embeddings.vectors.shape[1]
    for what, array in (("embeddings", images.vectors), ("local features", images.local)):
        if array is not None and array.shape[-1] != expected_width:
            raise InputError(
                f"{split}: {what} are {array.shape[-1]} wide, the class texts {expected_width}; "
                "both must come from one backbone"
            )
    backbones = [backbone_of(embeddings.origin) for embeddings in (images, class_embeddings)]
    if all(backbones) and backbones[0]["sha256"] != backbones[1]["sha256"]:
        raise InputError(
            f"{split} was made by {describe(backbones[0])}, the class texts by {describe(backbones[1])}; "
            "both must come from one backbone"
        )
    labels = _aligned_labels(source.get("labels"), split, images, class_embeddings.names, flag)
    if not any(np.any(block == 1) for block in blocks(labels)):
        raise InputError(
            f"{split}: no image has any of the {len(class_embeddings.names)} labels, so no mAP exists"
        )
    origin = (images.origin or {}) | {"split": str(split)}
    return images._replace(labels=labels, label_names=class_embeddings.names, origin=origin)


def embedded_once(source, backbone, folder, *, local=False, max_skipped=MAX_SKIPPED):
    """The embeddings of a source, made now or found in a subfolder of `folder` that is named after both."""
    origin = image_origin(backbone) | {"name": "", "revision": ""}  # its hash tells which it is
    known = [source.folder, source.digest, source.changes(), origin, local]
    known = json.dumps(known, sort_keys=True)
    folder = Path(folder) / hashlib.sha256(known.encode()).hexdigest()[:16]
    with all_or_none():  # of several processes, each embeds its share
        embed_images(backbone, source, folder, local=local, max_skipped=max_skipped)
    return read_embeddings(folder)


def backbone_of(origin):
    """The fingerprint of the backbone behind embeddings of this origin, or None where it was not recorded."""
    backbone = None if origin is None else origin.get("backbone", origin)
    return backbone and {key: value for key, value in backbone.items() if key != "labels"}


def digest(images):
    """SHA-256 of what a run learns from `Embeddings` with labels."""
    content = hashlib.sha256()
    for part in (images.vectors, images.labels, images.local):
        if part is not None:
            for block in blocks(part):
                content.update(np.ascontiguousarray(block).data)
    return content.hexdigest()


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
            f"{split} and the class texts name different classes: {len(missing)} are in only one of them, "
            f"such as {missing[0]!r}"
        )
    if tuple(label_names) == tuple(images.label_names):
        return images.labels
    return labels_in_order(np.asarray(images.labels), images.label_names, label_names)
