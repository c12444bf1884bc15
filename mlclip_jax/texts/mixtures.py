"""Stand-ins for texts where only class embeddings exist."""

import numpy as np
from jaxtyping import Float, Float32, Int8


def mix_class_embeddings(
    label_sets: Int8[np.ndarray, "N K"], class_embeddings: Float[np.ndarray, "K D"]
) -> Float32[np.ndarray, "N D"]:
    """The mean of the class embeddings of each set: where a text that names these labels would lie.

    Args:
      label_sets: 1 where a set holds a label; no set is empty.
      class_embeddings: un-normalised.
    """
    weights = label_sets / np.sum(label_sets, axis=1, keepdims=True)
    return (weights @ class_embeddings).astype(np.float32)
