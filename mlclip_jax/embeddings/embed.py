"""Embeds images and texts: in memory, or into a folder of shards that resumes where it was stopped."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from mlclip_jax.choices import SHARD_ROWS
from mlclip_jax.data.pipeline import MAX_SKIPPED, OnceOrder, Skipped, read_batches
from mlclip_jax.embeddings.shards import SKIPPED, describe_work, write_shards
from mlclip_jax.embeddings.store import (
    IMAGES,
    TEXTS,
    Embeddings,
)
from mlclip_jax.errors import InputError
from mlclip_jax.progress import note, progress_bar
from mlclip_jax.texts.templates import fill


def image_origin(backbone):
    """What decides the embedding of an image: the backbone's fingerprint, and how it sees and computes."""
    return backbone.fingerprint | {
        "image_size": list(backbone.image_size),
        "resize": backbone.resize,
        "decode": backbone.decode,
        "dtype": backbone.dtype,
        "position_embeddings": backbone.position_embeddings,
    }


def default_batch_size():
    """Images that are encoded at once: 32 on a CPU, 256 for each accelerator."""
    return 32 if jax.default_backend() == "cpu" else 256 * jax.local_device_count()


def encode_source(backbone, source, indices, skipped, *, local=False, batch_size=None, num_workers=0):
    """Embeds images of a source; they are read, decoded, moved and encoded at the same time.

    Args:
      backbone: a `Backbone`.
      source: a `Source`.
      indices: of the images.
      skipped: a `Skipped`, to which those that cannot be read are added.
      local: whether to compute local features too.
      batch_size: images at once; by default `default_batch_size()`.
      num_workers: see `read_batches`.

    Yields:
      The indices (b,) of each batch, -1 where there is no image or none that can be read; and the outputs,
      float32: embeddings (b, D) and, with `local`, local features (b, T, D').

    Raises:
      InputError: too many cannot be read; or an embedding is NaN or infinite.
    """
    batch_size = batch_size or default_batch_size()
    batch_size += -batch_size % jax.local_device_count()

    processor = backbone.image_processor  # all of the backbone that a worker is sent

    def prepare(example, _):
        return {"pixels": processor.pixels(example.image)}

    nothing = np.zeros((batch_size, *backbone.image_size, 3), np.uint8)  # where none of a batch can be read
    order = OnceOrder(indices, batch_size)
    batches = read_batches(source, order, batch_size, prepare, num_workers=num_workers)
    stream = ((batch, batch.data.get("pixels", nothing)) for batch in batches)
    for batch, outputs in backbone.encode_pixels(stream, local=local):
        skipped.add(batch.skipped)
        finite = [np.isfinite(output).reshape(len(output), -1).all(axis=1) for output in outputs]
        bad = (batch.indices >= 0) & ~np.all(finite, axis=0)
        if np.any(bad):
            raise InputError(
                f"{backbone.fingerprint['name']} gives NaN or infinity for "
                f"{source.names[batch.indices[bad][0]]}; its weights or that image are damaged"
            )
        yield batch.indices, outputs


def embed_in_memory(backbone, source, *, local=False, max_skipped=MAX_SKIPPED):
    """The `Embeddings` of a small source; images that cannot be read are left out, and named in a line.

    Raises:
      InputError: too many of them, see `Skipped`.
    """
    skipped = Skipped(source.names, None, max_skipped)
    kept, parts = [], []
    with progress_bar(len(source), "embedding", "images") as bar:
        for indices, outputs in encode_source(backbone, source, range(len(source)), skipped, local=local):
            there = indices >= 0
            kept.append(indices[there])
            parts.append([output[there] for output in outputs])
            bar.update(int(there.sum()))
    kept = np.concatenate(kept)
    vectors, *rest = (np.concatenate(arrays) for arrays in zip(*parts))
    report(source, skipped)
    return Embeddings(
        vectors,
        names=tuple(source.names[i] for i in kept),
        labels=source.labels[kept] if source.label_names else None,
        label_names=source.label_names or None,
        origin=image_origin(backbone),
        local=rest[0] if local else None,
    )


def report(source, skipped):
    """Says on standard error what a source left out, and which images could not be read."""
    for remark in source.remarks:
        note(f"{source.title}: {remark}")
    if skipped.reasons:
        note(skipped)


def embed_names(backbone, names, template):
    """Embeds `template` filled with each name, "a photo of a dog." for "dog"; see `templates.fill`."""
    vectors = backbone.encode_texts([fill(template, [name]) for name in names])
    return Embeddings(vectors, names=tuple(names), origin=backbone.fingerprint | {"template": template})


def embed_images(
    backbone,
    source,
    folder,
    *,
    local=False,
    storage="float32",
    batch_size=None,
    max_skipped=MAX_SKIPPED,
    num_workers=0,
    shard_rows=SHARD_ROWS,
):
    """Embeds a source into a folder of shards, which `read_embeddings` maps into memory.

    Stopped at any moment and called again, it resumes with the shards that are missing. Of several JAX
    processes, each takes its share of the shards.

    Args:
      backbone: a `Backbone`.
      source: a `Source`.
      folder: to write; it may hold the beginning of the same work, and no other.
      local: whether to keep local features too.
      storage: dtype in the files, one of `choices.STORAGE`.
      batch_size: images at once; by default `default_batch_size()`.
      max_skipped: fraction of the images that may be unreadable; they are listed in `skipped.jsonl`.
      num_workers: see `read_batches`.
      shard_rows: images of a shard, at most; a kill loses the shards that were not finished.

    Raises:
      InputError: too many images cannot be read; the folder holds other work, or cannot be written; or a
        value is too large for `storage`.
    """
    batch_size = batch_size or default_batch_size()
    batch_size += -batch_size % jax.local_device_count()
    width = backbone.embedding_width
    if local:
        width += backbone.grid_size[0] * backbone.grid_size[1] * backbone.local_width
    origin = image_origin(backbone)
    description = describe_work(IMAGES, origin, source.title, source.folder, source.digest, len(source))
    description |= {
        "label_names": list(source.label_names),
        "local": local,
        "remarks": list(source.remarks),
        "dtype": storage,
    }
    skipped = Skipped(source.names, Path(folder) / SKIPPED, max_skipped)

    def encode(indices):
        return encode_source(
            backbone, source, indices, skipped, local=local, batch_size=batch_size, num_workers=num_workers
        )

    known = {"labels": source.labels, "captions": source.captions, "shard_rows": shard_rows}
    write_shards(folder, description, width, batch_size, encode, skipped, **known)
    report(source, skipped)


def embed_texts(backbone, texts, folder, *, names=None, origin=None, storage="float32", batch_size=64):
    """The same for texts.

    Args:
      backbone: a `Backbone`.
      texts: list of strings.
      folder: as of `embed_images`.
      names: what to call them; by default the texts themselves.
      origin: what made them; by default the backbone's fingerprint.
      storage: as of `embed_images`.
      batch_size: texts at once.
    """
    names = texts if names is None else names
    known = hashlib.sha256(json.dumps([texts, names]).encode()).hexdigest()
    description = describe_work(TEXTS, origin or backbone.fingerprint, "texts", None, known, len(texts))
    description |= {"label_names": [], "local": False, "remarks": [], "dtype": storage}

    def encode(indices):
        rows = description["shard_rows"]
        for start in range(0, len(indices), rows):
            own = indices[start : start + rows]
            yield own, [backbone.encode_texts([texts[i] for i in own], batch_size=batch_size)]

    skipped = Skipped(names, Path(folder) / SKIPPED)
    write_shards(folder, description, backbone.embedding_width, 1, encode, skipped)
