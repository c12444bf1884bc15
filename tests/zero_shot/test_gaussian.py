"""Gaussians on confident patches of unlabelled images."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlclip_jax import InputError
from mlclip_jax.zero_shot import add_patches, empty_bank, fit_gaussians, gaussian_probabilities, rules
from mlclip_jax.zero_shot.gaussian import Gaussians


def clustered(seed=0, number=200, width=6, num_classes=3, noise=0.4):
    """Unit patches around the first axes, their probabilities, and classes at these axes, text elsewhere."""
    random = np.random.default_rng(seed)
    own = random.integers(0, num_classes, number)
    vectors = 2 * np.eye(num_classes, width)[own] + random.normal(0, noise, (number, width))
    patches = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    logits = 4 * patches[:, :num_classes] + random.normal(0, 0.1, (number, num_classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return patches, probabilities.astype(np.float32), own


def entropy(probabilities):
    return -(probabilities * np.log(probabilities)).sum(1)


def test_the_bank_holds_the_surest_patches_of_each_class_however_they_come():
    patches, probabilities, _ = clustered()
    wins = probabilities.argmax(1)
    for cuts in ([], [50, 100, 150]):
        bank = empty_bank(3, 6, size=8)
        for part in np.split(np.arange(200), cuts):
            bank = add_patches(bank, patches[part], probabilities[part])
        for label in range(3):
            mine = np.flatnonzero(wins == label)
            surest = mine[np.argsort(entropy(probabilities[mine]))[:8]]
            np.testing.assert_allclose(bank.patches[label], patches[surest], atol=1e-6)
            np.testing.assert_allclose(bank.probabilities[label], probabilities[surest, label])
            np.testing.assert_allclose(bank.confidence[label], -entropy(probabilities[surest]), atol=1e-5)


def test_what_pads_a_batch_is_no_patch():
    patches, probabilities, _ = clustered(number=6)
    there = np.array([True, False, True, True, False, True])
    bank = add_patches(empty_bank(3, 6, size=8), patches, probabilities, there)
    alone = add_patches(empty_bank(3, 6, size=8), patches[there], probabilities[there])
    assert (bank.confidence > -jnp.inf).sum() == 4
    np.testing.assert_array_equal(bank.confidence, alone.confidence)


def test_patches_of_the_background_enter_for_no_class():
    patches, probabilities, _ = clustered()
    with_word = np.concatenate([0.5 * probabilities, np.full((200, 1), 0.5, np.float32)], axis=1)
    with_word[5:, 3] = 0.49 * probabilities[5:].max(1)
    bank = add_patches(empty_bank(3, 6, size=300), patches, with_word)
    assert (bank.confidence > -jnp.inf).sum() == (with_word.argmax(1) < 3).sum() == 195


def test_at_a_large_scale_each_class_keeps_its_surest_patches():
    """Most are near probability 1 and a few are not, so none lies a deviation above the mean."""
    patches, probabilities, _ = clustered(noise=1.0)
    bank = add_patches(empty_bank(3, 6, size=100), patches, probabilities)
    for scale in (1.0, 10.0, 100.0, 1e4):
        fitted = fit_gaussians(bank, np.eye(3, 6, dtype=np.float32), purified=scale)
        assert (fitted.counts > 0).all()
        assert np.isfinite(fitted.weights).all()


def by_formula(patches, own, weights, text):
    """The classifier as the paper states it, in double precision."""
    patches, number, width = patches.astype(np.float64), len(patches), patches.shape[1]
    means = np.array(text, np.float64)
    for label in np.unique(own):
        w = weights[own == label].astype(np.float64)
        means[label] = (w[:, None] * patches[own == label]).sum(0) / w.sum()
    covariance = np.cov((patches - means[own]).T)
    precision = width * np.linalg.inv((number - 1) * covariance + np.trace(covariance) * np.eye(width))
    bias = np.log(1 / len(text)) - np.einsum("kd,de,ke->k", means, precision, means) / 2
    return precision @ means.T, bias


def test_the_classifier_is_the_papers_and_classes_without_patches_have_their_text():
    """Of four classes the last is the most probable of no patch."""
    patches, probabilities, _ = clustered()
    probabilities = np.pad(probabilities * 0.99, [(0, 0), (0, 1)], constant_values=0.01)
    text = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    bank = add_patches(empty_bank(4, 6, size=30), patches, probabilities)
    fitted = fit_gaussians(bank, text, purified=None)
    assert fitted.counts.tolist() == [30, 30, 30, 0]

    own = np.repeat(np.arange(3), 30)
    held = np.asarray(bank.patches[:3]).reshape(-1, 6)
    unit = np.asarray(rules.l2_normalize(text))
    certain = np.asarray(bank.probabilities[:3]).reshape(-1)
    weights, bias = by_formula(held, own, certain, unit)
    np.testing.assert_allclose(fitted.weights, weights, rtol=0, atol=1e-4 * np.abs(weights).max())
    np.testing.assert_allclose(fitted.bias, bias, rtol=1e-4)

    # Then anew on those of which the classifier is surest, with its own probabilities.
    scores = held @ weights + bias
    probable = np.exp(0.01 * scores - (0.01 * scores).max(1, keepdims=True))
    probable /= probable.sum(1, keepdims=True)
    mine, sure = scores.argmax(1), np.zeros(90, bool)
    for label in np.unique(mine):
        of = probable[mine == label, label]
        deviation = of.std(ddof=1) if len(of) > 1 else 0
        sure[mine == label] = of >= of.mean() + deviation
    assert 3 < sure.sum() < 60
    again = by_formula(held[sure], mine[sure], probable.max(1)[sure], unit)
    purified = fit_gaussians(bank, text)
    assert purified.counts.sum() == sure.sum()
    np.testing.assert_allclose(purified.weights, again[0], rtol=0, atol=1e-3 * np.abs(again[0]).max())
    np.testing.assert_allclose(purified.bias, again[1], rtol=1e-3)


def test_it_classifies_what_text_alone_mistakes():
    """Text is off the axes of the patches; the Gaussians, taught by the surest, lie on them."""
    patches, probabilities, own = clustered(number=600)
    text = np.eye(3, 6, dtype=np.float32) + np.array([[0, 0, 0, 9, 0, 0], [0] * 6, [0] * 6], np.float32)
    bank = add_patches(empty_bank(3, 6, size=64), patches[:300], probabilities[:300])
    fitted = fit_gaussians(bank, text)
    probable = gaussian_probabilities(fitted, patches[None, 300:], temperature=1.0)[0]
    by_text = rules.cosine_scores(patches[300:], text)
    accuracy = (probable.argmax(1) == own[300:]).mean()
    assert accuracy > 0.95
    assert accuracy > (by_text.argmax(1) == own[300:]).mean() + 0.1


def test_probabilities_by_hand():
    """One patch (1, 0), weights and biases such that scores are ln 2 and 0 once divided by 10."""
    log = 10 * np.log(2)
    given = (jnp.array([[log, 0.0], [5, 5]]), jnp.array([1.0, 1.0]), jnp.zeros(2, jnp.int32))
    gaussians = Gaussians(*given)
    probable = gaussian_probabilities(gaussians, np.array([[[3.0, 0.0]]], np.float32), temperature=10.0)
    np.testing.assert_allclose(probable, [[[2 / 3, 1 / 3]]], rtol=1e-5)


def test_a_small_bank_is_refused():
    patches, probabilities, _ = clustered(number=5)
    bank = add_patches(empty_bank(3, 6, size=8), patches, probabilities)
    with pytest.raises(
        InputError, match=r"a bank of 5 confident patches is too small for a covariance of wid"
    ):
        fit_gaussians(bank, np.eye(3, 6, dtype=np.float32))
