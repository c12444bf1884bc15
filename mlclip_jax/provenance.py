"""What made this: fingerprints of files, digests of arrays, the `Origin` of embeddings and runs."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt64

from mlclip_jax.embeddings.rows import Rows, blocks


@dataclasses.dataclass(frozen=True)
class Origin:
    """What made embeddings, or what a run was trained on. What is not known, or does not apply, is empty.

    Attributes:
      name: of the backbone, or of the file that the embeddings came from: a folder, a path, a hub name.
      revision: the commit of a hub repository.
      sha256: of the files under that name; "" where even the name is not known, see `UNKNOWN`.
      image_size: (height, width) of the pixels that a backbone saw.
      resize, decode, dtype, position_embeddings: how it saw and computed, see `load_backbone`.
      interpolation: the same, where it was chosen; antialias, clean: "yes" where positions were smoothed, and
        texts repaired.
      template: the sentence that names were put into; of several, a set's name, or one a line.
      source: SHA-256 of the images or texts that were embedded.
      split: where labelled images came from, as the user names it.
      labels: SHA-256 of the names of the labels.
      examples: SHA-256 of the texts and images that a run learns from, see `digest`.
      init: SHA-256 of the parameters that a run begins with, where they are another run's.
      backbone: of a file of embeddings, the `Origin` of what made them; of a backbone itself, None.
    """

    name: str
    revision: str = ""
    sha256: str = ""
    image_size: tuple[int, ...] = ()
    resize: str = ""
    decode: str = ""
    dtype: str = ""
    position_embeddings: str = ""
    interpolation: str = ""
    antialias: str = ""
    clean: str = ""
    template: str = ""
    source: str = ""
    split: str = ""
    labels: str = ""
    examples: str = ""
    init: str = ""
    backbone: "Origin | None" = None

    def __str__(self) -> str:
        revision = f"@{self.revision[:12]}" if self.revision else ""
        hashes = {"sha256": self.sha256, "labels": self.labels, "examples": self.examples, "init": self.init}
        known = ", ".join(f"{what} {digest[:12]}" for what, digest in hashes.items() if digest)
        return f"{self.name}{revision} ({known})"

    def replace(self, **changes: object) -> "Origin":
        """This origin with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    @property
    def encoder(self) -> "Origin | None":
        """The backbone alone, by name, revision and hash; None where it was not recorded."""
        made_by = self if self.backbone is None else self.backbone
        return Origin(made_by.name, made_by.revision, made_by.sha256) if made_by.sha256 else None

    @property
    def prompt(self) -> str:
        """The `template` of this, or of what made a file's embeddings; or ""."""
        return (self.backbone or self).template

    def same_training(self, other: "Origin") -> bool:
        """Whether a run of this origin may resume from a checkpoint of the other."""
        compared = ("sha256", "template", "labels", "examples", "init")
        return all(getattr(self, key) == getattr(other, key) for key in compared)

    def to_dict(self) -> dict:
        """For JSON: what is not empty."""
        known = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        known["backbone"] = self.backbone and self.backbone.to_dict()
        known["image_size"] = list(self.image_size)
        return {key: value for key, value in known.items() if value or key in ("name", "revision", "sha256")}

    @classmethod
    def from_dict(cls, known: object) -> "Origin | None":
        """What `to_dict` gave; None for anything else, as other programs write it."""
        if not isinstance(known, dict) or not {"name", "revision", "sha256"} <= known.keys():
            return None
        fields = {field.name for field in dataclasses.fields(cls)}
        own = {key: value for key, value in known.items() if key in fields and value is not None}
        if "backbone" in own:
            own["backbone"] = cls.from_dict(own["backbone"])
        own["image_size"] = tuple(own.get("image_size", ()))
        return cls(**own)


UNKNOWN = Origin("")


def fingerprint(name: object, revision: str, paths: Iterable[str | os.PathLike]) -> Origin:
    """The `Origin` of files: their name, revision, and the SHA-256 over their content."""
    content = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    return Origin(str(name), revision, content.hexdigest())


def hash_names(names: Iterable[str]) -> str:
    """SHA-256 of names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def digest(arrays: Iterable[Shaped[np.ndarray | Rows, "..."]]) -> str:
    """SHA-256 of the bytes of arrays, of which those in files are read a block at a time."""
    content = hashlib.sha256()
    for array in arrays:
        for block in blocks(array):
            content.update(np.ascontiguousarray(block).data)
    return content.hexdigest()


def row_hashes(array: Shaped[np.ndarray | Rows, "N ..."]) -> UInt64[np.ndarray, " N"]:
    """64-bit hashes of the bytes of each row."""
    hashes = np.empty(len(array), np.uint64)
    start = 0
    for block in blocks(array):
        own = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in block)
        hashes[start : start + len(block)] = np.frombuffer(b"".join(own), np.uint64)
        start += len(block)
    return hashes


def count_known(array: Shaped[np.ndarray | Rows, "N ..."], known: Sequence | UInt64[np.ndarray, " M"]) -> int:
    """How many rows have one of these `row_hashes`; what was rounded anew is not found."""
    return int(np.isin(row_hashes(array), known).sum())
