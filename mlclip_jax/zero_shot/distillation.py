"""Self-distillation: scores of a bank of unlabelled images teach what each class looks like in images."""

import functools
from collections.abc import Iterable, Mapping, Sized

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from mlclip_jax.errors import InputError
from mlclip_jax.texts.vocabulary import everyday_nouns
from mlclip_jax.wording import counted
from mlclip_jax.zero_shot.centred import vocabulary_mean
from mlclip_jax.zero_shot.prompts import Decided, Images, LabelTexts, ScoresAtOnce, check_several
from mlclip_jax.zero_shot.rules import blocks, centred, in_blocks, l2_normalize, ridge_map, standardise

SMALLEST_BANK = 150  # images; of fewer, most classes show in none
PENALTY = 3.0  # of both regressions
HASHED = 4096  # images of a bank at once


class SelfDistilled(ScoresAtOnce):
    """`self_distilled_scores`, with a bank of unlabelled images from a file.

    Args:
      bank: file or folder of their embeddings, by the backbone of the labels, such as `mlclip embed` makes of
        a folder; empty: the images that are scored are the bank.
    """

    TITLE = "Self-distillation"
    USES = "names, a vocabulary, and a bank of images"

    def __init__(self, *, bank: str = "") -> None:
        self.bank = bank

    def check(self, labels: LabelTexts) -> None:
        """See `ScoresAtOnce`; a bank must be large enough, and of the backbone of the labels."""
        check_several(self.TITLE, len(labels.names))
        if self.bank:
            check_bank(self._read(labels))

    def known(self, labels: LabelTexts) -> Iterable[bytes]:
        """See `ScoresAtOnce`."""
        bank = self._read(labels) if self.bank else []
        for start in range(0, len(bank), HASHED):
            yield np.asarray(bank[start : start + HASHED]).tobytes()

    @property
    def scores_alone(self) -> bool:
        """See `ScoresAtOnce`; without a bank, the images teach one another."""
        return bool(self.bank)

    def decide(self, images: Mapping[str, Images], labels: LabelTexts) -> Decided:
        """See `methods`.

        Raises:
          InputError: the images are their own bank, and too few.
        """
        bank = self._read(labels) if self.bank else images["image"]
        mean = vocabulary_mean(labels.encode, everyday_nouns(), labels.templates)
        return Decided(self_distilled_scores(images["image"], labels.embeddings, bank, mean))

    def _read(self, labels):
        if labels.read_bank is None:
            raise ValueError("a bank needs what reads it: LabelTexts.read_bank")
        return labels.read_bank(self.bank)


def self_distilled_scores(
    image_embeddings: Float[Array | np.ndarray, "N D"],
    class_embeddings: Float[Array | np.ndarray, "K D"],
    bank: Float[Array | np.ndarray, "M D"],
    vocabulary_mean: Float[Array | np.ndarray, " D"],
    *,
    most: int = 2**24,
) -> Float32[np.ndarray, "N K"]:
    """Ridge scores, and beside them what a bank of unlabelled images teaches of the classes.

    With z for `standardise`, unit vectors t of classes and x of images, the mean unit vector m of the bank,
    and T the rows of t less the vocabulary's mean, L2-normalised:

        S(x) = z((T T' + 3 I)^-1 T (x - m))
        Y    = max(S(bank), 0)^2, less its mean over the bank
        V    = (B' B + 3 I)^-1 B' Y, where B are the rows of the bank less m, L2-normalised
        scores(x) = z(S(x) + z((x - m) / |x - m| V))

    Both systems are D x D. This is our own; it is nearest to PIAA (ICML 2026), which fits a closed-form
    classifier to unlabelled patches. On the tests' photographs, which are their own bank, by CLIP ViT-B/32:
    61.7 mAP, and 64.2 by 63 templates. With each image left out of its own bank it is 61.7 and 64.0; by a
    bank of half of them for the other half, which is too small, 60.2 and 62.6.

    Args:
      image_embeddings: (N, D); the bank's own may be among them.
      class_embeddings: (K, D), best averaged over templates.
      bank: (M, D) of images like those to score, at least `SMALLEST_BANK` of them.
      vocabulary_mean: `mean_direction` of embeddings of many names, of which
        `texts.vocabulary.everyday_nouns` has some; see there.
      most: scores that are computed at once, see `in_blocks`.

    Raises:
      InputError: the bank is too small.
    """
    check_bank(bank)
    num_labels = len(class_embeddings)
    weights = ridge_map(centred(class_embeddings, vocabulary_mean), PENALTY)
    directions = (jnp.sum(l2_normalize(block), axis=0) for _, block in blocks(bank, num_labels, most))
    mean = functools.reduce(jnp.add, directions) / len(bank)
    learnt = _learn(bank, mean, weights, most)

    def rule(block):
        return _score(block, mean, weights, learnt)

    return in_blocks(rule, image_embeddings, num_labels, most=most)


def check_bank(bank: Sized) -> None:
    """Refuses a bank that is too small to learn from.

    Raises:
      InputError: it is.
    """
    if len(bank) < SMALLEST_BANK:
        raise InputError(
            f"a bank of {counted(len(bank), 'image')} is too small to learn from: give {SMALLEST_BANK} or "
            "more, or use ridge_scores, which needs none"
        )


@jax.jit
def _score(block, mean, weights, learnt):
    unit = centred(block, mean)
    taught = standardise(jnp.matmul(unit, learnt, precision="highest"))
    return standardise(_ridge(unit, weights) + taught)


def _ridge(unit, weights):
    # Lengths that `centred` took away do not come through `standardise`.
    return standardise(jnp.matmul(unit, weights.T, precision="highest"))


def _learn(bank, mean, weights, most):
    """V (D, K). Sums over the bank suffice for it, so Y (M, K) is never held."""
    sums = (_sums(block, mean, weights) for _, block in blocks(bank, len(weights), most))
    squares, products, vectors, targets = functools.reduce(functools.partial(jax.tree.map, jnp.add), sums)
    with jax.default_matmul_precision("highest"):
        products = products - jnp.outer(vectors, targets / len(bank))  # B' (Y - its mean over the bank)
        penalised = squares + PENALTY * jnp.eye(len(squares), dtype=squares.dtype)
        return jax.scipy.linalg.solve(penalised, products, assume_a="pos")


@jax.jit
def _sums(block, mean, weights):
    """B' B, B' Y, and the sums of the rows of B and Y."""
    with jax.default_matmul_precision("highest"):
        unit = centred(block, mean)
        targets = jnp.maximum(_ridge(unit, weights), 0) ** 2
        return unit.T @ unit, unit.T @ targets, jnp.sum(unit, axis=0), jnp.sum(targets, axis=0)
