"""Writes a CLIP in Hugging Face's format, with a tokenizer of its own."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, trainers

from mlclip_jax.backbones.clip import KEY_TABLE
from mlclip_jax.backbones.processing import ImageProcessor
from mlclip_jax.backbones.tokenizer import END, START, clip_bpe, clip_words
from mlclip_jax.backbones.weights import Parameters, save_parameters
from mlclip_jax.files import make_folder, replacing, write_text


def clip_tokenizer(merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """CLIP's tokenizer over these byte-pair merges, as the hub's `tokenizer.json` files describe it.

    The vocabulary is in CLIP's order: the 256 bytes, the same at the end of a word, one entry for each merge,
    start and end.
    """
    alphabet = byte_alphabet()
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(a + b for a, b in merges), START, END]
    return clip_bpe({piece: i for i, piece in enumerate(pieces)}, merges)


def learn_merges(texts: Iterable[str], number: int) -> list[tuple[str, str]]:
    """The byte-pair merges that shorten these texts most, at most `number` of them: a list of pairs."""
    alphabet = byte_alphabet()
    tokenizer = clip_words(models.BPE(end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + number,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges[:number]]


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes, in CLIP's order: printable bytes first, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def save_clip(
    folder: str | os.PathLike,
    config: Any,
    parameters: Parameters,
    tokenizer: Tokenizer,
    image_processor: ImageProcessor,
) -> None:
    """Writes a checkpoint that `load_backbone` reads, and transformers' `CLIPModel.from_pretrained` too.

    Args:
      folder: made if it is missing.
      config: a `transformers.CLIPConfig`.
      parameters: of `clip.CLIP`, a nested dict.
      tokenizer: from `clip_tokenizer`.
      image_processor: a `processing.ImageProcessor` that resizes the shorter side, and crops.
    """
    if image_processor.cover is None or image_processor.crop is None:
        raise ValueError("an image processor of CLIP's resizes the shorter side, and crops")
    folder = Path(folder)
    make_folder(folder)
    height, width = image_processor.crop
    preprocessing = {
        "crop_size": {"height": height, "width": width},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(image_processor.mean),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(image_processor.std),
        "resample": int(image_processor.resample),
        "rescale_factor": image_processor.scale,
        "size": {"shortest_edge": image_processor.cover[0]},
    }
    tokenizer_settings = {
        "bos_token": START,
        "eos_token": END,
        "model_max_length": config.text_config.max_position_embeddings,
        "pad_token": END,
        "unk_token": END,
        "tokenizer_class": "CLIPTokenizer",
    }
    files = {
        "config.json": config.to_json_string(use_diff=True),
        "preprocessor_config.json": json.dumps(preprocessing, indent=2) + "\n",
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(tokenizer_settings, indent=2) + "\n",
    }
    for name, text in files.items():
        write_text(folder / name, text)
    with replacing(folder / "model.safetensors") as temporary:
        save_parameters(temporary, KEY_TABLE, parameters)
