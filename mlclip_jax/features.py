"""Embeds once, stores, reads back: `mlclip embed`."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

from mlclip_jax.data.sources import Embeddings, list_images, read_lines
from mlclip_jax.errors import InputError
from mlclip_jax.files import make_folder, replacing
from mlclip_jax.texts.templates import check_template, fill


def embed_images(load_backbone, folder, *, local=False):
    """Embeds every image below a folder, by its path in it; files there that are no images are reported.

    Args:
      load_backbone: called without arguments once the folder is known to hold images.
      folder: searched with its subfolders.
      local: whether to keep local features too.

    Raises:
      InputError: there is no such folder, no image in it, or one that cannot be read.
    """
    images, others = list_images(folder)
    if others:
        listed = ", ".join(file.name for file in others[:4]) + (", ..." if len(others) > 4 else "")
        print(f"{folder}: {len(others)} files are no images and were left out: {listed}", file=sys.stderr)
    backbone = load_backbone()
    encoded = backbone.encode_images(images, local=local)
    return Embeddings(
        encoded.embeddings if local else encoded,
        names=tuple(image.relative_to(folder).as_posix() for image in images),
        origin=image_origin(backbone),
        local=encoded.local if local else None,
    )


def image_origin(backbone):
    """What decides the embedding of an image: the backbone's fingerprint, and how it sees and computes."""
    return backbone.fingerprint | {
        "image_size": list(backbone.image_size),
        "resize": backbone.resize,
        "dtype": backbone.dtype,
        "positions": backbone.positions,
    }


def embed_names(backbone, names, template):
    """Embeds `template` filled with each name, "a photo of a dog." for "dog"; see `templates.fill`."""
    vectors = backbone.encode_texts([fill(template, [name]) for name in names])
    return Embeddings(vectors, names=tuple(names), origin=backbone.fingerprint | {"template": template})


def write_embeddings(path, embeddings):
    """Writes `Embeddings` to an .npz that `sources.read_embeddings` reads, whole or not at all.

    Raises:
      InputError: the path cannot be written, or does not end in .npz.
    """
    _check_output(path)
    arrays = {
        "embeddings": embeddings.vectors,
        "names": embeddings.names,
        "labels": embeddings.labels,
        "label_names": embeddings.label_names,
        "origin": None if embeddings.origin is None else json.dumps(embeddings.origin),
        "local": embeddings.local,
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: np.asarray(array) for name, array in arrays.items() if array is not None})


def _check_output(path):
    if Path(path).suffix != ".npz" or Path(path).is_dir():
        raise InputError(f"cannot write embeddings to {path}: it must be a file whose name ends in .npz")


def main(values):
    """mlclip embed --backbone=NAME (--images=FOLDER | --texts=FILE) --output=FILE.npz"""
    if (values.images is None) == (values.texts is None):
        raise InputError("give either --images=FOLDER or --texts=FILE")
    if values.local and values.images is None:
        raise InputError("--local is for --images: no adapter reads local features of texts")
    if values.template is not None:
        check_template(values.template)
    _check_output(values.output)  # known before the work is done, not after
    make_folder(Path(values.output).parent)
    from mlclip_jax.backbones import ENCODING, load_backbone, read_encoding

    encoding = read_encoding({name: values[name].value for name in ENCODING})
    load = functools.partial(load_backbone, values.backbone, revision=values.revision, **encoding)
    if values.images is not None:
        embeddings = embed_images(load, values.images, local=values.local)
    else:
        lines = read_lines(values.texts)
        backbone = load()
        if values.template is not None:
            embeddings = embed_names(backbone, lines, values.template)
        else:
            embeddings = Embeddings(backbone.encode_texts(lines), tuple(lines), origin=backbone.fingerprint)
    write_embeddings(values.output, embeddings)
    count, width = embeddings.vectors.shape
    local = "" if embeddings.local is None else f", each with {embeddings.local.shape[1]} local ones,"
    print(f"{count} embeddings of width {width}{local} in {values.output}")


def define_flags(values, _):
    flags.DEFINE_string("backbone", None, "folder or hub name of the encoder", flag_values=values)
    flags.DEFINE_string("revision", None, "commit, branch or tag on the hub", flag_values=values)
    flags.DEFINE_string(
        "dtype", None, "float32 (default on CPUs) or bfloat16 (elsewhere)", flag_values=values
    )
    flags.DEFINE_string(
        "image_size", None, "448, or 448x336 for height and width; default: its own", flag_values=values
    )
    flags.DEFINE_string("resize", None, "crop or squash; default: its own", flag_values=values)
    flags.DEFINE_string(
        "positions", None, "of a CLIP ResNet: pooled (default), all or none", flag_values=values
    )
    flags.DEFINE_boolean(
        "shard_parameters", False, "split the parameters over the devices", flag_values=values
    )
    flags.DEFINE_string("images", None, "folder of images, searched with its subfolders", flag_values=values)
    flags.DEFINE_boolean(
        "local", False, "keep images' local features too, which some adapters read", flag_values=values
    )
    flags.DEFINE_string("texts", None, "text file, one text or name per line", flag_values=values)
    flags.DEFINE_string(
        "template", None, 'sentence to put each name into: "a photo of {labels}."', flag_values=values
    )
    flags.DEFINE_string("output", None, ".npz file to write", flag_values=values)
    flags.mark_flags_as_required(["backbone", "output"], values)
