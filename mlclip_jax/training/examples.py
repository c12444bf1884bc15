"""What a run is trained on: texts, images, or both in a stated share."""

import dataclasses

import numpy as np
from jaxtyping import Int, Shaped

from mlclip_jax.data.pipeline import batch_indices
from mlclip_jax.embeddings.rows import Rows, Stacked
from mlclip_jax.embeddings.store import Embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.provenance import digest
from mlclip_jax.streams import Stream

# What a method sees of a text in the place of an image's feature: both lie in one space.
STAND_INS = {"image": "text", "image_local": "text_local"}


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Texts, images or both, with labels (N, K); the texts are the first rows.

    Attributes:
      texts: or None.
      images: or None.
      reads: names of the features that the method reads.
      text_share: of the rows of each batch, where there are both.
    """

    texts: Embeddings | None
    images: Embeddings | None
    reads: tuple[str, ...]
    text_share: float

    def __post_init__(self) -> None:
        lacking = [name for name in self.reads if self.texts and name not in self._text_features]
        if lacking:
            raise InputError(f"texts have no {lacking[0]}, which this method reads; train it on images")

    def __len__(self) -> int:
        return sum(len(part) for part in (self.texts, self.images) if part is not None)

    def __str__(self) -> str:
        parts = [(self.texts, "texts"), (self.images, "images")]
        return " and ".join(f"{len(part)} {unit}" for part, unit in parts if part is not None)

    @property
    def _text_features(self):
        features = self.texts.features
        seen = {name: features[of] for name, of in STAND_INS.items() if of in features}
        return seen | features

    @property
    def data(self) -> dict[str, Shaped[np.ndarray | Rows | Stacked, "N ..."]]:
        """All rows: features by name, `labels`, and `is_text`, bool (N,)."""
        parts = []
        if self.texts is not None:
            features = {name: self._text_features[name] for name in self.reads}
            parts.append(features | {"labels": self.texts.labels, "is_text": np.ones(len(self.texts), bool)})
        if self.images is not None:
            features = self.images.only(self.reads)
            known = {"labels": self.images.labels, "is_text": np.zeros(len(self.images), bool)}
            parts.append(features | known)
        if len(parts) == 1:
            return parts[0]
        return {name: Stacked(parts[0][name], parts[1][name]) for name in parts[0]}

    def num_texts(self, batch_size: int) -> int:
        """How many rows of each batch are texts.

        Raises:
          InputError: there are texts and images, and these are none or all.
        """
        if self.texts is None or self.images is None:
            return 0 if self.texts is None else batch_size
        number = round(self.text_share * batch_size)
        if not 0 < number < batch_size:
            raise InputError(
                f"--config.texts.share={self.text_share:g} puts {number} texts into a batch of {batch_size}, "
                "and there are texts and images to train on; choose a share that leaves room for both"
            )
        return number

    def indices(self, seed: int, step: int, batch_size: int) -> Int[np.ndarray, " B"]:
        """The rows of global batch `step`, texts first; see `batch_indices`."""
        number = self.num_texts(batch_size)
        parts = []
        if number:
            parts.append(batch_indices(seed, step, len(self.texts), number))
        if number < batch_size:
            first = 0 if self.texts is None else len(self.texts)
            stream = Stream.ORDER if self.texts is None else Stream.SECOND_ORDER
            own = batch_indices(seed, step, len(self.images), batch_size - number, stream)
            parts.append(first + own)
        return np.concatenate(parts).astype(np.int32)

    def suspects(self, rows: Int[np.ndarray, " B"]) -> list[str]:
        """Names of the examples in these rows, those with the largest numbers first."""
        features = [array for name, array in self.data.items() if name in self.reads]
        largest = [np.max([np.abs(np.asarray(array[i])).max() for array in features]) for i in rows]
        return [self._name(i) for i in rows[np.argsort(largest)[::-1]]]

    def _name(self, row):
        part, number = self.texts, row
        if part is None or row >= len(part):
            part, number = self.images, row - (0 if part is None else len(part))
        return f"example {row}" if part.names is None else part.names[number]


def digest_of(images: Embeddings) -> str:
    """SHA-256 of what a run learns from images with labels: their features and labels."""
    return digest([*images.features.values(), images.labels])
