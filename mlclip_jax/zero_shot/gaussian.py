"""A classifier of patches that unlabelled images teach: Gaussians of one shared covariance, in closed form.

Source: PIAA (ICML 2026, arXiv 2605.25821), akang-wang/PIAA, `learn.py`. Text finds the patches of unlabelled
images that it is surest of; their means are the classes', so that patches are compared with patches and no
longer with text. The precision is shrunk as by Wang et al. (ICLR 2024, "A hard-to-beat baseline").
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from mlclip_jax.errors import InputError
from mlclip_jax.wording import counted
from mlclip_jax.zero_shot.rules import l2_normalize

BANK_SIZE = 512  # patches of each class; PIAA's
BANK_SCALE = 60.0  # of cosines, in the softmax by which text chooses them; PIAA's


class Bank(NamedTuple):
    """Of each class the patches that text is surest of, so that memory does not grow with the images.

    Attributes:
      patches: unit vectors.
      probabilities: of the class, by text.
      confidence: the negative entropy of a patch's probabilities; minus infinity where there is none.
    """

    patches: Float32[Array, "K size D"]
    probabilities: Float32[Array, "K size"]
    confidence: Float32[Array, "K size"]


class Gaussians(NamedTuple):
    """Linear scores `patch @ weights + bias`, and how many patches each class was fitted on."""

    weights: Float32[Array, "D K"]
    bias: Float32[Array, " K"]
    counts: Int32[Array, " K"]


def empty_bank(num_classes: int, width: int, size: int = BANK_SIZE) -> Bank:
    """A bank for so many patches of each class; it holds `num_classes * size * width` numbers."""
    return Bank(
        jnp.zeros((num_classes, size, width), jnp.float32),
        jnp.zeros((num_classes, size), jnp.float32),
        jnp.full((num_classes, size), -jnp.inf, jnp.float32),
    )


@jax.jit
def add_patches(
    bank: Bank,
    patches: Float[Array | np.ndarray, "M D"],
    probabilities: Float[Array | np.ndarray, "M names"],
    there: Bool[Array | np.ndarray, " M"] | None = None,
) -> Bank:
    """The bank once it has seen more patches: each may enter for the class that is its most probable.

    Args:
      bank: of before.
      patches: of some images.
      probabilities: by text, of the bank's classes, then perhaps of words for the background: a patch whose
        most probable is such a word enters for no class.
      there: False for what pads a batch, and is left out.
    """
    probabilities = jnp.asarray(probabilities)
    entropy = -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, 1e-10)), axis=1)
    confidence = -entropy if there is None else jnp.where(there, -entropy, -jnp.inf)
    num_classes = len(bank.confidence)
    wins = jnp.argmax(probabilities, axis=1)[None] == jnp.arange(num_classes)[:, None]
    own = jnp.where(wins, confidence[None], -jnp.inf)
    # Only as many of the new ones as the bank holds may enter; their vectors alone are copied.
    own, places = jax.lax.top_k(own, min(bank.confidence.shape[1], own.shape[1]))
    vectors = l2_normalize(patches)[places]
    certain = jnp.take_along_axis(probabilities.T[:num_classes], places, axis=1)
    every = jnp.concatenate([bank.confidence, own], axis=1)
    every, kept = jax.lax.top_k(every, bank.confidence.shape[1])
    held = jnp.concatenate([bank.patches, vectors], axis=1)
    return Bank(
        jnp.take_along_axis(held, kept[..., None], axis=1),
        jnp.take_along_axis(jnp.concatenate([bank.probabilities, certain], axis=1), kept, axis=1),
        every,
    )


def fit_gaussians(
    bank: Bank, class_embeddings: Float[Array | np.ndarray, "K D"], *, purified: float | None = 0.01
) -> Gaussians:
    """The classifier of a bank.

    The mean m of a class weighs its patches by their probabilities. With n patches in all, C their covariance
    about these means and K classes, all as probable beforehand,

        P = D ((n - 1) C + trace(C) I)^-1,    weights = P m,    bias = log(1 / K) - m P m / 2.

    A class without patches has its text's unit vector for a mean, as in the source.

    Args:
      bank: of unlabelled images.
      class_embeddings: of the bank's classes.
      purified: then it is fitted anew, on the patches of which it is itself surest: of each class, those
        whose probability is the mean of the class's and one standard deviation or more, and the surest. This
        is what its scores are multiplied by for these probabilities: PIAA's 0.01 on COCO, 100 on VOC, 500 on
        NUS-WIDE. None: it is fitted once.

    Raises:
      InputError: there are too few patches for a covariance.
    """
    num_classes, _, width = bank.patches.shape
    there = bank.confidence.reshape(-1) > -jnp.inf
    number = int(jnp.sum(there))
    if number < width:
        raise InputError(
            f"a bank of {counted(number, 'confident patch', 'confident patches')} is too small for a "
            f"covariance of width {width}: give more unlabelled images, or switch the Gaussian classifier off"
        )
    patches = bank.patches.reshape(-1, width)
    text = l2_normalize(class_embeddings)
    own = jnp.repeat(jnp.arange(num_classes), bank.confidence.shape[1])
    fitted = _fit(patches, own, bank.probabilities.reshape(-1), there, text)
    if purified is None:
        return fitted
    own, certain, sure = _surest(fitted, patches, there, purified)
    return _fit(patches, own, certain, sure, text)


def gaussian_probabilities(
    gaussians: Gaussians, local_features: Float[Array | np.ndarray, "N T D"], temperature: float = 500.0
) -> Float[Array, "N T K"]:
    """Probabilities of each patch, whose scores are divided by PIAA's 500: they are nearly alike, on purpose.

    What is near its class's mean, and what is nearer still, then differ in the highest score of an image.
    """
    scores = jnp.einsum("ntd,dk->ntk", l2_normalize(local_features), gaussians.weights, precision="highest")
    return jax.nn.softmax((scores + gaussians.bias[None, None]) / temperature, axis=-1)


@jax.jit
def _fit(patches, own, weights, there, text):
    """Gaussians of patches that belong to the classes `own`; `there` is False for those that do not count."""
    num_classes, width = text.shape
    with jax.default_matmul_precision("highest"):
        of_class = functools.partial(jax.ops.segment_sum, segment_ids=own, num_segments=num_classes)
        shares = jnp.where(there, weights, 0)[:, None]
        total = of_class(shares)
        means = jnp.where(total > 0, of_class(shares * patches) / jnp.where(total > 0, total, 1), text)
        centred = jnp.where(there[:, None], patches - means[own], 0)
        number = jnp.sum(there).astype(jnp.float32)
        scatter = centred.T @ centred - jnp.outer(centred.sum(0), centred.sum(0)) / number
        shrinkage = jnp.trace(scatter) / (number - 1) * jnp.eye(width, dtype=scatter.dtype)
        scaled = width * jax.scipy.linalg.solve(scatter + shrinkage, means.T, assume_a="pos")
        bias = -jnp.log(float(num_classes)) - jnp.sum(means.T * scaled, axis=0) / 2
    return Gaussians(scaled, bias, of_class(there.astype(jnp.int32)))


@jax.jit
def _surest(gaussians, patches, there, scale):
    """Each patch's class and probability by the classifier, and whether it is among the class's surest."""
    scores = jnp.matmul(patches, gaussians.weights, precision="highest") + gaussians.bias[None]
    probabilities = jax.nn.softmax(scale * scores, axis=1)
    own, certain = jnp.argmax(scores, axis=1), jnp.max(probabilities, axis=1)
    classes = len(gaussians.bias)
    of_class = functools.partial(jax.ops.segment_sum, segment_ids=own, num_segments=classes)
    counted = jnp.where(there, certain, 0)
    number = of_class(there.astype(certain.dtype))
    mean = of_class(counted) / jnp.maximum(number, 1)
    apart = jnp.where(there, certain - mean[own], 0)
    deviation = jnp.sqrt(of_class(apart**2) / jnp.maximum(number - 1, 1))
    # The surest always stays: at a large scale all are near 1, and none lies a deviation above the mean.
    most = jax.ops.segment_max(counted, own, classes)
    return own, certain, there & (certain >= jnp.minimum(mean + deviation, most)[own] - 1e-6)
