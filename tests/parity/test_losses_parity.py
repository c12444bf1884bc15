"""Losses and their gradients against the published formulas in torch, in double precision."""

import jax
import numpy as np
import pytest

from mlclip_jax.losses import LOSSES

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

functional = torch.nn.functional


def binary_cross_entropy(s, y):
    return functional.binary_cross_entropy_with_logits(s, y)


def mean_squared_error(s, y):
    return functional.mse_loss(torch.sigmoid(s), y)


def focal(s, y, gamma=2.0, alpha=0.25):
    # As torchvision.ops.sigmoid_focal_loss documents it.
    p = torch.sigmoid(s)
    right = p * y + (1 - p) * (1 - y)
    weights = (alpha * y + (1 - alpha) * (1 - y)) * (1 - right) ** gamma
    return (weights * functional.binary_cross_entropy_with_logits(s, y, reduction="none")).mean()


def arc_face(s, y):
    moved = s * np.cos(0.5) - torch.sqrt(1 - s**2) * np.sin(0.5)
    moved = torch.where(s > np.cos(np.pi - 0.5), moved, s - 0.5 * np.sin(np.pi - 0.5))
    return functional.binary_cross_entropy_with_logits(64 * torch.where(y == 1, moved, s), y)


def asymmetric(s, y, focus_gradient=False):
    present = torch.sigmoid(s)
    absent = (1 - present + 0.05).clamp(max=1)
    likelihood = y * present.clamp(min=1e-8).log() + (1 - y) * absent.clamp(min=1e-8).log()
    with torch.set_grad_enabled(focus_gradient):
        weights = (1 - present * y - absent * (1 - y)) ** (1 * y + 4 * (1 - y))
    return -(weights * likelihood).sum()


def hill(s, y):
    moved, p = torch.sigmoid(s - 1), torch.sigmoid(s)
    terms = -y * moved.log() + (1 - y) * (1.5 - p) * p**2
    return (terms * ((1 - moved) * y + 1 - y) ** 2).sum()


def two_way(s, y):
    def one_way(axis):
        absent, present = (torch.where(mask, 0.0, -100.0) for mask in (y == 0, y == 1))
        negatives = torch.logsumexp(s + absent, axis)
        positives = 4 * torch.logsumexp(-s / 4 + present, axis)
        return functional.softplus(negatives + positives)[(y == 1).any(axis)].mean()

    return one_way(0) + one_way(1)


def zlpr(s, y):
    zeros = torch.zeros_like(s[:, :1])
    negatives = torch.cat([s + torch.log(1 - y), zeros], 1)
    positives = torch.cat([-s + torch.log(y), zeros], 1)
    return (torch.logsumexp(negatives, 1) + torch.logsumexp(positives, 1)).mean()


def pairwise_ranking(s, y):
    terms = (1 - s[:, :, None] + s[:, None, :]).clamp(min=0)
    return (terms * y[:, :, None] * (1 - y[:, None, :])).sum((1, 2)).mean()


CASES = [
    (binary_cross_entropy, {}),
    (mean_squared_error, {}),
    (focal, {}),
    (focal, {"gamma": 3.0, "alpha": 0.5}),
    (arc_face, {}),
    (asymmetric, {}),
    (asymmetric, {"focus_gradient": True}),
    (hill, {}),
    (two_way, {}),
    (zlpr, {}),
    (pairwise_ranking, {}),
]


@pytest.mark.parametrize("spread", [1, 8])
@pytest.mark.parametrize(("reference", "constants"), CASES)
def test_values_and_gradients_agree(reference, constants, spread):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, spread, (16, 30)).astype(np.float32)
    if reference is arc_face:
        logits = np.tanh(logits / 4)
    labels = (rng.random((16, 30)) < 0.15).astype(np.float32)
    labels[0], labels[:, 0] = 0, 0  # a sample and a class without a positive
    agree(reference, constants, logits, labels)


@pytest.mark.parametrize("reference", [binary_cross_entropy, mean_squared_error, asymmetric, hill, zlpr])
def test_soft_labels_agree(reference):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (16, 30)).astype(np.float32)
    agree(reference, {}, logits, rng.random((16, 30)).astype(np.float32))


def agree(reference, constants, logits, labels):
    loss = LOSSES[reference.__name__]
    value, gradient = jax.value_and_grad(lambda x: loss(x, labels, **constants))(logits)
    exact = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    expected = reference(exact, torch.tensor(labels, dtype=torch.float64), **constants)
    expected.backward()
    expected_gradient = exact.grad.numpy()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    # An entry's own relative error is meaningless where the gradient all but vanishes.
    atol = 1e-6 * np.abs(expected_gradient).max()
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=atol)
