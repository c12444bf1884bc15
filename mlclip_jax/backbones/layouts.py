"""What a checkpoint's folder holds: one of the layouts in which the hub keeps models, read into one form."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from mlclip_jax.backbones import blip, clip, clip_resnet, imagenet, open_clip
from mlclip_jax.backbones.configs import ImageConfig, TextConfig
from mlclip_jax.backbones.processing import (
    ImageProcessor,
    open_clip_processor,
    timm_processor,
    transformers_processor,
)
from mlclip_jax.backbones.tokenizer import Tokenizer
from mlclip_jax.backbones.transformer import ACTIVATIONS
from mlclip_jax.backbones.weights import PICKLES, Checkpoint, KeyTable, find_weights, read_json_object
from mlclip_jax.errors import InputError
from mlclip_jax.progress import note

# What, beside the weights and the config, decides an embedding.
SETTINGS = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")
VOCABULARY = ("vocab.json", "merges.txt")  # too, where there is no tokenizer.json


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
      antialias, clean: whether position embeddings are smoothed at other image sizes, and texts repaired: by
        the conventions of the layout, or as it was asked for.
      optional: values of parameters that the weights may lack, by their paths.
      weights: the files of weights.
      settings: the other files that decide an embedding.
    """

    title: str
    make_module: Callable[..., nnx.Module]
    key_table: KeyTable
    ignored_keys: list[str]
    image_processor: ImageProcessor
    stride: int
    embedding_width: int
    local_width: int | None = None
    image_size: int | None = None
    folds: bool = False
    tokenizer: Tokenizer | None = None
    pair_width: int | None = None
    position_embeddings: str | None = None
    antialias: bool = False
    clean: bool = False
    optional: Mapping[str, float] = {}
    weights: Sequence[Path] = ()
    settings: Sequence[Path] = ()


def read_layout(
    checkpoint: Checkpoint,
    *,
    position_embeddings: str = "pooled",
    antialias: bool | None = None,
    clean: bool | None = None,
) -> Layout:
    """The `Layout` of a `weights.Checkpoint`, whose weights are downloaded from the hub if need be.

    Args:
      checkpoint: from `weights.find_checkpoint`.
      position_embeddings: see `clip_resnet.ImageTower`.
      antialias, clean: see `loading.load_backbone`; None for what is usual in the layout.

    Raises:
      InputError: a file is missing or damaged, the architecture is unknown, or there are no safetensors.
    """
    folder = checkpoint.folder
    path, open_clip_path = folder / "config.json", folder / "open_clip_config.json"
    config = read_json_object(path) if path.is_file() or not open_clip_path.is_file() else {}
    candidates: list[tuple[str, Callable[..., Layout], Path, dict[str, Any]]] = []
    model_type = str(config.get("model_type"))
    if model_type in TRANSFORMERS_READERS:
        read = functools.partial(
            TRANSFORMERS_READERS[model_type], antialias=bool(antialias), clean=bool(clean)
        )
        candidates.append(("model", read, path, config))
    if open_clip_path.is_file():
        read = functools.partial(
            _open_clip,
            name=checkpoint.name,
            position_embeddings=position_embeddings,
            antialias=antialias is not False,
            clean=clean is not False,
        )
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
            names = SETTINGS if (folder / SETTINGS[0]).is_file() else (*SETTINGS, *VOCABULARY)
            settings = [config_path, *(folder / name for name in names if (folder / name).is_file())]
            return read(config_path, content)._replace(weights=weights, settings=settings)
    raise InputError(_no_weights(checkpoint, " or ".join(f"{stem}.safetensors" for stem, *_ in candidates)))


def _clip(path: Path, content: dict[str, Any], *, antialias: bool, clean: bool) -> Layout:
    from transformers import CLIPConfig

    config = _transformers_config(CLIPConfig, path, content, "CLIP", ["eos_token_id"])
    image, text = config.vision_config, config.text_config
    tokenizer = Tokenizer(path.parent, text.max_position_embeddings, text.vocab_size, clean=clean)
    text.eos_token_id = _end_token(path, text.eos_token_id, tokenizer)
    return Layout(
        title=_clip_title(_vit_title(image), text),
        make_module=functools.partial(clip.CLIP, config, antialias=antialias),
        antialias=antialias,
        clean=clean,
        optional=LOGIT_SCALE,
        key_table=clip.KEY_TABLE,
        ignored_keys=clip.IGNORED_KEYS,
        image_processor=transformers_processor(path.parent, "CLIP"),
        image_size=image.image_size,
        stride=image.patch_size,
        embedding_width=config.projection_dim,
        tokenizer=tokenizer,
    )


