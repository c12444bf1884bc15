"""What towers read of a config: transformers', whose classes are slow to import, or any that has the same."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class TowerConfig(Protocol):
    """Of the layers of a transformer."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float


@runtime_checkable
class ImageConfig(TowerConfig, Protocol):
    """Of a vision transformer."""

    image_size: int
    patch_size: int


@runtime_checkable
class TextConfig(TowerConfig, Protocol):
    """Of a text tower. CLIP's reads where a text ends, BLIP's with what it is padded."""

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int
    pad_token_id: int


@runtime_checkable
class CLIPConfig(Protocol):
    """Of both towers of a CLIP, as `transformers.CLIPConfig`."""

    vision_config: ImageConfig
    text_config: TextConfig
    projection_dim: int
    logit_scale_init_value: float


@runtime_checkable
class BLIPConfig(Protocol):
    """Of both towers of a BLIP, as `transformers.BlipConfig`."""

    vision_config: ImageConfig
    text_config: TextConfig
    image_text_hidden_size: int
