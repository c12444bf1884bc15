"""Embeds images, their captions and texts: in memory, or into a folder that resumes where it was stopped."""

import os
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, Int

from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.choices import SHARD_ROWS
from mlclip_jax.data.pipeline import MAX_SKIPPED, OnceOrder, Skipped, read_batches
from mlclip_jax.data.sources import Source
from mlclip_jax.embeddings.shards import SKIPPED, Work, write_shards
from mlclip_jax.embeddings.store import FEATURES, Embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.progress import note, progress_bar
from mlclip_jax.provenance import hash_names
from mlclip_jax.texts.templates import fill, read_templates, record_templates
from mlclip_jax.zero_shot.aggregation import mean_embeddings

OF_IMAGES = ("image", "image_local")  # all other features need a caption
OF_TEXTS = ("text", "text_local")
TEXTS_AT_ONCE = 1024  # among which those of like length share a batch


def default_batch_size() -> int:
    """Images that are encoded at once: 32 on a CPU, 256 for each accelerator."""
    return 32 if jax.default_backend() == "cpu" else 256 * jax.local_device_count()


def check_features(features: Iterable[str], known: Sequence[str], captions: bool = True) -> None:
    """Refuses features that no backbone makes of these inputs.

    Args:
      features: their names.
      known: those that can be made.
      captions: whether there are captions.

    Raises:
      InputError: one is not known, comes twice, or needs captions that are not there.
    """
    features = list(features)
    for name in features:
        if name not in known or features.count(name) > 1:
            raise InputError(f"invalid --features={','.join(features)}: must be some of {', '.join(known)}")
        if name not in OF_IMAGES and not captions:
            raise InputError(f"{name} is a feature of images with captions, and these have none")


def encode_source(
    backbone: Backbone,
    source: Source,
    indices: Sequence[int] | Int[np.ndarray, " N"],
    skipped: Skipped,
    *,
    features: Sequence[str] = ("image",),
    batch_size: int | None = None,
    num_workers: int = 0,
) -> Generator[tuple[Int[np.ndarray, " B"], dict[str, Float32[np.ndarray, "B ..."]]]]:
    """Embeds images of a source; they are read, decoded, moved and encoded at the same time.

    Args:
      backbone: a `Backbone`.
      source: a `Source`.
      indices: of the images.
      skipped: a `Skipped`, to which those that cannot be read are added.
      features: which to compute, see `Embeddings`; all but `OF_IMAGES` are of the captions too.
      batch_size: images at once; by default `default_batch_size()`.
      num_workers: see `read_batches`.

    Yields:
      The indices of each batch, -1 where there is no image or none that can be read; and the features.

    Raises:
      InputError: too many cannot be read; or a feature is NaN or infinite.
    """
    batch_size = batch_size or default_batch_size()
    batch_size += -batch_size % jax.local_device_count()

    nothing = np.zeros((batch_size, *backbone.image_size, 3), np.uint8)  # where none of a batch can be read
    order = OnceOrder(indices, batch_size)
    prepare = _Pixels(backbone.image_processor)
    batches = read_batches(source, order, batch_size, prepare, num_workers=num_workers)
    known, captioned = source.captions or (), not set(features) <= set(OF_IMAGES)
    stream = ((batch, batch.data.get("pixels", nothing)) for batch in batches)
    for batch, outputs in backbone.encode_pixels(stream, local="image_local" in features):
        skipped.add(batch.skipped)
        computed = dict(zip(OF_IMAGES, outputs))
        if captioned:
            captions = ["" if index < 0 else known[index] for index in batch.indices]
            pixels = list(batch.data.get("pixels", nothing))
            computed |= _encode_captions(backbone, pixels, captions, features, batch_size)
        computed = {name: computed[name] for name in features}
        finite = [np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in computed.values()]
        bad = (batch.indices >= 0) & ~np.all(finite, axis=0)
        if np.any(bad):
            raise InputError(
                f"{backbone.origin.name} gives NaN or infinity for "
                f"{source.names[batch.indices[bad][0]]}; its weights or that image are damaged"
            )
        yield batch.indices, computed


class _Pixels:
    """What is prepared of an example. A class, so that it can be sent to workers, without the backbone."""

    def __init__(self, processor):
        self._processor = processor

    def __call__(self, example, _):
        return {"pixels": self._processor.pixels(example.image)}


