"""FC: one fully connected layer on image embeddings."""

from flax import nnx


class FCAdapter(nnx.Module):
    """A linear layer from an embedding to a logit for each label.

    Source: the "FC" adapter of MMM-CLIP, on the image embedding alone.

    Args:
      width: dimension D of the embeddings.
      num_labels: number K of labels.
      rngs: where the initial weights are drawn from.
    """

    def __init__(self, width, num_labels, *, rngs):
        self.linear = nnx.Linear(width, num_labels, rngs=rngs)

    def __call__(self, embeddings, key=None):
        """Embeddings `(..., D)` to logits `(..., K)`; the key is not needed, for nothing is dropped out."""
        del key
        return self.linear(embeddings)
