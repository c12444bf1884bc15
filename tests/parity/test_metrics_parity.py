"""Metrics against torchmetrics, on inputs where both are defined: every class has a positive."""

import jax
import numpy as np
import pytest

from mlclip_jax import metrics

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

NUMBER, CLASSES = 200, 6


@pytest.fixture(scope="module", params=["random", "tied", "constant"])
def case(request):
    """Probabilities and labels, for us and for torch; a fifth of the labels of the first class unknown."""
    generator = np.random.default_rng(0)
    labels = (generator.random((NUMBER, CLASSES)) < 0.3).astype(np.int8)
    probabilities = jax.nn.sigmoid(generator.normal(size=labels.shape).astype(np.float32) + labels)
    probabilities = {
        "random": np.asarray(probabilities),
        "tied": np.asarray(probabilities).round(1),
        "constant": np.full(labels.shape, 0.5, np.float32),
    }[request.param]
    return probabilities, labels


def in_torch(metric, probabilities, labels):
    return metric(torch.tensor(probabilities), torch.tensor(labels.astype(np.int64))).numpy()


def test_average_precision(case):
    from torchmetrics.functional.classification import multilabel_average_precision

    theirs = in_torch(lambda p, y: multilabel_average_precision(p, y, CLASSES, average=None), *case)
    np.testing.assert_allclose(metrics.average_precision(*case), theirs, rtol=1e-6)


def test_unknown_labels(case):
    from torchmetrics.functional.classification import multilabel_average_precision

    probabilities, labels = case
    labels = np.where(np.random.default_rng(1).random(labels.shape) < 0.2, -1, labels).astype(np.int8)

    def theirs(p, y):
        return multilabel_average_precision(p, y, CLASSES, average=None, ignore_index=-1)

    expected = in_torch(theirs, probabilities, labels)
    np.testing.assert_allclose(metrics.average_precision(probabilities, labels), expected, rtol=1e-6)


def test_decisions(case):
    from torchmetrics.functional import classification as theirs

    probabilities, labels = case
    predicted = probabilities > 0.5
    figures = metrics.decision_figures(predicted, labels)
    micro = in_torch(lambda p, y: theirs.multilabel_f1_score(p, y, CLASSES, average="micro"), *case)
    macro = in_torch(lambda p, y: theirs.multilabel_f1_score(p, y, CLASSES, average="macro"), *case)
    np.testing.assert_allclose(figures["OF1"], micro, rtol=1e-6)
    np.testing.assert_allclose(figures["mean_F1"], macro, rtol=1e-6)
    hamming = in_torch(lambda p, y: theirs.multilabel_hamming_distance(p, y, CLASSES, average="micro"), *case)
    np.testing.assert_allclose(metrics.hamming_loss(predicted, labels), hamming, rtol=1e-6)
    exact = in_torch(lambda p, y: theirs.multilabel_exact_match(p, y, CLASSES), *case)
    np.testing.assert_allclose(metrics.exact_match(predicted, labels), exact, rtol=1e-6)


def test_rankings(case):
    from torchmetrics.functional import classification as theirs

    precision = in_torch(lambda p, y: theirs.multilabel_ranking_average_precision(p, y, CLASSES), *case)
    np.testing.assert_allclose(metrics.label_ranking_average_precision(*case), precision, rtol=1e-6)


def test_calibration(case):
    from torchmetrics.functional.classification import binary_calibration_error

    probabilities, labels = case
    certain = probabilities.copy()
    certain[:5], certain[5:9] = 1.0, 0.0
    for given in (probabilities, certain):
        theirs = in_torch(lambda p, y: binary_calibration_error(p.ravel(), y.ravel(), 15), given, labels)
        ours = metrics.expected_calibration_error(given, labels)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
