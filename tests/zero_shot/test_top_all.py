"""Top-all: nested combinations of ranked classes."""

import math

import numpy as np
import pytest
from zero_shot.prompt_tables import at_cosine, random_encoder, table

from mlclip_jax import InputError
from mlclip_jax.zero_shot import top_all as module
from mlclip_jax.zero_shot.prompts import NOTHING, write_names, write_sentences
from mlclip_jax.zero_shot.top_all import top_all

NAMES = ["cat", "dog", "owl", "bus", "kite", "boat"]
DOUBLING = 5 * math.log(2)  # a logit scale by which 0.2 of cosine double a probability
IMAGE = np.array([[4.0, 0.0]], np.float32)
# The ranking is owl, cat, dog; of the nested prompts, the second is the nearest.
WORLD = {
    "A photo of cat": at_cosine(0.4),
    "A photo of dog": at_cosine(0.0),
    "A photo of owl": at_cosine(0.6),
    NOTHING: at_cosine(0.2),
    "owl": at_cosine(0.4),
    "owl, cat": at_cosine(0.8),
    "owl, cat, dog": at_cosine(0.6),
}


def images_of(number, width=16, seed=0):
    return np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)


def test_a_score_is_the_log_odds_over_an_images_own_combinations():
    """By hand: nothing, owl, owl and cat, all three have probabilities as 2, 4, 16 and 8."""
    decided = top_all(IMAGE, table(WORLD), ["cat", "dog", "owl"], logit_scale=DOUBLING)
    np.testing.assert_allclose(
        decided.scores, [[math.log(24 / 6), math.log(8 / 22), math.log(28 / 2)]], atol=1e-5
    )
    np.testing.assert_array_equal(decided.labels, [[True, False, True]])
    assert decided.prompts == ("owl, cat",)
    assert decided.scores.dtype == np.float32


def test_nothing_may_be_the_nearest():
    world = WORLD | {NOTHING: at_cosine(1.0)}
    decided = top_all(IMAGE, table(world), ["cat", "dog", "owl"])
    assert not decided.labels.any()
    assert decided.prompts == (NOTHING,)


def test_classes_beyond_the_deepest_combination_follow_by_their_rank():
    """By hand: nothing, owl, owl and cat are as 2, 4 and 16; in the ranking, cat is as four times dog."""
    decided = top_all(IMAGE, table(WORLD), ["cat", "dog", "owl"], logit_scale=DOUBLING, deepest=2)
    cat = math.log(16 / 6)
    np.testing.assert_allclose(decided.scores, [[cat, cat - math.log(4), math.log(20 / 2)]], atol=1e-5)
    np.testing.assert_array_equal(decided.labels, [[True, False, True]])


def write_sorted(combinations):
    """Prompts that do not depend on the order of their classes."""
    return [" and ".join(sorted(names)) for names in combinations]


def naive(image, encode, names, logit_scale, write):
    """One image as in the source, step by step: its scores, labels and nearest prompt."""

    def logits(prompts):
        texts = encode(prompts).astype(np.float64)
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        return logit_scale * texts @ (image.astype(np.float64) / np.linalg.norm(image))

    ranking = np.argsort(logits([f"A photo of {name}" for name in names]))[::-1]
    prompts = write([[names[k] for k in ranking[: d + 1]] for d in range(len(names))])
    prompts.append(NOTHING)
    found = logits(prompts)
    probabilities = np.exp(found - found.max())
    scores = np.empty(len(names))
    for rank, k in enumerate(ranking):
        within = probabilities[rank:-1].sum()
        scores[k] = np.log(within) - np.log(probabilities.sum() - within)
    chosen = found.argmax()
    labels = np.isin(np.arange(len(names)), ranking[: chosen + 1] if chosen < len(names) else [])
    return scores, labels, prompts[chosen]


@pytest.mark.parametrize("write", [write_names, write_sorted])
@pytest.mark.parametrize("at_once", [(4096, 4096), (5, 3)])
def test_many_images_are_as_each_alone(at_once, write, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", at_once[0])
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once[1])
    images, encode = images_of(40), random_encoder()
    decided = top_all(images, encode, NAMES, write=write, logit_scale=10.0)
    assert len(encode.asked) == len(set(encode.asked))
    for i, image in enumerate(images):
        scores, labels, prompt = naive(image, encode, NAMES, 10.0, write)
        np.testing.assert_allclose(decided.scores[i], scores, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(decided.labels[i], labels)
        assert decided.prompts[i] == prompt


def test_equal_combinations_of_different_images_are_encoded_once():
    encode = random_encoder()
    top_all(images_of(200), encode, NAMES)
    assert len(encode.asked) == len(set(encode.asked))
    few = random_encoder()
    top_all(np.repeat(images_of(2), 50, axis=0), few, NAMES)
    assert len(few.asked) <= len(NAMES) + 1 + 2 * len(NAMES)


def test_an_image_has_as_many_prompts_as_classes():
    names = [f"class {k}" for k in range(80)]
    encode = random_encoder()
    decided = top_all(images_of(1), encode, names)
    assert len(encode.asked) == 80 + 1 + 80
    order = np.argsort(-decided.scores[0])
    assert np.isfinite(decided.scores).all()
    assert decided.labels[0, order[: decided.labels.sum()]].all()


def test_both_stages_may_be_written_otherwise():
    encode = random_encoder()
    top_all(
        images_of(3), encode, ["traffic_light", "owl"], write_class=write_sentences, write=write_sentences
    )
    assert set(encode.asked) <= {
        NOTHING,
        "a photo of a traffic light.",
        "a photo of an owl.",
        "a photo of a traffic light and an owl.",
        "a photo of an owl and a traffic light.",
    }


def test_no_image_is_no_trouble():
    decided = top_all(images_of(0), random_encoder(), NAMES[:2])
    assert (decided.scores.shape, decided.labels.shape, decided.prompts) == ((0, 2), (0, 2), ())


def test_a_negative_depth_is_refused():
    with pytest.raises(InputError, match="invalid deepest -1: must be at least 0"):
        top_all(images_of(1), random_encoder(), NAMES, deepest=-1)


def test_prompts_that_are_longer_than_the_context_are_refused_in_one_line():
    def count_cut(texts):
        return sum(len(text.split()) > 4 for text in texts)

    with pytest.raises(
        InputError, match=r"^Top-all: 2 of 6 prompts would be cut .*set deepest to less than 6"
    ) as e:
        top_all(images_of(1), random_encoder(), NAMES, count_cut=count_cut)
    assert "\n" not in str(e.value)
    top_all(images_of(1), random_encoder(), NAMES, count_cut=count_cut, deepest=4)
    # Of 6 classes in a prompt 4 fit: no more are put into one.
    fitting = top_all(images_of(1), random_encoder(), NAMES, count_cut=count_cut, deepest=0)
    four = top_all(images_of(1), random_encoder(), NAMES, count_cut=count_cut, deepest=4)
    np.testing.assert_array_equal(fitting.scores, four.scores)
