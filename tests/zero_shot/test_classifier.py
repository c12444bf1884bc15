"""Zero-shot classification as a method: each rule by hand, and as the pure functions have it."""

import numpy as np
import pytest
from flax import nnx

from mlclip_jax import InputError, methods
from mlclip_jax.configs import zero_shot
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.scoring import score_images
from mlclip_jax.zero_shot.classifier import RULES

# Cosines 0.8 and 0.6 with the two classes, which are orthogonal, and of no unit length.
IMAGES = np.array([[8.0, 6.0, 0.0]], np.float32)
CLASSES = np.array([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0]], np.float32)
BY_HAND = {
    # Ridge weights are cosines over 1 + penalty there; standardised, two numbers are 1 and -1.
    "ridge": [[1, -1]],
    "standardised": [[1, -1]],
    "cosine": [[80, 60]],
    "softmax": [[-np.log1p(np.exp(-20)), -20 - np.log1p(np.exp(-20))]],
}


def scores(images, classes, **settings):
    """As the commands compute them."""
    method = methods.find({"name": "zero_shot", **settings})
    module = method.make(classes, rngs=nnx.Rngs(0))
    graph, parameters, frozen = split_trainable(module, method.trainable)
    assert parameters == {}
    assert list(frozen) == list(module.label_axes())
    return score_images(graph, parameters, frozen, {"image": images})


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_by_hand(rule):
    found = scores(IMAGES, CLASSES, rule=rule)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, BY_HAND[rule], rtol=1e-5, atol=1e-6)


def test_ridge_is_what_its_equation_says_and_not_cosine():
    """By NumPy: (T T' + penalty I)^-1 T x, of classes that share much."""
    classes = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1]], np.float32)
    images = np.array([[0.7, 0.2, 0.3]], np.float32)
    unit = classes / np.linalg.norm(classes, axis=1, keepdims=True)
    x = images[0] / np.linalg.norm(images[0])
    weights = np.linalg.solve(unit @ unit.T + 0.5 * np.eye(3), unit @ x)
    expected = (weights - weights.mean()) / weights.std()
    found = scores(images, classes, rule="ridge", penalty=0.5)
    np.testing.assert_allclose(found, expected[None], rtol=1e-5, atol=1e-6)
    assert np.abs(found - scores(images, classes, rule="standardised")).max() > 0.05


def test_the_temperature_divides_cosines():
    np.testing.assert_allclose(scores(IMAGES, CLASSES, rule="cosine", temperature=0.1), [[8, 6]], rtol=1e-6)


def test_one_label_cannot_be_compared():
    assert scores(IMAGES, CLASSES[:1], rule="cosine").shape == (1, 1)
    with pytest.raises(InputError, match=r"rule=ridge compares the labels .* there is one label; give more"):
        scores(IMAGES, CLASSES[:1])


def test_the_recipe_has_a_variant_for_each_rule():
    for rule in RULES:
        config = zero_shot.get_config(rule)
        assert (config.method.rule, config.texts.templates) == (rule, "imagenet")
