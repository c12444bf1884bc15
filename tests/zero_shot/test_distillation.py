"""What a bank of unlabelled images teaches the scores of others."""

import resource
import time

import numpy as np
import pytest

from mlclip_jax.errors import InputError
from mlclip_jax.zero_shot import (
    SMALLEST_BANK,
    centred,
    mean_direction,
    ridge_scores,
    self_distilled_scores,
    standardise,
)


def random_vectors(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.4, 1, shape).astype(np.float32)


def written_out(images, classes, bank, vocabulary):
    """The rule as it is stated, in double precision, with systems as large as there are labels."""

    def nrm(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    def z(scores):
        return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)

    x, t, b, v = (nrm(np.asarray(each, np.float64)) for each in (images, classes, bank, vocabulary))
    rows, m = nrm(t - v.mean(0)), b.mean(0)

    def ridge(vectors):
        gram = rows @ rows.T + 3 * np.eye(len(rows))
        return z(np.linalg.solve(gram, rows @ (vectors - m).T).T)

    targets = np.maximum(ridge(b), 0) ** 2
    targets -= targets.mean(0)
    unit = nrm(b - m)
    learnt = np.linalg.solve(unit.T @ unit + 3 * np.eye(unit.shape[1]), unit.T @ targets)
    return z(ridge(x) + z(nrm(x - m) @ learnt))


@pytest.mark.parametrize("most", [2**24, 700])  # all at once, and 100 images of the bank in a block
def test_the_rule_as_it_is_stated(most):
    images, classes, bank = (random_vectors(n, 12, seed=n) for n in (20, 7, 250))
    vocabulary = random_vectors(40, 12, seed=1)
    scores = self_distilled_scores(images, classes, bank, mean_direction(vocabulary), most=most)
    expected = written_out(images, classes, bank, vocabulary)
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    # It is not what ridge regression alone gives.
    alone = standardise(
        ridge_scores(centred(images, mean_direction(bank)), centred(classes, mean_direction(vocabulary)))
    )
    assert np.abs(scores - alone).max() > 0.1


def test_each_image_is_scored_by_itself():
    """The bank alone is shared, so one image at a time gives the same scores."""
    images, classes, bank = (random_vectors(n, 12, seed=n) for n in (5, 7, 160))
    centre = mean_direction(classes)
    together = self_distilled_scores(images, classes, bank, centre)
    alone = [self_distilled_scores(images[i : i + 1], classes, bank, centre) for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_a_small_bank_is_refused():
    images, classes = random_vectors(3, 4), random_vectors(5, 4)
    with pytest.raises(InputError, match=r"a bank of 149 images .* give 150 or more, or use ridge_scores"):
        self_distilled_scores(images, classes, random_vectors(SMALLEST_BANK - 1, 4), classes[0])


@pytest.mark.slow
def test_20000_labels_and_10000_images_take_seconds_and_little_memory():
    """Scores of all images are 0.8 GB; what is held beside them stays near 0.5 GB."""
    classes, bank = random_vectors(20_000, 512, seed=1), random_vectors(2_000, 512, seed=2)
    images, centre = random_vectors(10_000, 512, seed=3), mean_direction(classes)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    scores = self_distilled_scores(images, classes, bank, centre)
    seconds = time.monotonic() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"{seconds:.1f} s, {grown:.2f} GiB more")
    assert scores.shape == (10_000, 20_000)
    assert np.isfinite(scores).all()
    assert seconds < 300  # many times what it takes
    assert grown < 2
