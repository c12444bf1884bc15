"""What a run keeps in its folder beside config, class embeddings and checkpoints."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from mlclip_jax.embeddings.store import Embeddings, read_arrays
from mlclip_jax.files import replacing
from mlclip_jax.provenance import row_hashes

TRAINED_ON = "trained_on.npy"
RANDOM_BUFFERS = "random_buffers.npz"
EMBEDDED = "embedded"  # folder of the embeddings of images that a run was given as such


def write_random_buffers(workdir: str | os.PathLike, frozen: dict) -> None:
    """Keeps what a method drew at random and never trains: later versions of JAX may draw it otherwise.

    Args:
      workdir: of the run.
      frozen: from `random_buffers`.
    """
    if frozen:
        with replacing(Path(workdir) / RANDOM_BUFFERS) as temporary, temporary.open("wb") as file:
            np.savez(file, **frozen)


def random_buffers(frozen: dict) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of a method that are neither trained nor given: all of its own that are no embeddings."""
    own = {name: array for name, array in frozen.items() if not isinstance(array, dict)}
    return {name: np.asarray(array) for name, array in own.items() if not name.endswith("_embeddings")}


def read_random_buffers(workdir: str | os.PathLike) -> dict[str, Shaped[np.ndarray, "..."]]:
    """What `write_random_buffers` keeps; empty for most methods."""
    path = Path(workdir) / RANDOM_BUFFERS
    return read_arrays(path) if path.is_file() else {}


def write_trained_on(workdir: str | os.PathLike, images: Embeddings) -> None:
    """Notes which embeddings a run learns from, as 64-bit hashes of their bytes."""
    with replacing(Path(workdir) / TRAINED_ON) as temporary, temporary.open("wb") as file:
        np.save(file, row_hashes(images.vectors))
