"""A backbone by its name or folder: read, checked, and put on the devices."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.backbones.clip_resnet import POSITIONS
from mlclip_jax.backbones.convolution import fold_norms
from mlclip_jax.backbones.layouts import Layout, read_layout
from mlclip_jax.backbones.processing import DECODES, INTERPOLATIONS, RESIZES, ImageProcessor, Size
from mlclip_jax.backbones.weights import find_checkpoint, load_parameters
from mlclip_jax.errors import InputError
from mlclip_jax.nnx_boundary import abstract_module
from mlclip_jax.options import YES_OR_NO
from mlclip_jax.progress import note
from mlclip_jax.provenance import fingerprint

DTYPES = ("float32", "bfloat16")
# Settings of `load_backbone`.
ENCODING = (
    "dtype",
    "image_size",
    "resize",
    "interpolation",
    "decode",
    "position_embeddings",
    "antialias",
    "clean",
    "shard_parameters",
)


def load_backbone(
    name_or_folder: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    image_size: int | Size | None = None,
    resize: str | None = None,
    interpolation: str | None = None,
    decode: str = "full",
    shard_parameters: bool = False,
    position_embeddings: str = "pooled",
    antialias: bool | None = None,
    clean: bool | None = None,
) -> Backbone:
    """Loads a frozen encoder.

    What can be loaded: CLIP with ViT towers (transformers' or open_clip's layout), CLIP with ResNet towers
    (open_clip's layout), BLIP for image-text retrieval, and ResNets and VGG-16 of ImageNet (images alone).

    Args:
      name_or_folder: a folder with safetensors weights (or transformers' `flax_model.msgpack`), their
        config, `tokenizer.json` (or `vocab.json` and `merges.txt`) and, in transformers' layout,
        `preprocessor_config.json`; or the hub name of such a repository
        ("timm/vit_base_patch32_clip_224.openai", "timm/resnet50_clip.openai",
        "Salesforce/blip-itm-base-coco", "timm/resnet101.tv_in1k"); or what open_clip calls a model and its
        weights, "ViT-B-32/laion2b_s34b_b79k"; or "scenes-clip", which comes with the package and knows the
        objects of `data/scenes.py` alone.
      revision: a commit, branch or tag of the hub repository.
      dtype: "float32" or "bfloat16", of the products; by default float32 on CPUs, bfloat16 on accelerators.
        Layer norms, softmax, residual sums and the embeddings that come back are float32 either way.
      image_size: pixels on a side, or (height, width), if not the checkpoint's own. Position embeddings are
        interpolated.
      resize: "crop" (keep the aspect, cut what protrudes) or "squash", if not the checkpoint's own.
      interpolation: "bicubic" or "bilinear", by which images are resized, if not the checkpoint's own.
      decode: "full", which gives the pixels of the checkpoint's own processor, or "reduced": JPEG files are
        decoded at a reduced scale where the image size allows it, which is faster and nearly the same.
      shard_parameters: whether each parameter is split over the devices instead of copied to all: for a model
        larger than one device's memory. It is gathered as it is used.
      position_embeddings: which features of a CLIP ResNet get them: "pooled" (CLIP's own), "all" (DualCoOp)
        or "none" (TaI-DPT, at test time).
      antialias: whether a CLIP's position embeddings are smoothed as they are interpolated; by default as the
        layout has it: open_clip does, transformers does not.
      clean: whether texts are repaired first (broken Unicode, curly quotes, HTML entities); by default as the
        layout has it: openai/CLIP and open_clip do, transformers does not.

    Returns:
      A `Backbone`.

    Raises:
      InputError: something is missing, damaged, or does not fit.

    Example:
      >>> backbone = mlclip_jax.load_backbone("timm/vit_base_patch32_clip_224.openai")
      >>> backbone.encode_images(["cat.jpg"]).shape, backbone.encode_texts(["a cat"]).shape
      ((1, 512), (1, 512))
    """
    if dtype is None:
        dtype = default_dtype()
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if position_embeddings not in POSITIONS:
        raise InputError(f"position_embeddings {position_embeddings!r} is not one of {', '.join(POSITIONS)}")
    if decode not in DECODES:
        raise InputError(f"decode {decode!r} is not one of {', '.join(DECODES)}")
    checkpoint = find_checkpoint(name_or_folder, revision)
    layout = read_layout(
        checkpoint, position_embeddings=position_embeddings, antialias=antialias, clean=clean
    )
    image_processor = _image_processor(checkpoint.folder, layout, image_size, resize)
    if interpolation is not None:
        if interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise InputError(f"interpolation {interpolation!r} is not one of {known}")
        image_processor = image_processor._replace(resample=INTERPOLATIONS[interpolation])
    # Read in float32 whatever comes after, so that what is folded is rounded once, at the end.
    graph, abstract = abstract_module(functools.partial(layout.make_module, dtype=jnp.float32))
    parameters = load_parameters(
        layout.weights, layout.key_table, abstract, layout.ignored_keys, layout.optional
    )
    settings = {}
    # GPUs fuse a convolution with a bias and a ReLU, not with a norm; on CPUs folding costs 4%.
    if layout.folds and jax.default_backend() != "cpu":
        parameters, settings = fold_norms(parameters), {"folded": True}
    if settings or dtype != "float32":
        make_module = functools.partial(layout.make_module, dtype=jnp.dtype(dtype), **settings)
        graph, abstract = abstract_module(make_module)
        parameters = jax.tree.map(
            lambda array, like: array.astype(like.dtype, copy=False), parameters, abstract
        )
    backbone = Backbone(
        graph,
        parameters,
        layout._replace(image_processor=image_processor._replace(decode=decode)),
        dtype=dtype,
        interpolation=interpolation or "",
        origin=fingerprint(checkpoint.name, checkpoint.revision, [*layout.weights, *layout.settings]),
        shard_parameters=shard_parameters,
    )
    note(backbone, once=True)
    return backbone


def default_dtype() -> str:
    """The dtype of products that suits the devices: CPUs have no units for bfloat16, accelerators do."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load_backbone_of(config: Mapping[str, Any] | ConfigDict) -> Backbone:
    """The backbone that a recipe's `backbone` and `encoding` name.

    Raises:
      InputError: it names none, or one that cannot be loaded.
    """
    if not config.get("backbone"):
        raise InputError(
            "this run names no backbone, which labels and images are embedded with: set "
            "--config.backbone=FOLDER_OR_NAME, or give what `mlclip embed` made, embeddings=FILE"
        )
    return load_backbone(config["backbone"], **read_encoding(config.get("encoding", {})))


def read_encoding(settings: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The arguments of `load_backbone` that a recipe's section `encoding` sets, or the flags of a command.

    Args:
      settings: dict of those of `ENCODING`, `image_size` as "448", or "448x336" for height and width; what is
        empty or missing is left to `load_backbone`.

    Raises:
      InputError: the image size is none.
    """
    chosen = {name: settings[name] for name in ENCODING if settings.get(name)}
    if "image_size" in chosen:
        sides = str(chosen["image_size"]).split("x")
        if len(sides) > 2 or not all(side.isdecimal() for side in sides):
            raise InputError(
                f"image_size {chosen['image_size']!r} is no size: write 448, or 448x336 for height and width"
            )
        height, width = sides * 2 if len(sides) == 1 else sides
        chosen["image_size"] = int(height), int(width)
    for name in ("antialias", "clean"):
        if name in chosen:
            answer = YES_OR_NO.get(str(chosen[name]).lower())
            if answer is None:
                raise InputError(f"{name} {chosen[name]!r} is neither yes nor no")
            chosen[name] = answer
    return chosen


def _image_processor(
    folder: Path, layout: Layout, image_size: int | Size | None, resize: str | None
) -> ImageProcessor:
    """The checkpoint's own processor, or one for another size."""
    processor = layout.image_processor
    own = processor.output_size
    if resize not in (None, *RESIZES):
        raise InputError(f"resize {resize!r} is not one of {', '.join(RESIZES)}")
    if image_size is None:
        if layout.image_size is not None and own != (layout.image_size,) * 2:
            raise InputError(
                f"{folder}: the image processor makes images of {own} pixels, and the config asks for "
                f"{(layout.image_size,) * 2}; --image_size chooses"
            )
        return processor if resize is None else processor.at_size(own, resize)
    size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 and n % layout.stride == 0 for n in size):
        raise InputError(
            f"image_size {image_size} does not fit: each side must be a positive multiple of {layout.stride}"
        )
    return processor.at_size(size, resize)
