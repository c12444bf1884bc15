"""The law of the noise: where it lies, that its direction is uniform, and what it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from mlclip_jax.data.limited_labels import hide_labels
from mlclip_jax.perturbation import (
    EXPECTED,
    LENGTHS,
    hypersphere_noise,
    make_perturbation,
    perturb,
    shift_texts,
)

NUMBER = 4000


@pytest.mark.parametrize("dimension", [2, 3, 512])
def test_surface_noise_has_the_radius_as_its_length(dimension):
    noise = hypersphere_noise(jax.random.key(0), (NUMBER, dimension), 12.0)
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), 12.0, rtol=1e-5)


@pytest.mark.parametrize("dimension", [1, 3, 512])
@pytest.mark.parametrize(("sampling", "power"), [("interior", "d"), ("interior_by_radius", 1)])
def test_lengths_in_the_interior_follow_their_law(dimension, sampling, power):
    noise = hypersphere_noise(jax.random.key(1), (NUMBER, dimension), 5.0, sampling)
    lengths = np.linalg.norm(noise, axis=1)
    assert lengths.max() <= 5.0 * (1 + 1e-6)
    # P(length <= x) = (x / radius) ** power, where power is the dimension if uniform by volume.
    power = dimension if power == "d" else power
    assert stats.kstest((lengths / 5.0) ** power, "uniform").pvalue > 0.01


def test_interior_by_volume_is_nearly_the_surface_in_512_dimensions():
    lengths = np.linalg.norm(hypersphere_noise(jax.random.key(2), (NUMBER, 512), 1.0, "interior"), axis=1)
    assert (lengths > 0.99).mean() > 0.99


@pytest.mark.parametrize("sampling", LENGTHS)
def test_directions_are_uniform(sampling):
    noise = np.asarray(hypersphere_noise(jax.random.key(3), (NUMBER, 3), 1.0, sampling))
    direction = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    # Archimedes: on a sphere in three dimensions each coordinate is uniform in [-1, 1].
    for coordinate in direction.T:
        assert stats.kstest(coordinate, stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("sampling", ["interior", "interior_by_radius"])
def test_length_and_direction_are_independent(sampling):
    """Drawn one vector a key, as in training, where a key used twice would tie one to the other."""
    keys = jax.random.split(jax.random.key(5), NUMBER)
    noise = np.asarray(jax.vmap(lambda key: hypersphere_noise(key, (3,), 1.0, sampling))(keys))
    lengths = np.linalg.norm(noise, axis=1)
    for coordinate in (noise / lengths[:, None]).T:
        assert abs(stats.spearmanr(lengths, coordinate).statistic) < 4 / np.sqrt(NUMBER)


def test_perturb_depends_on_its_arguments_alone():
    embeddings = jax.random.normal(jax.random.key(4), (5, 16))
    first, again = (perturb(jax.random.key(0), embeddings, 2.0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = perturb(jax.random.key(1), embeddings, 2.0)
    assert (np.abs(first - other) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(first - embeddings, axis=1), 2.0, rtol=1e-4)


def test_radius_zero_changes_nothing_and_the_dtype_is_kept():
    embeddings = jnp.ones((3, 8), jnp.bfloat16)
    unchanged = perturb(jax.random.key(0), embeddings, 0.0)
    assert unchanged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(unchanged, embeddings)


def perturbed(settings, batch, **hyper):
    keys = jax.random.split(jax.random.key(6), len(batch["is_text"]))
    hyper = {name: np.float32(value) for name, value in hyper.items()}
    return np.asarray(make_perturbation(settings)(keys, batch, hyper)["image"])


def test_texts_and_images_are_each_perturbed_by_their_own_law():
    """Equations 5 and 6: texts on a surface, images inside a ball; each row says which it is."""
    is_text = np.arange(2 * NUMBER) % 2 == 0
    batch = {"image": np.ones((2 * NUMBER, 3), np.float32), "is_text": is_text}
    settings = {"sampling": "surface", "image_sampling": "interior"}
    moved = perturbed(settings, batch, radius=12, image_radius=2)
    lengths = np.linalg.norm(moved - batch["image"], axis=1)
    np.testing.assert_allclose(lengths[is_text], 12, rtol=1e-5)
    assert stats.kstest((lengths[~is_text] / 2) ** 3, "uniform").pvalue > 0.01
    swapped = {"sampling": "interior_by_radius", "image_sampling": "surface"}
    moved = perturbed(swapped, batch, radius=12, image_radius=2)
    lengths = np.linalg.norm(moved - batch["image"], axis=1)
    assert stats.kstest(lengths[is_text] / 12, "uniform").pvalue > 0.01
    np.testing.assert_allclose(lengths[~is_text], 2, rtol=1e-5)


@pytest.mark.parametrize(("radius", "image_radius"), [(3, 0), (0, 3)])
def test_a_radius_of_zero_leaves_these_rows_as_they_are(radius, image_radius):
    is_text = np.array([True, False, True, False])
    batch = {"image": np.ones((4, 8), np.float32), "is_text": is_text, "labels": np.ones((4, 1), np.int8)}
    settings = {"sampling": "surface", "image_sampling": "surface"}
    moved = perturbed(settings, batch, radius=radius, image_radius=image_radius)
    lengths = np.linalg.norm(moved - batch["image"], axis=1)
    np.testing.assert_allclose(lengths, np.where(is_text, radius, image_radius), rtol=1e-5)


def label_rows(number, max_labels=3):
    return arrays(np.int8, (number, max_labels), elements=st.sampled_from([-1, 0, 1]))


@given(label_rows(6), label_rows(5), st.integers(0, 1000))
def test_texts_are_shifted_as_equations_7_to_10_say(text_labels, image_labels, seed):
    """Against the equations written out, one text at a time; labels without a known image are left out."""
    text_labels = np.where(text_labels.any(axis=1, keepdims=True), text_labels == 1, 1).astype(np.int8)
    random = np.random.default_rng(seed)
    texts, images = (random.normal(size=(n, 4)).astype(np.float32) for n in (6, 5))
    shifted, moved = shift_texts(texts, text_labels, images, image_labels, "mean")
    for i, labels in enumerate(text_labels):
        same = [t for t, other in zip(texts, text_labels) if (other == labels).all()]
        known = [j for j in np.flatnonzero(labels) if (image_labels[:, j] == 1).any()]
        assert moved[i] == bool(known)
        expected = texts[i]
        if known:
            centroids = [images[image_labels[:, j] == 1].mean(axis=0) for j in known]
            expected = texts[i] + np.mean(centroids, axis=0) - np.mean(same, axis=0)
        np.testing.assert_allclose(shifted[i], expected, atol=1e-5)


def test_a_text_alone_in_its_combination_becomes_the_centroid_and_two_keep_their_difference():
    texts = np.array([[1.0, 0], [5, 5], [7, 5]], np.float32)
    text_labels = np.array([[1, 1], [0, 1], [0, 1]], np.int8)
    images = np.array([[10.0, 0], [0, 20]], np.float32)
    shifted, _ = shift_texts(texts, text_labels, images, np.eye(2, dtype=np.int8), "mean")
    np.testing.assert_allclose(shifted, [[5, 10], [-1, 20], [1, 20]])


@pytest.mark.parametrize("known", [1.0, 0.3])
def test_regression_finds_where_images_of_several_labels_lie_and_means_do_not(known):
    """Images are a sum of their labels' effects and noise, 3 of 8 labels each."""
    random = np.random.default_rng(0)
    base, effects = 5 * random.normal(size=16), random.normal(size=(8, 16))
    labels = np.argsort(random.random((4_000, 8))) < 3
    images = (base + labels @ effects + 0.5 * random.normal(size=(4_000, 16))).astype(np.float32)
    partial = hide_labels(labels.astype(np.int8), known)
    combinations = np.unique(labels, axis=0)
    text_labels = np.repeat(combinations, 2, axis=0).astype(np.int8)
    texts = random.normal(size=(len(text_labels), 16)).astype(np.float32)
    truth = base + combinations @ effects
    distance = {}
    for where in EXPECTED:
        shifted, moved = shift_texts(texts, text_labels, images, partial, where)
        assert moved.all()
        pairs = shifted.reshape(-1, 2, 16).mean(axis=1)
        distance[where] = np.linalg.norm(pairs - truth, axis=1).mean()
    assert distance["regression"] < 0.2 * distance["mean"]


def test_few_known_labels_move_texts_by_the_gap_rather_than_towards_one_another():
    """Images are texts, moved by a gap; an effect that is known of few of them is not shrunk towards zero."""
    random = np.random.default_rng(3)
    effects, gap = 9 * random.normal(size=(4, 16)), 5 * random.normal(size=16)
    text_labels = (random.random((2000, 4)) < 0.4).astype(np.int8)
    image_labels = (random.random((60, 4)) < 0.4).astype(np.int8)
    texts, images = text_labels @ effects, image_labels @ effects + gap
    moved, _ = shift_texts(texts.astype(np.float32), text_labels, images.astype(np.float32), image_labels)
    some = text_labels.any(axis=1)
    error = np.linalg.norm(moved - texts - gap, axis=1)[some]
    apart = np.linalg.norm(effects, axis=1).mean()
    assert error.max() < 0.05 * apart  # shrunk towards zero: 0.7