def encode_texts(
    backbone: Backbone, texts: Sequence[str], features: Iterable[str], batch_size: int = 64
) -> dict[str, Float32[np.ndarray, "N ..."]]:
    """Those of `features` that are of texts: `text` (N, D), `text_local` (N, context length, D)."""
    if "text_local" not in features:
        return {"text": backbone.encode_texts(texts, batch_size=batch_size)} if "text" in features else {}
    encoded = backbone.encode_texts(texts, local=True, batch_size=batch_size)
    missing = (backbone.context_length or 0) - encoded.local.shape[1]
    return {"text": encoded.embeddings, "text_local": np.pad(encoded.local, [(0, 0), (0, missing), (0, 0)])}


def _encode_captions(backbone, images, captions, features, pairs_at_once=16):
    """Those of `features` that are of the captions of images, or of both together."""
    computed = encode_texts(backbone, captions, features)
    if "pair" in features:
        computed["pair"], _ = backbone.encode_pairs(images, captions, batch_size=pairs_at_once)
    return computed


def encode_images(
    backbone: Backbone,
    images: Sequence,
    features: Sequence[str] = ("image",),
    captions: Sequence[str] | None = None,
) -> Embeddings:
    """`Embeddings` of a few images.

    Args:
      backbone: a `Backbone`.
      images: list of paths, `PIL.Image`s or uint8 arrays (h, w, 3).
      features: which to compute, see `Embeddings`.
      captions: one of each image, for all features but `OF_IMAGES`.

    Raises:
      InputError: an image cannot be read; it is named. Or captions are missing.
    """
    check_features(features, list(FEATURES), captions is not None)
    if "image_local" in features:
        encoded = backbone.encode_images(images, local=True)
        computed = {"image": encoded.embeddings, "image_local": encoded.local}
    else:
        computed = {"image": backbone.encode_images(images)}
    if captions is not None:
        if len(captions) != len(images):
            raise InputError(f"{len(captions)} captions for {len(images)} images; give one for each")
        computed |= _encode_captions(backbone, images, captions, features)
    return Embeddings({name: computed[name] for name in features})


def embed_in_memory(
    backbone: Backbone,
    source: Source,
    *,
    features: Sequence[str] = ("image",),
    max_skipped: float = MAX_SKIPPED,
) -> Embeddings:
    """The `Embeddings` of a small source; images that cannot be read are left out, and named in a line.

    Raises:
      InputError: too many of them, see `Skipped`.
    """
    skipped = Skipped(source.names, None, max_skipped)
    kept, parts = [], []
    with progress_bar(len(source), "embedding", "images") as bar:
        for indices, outputs in encode_source(
            backbone, source, range(len(source)), skipped, features=features
        ):
            there = indices >= 0
            kept.append(indices[there])
            parts.append({name: output[there] for name, output in outputs.items()})
            bar.update(int(there.sum()))
    kept = np.concatenate(kept)
    report(source, skipped)
    return Embeddings(
        {name: np.concatenate([part[name] for part in parts]) for name in features},
        names=tuple(source.names[i] for i in kept),
        labels=source.labels[kept] if source.label_names else None,
        label_names=source.label_names or None,
        captions=source.captions and tuple(source.captions[i] for i in kept),
        origin=backbone.image_origin,
    )


def report(source: Source, skipped: Skipped) -> None:
    """Says on standard error what a source left out, and which images could not be read."""
    for remark in source.remarks:
        note(f"{source.title}: {remark}")
    if skipped.reasons:
        note(skipped)


def embed_names(backbone: Backbone, names: Sequence[str], templates: str) -> Embeddings:
    """Embeds names in templates, "a photo of a dog." for "dog".

    Args:
      backbone: a `Backbone`.
      names: of classes.
      templates: one, a set or a file of them, see `read_templates`; over several, the embedding of a name has
        the mean of their directions and lengths, see `mean_embeddings`.
    """
    vectors = _encode_filled(backbone, names, read_templates(templates), batch_size=64)
    origin = backbone.origin.replace(template=record_templates(templates), labels=hash_names(names))
    return Embeddings({"text": vectors}, names=tuple(names), origin=origin)


def _encode_filled(backbone, names, templates, batch_size):
    encoded = (
        backbone.encode_texts([fill(template, [name]) for name in names], batch_size=batch_size)
        for template in templates
    )
    # Of one template not even the last digit changes.
    return next(encoded) if len(templates) == 1 else mean_embeddings(encoded)


