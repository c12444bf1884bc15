"""What a run is trained on: texts, images, or both in a stated share."""

import dataclasses

import numpy as np
from jaxtyping import Int, Shaped

from mlclip_jax.data.pipeline import batch_indices
from mlclip_jax.embeddings.rows import Rows, Stacked
from mlclip_jax.embeddings.store import Embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.provenance import digest, hash_names
from mlclip_jax.streams import Stream

Column = Shaped[np.ndarray | Rows | Stacked, "N ..."]
# What a method sees of a text in the place of an image's feature: both lie in one space.
STAND_INS = {"image": "text", "image_local": "text_local"}


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Texts, images or both, with labels (N, K); the texts are the first rows.

    Attributes:
      texts: or None.
      images: or None.
      reads: names of the features that the method reads.
      text_share: of the rows of each batch, where there are both; -1: texts and images are shuffled together.
      seen_images: those that the run learns from, be it that texts are shifted towards them; or None.
    """

    texts: Embeddings | None
    images: Embeddings | None
    reads: tuple[str, ...]
    text_share: float
    seen_images: Embeddings | None = None

    def __post_init__(self) -> None:
        if self.texts is not None:
            lacking = set(self.reads) - _seen_of(self.texts).keys()
            if lacking:
                raise InputError(f"texts have no {min(lacking)}, which this method reads; train it on images")

    def __len__(self) -> int:
        return self._num_texts + self._num_images

    def __str__(self) -> str:
        parts = [(self._num_texts, "texts"), (self._num_images, "images")]
        return " and ".join(f"{number} {unit}" for number, unit in parts if number)

    @property
    def _num_texts(self):
        return 0 if self.texts is None else len(self.texts)

    @property
    def _num_images(self):
        return 0 if self.images is None else len(self.images)

    @property
    def digest(self) -> str:
        """SHA-256 of what is learnt from, beside what a config says: texts of files, and images."""
        parts = []
        if self.texts is not None and self.texts.names is not None:
            parts += [np.frombuffer(hash_names(self.texts.names).encode(), np.uint8), self.texts.labels]
        if self.seen_images is not None:
            parts += _arrays_of(self.seen_images)
        return digest(parts) if parts else ""

    @property
    def data(self) -> dict[str, Column]:
        """All rows: features by name, `labels`, and `is_text`, bool (N,)."""
        parts = []
        if self.texts is not None:
            seen = _seen_of(self.texts)
            parts.append(_columns({name: seen[name] for name in self.reads}, self.texts, is_text=True))
        if self.images is not None:
            parts.append(_columns(self.images.only(self.reads), self.images, is_text=False))
        if len(parts) == 1:
            return parts[0]
        return {name: Stacked(parts[0][name], parts[1][name]) for name in parts[0]}

    def num_texts(self, batch_size: int) -> int:
        """How many rows of each batch are texts.

        Raises:
          InputError: there are texts and images, and these are none or all.
        """
        if not (self._num_texts and self._num_images):
            return batch_size if self._num_texts else 0
        number = round(self.text_share * batch_size)
        if not 0 < number < batch_size:
            raise InputError(
                f"--config.texts.share={self.text_share:g} puts {number} texts into a batch of {batch_size}, "
                "and there are texts and images to train on; choose a share that leaves room for both"
            )
        return number

    def indices(self, seed: int, step: int, batch_size: int) -> Int[np.ndarray, " B"]:
        """The rows of global batch `step`; where texts have a share of their own, they come first.

        See `batch_indices`.
        """
        if self.text_share == -1:
            return batch_indices(seed, step, len(self), batch_size).astype(np.int32)
        number = self.num_texts(batch_size)
        parts = []
        if number:
            parts.append(batch_indices(seed, step, self._num_texts, number))
        if number < batch_size:
            stream = Stream.SECOND_ORDER if number else Stream.ORDER
            own = batch_indices(seed, step, self._num_images, batch_size - number, stream)
            parts.append(self._num_texts + own)
        return np.concatenate(parts).astype(np.int32)

    def suspects(self, rows: Int[np.ndarray, " B"]) -> list[str]:
        """Names of the examples in these rows, those with the largest numbers first."""
        features = [array for name, array in self.data.items() if name in self.reads]
        largest = [np.max([np.abs(np.asarray(array[i])).max() for array in features]) for i in rows]
        return [self._name(i) for i in rows[np.argsort(largest)[::-1]]]

    def _name(self, row):
        part, own = (self.texts, row) if row < self._num_texts else (self.images, row - self._num_texts)
        return f"example {row}" if part is None or part.names is None else part.names[own]


def _seen_of(texts):
    """What a method sees of texts, by the names that it reads."""
    stand_ins = {name: texts.features[of] for name, of in STAND_INS.items() if of in texts.features}
    return {**stand_ins, **texts.features}


def _columns(features, part, is_text):
    return {**features, "labels": part.labels, "is_text": np.full(len(part), is_text)}


def digest_of(images: Embeddings) -> str:
    """SHA-256 of what a run learns from images with labels: their features and labels."""
    return digest(_arrays_of(images))


def _arrays_of(images):
    return [array for array in (*images.features.values(), images.labels) if array is not None]
