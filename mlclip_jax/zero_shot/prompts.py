"""Prompts of one class and of several, and what methods read and give that score all images at once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from mlclip_jax.errors import InputError
from mlclip_jax.texts.label_sets import check_label_names
from mlclip_jax.texts.templates import CLASS_TEMPLATE, fill

NOTHING = "A photo without anything"  # the prompt of no class at all, in MMM-CLIP's code

Images = Float[Array | np.ndarray, "N D"]
Encode = Callable[[Sequence[str]], Float[Array | np.ndarray, "M D"]]  # M texts to embeddings of any length
# Combinations of class names to their prompts: one name or more in each, in the order in which they are said.
Write = Callable[[Sequence[Sequence[str]]], Sequence[str]]
CountCut = Callable[[Sequence[str]], int]  # how many texts the encoder would cut, as `Tokenizer.count_cut`


class LabelTexts(NamedTuple):
    """Labels, and the text tower that more prompts of them are encoded with.

    Attributes:
      names: K names.
      embeddings: of each, over the templates.
      templates: what names are put into.
      encode: embeds texts, such as `Backbone.encode_texts`.
      count_cut: how many texts the encoder would cut; None: texts are not checked for their lengths.
      read_bank: embeddings (M, D) of unlabelled images in a file or folder; it refuses another backbone's.
      load_backbone: gives the `Backbone` that made these embeddings, to what encodes images itself.
    """

    names: tuple[str, ...]
    embeddings: Float[np.ndarray, "K D"]
    templates: tuple[str, ...]
    encode: Encode
    count_cut: CountCut | None = None
    read_bank: Callable[[str], Any] | None = None  # an array, or what is mapped from files like one
    load_backbone: Callable[[], Any] | None = None


class Decided(NamedTuple):
    """What is made of N images and K labels.

    Attributes:
      scores: larger means more present; what ranks images and labels.
      labels: what the method itself decides; None: it only scores.
      prompts: the prompt that each image resembles most, N strings; empty where there is none such.
    """

    scores: Float32[np.ndarray, "N K"]
    labels: Bool[np.ndarray, "N K"] | None = None
    prompts: tuple[str, ...] = ()


class ScoresAtOnce:
    """What the methods have in common that score all images at once; see `methods`."""

    RANGES: ClassVar[dict] = {}
    TRAINABLE = ()
    reads = ("image",)
    open_vocabulary = True

    def check(self, labels: LabelTexts) -> None:
        """Refuses labels that it could not score, before any image is embedded.

        Raises:
          InputError: they are such.
        """

    def known(self, labels: LabelTexts) -> Iterable[bytes]:
        """What files hold that its settings name, for a calibration belongs to it."""
        del labels
        return ()

    @property
    def scores_alone(self) -> bool:
        """Whether an image's scores do not depend on those beside it, so that they can be calibrated."""
        return True


def check_several(title: str, number: int) -> None:
    """Refuses one label alone, for methods that compare the labels of an image with one another.

    Raises:
      InputError: there is one.
    """
    if number < 2:
        raise InputError(
            f"{title} compares the labels of an image with one another, and there is one label; give more, "
            "or choose the rule cosine"
        )


def write_names(combinations: Sequence[Sequence[str]]) -> list[str]:
    """`cat, dog`: bare names between commas, as MMM-CLIP's Kaggle/top-all.py combines them."""
    return [", ".join(names) for names in combinations]


def write_words(combinations: Sequence[Sequence[str]]) -> list[str]:
    """`cat dog`: bare names between blanks, which take the fewest tokens."""
    return [" ".join(names) for names in combinations]


def write_sentences(combinations: Sequence[Sequence[str]]) -> list[str]:
    """`a photo of a cat and a dog.`: the prompt of plain zero-shot classification, in English."""
    return [fill(CLASS_TEMPLATE, names) for names in combinations]


def write_published(combinations: Sequence[Sequence[str]]) -> list[str]:
    """`A photo of a cat,a dog,and a owl`: with the spaces and articles of MMM-CLIP's Kaggle/list-all.py."""
    return [
        "A photo of "
        + "".join(f"a {name}," for name in names[:-1])
        + "and " * (len(names) > 1)
        + f"a {names[-1]}"
        for names in combinations
    ]


def write_photos(combinations: Sequence[Sequence[str]]) -> list[str]:
    """`A photo of cat`: what ranks classes in MMM-CLIP's Kaggle/top-all.py."""
    return [f"A photo of {name}" for name in write_names(combinations)]


# How a combination is written, by name.
FORMS: dict[str, Write] = {
    "names": write_names,
    "words": write_words,
    "sentences": write_sentences,
    "published": write_published,
    "photos": write_photos,
}


def spaced(class_names: Sequence[str]) -> list[str]:
    """Names as prompts say them, with blanks for underscores.

    Raises:
      InputError: they are no list of distinct names.
    """
    names = [name.replace("_", " ").strip() for name in class_names]
    check_label_names(names, "class_names")
    return names


def encode_distinct(encode: Encode, texts: Sequence[str]) -> Float[np.ndarray, "M D"]:
    """Embeddings of M texts, of which equal ones are encoded once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return np.asarray(encode(list(places)))[[places[text] for text in texts]]
