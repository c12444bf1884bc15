"""open_clip's description of a CLIP, checked, and in the words of transformers."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from mlclip_jax.errors import InputError

# What of an open_clip config decides the model, and open_clip's defaults.
IMAGE = {
    "image_size": 224,
    "layers": 12,
    "width": 768,
    "patch_size": 16,
    "head_width": 64,
    "mlp_ratio": 4.0,
}
TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
# Repositories of open_clip's whose weights are for QuickGELU, as its own `pretrained.py` lists them.
QUICK_GELU = r"\.openai$|_clip\.(cc12m|yfcc15m)$|\.laion400m_e3[12]$|\.metaclip2?_|^DFN\dB-CLIP-ViT-"
NUMBERS = {"embed_dim", *IMAGE, *TEXT}
# What may be said beside it: what the model is anyway; what is read elsewhere, or concerns training alone.
SAME = {
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "text_arch": ("clip",),
    "pos_embed_type": ("learnable",),
}
UNREAD = (
    "quick_gelu",
    "vision_cfg",
    "text_cfg",
    "patch_dropout",
    "init_logit_scale",
    "hf_tokenizer_name",
    "attn_pooler_queries",
    "attn_pooler_heads",
)


class Description(NamedTuple):
    """What an `open_clip_config.json` says of a model.

    Attributes:
      config: of a `transformers.CLIPConfig`, a nested dict; a ResNet has no `vision_config` there.
      image: of the image tower, the keys of `IMAGE`; `layers` of a ResNet is a list.
      is_vit: whether the image tower is one.
    """

    config: dict[str, Any]
    image: dict[str, Any]
    is_vit: bool


def read_config(path: Path, content: dict[str, Any], name: str) -> Description:
    """The `Description` in an open_clip config.

    Args:
      path: of the file.
      content: of the file, a dict.
      name: by which the checkpoint was asked for; it tells the activation where the file does not.

    Raises:
      InputError: it describes no model that can be loaded.
    """
    model = _section(path, content, "model_cfg", {"embed_dim": None})
    image = _section(path, model, "vision_cfg", IMAGE)
    text = _section(path, model, "text_cfg", TEXT)
    for section in (model, image, text):
        _check_section(path, section)
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
    is_vit = not isinstance(image["layers"], list)
    if is_vit:
        config["vision_config"] = {
            "hidden_size": image["width"],
            "intermediate_size": int(image["width"] * image["mlp_ratio"]),
            "num_hidden_layers": image["layers"],
            "num_attention_heads": count_heads(path, image["width"], image["head_width"]),
            "image_size": image["image_size"],
            "patch_size": image["patch_size"],
            "hidden_act": activation,
        }
    return Description(config, image, is_vit)


def _section(
    path: Path, content: dict[str, Any], name: str, defaults: dict[str, Any] | None = None
) -> dict[str, Any]:
    section = content.get(name)
    if not isinstance(section, dict):
        raise InputError(f"{path} has no {name}, which should describe the model")
    return (defaults or {}) | section


def _check_section(path: Path, section: dict[str, Any]) -> None:
    """Refuses a section that describes another model: numbers that are none, keys that are not read."""
    for key, value in section.items():
        if key in NUMBERS:
            numbers = value if key == "layers" and isinstance(value, list) else [value]
            kinds = int | float if key == "mlp_ratio" else int
            positive = all(isinstance(number, kinds) and number > 0 for number in numbers)
            if not positive and (key, value) != ("patch_size", None):
                raise InputError(f"{path}: {key} {value!r} is no positive number")
        elif key not in UNREAD and value not in (None, False, 0, *SAME.get(key, ())):
            raise InputError(f"{path} asks for {key} {value!r}, which is not supported")


def _wants_quick_gelu(path: Path, name: str) -> bool:
    """Whether a repository's weights, by its name, are for QuickGELU, where a config leaves that out.

    Early configs on the hub do. By the folder's own name, or that of the repository in the hub's cache.
    """
    folders = path.resolve().parent.parts
    cached = [part.rpartition("--")[2] for part in folders if part.startswith("models--")]
    names = [name.rstrip("/").rpartition("/")[2], folders[-1], *cached]
    return any(re.search(QUICK_GELU, repository) for repository in names)


def count_heads(path: Path, width: int, head_width: int) -> int:
    """The number of attention heads of a width.

    Raises:
      InputError: it does not divide into heads of `head_width`.
    """
    if width % head_width:
        raise InputError(f"{path}: a width of {width} does not divide into heads of {head_width}")
    return width // head_width
