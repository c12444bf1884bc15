"""Pixels and token ids against transformers' own, which need no torch."""

import json

import numpy as np
import pytest
from clip_cases import TEXTS, images
from PIL import Image
from real_data import VOCABULARY, needs_real_data
from tiny_clip import VIT_B_32, read_merges, write_processing

from mlclip_jax import InputError
from mlclip_jax.backbones.processing import Tokenizer, transformers_processor


def reference_pixels(folder, pictures):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.fromarray(p) for p in pictures], return_tensors="np")["pixel_values"]
    return pixels.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_size": {"height": 20, "width": 30}},
        {"crop_size": {"height": 30, "width": 30}},  # beyond the image: filled with zeros
        {"do_center_crop": False, "size": {"height": 18, "width": 26}},  # squashed
        {"resample": 2},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
    ids=lambda changes: "-".join(changes) or "clip",
)
def test_pixels_are_transformers(tmp_path, changes):
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    processor = transformers_processor(tmp_path, "CLIP")
    ours = np.stack([processor.normalise(processor.pixels(picture)) for picture in images()])
    # To rounding: bytes are rescaled and normalised in float32 on both sides.
    np.testing.assert_allclose(ours, reference_pixels(tmp_path, images()), rtol=1e-5, atol=1e-5)


def test_sizes_may_be_plain_numbers(tmp_path):
    """As in OpenAI's first files on the hub."""
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    expected = transformers_processor(tmp_path, "CLIP")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": 24, "crop_size": 24}))
    assert transformers_processor(tmp_path, "CLIP") == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"do_center_crop": False},
        {"size": {"longest_edge": 24}, "do_center_crop": False},
        {"resample": 17},
        {"crop_size": "large"},
        {"crop_size": -3},
        {"size": {"shortest_edge": 0}},
        {"size": {"shortest_edge": "24"}},
        {"image_mean": [0.5]},
        {"image_std": ["a", "b", "c"]},
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_an_error(tmp_path, changes):
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        transformers_processor(tmp_path, "CLIP")


def test_token_ids_are_transformers(tmp_path):
    from transformers import AutoTokenizer

    write_processing(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    texts = [*TEXTS, "DOG photo", "naïve – café 東京 🐕", "dog\n\t  photo", "dog " * 30]
    ids, _, cut = Tokenizer(tmp_path, 16, 1000)(texts)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    expected = reference(texts, padding="max_length", truncation=True, max_length=16, return_tensors="np")
    np.testing.assert_array_equal(ids, expected["input_ids"])
    assert (ids.dtype, ids.shape, cut) == (np.int32, (len(texts), 16), 2)  # of many bytes, of many words


@needs_real_data
def test_clips_own_vocabulary_gives_clips_own_ids(tmp_path):
    write_processing(tmp_path, VIT_B_32, read_merges(VOCABULARY))
    ids, _, _ = Tokenizer(tmp_path, 77, 49408)(["a photo of a cat", "A  Photo of a CAT"])
    assert ids.shape == (2, 77)
    expected = [49406, 320, 1125, 539, 320, 2368, 49407]
    np.testing.assert_array_equal(ids, [expected + [49407] * 70] * 2)
