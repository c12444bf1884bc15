"""Writes a CLIP in Hugging Face's format, at any size and without torch: real files, random weights."""

import gzip
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mlclip_jax.backbones.saving import END, clip_tokenizer

# CLIP's byte-pair merges, the few that some test words need.
MERGES = [
    ("p", "h"),
    ("o", "t"),
    ("ph", "ot"),
    ("phot", "o</w>"),
    ("d", "o"),
    ("do", "g</w>"),
    ("o", "f</w>"),
]

TINY = {
    "model_type": "clip",
    "projection_dim": 20,
    "logit_scale_init_value": 2.6592,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
        "projection_dim": 20,
    },
    "text_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 16,
        "vocab_size": 2 * 256 + len(MERGES) + 2,
        "bos_token_id": 2 * 256 + len(MERGES),
        "eos_token_id": 2 * 256 + len(MERGES) + 1,
        "hidden_act": "quick_gelu",
        "projection_dim": 20,
    },
}

# ViT-B/32 has the sizes that transformers takes for default.
VIT_B_32 = {"model_type": "clip", "projection_dim": 512, "vision_config": {}, "text_config": {}}


def config_with(changes, base=TINY):
    """A copy of a config with some values changed: {"text_config.hidden_act": "gelu"}."""
    config = json.loads(json.dumps(base))
    for key, value in changes.items():
        *parents, name = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[name] = value
    return config


def write_clip(folder, config=TINY, *, seed=0, dtype=np.float32, merges=MERGES):
    """Writes all files of a checkpoint; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: array.astype(dtype) for name, array in random_weights(config, seed).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_processing(folder, config, merges)
    return folder


def write_processing(folder, config=TINY, merges=MERGES):
    """Writes the files of a checkpoint that are not the model's own."""
    folder = Path(folder)
    clip_tokenizer(merges).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": END}))
    size = config["vision_config"].get("image_size", 224)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": {"height": size, "width": size},
                "do_center_crop": True,
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
                "rescale_factor": 1 / 255,
                "size": {"shortest_edge": size},
            }
        )
    )


def random_weights(config, seed):
    """Every parameter of transformers' CLIPModel by its name in the file, none of them zero or one.

    From NumPy's legacy generator, whose stream is frozen, so that stored outputs stay valid.
    """
    generator = np.random.RandomState(seed)
    weights = {}

    def add(name, *shape, mean=0.0):
        # Scaled so that activations neither vanish nor explode from layer to layer.
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.2
        weights[name] = (mean + scale * generator.standard_normal(shape)).astype(np.float32)

    def add_linear(name, width_in, width_out):
        add(f"{name}.weight", width_out, width_in)
        add(f"{name}.bias", width_out)

    def add_norm(name, width):
        add(f"{name}.weight", width, mean=1.0)
        add(f"{name}.bias", width)

    defaults = {"vision_config": (768, 3072, 12), "text_config": (512, 2048, 12)}
    for tower, key in (("vision_model", "vision_config"), ("text_model", "text_config")):
        settings = config[key]
        names = ("hidden_size", "intermediate_size", "num_hidden_layers")
        width, inner, layers = (settings.get(n, d) for n, d in zip(names, defaults[key]))
        if tower == "vision_model":
            patch, size = settings.get("patch_size", 32), settings.get("image_size", 224)
            add(f"{tower}.embeddings.class_embedding", width)
            add(f"{tower}.embeddings.patch_embedding.weight", width, 3, patch, patch)
            weights[f"{tower}.embeddings.patch_embedding.weight"] /= patch
            add(f"{tower}.embeddings.position_embedding.weight", (size // patch) ** 2 + 1, width)
            add_norm(f"{tower}.pre_layrnorm", width)
            add_norm(f"{tower}.post_layernorm", width)
            add("visual_projection.weight", config["projection_dim"], width)
        else:
            add(f"{tower}.embeddings.token_embedding.weight", settings.get("vocab_size", 49408), width)
            positions = settings.get("max_position_embeddings", 77)
            add(f"{tower}.embeddings.position_embedding.weight", positions, width)
            add_norm(f"{tower}.final_layer_norm", width)
            add("text_projection.weight", config["projection_dim"], width)
        for i in range(layers):
            layer = f"{tower}.encoder.layers.{i}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                add_linear(f"{layer}.self_attn.{name}", width, width)
            add_linear(f"{layer}.mlp.fc1", width, inner)
            add_linear(f"{layer}.mlp.fc2", inner, width)
            add_norm(f"{layer}.layer_norm1", width)
            add_norm(f"{layer}.layer_norm2", width)
    weights["logit_scale"] = np.array(generator.standard_normal(), np.float32)
    return weights


def read_merges(path):
    """The merges of CLIP's published vocabulary, bpe_simple_vocab_16e6.txt.gz."""
    lines = gzip.decompress(Path(path).read_bytes()).decode().split("\n")
    return [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
