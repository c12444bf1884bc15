"""CLIP configurations and inputs on which this package and torch are compared."""

import numpy as np
from tiny_clip import TINY, config_with

CASES = {
    "quick_gelu": TINY,
    # Other sizes throughout, the exact GELU of LAION's checkpoints, 16 patches, another epsilon.
    "gelu": config_with(
        {
            "projection_dim": 12,
            "vision_config.hidden_act": "gelu",
            "vision_config.hidden_size": 24,
            "vision_config.num_attention_heads": 2,
            "vision_config.num_hidden_layers": 3,
            "vision_config.image_size": 32,
            "vision_config.layer_norm_eps": 1e-3,
            "text_config.hidden_act": "gelu",
            "text_config.intermediate_size": 60,
            "text_config.layer_norm_eps": 1e-3,
        }
    ),
    # OpenAI's own files name 2 as the end token, which stands for the largest id in a text.
    "legacy_end_token": config_with({"text_config.eos_token_id": 2}),
}

TEXTS = ["a photo of a dog", "dog", "", "photo of of photo, 2 dogs!"]


def images():
    """uint8 images taller, wider, larger and smaller than what a tower sees."""
    generator = np.random.RandomState(1)
    shapes = [(24, 24), (60, 37), (41, 90), (10, 12), (33, 33)]
    return [generator.randint(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