def _end_token(path: Path, named: int, tokenizer: Tokenizer) -> int:
    """The id at which a text's embedding is taken: what the config names, if its tokenizer ever writes that.

    Elsewhere every text would get the same embedding.
    """
    ids, lengths, _ = tokenizer(["a"])
    if named == 2 or named in ids[0, : lengths[0]]:  # 2 means the largest, see `clip.TextTower.ends`
        return named
    own = tokenizer.end_token
    if own is None:
        raise InputError(
            f"{path}: eos_token_id {named} never occurs in what the tokenizer makes of texts; "
            "name the id that ends them"
        )
    note(f"{path}: texts end with the tokenizer's {own}, as eos_token_id {named} never occurs in them")
    return own


def _blip(path: Path, content: dict[str, Any], *, clean: bool, **_: bool) -> Layout:
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
        clean=clean,
        tokenizer=Tokenizer(
            path.parent, text.max_position_embeddings, text.vocab_size, padding=text.pad_token_id, clean=clean
        ),
    )


def _resnet(path: Path, content: dict[str, Any], **_: bool) -> Layout:
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


def _timm(path: Path, content: dict[str, Any]) -> Layout:
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


def _open_clip(
    path: Path,
    content: dict[str, Any],
    *,
    name: str,
    position_embeddings: str,
    antialias: bool,
    clean: bool,
) -> Layout:
    from transformers import CLIPConfig

    described = open_clip.read_config(path, content, name)
    config = _transformers_config(CLIPConfig, path, described.config, "CLIP")
    side, text = described.image["image_size"], config.text_config
    shared: dict[str, Any] = {
        "image_processor": open_clip_processor(path, content.get("preprocess_cfg") or {}, side),
        "image_size": side,
        "embedding_width": config.projection_dim,
        "tokenizer": Tokenizer(
            path.parent, text.max_position_embeddings, text.vocab_size, padding=0, clean=clean
        ),
        "clean": clean,
        "optional": LOGIT_SCALE,
    }
    if described.is_vit:
        return Layout(
            title=_clip_title(_vit_title(config.vision_config), text),
            make_module=functools.partial(clip.CLIP, config, antialias=antialias),
            antialias=antialias,
            key_table=clip.OPEN_CLIP_KEY_TABLE,
            ignored_keys=clip.OPEN_CLIP_IGNORED_KEYS,
            stride=config.vision_config.patch_size,
            **shared,
        )
    depths, width = described.image["layers"], described.image["width"]
    _check_strides(path, [side])
    return Layout(
        title=_clip_title(f"ResNet of {'+'.join(map(str, depths))} blocks, {width} wide", text),
        make_module=functools.partial(
            clip_resnet.CLIPResNet,
            text,
            config.projection_dim,
            depths=depths,
            width=width,
            num_heads=open_clip.count_heads(path, width * 32, described.image["head_width"]),
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


LOGIT_SCALE = {"logit_scale": math.log(1 / 0.07)}  # where CLIP's training starts; embeddings need none
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


def _imagenet_resnet(path: Path, depths: Sequence[int], widths: Sequence[int], **fields: Any) -> Layout:
    _check_strides(path, fields["image_processor"].output_size)
    return Layout(
        title=f"ResNet-{3 * sum(depths) + 2}",
        make_module=functools.partial(imagenet.ResNet, tuple(depths), tuple(widths)),
        folds=True,
        stride=imagenet.STRIDE,
        embedding_width=widths[-1],
        **fields,
    )


def _check_strides(path: Path, sides: Sequence[int]) -> None:
    """A ResNet halves an image five times."""
    if any(side % imagenet.STRIDE for side in sides):
        raise InputError(f"{path}: images of {sides} pixels are no multiple of {imagenet.STRIDE}")


def _vit_title(config: ImageConfig) -> str:
    return f"ViT {config.num_hidden_layers} x {config.hidden_size}, patches of {config.patch_size}"


def _clip_title(image: str, text: TextConfig) -> str:
    return f"CLIP ({image}; text {text.num_hidden_layers} x {text.hidden_size}; {text.hidden_act})"


def _transformers_config(
    config_class: Any, path: Path, content: dict[str, Any], what: str, token_ids: Iterable[str] = ()
) -> Any:
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


def _no_weights(checkpoint: Checkpoint, wanted: str) -> str:
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
