"""Checkpoints of every layout that can be loaded, small, written without torch.

What arrays a file holds, by name and shape, comes from the torch classes themselves, by way of
`backbones/entries.json`, which `python tests/parity/torch_outputs.py` writes. Their values are random here,
every norm, bias and batch statistic included.
"""

import json
from pathlib import Path

import numpy as np
from clip_cases import CASES as CLIP_CASES
from safetensors.numpy import save_file
from tiny_clip import MERGES, config_with, write_processing
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

ENTRIES = Path(__file__).parent / "backbones" / "entries.json"
VOCABULARY_SIZE = 2 * 256 + len(MERGES) + 2
WORDS = "[PAD] [UNK] [CLS] [SEP] a photo of dog cat two ##s ##g d o ! , . [DEC] [ENC]".split()

TEXT_CFG = {"context_length": 16, "vocab_size": VOCABULARY_SIZE, "width": 24, "heads": 3, "layers": 2}
OPEN_CLIP_VIT = {
    "embed_dim": 20,
    "quick_gelu": False,
    "vision_cfg": {
        "image_size": 24,
        "layers": 2,
        "width": 32,
        "patch_size": 8,
        "head_width": 8,
        "mlp_ratio": 1.5,
    },
    "text_cfg": TEXT_CFG | {"mlp_ratio": 2.0},
}
OPEN_CLIP_RESNET = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 64,
        "layers": [2, 1, 1, 1],
        "width": 8,
        "patch_size": None,
        "head_width": 32,
    },
    "text_cfg": TEXT_CFG,
}
RN50 = {
    "embed_dim": 1024,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
BLIP = {
    "model_type": "blip",
    "architectures": ["BlipForImageTextRetrieval"],
    "image_text_hidden_size": 20,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 8,
    },
    "text_config": {
        "vocab_size": len(WORDS),
        "hidden_size": 24,
        "encoder_hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": len(WORDS) - 2,
        "sep_token_id": 3,
    },
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [16, 24, 32, 40],
    "depths": [2, 1, 2, 1],
}
PRETRAINED_CFG = {
    "input_size": [3, 64, 64],
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}

# Layout and config of each case.
CASES = {
    **{f"clip_{name}": ("clip", config) for name, config in CLIP_CASES.items()},
    "open_clip_vit": ("open_clip", OPEN_CLIP_VIT),
    "open_clip_resnet": ("open_clip", OPEN_CLIP_RESNET),
    "blip": ("blip", BLIP),
    "resnet": ("resnet", RESNET),
    "timm_resnet101": ("timm", {"architecture": "resnet101", "pretrained_cfg": PRETRAINED_CFG}),
    "timm_vgg16": ("timm", {"architecture": "vgg16", "pretrained_cfg": PRETRAINED_CFG}),
}
# Beside their own size, towers are compared at these: (height, width).
OTHER_SIZES = {
    "clip_quick_gelu": (32, 48),
    "open_clip_vit": (40, 24),
    "open_clip_resnet": (96, 64),
    "blip": (16, 40),
    "resnet": (96, 64),
    "timm_vgg16": (96, 288),
}
TEXTS = ["a photo of a dog", "dog", "", "photo of of photo, two dogs!"]


def write_case(folder, case, *, seed=0, dtype=np.float32, shards=1):
    """Writes all files of a case's checkpoint; returns the folder."""
    layout, config = CASES[case]
    write_weights(folder, layout, case_weights(case, seed), dtype=dtype, shards=shards)
    write_settings(folder, layout, config)
    return Path(folder)


def case_weights(case, seed=0):
    """Random weights for every entry of a case's file."""
    return random_weights(json.loads(ENTRIES.read_text())[case], seed)


def random_weights(entries, seed=0):
    """Random arrays of these names and shapes, such that activations neither vanish nor explode."""
    generator = np.random.RandomState(
        seed
    )  # the legacy generator: its stream is frozen, as stored outputs need
    weights = {}
    for name, shape in entries.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = np.array(7)
            continue
        size = int(np.prod(shape))
        # Beyond a million values they repeat: what takes long is to draw them.
        values = np.resize(generator.standard_normal(min(size, 1_000_003)), size).reshape(shape)
        if name.endswith("running_var"):
            values = 0.5 + np.abs(values)
        elif len(shape) > 1:
            inputs = int(np.prod(shape[1:]))
            values = values * (2 if len(shape) == 4 else 1) ** 0.5 / inputs**0.5
        else:
            values = (1.0 if name.endswith("weight") else 0.0) + 0.2 * values
        weights[name] = np.asarray(values, np.float32)
    return weights


def write_weights(folder, layout, weights, *, dtype=np.float32, shards=1):
    """Writes weights as one safetensors file, or as shards with their index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = "open_clip_model" if layout == "open_clip" else "model"
    weights = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in weights.items()}
    if shards == 1:
        save_file(weights, folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(weights), {}
    for i in range(shards):
        file, part = f"{stem}-{i + 1:05}-of-{shards:05}.safetensors", names[i::shards]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_settings(folder, layout, config):
    """Writes the config of a case, and what belongs to its preprocessing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "open_clip":
        whole = {
            "model_cfg": config,
            "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "shortest"},
        }
        write_processing(folder)
        (folder / "preprocessor_config.json").unlink()
        (folder / "open_clip_config.json").write_text(json.dumps(whole))
        return
    (folder / "config.json").write_text(json.dumps(config))
    if layout == "clip":
        write_processing(folder, config)
    elif layout == "blip":
        write_bert_tokenizer(folder)
        write_preprocessor(folder, "BlipImageProcessor", size=_square(config["vision_config"]["image_size"]))
    elif layout == "resnet":
        write_preprocessor(folder, "ConvNextFeatureExtractor", size=64, crop_pct=0.875)


def write_preprocessor(folder, kind, **settings):
    """Writes a `preprocessor_config.json` of transformers."""
    config = {
        "image_processor_type": kind,
        "image_mean": [0.481, 0.457, 0.408],
        "image_std": [0.268, 0.261, 0.275],
        "resample": 3,
    }
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(config | settings))


def write_bert_tokenizer(folder, words=WORDS):
    """Writes a lower-casing WordPiece tokenizer like BLIP's."""
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    settings = {"pad_token": "[PAD]", "tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))


def blip_config(changes):
    """A copy of the small BLIP's config with some values changed."""
    return config_with(changes, BLIP)


def _square(side):
    return {"height": side, "width": side}


def outputs_of(backbone, images, texts=TEXTS):
    """All that a backbone gives for images and texts, by name."""
    encoded = backbone.encode_images(images, local=True)
    outputs = {"image": encoded.embeddings, "image_local": encoded.local}
    if backbone.context_length:
        encoded = backbone.encode_texts(texts, local=True)
        outputs |= {"text": encoded.embeddings, "text_local": encoded.local}
    if "BLIP" in backbone.title:
        pairs = [(image, text) for image in images[:2] for text in texts]
        outputs["pair"], outputs["match"] = backbone.encode_pairs(*zip(*pairs))
    return outputs


def thinned(array):
    """What is stored of an output: of wide ones, every sixteenth channel."""
    return array[..., ::16] if array.shape[-1] > 256 else array
