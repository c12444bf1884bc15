"""The law of the noise: where it lies, that its direction is uniform, and what it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlclip_jax.perturbation import LENGTHS, hypersphere_noise, perturb

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
