"""What a checkpoint's folder holds: one of the layouts in which the hub keeps models, read into one form."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

from mlclip_jax.backbones import blip, clip, clip_resnet, imagenet
from mlclip_jax.backbones.processing import (
    ImageProcessor,
    Tokenizer,
    open_clip_processor,
    timm_processor,
    transformers_processor,
)
from mlclip_jax.backbones.transformer import ACTIVATIONS
from mlclip_jax.backbones.weights import PICKLES, find_weights, read_json_object
from mlclip_jax.errors import InputError

# What, beside the weights and the config, decides an embedding.
SETTINGS = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")


class Layout(NamedTuple):
    """A model and what belongs to it.

    Attributes:
      title: the architecture in words.
      make_module: `make_module(dtype=, rngs=)` gives the `nnx.Module`; with `folded=` too where it `folds`.
      key_table, ignored_keys: for `weights.load_parameters`.
      image_processor: an `ImageProcessor`.
      stride: pixels between two neighbours among the local features; divides the sides of an image.
      embedding_width: of embeddings.
      local_width: of local features, where it is another.
      image_size: pixels on a side, of the images that the position embeddings were learnt on; None for any.
      folds: whether it has batch norms to be folded into its convolutions.
      tokenizer: a `Tokenizer`, or None where there is no text tower.
      pair_width: of what is made of an image and a text together, where there is such a thing.
      position_embeddings: what was chosen of `clip_resnet.POSITIONS`, where that matters.
      weights: the safetensors files.
      settings: the other files that decide an embedding.
    """

    title: str
    make_module: Callable
    key_table: list
    ignored_keys: list
    image_processor: ImageProcessor
    stride: int
    embedding_width: int
    local_width: int | None = None
    image_size: int | None = None
    folds: bool = False
    tokenizer: Tokenizer | None = None
    pair_width: int | None = None
    position_embeddings: str | None = None
    weights: tuple = ()
    settings: tuple = ()


def read_layout(checkpoint, *, position_embeddings="pooled"):
    """The `Layout` of a `weights.Checkpoint`, whose weights are downloaded from the hub if need be.

    Args:
      checkpoint: from `weights.find_checkpoint`.
      position_embeddings: see `clip_resnet.ImageTower`.

    Raises:
      InputError: a file is missing or damaged, the architecture is unknown, or there are no safetensors.
    """
    folder = checkpoint.folder
    path, open_clip_path = folder / "config.json", folder / "open_clip_config.json"
    config = read_json_object(path) if path.is_file() or not open_clip_path.is_file() else {}
    candidates = []
    model_type = str(config.get("model_type"))
    if model_type in TRANSFORMERS_READERS:
        candidates.append(("model", TRANSFORMERS_READERS[model_type], path, config))
    if open_clip_path.is_file():
        read = functools.partial(_open_clip, name=checkpoint.name, position_embeddings=position_embeddings)
        candidates.append(("open_clip_model", read, open_clip_path, read_json_object(open_clip_path)))
    elif "architecture" in config:
        candidates.append(("model", _timm, path, config))
    if not candidates:
        raise InputError(
            f"{path} is of model_type {model_type!r}; "
            f"{', '.join(TRANSFORMERS_READERS)}, open_clip's CLIP, timm's ResNets and VGG-16 can be loaded"
        )
    for stem, read, config_path, content in candidates:
        weights = find_weights(checkpoint, stem)
        if weights:
            settings = [config_path, *(folder / name for name in SETTINGS if (folder / name).is_file())]
            return read(config_path, content)._replace(weights=weights, settings=settings)
    raise InputError(_no_weights(checkpoint, " or ".join(f"{stem}.safetensors" for stem, *_ in candidates)))


def _clip(path, content):
    from transformers import CLIPConfig

    config = _transformers_config(CLIPConfig, path, content, "CLIP", ["eos_token_id"])
    image, text = config.vision_config, config.text_config
    return Layout(
        title=_clip_title(_vit_title(image), text),
        make_module=functools.partial(clip.CLIP, config),
        key_table=clip.KEY_TABLE,
        ignored_keys=clip.IGNORED_KEYS,
        image_processor=transformers_processor(path.parent, "CLIP"),
        image_size=image.image_size,
        stride=image.patch_size,
        embedding_width=config.projection_dim,
        tokenizer=Tokenizer(path.parent, text.max_position_embeddings, text.vocab_size),
    )


def _blip(path, content):
    from transformers import BlipConfig

    wanted, held = "BlipForImageTextRetrieval", content.get("architectures") or []
    if held and wanted not in held:
        raise InputError(f"{path} describes {held[0]}; of BLIP, only {wanted} can be loaded")
    config = _transformers_config(BlipConfig, path, content, "BLIP", ["pad_token_id"])
    image, text = config.vision_config, config.text_config
    return Layout(
        title=f"BLIP ({_vit_title(image)}; BERT {text.num_hidden_layers} x {text.hidden_size})",
        make_module=functools.partial(blip.BLIP, config),
        key_table=blip.KEY_TABLE,
        ignored_keys=blip.IGNORED_KEYS,
        image_processor=transformers_processor(path.parent, "Blip"),
        image_size=image.image_size,
        stride=image.patch_size,
        embedding_width=config.image_text_hidden_size,
        pair_width=text.hidden_size,
        tokenizer=Tokenizer(
            path.parent, text.max_position_embeddings, text.vocab_size, padding=text.pad_token_id
        ),
    )


def _resnet(path, content):
    from transformers import ResNetConfig

    config = _transformers_config(ResNetConfig, path, content, "ResNet")
    for key, wanted in {
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "num_channels": 3,
    }.items():
        if getattr(config, key) != wanted:
            raise InputError(
                f"{path}: {key} {getattr(config, key)!r} is not {wanted!r}, which alone can be loaded"
            )
    widths = (config.embedding_size, *config.hidden_sizes)
    return _imagenet_resnet(
        path,
        config.depths,
        widths,
        key_table=imagenet.TRANSFORMERS_RESNET_KEY_TABLE,
        ignored_keys=imagenet.TRANSFORMERS_RESNET_IGNORED_KEYS,
        image_processor=transformers_processor(path.parent, "ConvNext"),
    )


def _timm(path, content):
    architecture, settings = content["architecture"], content.get("pretrained_cfg")
    if architecture not in (*imagenet.RESNET_DEPTHS, "vgg16") or content.get("model_args"):
        raise InputError(
            f"{path}: architecture {architecture!r} cannot be loaded; of timm's, "
            f"{', '.join(imagenet.RESNET_DEPTHS)} and vgg16 can, without model_args"
        )
    image_processor = timm_processor(path, settings if isinstance(settings, dict) else content)
    if architecture != "vgg16":
        return _imagenet_resnet(
            path,
            imagenet.RESNET_DEPTHS[architecture],
            imagenet.RESNET_WIDTHS,
            key_table=imagenet.RESNET_KEY_TABLE,
            ignored_keys=imagenet.RESNET_IGNORED_KEYS,
            image_processor=image_processor,
        )
    return Layout(
        title="VGG-16",
        make_module=imagenet.VGG16,
        key_table=imagenet.VGG16_KEY_TABLE,
        ignored_keys=imagenet.VGG16_IGNORED_KEYS,
        image_processor=image_processor,
        stride=imagenet.STRIDE,
        embedding_width=imagenet.VGG16_WIDTH,
        local_width=imagenet.VGG16_STAGES[-1][0],
    )


def _open_clip(path, content, *, name, position_embeddings):
    from transformers import CLIPConfig

    model = _section(path, content, "model_cfg", {"embed_dim": None})
    image = _section(path, model, "vision_cfg", OPEN_CLIP_IMAGE)
    text = _section(path, model, "text_cfg", OPEN_CLIP_TEXT)
    for section in (model, image, text):
        _check_open_clip(path, section)
    activation = "quick_gelu" if model.get("quick_gelu", _wants_quick_gelu(path, name)) else "gelu"
    config = {
        "projection_dim": model["embed_dim"],
        "text_config": {
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "hidden_act": activation,
            "bos_token_id": None,
            "eos_token_id": 2,  # the end is where the largest id is
        },
    }
    side, width, patch = image["image_size"], image["width"], image["patch_size"]
    is_vit = not isinstance(image["layers"], list)
    if is_vit:
        config["vision_config"] = {
            "hidden_size": width,
            "intermediate_size": int(width * image["mlp_ratio"]),
            "num_hidden_layers": image["layers"],
            "num_attention_heads": _heads(path, width, image["head_width"]),
            "image_size": side,
            "patch_size": patch,
            "hidden_act": activation,
        }
    config = _transformers_config(CLIPConfig, path, config, "CLIP")
    shared = {
        "image_processor": open_clip_processor(path, content.get("preprocess_cfg") or {}, side),
        "image_size": side,
        "embedding_width": config.projection_dim,
        "tokenizer": Tokenizer(path.parent, text["context_length"], text["vocab_size"], padding=0),
    }
    if is_vit:
        return Layout(
            title=_clip_title(_vit_title(config.vision_config), config.text_config),
            make_module=functools.partial(clip.CLIP, config),
            key_table=clip.OPEN_CLIP_KEY_TABLE,
            ignored_keys=clip.OPEN_CLIP_IGNORED_KEYS,
            stride=patch,
            **shared,
        )
    depths = image["layers"]
    _check_strides(path, [side])
    return Layout(
        title=_clip_title(f"ResNet of {'+'.join(map(str, depths))} blocks, {width} wide", config.text_config),
        make_module=functools.partial(
            clip_resnet.CLIPResNet,
            config.text_config,
            config.projection_dim,
            depths=depths,
            width=width,
            num_heads=_heads(path, width * 32, image["head_width"]),
            image_size=side,
            position_embeddings=position_embeddings,
        ),
        folds=True,
        position_embeddings=position_embeddings,
        key_table=clip_resnet.KEY_TABLE,
        ignored_keys=clip_resnet.IGNORED_KEYS,
        stride=clip_resnet.STRIDE,
        **shared,
    )


# What must be a positive whole number in a transformers config of a tower, where it is there.
POSITIVE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "vocab_size",
    "max_position_embeddings",
)
# Readers of a transformers config, by its model_type.
TRANSFORMERS_READERS = {"clip": _clip, "blip": _blip, "resnet": _resnet}

# What of an open_clip config decides the model, and open_clip's defaults.
OPEN_CLIP_IMAGE = {
    "image_size": 224,
    "layers": 12,
    "width": 768,
    "patch_size": 16,
    "head_width": 64,
    "mlp_ratio": 4.0,
}
OPEN_CLIP_TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
# Repositories of open_clip's whose weights are for QuickGELU, as its own `pretrained.py` lists them.
QUICK_GELU = r"\.openai$|_clip\.(cc12m|yfcc15m)$|\.laion400m_e3[12]$|\.metaclip2?_|^DFN\dB-CLIP-ViT-"
OPEN_CLIP_NUMBERS = {"embed_dim", *OPEN_CLIP_IMAGE, *OPEN_CLIP_TEXT}
# What may be said beside it: what the model is anyway; what is read elsewhere, or concerns training alone.
OPEN_CLIP_SAME = {
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "text_arch": ("clip",),
    "pos_embed_type": ("learnable",),
}
OPEN_CLIP_UNREAD = (
    "quick_gelu",
    "vision_cfg",
    "text_cfg",
    "patch_dropout",
    "init_logit_scale",
    "hf_tokenizer_name",
    "attn_pooler_queries",
    "attn_pooler_heads",
)


def _imagenet_resnet(path, depths, widths, **fields):
    _check_strides(path, fields["image_processor"].output_size)
    return Layout(
        title=f"ResNet-{3 * sum(depths) + 2}",
        make_module=functools.partial(imagenet.ResNet, tuple(depths), tuple(widths)),
        folds=True,
        stride=imagenet.STRIDE,
        embedding_width=widths[-1],
        **fields,
    )


def _check_strides(path, sides):
    """A ResNet halves an image five times."""
    if any(side % imagenet.STRIDE for side in sides):
        raise InputError(f"{path}: images of {sides} pixels are no multiple of {imagenet.STRIDE}")


def _vit_title(config):
    return f"ViT {config.num_hidden_layers} x {config.hidden_size}, patches of {config.patch_size}"


def _clip_title(image, text):
    return f"CLIP ({image}; text {text.num_hidden_layers} x {text.hidden_size}; {text.hidden_act})"


def _transformers_config(config_class, path, content, what, token_ids=()):
    try:
        config = config_class.from_dict(content)
        for key in token_ids:
            if not isinstance(getattr(config.text_config, key), int):
                raise ValueError(f"{key} {getattr(config.text_config, key)!r} is no token id")
        towers = [getattr(config, name) for name in ("vision_config", "text_config") if hasattr(config, name)]
        for tower in towers:
            for key in POSITIVE:
                value = getattr(tower, key, 1)
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"{key} {value!r} is no positive number")
            if tower.hidden_size % tower.num_attention_heads:
                raise ValueError(
                    f"hidden_size {tower.hidden_size} is not a multiple of the number of attention heads "
                    f"({tower.num_attention_heads})"
                )
    except Exception as error:  # transformers validates with exceptions of many kinds
        raise InputError(f"{path} describes no {what}: {' '.join(str(error).split())}") from error
    for tower in towers:
        if tower.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"{path}: hidden_act {tower.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}"
            )
    return config


def _section(path, content, name, defaults=None):
    section = content.get(name)
    if not isinstance(section, dict):
        raise InputError(f"{path} has no {name}, which should describe the model")
    return (defaults or {}) | section


def _check_open_clip(path, section):
    """Refuses a section that describes another model: numbers that are none, keys that are not read."""
    for key, value in section.items():
        if key in OPEN_CLIP_NUMBERS:
            numbers = value if key == "layers" and isinstance(value, list) else [value]
            kinds = int | float if key == "mlp_ratio" else int
            positive = all(isinstance(number, kinds) and number > 0 for number in numbers)
            if not positive and (key, value) != ("patch_size", None):
                raise InputError(f"{path}: {key} {value!r} is no positive number")
        elif key not in OPEN_CLIP_UNREAD and value not in (None, False, 0, *OPEN_CLIP_SAME.get(key, ())):
            raise InputError(f"{path} asks for {key} {value!r}, which is not supported")


def _wants_quick_gelu(path, name):
    """Whether a repository's weights, by its name, are for QuickGELU, where a config leaves that out.

    Early configs on the hub do. By the folder's own name, or that of the repository in the hub's cache.
    """
    folders = path.resolve().parent.parts
    cached = [part.rpartition("--")[2] for part in folders if part.startswith("models--")]
    names = [name.rstrip("/").rpartition("/")[2], folders[-1], *cached]
    return any(re.search(QUICK_GELU, repository) for repository in names)


def _heads(path, width, head_width):
    if width % head_width:
        raise InputError(f"{path}: a width of {width} does not divide into heads of {head_width}")
    return width // head_width


def _no_weights(checkpoint, wanted):
    folder = checkpoint.folder
    if checkpoint.revision:  # of which only JSON files were downloaded
        return (
            f"{checkpoint.name} lacks {wanted} at this revision, and a pickle is never read; often a pull "
            "request there adds it: --revision=refs/pr/N"
        )
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        return (
            f"{folder} lacks {wanted}, and a pickle ({', '.join(pickles)}) is never read, since that can run "
            "any code; save the model as safetensors"
        )
    return f"{folder / wanted.split(' or ')[0]} is missing: only safetensors weights are read, never a pickle"