def embed_images(
    backbone: Backbone,
    source: Source,
    folder: str | os.PathLike,
    *,
    features: Sequence[str] = ("image",),
    storage: str = "float32",
    batch_size: int | None = None,
    max_skipped: float = MAX_SKIPPED,
    num_workers: int = 0,
    shard_rows: int = SHARD_ROWS,
) -> None:
    """Embeds a source into a folder of shards, which `read_embeddings` maps into memory.

    Stopped at any moment and called again, it resumes with the shards that are missing. Of several JAX
    processes, each takes its share of the shards.

    Args:
      backbone: a `Backbone`.
      source: a `Source`.
      folder: to write; it may hold the beginning of the same work, and no other.
      features: which to keep, see `Embeddings`; all but `OF_IMAGES` need captions.
      storage: dtype in the files, one of `choices.STORAGE`.
      batch_size: images at once; by default `default_batch_size()`.
      max_skipped: fraction of the images that may be unreadable; they are listed in `skipped.jsonl`.
      num_workers: see `read_batches`.
      shard_rows: images of a shard, at most; a kill loses the shards that were not finished.

    Raises:
      InputError: there is no such feature; too many images cannot be read; the folder holds other work, or
        cannot be written; or a value is too large for `storage`.
    """
    check_features(features, list(FEATURES), source.captions is not None)
    batch_size = batch_size or default_batch_size()
    batch_size += -batch_size % jax.local_device_count()
    work = Work(
        widths={name: _size(backbone, name) for name in features},
        origin=backbone.image_origin,
        names=source.names,
        digest=source.digest,
        dtype=storage,
        title=source.title,
        folder=source.folder,
        remarks=source.remarks,
        labels=source.labels,
        label_names=source.label_names,
        captions=source.captions,
    )
    skipped = Skipped(source.names, Path(folder) / SKIPPED, max_skipped)

    def encode(indices):
        how = {"features": features, "batch_size": batch_size, "num_workers": num_workers}
        return encode_source(backbone, source, indices, skipped, **how)

    write_shards(folder, work, batch_size, encode, skipped, shard_rows=shard_rows)
    report(source, skipped)


def embed_texts(
    backbone: Backbone,
    texts: Sequence[str],
    folder: str | os.PathLike,
    *,
    features: Sequence[str] = ("text",),
    templates: str = "",
    storage: str = "float32",
    batch_size: int = 64,
) -> None:
    """The same for texts.

    Args:
      backbone: a `Backbone`.
      texts: list of strings; with templates, names to put into them.
      folder: as of `embed_images`.
      features: of `OF_TEXTS`, which to keep.
      templates: as of `embed_names`; empty, the texts stand for themselves.
      storage: as of `embed_images`.
      batch_size: texts at once.

    Raises:
      InputError: as of `embed_images`; or tokens of several templates are asked for.
    """
    check_features(features, OF_TEXTS)
    written = read_templates(templates) if templates else ("{}",)
    if len(written) > 1 and "text_local" in features:
        raise InputError(
            f"text_local is of the tokens of one text, and there are {len(written)} templates; give one"
        )
    filled = [fill(template, [text]) for template in written for text in texts] if templates else texts
    origin = backbone.origin
    work = Work(
        widths={name: _size(backbone, name) for name in features},
        origin=origin.replace(template=record_templates(templates)) if templates else origin,
        names=texts,
        digest=hash_names([*filled, *texts]),
        dtype=storage,
        named="caption",
        title="texts",
    )

    def encode(indices):
        for start in range(0, len(indices), TEXTS_AT_ONCE):
            own = indices[start : start + TEXTS_AT_ONCE]
            if len(written) > 1:
                names = [texts[i] for i in own]
                encoded = {"text": _encode_filled(backbone, names, written, batch_size)}
            else:
                encoded = encode_texts(backbone, [filled[i] for i in own], features, batch_size)
            yield own, {name: encoded[name] for name in features}

    skipped = Skipped(texts, Path(folder) / SKIPPED)
    write_shards(folder, work, TEXTS_AT_ONCE, encode, skipped)


def _size(backbone, feature):
    """How many numbers a feature of one example has."""
    context, places = backbone.context_length or 0, backbone.grid_size[0] * backbone.grid_size[1]
    size = {
        "image": backbone.embedding_width,
        "image_local": places * backbone.local_width,
        "text": backbone.embedding_width if context else 0,
        "text_local": context * backbone.embedding_width,
        "pair": backbone.pair_width or 0,
    }[feature]
    if not size:
        raise InputError(f"{backbone.origin.name} ({backbone.title}) makes no {feature}")
    return size
