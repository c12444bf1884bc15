"""TaI-Adapter: a small network trained on text embeddings and used on image embeddings."""

from itertools import pairwise
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from mlclip_jax.adapters.layers import DTYPES, Batch, Keys, Logits, dropout, linear
from mlclip_jax.ranges import AT_LEAST_1, BELOW_1, one_of


class TaIAdapter(nnx.Module):
    """Fully connected layers, with ReLU and dropout after each but the last.

    Source: TaI-Adapter (arXiv 2312.04160, section 4.1): three layers, each followed by ReLU and dropout, and,
    as a ReLU would keep a sigmoid from ever saying "absent", a linear one behind them. The text names no
    width; the parameters that its table 4 counts leave 10.6 to 10.8 million for the adapter, and four layers,
    2,048 wide, have 10.66 million for RN50's 1,024 dimensions and 80 labels (`hidden=2048, depth=4`). It
    states no dropout rate. The defaults are a smaller network.

    Args:
      class_embeddings: of the labels, `(K, D)`, of which only the shape is read.
      hidden: width of the hidden layers.
      depth: number of fully connected layers, at least 1.
      dropout: probability of zeroing a hidden unit during training, in [0, 1).
      dtype: of the products, `"float32"` or `"bfloat16"`.
      rngs: where the initial weights are drawn from.
    """

    TITLE = "TaI-Adapter"
    RANGES: ClassVar = {
        "hidden": AT_LEAST_1,
        "depth": AT_LEAST_1,
        "dropout": BELOW_1,
        "dtype": one_of(DTYPES),
    }
    reads = ("image",)
    open_vocabulary = False

    def __init__(
        self,
        class_embeddings: Float[Array | np.ndarray, "K D"],
        *,
        hidden: int = 512,
        depth: int = 3,
        dropout: float = 0.1,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        num_labels, width = class_embeddings.shape
        widths = [width, *[hidden] * (depth - 1), num_labels]
        *hidden_layers, last = pairwise(widths)
        products = jnp.dtype(dtype)
        layers = [linear(*sizes, products, rngs) for sizes in hidden_layers]
        self.layers = nnx.List([*layers, Logits(*last, dtype=products, rngs=rngs)])
        self.dropout = dropout

    def label_axes(self) -> dict[str, int]:
        """See `methods`."""
        last = f"layers.{len(self.layers) - 1}"
        return {f"{last}.kernel": 1, f"{last}.bias": 0}

    def __call__(self, batch: Batch, keys: Keys = None) -> Float32[Array, "B K"]:
        """Logits, of `image` (b, D); see `methods`."""
        embeddings = jnp.asarray(batch["image"])
        *hidden_layers, last = self.layers
        for depth, layer in enumerate(hidden_layers):
            embeddings = dropout(jax.nn.relu(layer(embeddings)), self.dropout, keys, depth)
        return last(embeddings)
