"""Few-shot and partial labels: what is left of a training set when little of it is known."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int8

from mlclip_jax.errors import InputError
from mlclip_jax.streams import Stream
from mlclip_jax.wording import counted, listed


def choose_shots(
    labels: Int8[np.ndarray, "N K"], shots: int, seed: int, label_names: Sequence[str]
) -> Int[np.ndarray, " M"]:
    """Chooses images such that each label has `shots` of them or more, and few more than it needs.

    Greedy: the images are shuffled; then the labels, from the rarest to the most frequent, each take the
    first images that have them until `shots` of the chosen have, those that rarer labels took included. A
    frequent label so has more than `shots` images: no choice of multi-label images avoids that.

    Args:
      labels: in {1, 0, -1}.
      shots: images for each label, at least 1.
      seed: decides the order of the images.
      label_names: K names, for errors.

    Returns:
      The rows of the chosen images, in their order.

    Raises:
      InputError: a label has fewer images.
    """
    present = labels == 1
    frequency = present.sum(axis=0)
    rare = [f"{label_names[k]} ({frequency[k]})" for k in np.flatnonzero(frequency < shots)]
    if rare:
        raise InputError(
            f"{counted(len(rare), 'label')} of the images to train on have fewer than shots={shots} images: "
            f"{listed(rare)}; lower it, or give more images"
        )
    order = np.random.default_rng([seed, Stream.SHOTS]).permutation(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label in np.argsort(frequency, kind="stable"):
        missing = max(0, shots - present[chosen, label].sum())
        candidates = order[present[order, label] & ~chosen[order]]
        chosen[candidates[:missing]] = True
    return np.flatnonzero(chosen)


def hide_labels(labels: Int8[np.ndarray, "N K"], known: float) -> Int8[np.ndarray, "N K"]:
    """Makes labels unknown at random, as the benchmarks of partial labels do.

    A label stays where `RandomState(0).random_sample((N, K)) < known`: for PASCAL VOC 2007's 5,011 training
    images in their order, these are the labels that HCP-MLR-PL, DualCoOp and TaI-DPT publish, whatever the
    seed of a run.

    Args:
      labels: in {1, 0, -1}, of all images in the order of their list.
      known: fraction that stays, in (0, 1].

    Returns:
      The same with -1 in place of what is hidden.
    """
    stays = np.random.RandomState(0).random_sample(labels.shape) < known
    return np.where(stays, labels, -1).astype(np.int8)
