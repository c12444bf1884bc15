"""TaI-Adapter: a small network trained on text embeddings and used on image embeddings."""

from itertools import pairwise

import jax
from flax import nnx


class TaIAdapter(nnx.Module):
    """Fully connected layers, with ReLU and dropout after each but the last.

    Source: TaI-Adapter (arXiv 2312.04160, section 4.1), three layers. Its text puts ReLU and dropout after
    *every* layer; on the last that would keep logits from ever being negative, and a sigmoid from ever
    saying "absent", so the last layer is linear here. The paper gives neither the hidden width nor the
    dropout rate.

    Args:
      width: dimension D of the embeddings.
      num_labels: number K of labels.
      hidden: width of the hidden layers.
      depth: number of fully connected layers, at least 1.
      dropout: probability of zeroing a hidden unit during training, in [0, 1).
      rngs: where the initial weights are drawn from.
    """

    def __init__(self, width, num_labels, *, hidden=512, depth=3, dropout=0.1, rngs):
        widths = [width, *[hidden] * (depth - 1), num_labels]
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairwise(widths)])
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, embeddings, key=None):
        """Embeddings `(..., D)` to logits `(..., K)`; with a key, units are dropped out (training)."""
        *hidden_layers, last = self.layers
        for depth, layer in enumerate(hidden_layers):
            embeddings = jax.nn.relu(layer(embeddings))
            if key is not None:
                embeddings = self.dropout(embeddings, rngs=jax.random.fold_in(key, depth))
        return last(embeddings)
