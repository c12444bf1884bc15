"""List-all: all combinations, streamed."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import logsumexp
from zero_shot.prompt_tables import at_cosine, random_encoder, table

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.data.scenes import LABELS
from mlclip_jax.zero_shot.list_all import list_all
from mlclip_jax.zero_shot.prompts import NOTHING, write_names, write_published

NAMES = ["cat", "dog", "owl", "bus", "kite", "boat"]
DOUBLING = 5 * math.log(2)  # a logit scale by which 0.2 of cosine double a probability


def images_of(number, width=16, seed=0):
    return np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)


def test_a_score_is_the_log_odds_over_all_combinations():
    """By hand: the probabilities are as 1, 8, 16 and 32."""
    encode = table(
        {
            NOTHING: at_cosine(0.0),
            "cat": at_cosine(0.6),
            "dog": at_cosine(0.8),
            "cat, dog": at_cosine(1.0),
        }
    )
    decided = list_all(np.array([[7.0, 0.0]], np.float32), encode, ["cat", "dog"], logit_scale=DOUBLING)
    np.testing.assert_allclose(decided.scores, [[math.log(40 / 17), math.log(48 / 9)]], atol=1e-6)
    np.testing.assert_array_equal(decided.labels, [[True, True]])
    assert decided.prompts == ("cat, dog",)
    assert decided.scores.dtype == np.float32


def test_the_empty_combination_has_its_own_prompt():
    encode = table({"A photo of nothing": (0.0, 1.0), "cat": (1.0, 0.0)})
    images = np.array([[1.0, 3.0], [3.0, 1.0]], np.float32)
    decided = list_all(images, encode, ["cat"], nothing="A photo of nothing")
    np.testing.assert_array_equal(decided.labels, [[False], [True]])
    assert decided.prompts == ("A photo of nothing", "cat")


def dense(images, encode, names, logit_scale):
    """Everything at once, in float64: scores, labels and prompts."""
    masks = np.array(list(itertools.product((0, 1), repeat=len(names))), bool)
    prompts = [
        write_published([list(itertools.compress(names, mask))])[0] if mask.any() else NOTHING
        for mask in masks
    ]
    texts = encode(prompts).astype(np.float64)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    images = images.astype(np.float64)
    logits = logit_scale * (images / np.linalg.norm(images, axis=1, keepdims=True)) @ texts.T
    scores = [
        logsumexp(logits[:, masks[:, k]], axis=1) - logsumexp(logits[:, ~masks[:, k]], axis=1)
        for k in range(len(names))
    ]
    best = logits.argmax(axis=1)
    return np.stack(scores, axis=1), masks[best], tuple(prompts[i] for i in best)


@pytest.mark.parametrize("chunk", [1, 2, 8, 63, 64, 4096])
def test_streamed_is_dense_whatever_the_chunk(chunk):
    images, encode = images_of(300), random_encoder()  # more images than are taken at once
    for logit_scale in (1.0, 100.0):
        scores, labels, prompts = dense(images, encode, NAMES, logit_scale)
        decided = list_all(images, encode, NAMES, write=write_published, logit_scale=logit_scale, chunk=chunk)
        np.testing.assert_allclose(decided.scores, scores, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(decided.labels, labels)
        assert decided.prompts == prompts


def test_prompts_are_encoded_once_each_and_in_chunks():
    encode = random_encoder()
    sizes = []

    def count(texts):
        sizes.append(len(texts))
        return encode(texts)

    list_all(images_of(3), count, NAMES, chunk=16)
    assert sizes == [16] * 4
    assert len(set(encode.asked)) == 64


def test_of_equal_prompts_the_first_is_chosen_whatever_the_chunk():
    names = NAMES[:4]
    for chunk in (1, 4, 16):
        decided = list_all(
            images_of(2), lambda texts: np.ones((len(texts), 16), np.float32), names, chunk=chunk
        )
        assert not decided.labels.any()
        np.testing.assert_allclose(decided.scores, 0, atol=1e-6)


def test_no_image_is_no_trouble():
    decided = list_all(images_of(0), random_encoder(), NAMES[:2])
    assert (decided.scores.shape, decided.labels.shape, decided.prompts) == ((0, 2), (0, 2), ())


def test_too_many_classes_are_sent_to_top_all():
    names = [f"class {k}" for k in range(21)]
    with pytest.raises(
        InputError, match=r"^List-all of 21 classes has 2\^21 prompts.*; choose Top-all, "
    ) as error:
        list_all(images_of(1), random_encoder(), names)
    assert "\n" not in str(error.value)


def test_a_prompt_that_is_longer_than_the_context_is_sent_to_top_all():
    def count_cut(texts):
        return sum(len(text.split()) > 3 for text in texts)

    encode = random_encoder()
    with pytest.raises(InputError, match=r"the prompt of all 4 classes is longer than .*Top-all") as error:
        list_all(images_of(1), encode, NAMES[:4], count_cut=count_cut, nothing="nothing")
    assert "\n" not in str(error.value)
    assert not encode.asked
    list_all(images_of(1), encode, NAMES[:3], count_cut=count_cut, nothing="nothing")


def test_a_chunk_of_no_prompts_is_refused():
    with pytest.raises(InputError, match="invalid chunk 0: must be at least 1"):
        list_all(images_of(1), random_encoder(), NAMES, chunk=0)


def test_the_built_in_backbone_is_told_when_prompts_do_not_fit():
    backbone = mlclip_jax.load_backbone("scenes-clip")
    images = images_of(2, width=backbone.embedding_width)
    with pytest.raises(InputError, match="the prompt of all 16 classes is longer"):
        list_all(
            images,
            backbone.encode_texts,
            LABELS[:16],
            write=write_names,
            count_cut=backbone.tokenizer.count_cut,
        )
    decided = list_all(
        images, backbone.encode_texts, LABELS[:6], write=write_names, count_cut=backbone.tokenizer.count_cut
    )
    assert np.isfinite(decided.scores).all()


@pytest.mark.slow
def test_sixteen_classes_are_listed_within_five_minutes():
    seconds, _ = _listed(16)
    assert seconds < 300


@pytest.mark.slow
def test_twenty_classes_are_listed_under_four_gibibytes():
    _, gibibytes = _listed(20)
    assert gibibytes < 4


PROGRAM = """
import resource, sys, time
import numpy as np
import mlclip_jax
from mlclip_jax.data.scenes import LABELS
from mlclip_jax.zero_shot.list_all import list_all
from mlclip_jax.zero_shot.prompts import write_words
backbone = mlclip_jax.load_backbone("scenes-clip")
images = np.random.default_rng(0).normal(size=(1_000, backbone.embedding_width)).astype(np.float32)
names = LABELS[: int(sys.argv[1])]
begun = time.monotonic()
count_cut = backbone.tokenizer.count_cut
decided = list_all(images, backbone.encode_texts, names, write=write_words, count_cut=count_cut)
assert np.isfinite(decided.scores).all()
print(time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def _listed(number):
    """Seconds and GiB that a process of its own takes for all combinations, with the built-in backbone."""
    command = [sys.executable, "-c", PROGRAM, str(number)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, gibibytes = map(float, result.stdout.split())
    print(f"{2**number:,} prompts: {seconds:.0f} s, {gibibytes:.2f} GiB")
    return seconds, gibibytes
