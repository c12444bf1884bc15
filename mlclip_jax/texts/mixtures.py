"""Stand-ins for texts where only the embeddings of class texts exist."""

import numpy as np


def mix_class_embeddings(label_sets, class_embeddings):
    """The mean of the class embeddings of each set: where a text that names these labels would lie.

    Args:
      label_sets: int8 `(N, K)`, 1 where a set holds a label; no set is empty.
      class_embeddings: `(K, D)`, un-normalised.

    Returns:
      float32 `(N, D)`.
    """
    weights = label_sets / np.sum(label_sets, axis=1, keepdims=True)
    return (weights @ class_embeddings).astype(np.float32)
