"""What a recipe names: class texts, examples to train on, and images to score."""

import functools
import hashlib

import numpy as np

from mlclip_jax import methods
from mlclip_jax.backbones.weights import fingerprint
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.sources import read_lines
from mlclip_jax.data.tables import read_table
from mlclip_jax.distributed.processes import (
    all_or_none,
    is_first,
)
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.embeddings.store import Embeddings, embedding_files, read_embeddings, write_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.runs import (
    EMBEDDED,
    load_backbone_of,
)
from mlclip_jax.texts.label_sets import check_label_names, sample_label_sets
from mlclip_jax.texts.mixtures import mix_class_embeddings
from mlclip_jax.texts.templates import CLASS_TEMPLATE, write_texts


def read_data(config, workdir):
    """What a recipe names: `Embeddings` of class texts, of examples, and of images to score or None."""
    backbone = functools.cache(lambda: load_backbone_of(config))
    class_embeddings = read_class_embeddings(config, backbone)

    def read(source, **how):
        return read_images(
            source,
            class_embeddings,
            backbone,
            workdir / EMBEDDED,
            local=methods.find(config.method).reads_local,
            max_skipped=config.max_skipped,
            **how,
        )

    images = None
    if any(config.evaluation.values()):
        images = read(config.evaluation, flag="--config.evaluation.")
    if "examples" in config:
        examples = read(config.examples, flag="--config.examples.", purpose="train on")
    else:
        examples = read_training_texts(config, class_embeddings, backbone, workdir)
    return class_embeddings, examples, images


def suspects(examples, rows):
    """Names of the examples in these rows, those with the largest numbers first."""
    arrays = [array for array in (examples.vectors, examples.local) if array is not None]
    largest = [np.max([np.abs(np.asarray(array[i])).max() for array in arrays]) for i in rows]
    names = examples.names
    return [f"example {i}" if names is None else names[i] for i in rows[np.argsort(largest)[::-1]]]


def read_class_embeddings(config, backbone):
    """The labels and the embedding of each one's name: `Embeddings` with their fingerprint as `origin`."""
    if "class_embeddings" in config.texts:
        path = config.texts.class_embeddings
        class_embeddings = read_embeddings(path)
        class_embeddings = class_embeddings._replace(vectors=np.asarray(class_embeddings.vectors))
        origin = fingerprint(path, "", embedding_files(path)) | {"backbone": class_embeddings.origin}
        if class_embeddings.names is None:
            raise InputError(f"{path} does not name its classes; store their names in an array called names")
    else:
        names, path = label_names_of(config)
        class_embeddings = embed_names(backbone(), names, CLASS_TEMPLATE)
        origin = class_embeddings.origin
    check_label_names(class_embeddings.names, path)
    labels = hashlib.sha256("\n".join(class_embeddings.names).encode()).hexdigest()
    return class_embeddings._replace(origin=origin | {"labels": labels})


def label_names_of(config):
    """The labels that a recipe names in a file, or else those of its images; and where they come from.

    Raises:
      InputError: neither has any.
    """
    if config.texts.labels:
        return read_lines(config.texts.labels), config.texts.labels
    for source in (config.get("examples", {}), config.evaluation):
        path = source.get("embeddings") or source.get("images")
        names = None
        if source.get("labels"):
            path = source["labels"]
            names = read_table(path).label_names
        elif source.get("embeddings"):
            names = read_embeddings(path).label_names
        elif source.get("images"):
            names = open_images(path).label_names
        if names:
            return list(names), path
    raise InputError(
        "the recipe leaves texts.labels open, and its images have no labels: "
        "set --config.texts.labels=FILE, a label per line"
    )


def read_training_texts(config, class_embeddings, backbone, workdir):
    """`Embeddings` of the training texts (N, D), with labels (N, K)."""
    label_names, num_labels = class_embeddings.names, len(class_embeddings.names)
    if config.texts.number < num_labels:
        raise InputError(
            f"--config.texts.number={config.texts.number} leaves labels without a text; "
            f"there are {num_labels}: give at least that many"
        )
    labels = sample_label_sets(config.seed, config.texts.number, num_labels, config.texts.max_labels)
    if "class_embeddings" in config.texts:
        return Embeddings(mix_class_embeddings(labels, class_embeddings.vectors), labels=labels)
    texts = tuple(write_texts(labels, label_names, config.seed))
    path = workdir / "texts.npz"  # encoding takes minutes: done once per run
    with all_or_none():
        if is_first() and not _holds_texts(path, texts, backbone):
            vectors = backbone().encode_texts(texts)
            write_embeddings(path, Embeddings(vectors, texts, labels, label_names, backbone().fingerprint))
    return read_embeddings(path)._replace(labels=labels)


def _holds_texts(path, texts, backbone):
    """Whether a file holds the embeddings of exactly these texts by this backbone."""
    if not path.is_file():
        return False
    stored = read_embeddings(path)
    return stored.names == texts and stored.origin == backbone().fingerprint
