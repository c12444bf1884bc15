"""Where training texts come from: templates, files of texts, or several of them in stated shares."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int8
from ml_collections import ConfigDict

from mlclip_jax.errors import InputError
from mlclip_jax.options import nearest
from mlclip_jax.streams import Stream
from mlclip_jax.texts.files import read_texts
from mlclip_jax.texts.label_sets import read_size_weights, sample_label_sets
from mlclip_jax.texts.templates import TEMPLATE_SETS, write_texts
from mlclip_jax.wording import counted, listed


def training_texts(
    settings: ConfigDict, label_names: Sequence[str], seed: int
) -> tuple[tuple[str, ...], Int8[np.ndarray, "N K"]]:
    """The texts that a recipe trains on, and which labels each is about.

    Args:
      settings: its `texts`: `number`; `sources`, see `read_sources`; and of those from templates
        `max_labels`, `size_weights` and `per_combination`, see `label_sets.sample_label_sets`.
      label_names: K names.
      seed: decides the labels and templates, and which texts of a file are taken where it holds more.

    Raises:
      InputError: a source is not there, a file has too few texts, or labels that are not among these; or a
        label has no text.
    """
    shares = read_sources(settings.sources)
    texts, labels = [], []
    for source, number in zip(shares, split_by_shares(settings.number, list(shares.values()))):
        if source in TEMPLATE_SETS:
            sets = label_sets(settings, number, len(label_names), seed)
            own, own_labels = write_texts(sets, label_names, seed, TEMPLATE_SETS[source]()), sets
        else:
            known, known_labels = read_texts(source, label_names)
            if len(known) < number:
                raise InputError(
                    f"{source} holds {counted(len(known), 'text')}, and {number:,} of texts.number="
                    f"{settings.number} are to come from there; lower that, or its share in texts.sources"
                )
            generator = np.random.default_rng([seed, Stream.SOURCES])
            rows = np.sort(generator.choice(len(known), number, replace=False))
            own, own_labels = [known[row] for row in rows], known_labels[rows]
        texts += own
        labels.append(own_labels)
    labels = np.concatenate(labels)
    check_coverage(labels, label_names, settings)
    return tuple(texts), labels


def label_sets(settings: ConfigDict, number: int, num_labels: int, seed: int) -> Int8[np.ndarray, "N K"]:
    """The labels of texts that are made from labels, by a recipe's `texts`; see `sample_label_sets`."""
    return sample_label_sets(
        seed,
        number,
        num_labels,
        settings.max_labels,
        per_combination=settings.per_combination,
        size_weights=read_size_weights(settings.size_weights, settings.max_labels),
    )


def check_coverage(labels: Int8[np.ndarray, "N K"], label_names: Sequence[str], settings: ConfigDict) -> None:
    """Refuses training texts without some label, as nothing would be learnt of it but its absence.

    Args:
      labels: of the texts.
      label_names: K names.
      settings: the recipe's `texts`, for what is to be done about it.

    Raises:
      InputError: a label has no text.
    """
    without = np.flatnonzero(~(labels == 1).any(axis=0))
    if len(without):
        names = listed(label_names[k] for k in without)
        remedy = ", or add templates to texts.sources" if "sources" in settings else ""
        raise InputError(
            f"{counted(len(without), 'label has', 'labels have')} no text among the {len(labels):,} "
            f"to train on: {names}; raise texts.number{remedy}"
        )


def read_sources(text: str) -> dict[str, float]:
    """Reads `texts.sources`: "templates:0.5,generated.jsonl:0.3,captions.jsonl:0.2", names and shares.

    A source is "templates" (our own), "imagenet" (CLIP's 80), "tagclip" (these and 5 more), or a file that
    `mlclip generate` wrote. Shares are relative to one another; one that is left out is 1.

    Raises:
      InputError: a source comes twice or is not there, or a share is not positive.
    """
    shares = {}
    for part in text.split(","):
        source, colon, share = part.strip().rpartition(":")
        if not colon:
            source, share = share, "1"
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise InputError(f"texts.sources={text!r}: {share!r} is no positive share; write {source}:0.5")
        if source in shares:
            raise InputError(f"texts.sources={text!r} names {source!r} twice; give one share")
        if source not in TEMPLATE_SETS and not Path(source).is_file():
            raise InputError(
                f"texts.sources={text!r}: there is no file {source!r}{nearest(source, TEMPLATE_SETS)}; give "
                f"one that `mlclip generate` wrote, or one of {', '.join(TEMPLATE_SETS)}"
            )
        shares[source] = value
    return shares


def split_by_shares(number: int, shares: Sequence[float]) -> list[int]:
    """Splits a whole number in proportion to shares, by largest remainders."""
    exact = number * np.asarray(shares) / np.sum(shares)
    whole = np.floor(exact).astype(int)
    largest = np.argsort(whole - exact, kind="stable")[: number - whole.sum()]
    whole[largest] += 1
    return whole.tolist()
