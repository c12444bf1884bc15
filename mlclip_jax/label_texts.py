"""Labels as methods see them that score all images at once: with the text tower, and banks of images."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.embeddings.rows import Rows
from mlclip_jax.embeddings.store import Embeddings, read_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.texts.templates import CLASS_TEMPLATE, read_templates
from mlclip_jax.zero_shot.prompts import LabelTexts

KEPT = 4  # embeddings of lists of texts


def label_texts(class_embeddings: Embeddings, load_backbone: Callable[[], Backbone]) -> LabelTexts:
    """The `LabelTexts` of class embeddings; their backbone is loaded when a text is to be encoded."""

    @functools.lru_cache(maxsize=KEPT)  # vocabularies and the like, for one call after another
    def encode_once(texts: tuple[str, ...]) -> Float[np.ndarray, "M D"]:
        return load_backbone().encode_texts(texts)

    def encode(texts: Sequence[str]) -> Float[np.ndarray, "M D"]:
        return encode_once(tuple(texts))

    def count_cut(texts: Sequence[str]) -> int:
        tokenizer = load_backbone().tokenizer
        return 0 if tokenizer is None else tokenizer.count_cut(texts)

    return LabelTexts(
        tuple(class_embeddings.names or ()),
        np.asarray(class_embeddings.vectors),
        read_templates(class_embeddings.origin.prompt or CLASS_TEMPLATE),
        encode,
        count_cut,
        lambda path: read_bank(path, class_embeddings),
        load_backbone,
    )


def read_bank(path: str, class_embeddings: Embeddings) -> Float[np.ndarray | Rows, "M D"]:
    """The embeddings of unlabelled images, such as `mlclip embed` makes.

    Args:
      path: a file or a folder.
      class_embeddings: of the labels, which must be by the same backbone.

    Raises:
      InputError: it cannot be read, holds no embeddings of images, or another backbone's.
    """
    known = read_embeddings(path)
    if "image" not in known.features:
        raise InputError(
            f"{path} holds no embeddings of images; give a bank that `mlclip embed` made of some"
        )
    encoder, own = known.origin.encoder, class_embeddings.origin.encoder
    if encoder and own and encoder.sha256 != own.sha256:
        raise InputError(
            f"the bank {path} was made by {encoder}, and the labels are embedded by {own}; embed the bank by "
            "that backbone"
        )
    width, wanted = known.vectors.shape[1], class_embeddings.vectors.shape[1]
    if width != wanted:
        raise InputError(
            f"the bank {path} is {width} wide, and the embeddings of the labels {wanted}; embed the bank by "
            "the backbone of the labels"
        )
    return known.vectors
