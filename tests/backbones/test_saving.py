"""A CLIP written here is the CLIP that was trained here."""

import numpy as np
import pytest
from clip_cases import CASES
from safetensors.numpy import load_file
from tiny_clip import MERGES, write_clip

import mlclip_jax
from mlclip_jax.backbones.clip import KEY_TABLE
from mlclip_jax.backbones.saving import clip_tokenizer, learn_merges
from mlclip_jax.backbones.weights import save_parameters

CAPTIONS = ["a photo of a dog.", "a photo of a cat and a dog.", "two dogs"] * 20


@pytest.mark.parametrize("case", CASES)
def test_weights_written_are_the_weights_read(tmp_path, case):
    folder = write_clip(tmp_path / "clip", CASES[case])
    backbone = mlclip_jax.load_backbone(folder)
    save_parameters(tmp_path / "again.safetensors", KEY_TABLE, backbone.parameters)
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "again.safetensors")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].shape == theirs[name].shape
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_merges_are_those_that_shorten_the_texts_most():
    merges = learn_merges(CAPTIONS, 30)
    assert merges == learn_merges(CAPTIONS, 30)
    assert learn_merges(CAPTIONS, 7) == merges[:7]
    tokens = clip_tokenizer(merges).encode("A photo  of a DOG").tokens
    assert tokens == ["<|startoftext|>", "a</w>", "photo</w>", "of</w>", "a</w>", "dog</w>", "<|endoftext|>"]


@pytest.mark.parametrize("text", ["", "zebra", "Žluťoučký kůň", "雪だるま ☃", "a\x00b", "'tis 42!"])
def test_every_text_has_tokens_and_none_is_unknown(text):
    tokenizer = clip_tokenizer(learn_merges(CAPTIONS, 10))
    tokens = tokenizer.encode(text).tokens
    assert tokens[0] == "<|startoftext|>"
    assert tokens.index("<|endoftext|>") == len(tokens) - 1
    assert set(tokens) <= tokenizer.get_vocab().keys()


def test_no_merge_at_all_is_a_tokenizer_too():
    tokenizer = clip_tokenizer([])
    assert tokenizer.get_vocab_size() == 514
    assert tokenizer.encode("dog").tokens[1:-1] == ["d", "o", "g</w>"]


def test_the_tokenizer_is_in_clips_order():
    vocabulary = clip_tokenizer(MERGES).get_vocab()
    assert vocabulary["!"] == 0
    assert vocabulary["!</w>"] == 256
    assert vocabulary["ph"] == 512
    assert vocabulary["<|endoftext|>"] == 512 + len(MERGES) + 1 == len(vocabulary) - 1
