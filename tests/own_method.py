"""A method of somebody else's: its file, its line in the table of methods, and a recipe (`own_recipe.py`)."""

from pathlib import Path
from typing import ClassVar

import jax
from flax import nnx

from mlclip_jax.nnx_boundary import Frozen
from mlclip_jax.ranges import AT_LEAST_1

RECIPE = Path(__file__).with_name("own_recipe.py")
LINE = 'methods.METHODS["low_rank"] = "own_method.LowRank"'
# What a process runs first to know the method.
PREAMBLE = f"import sys; sys.path.insert(0, {str(RECIPE.parent)!r}); from mlclip_jax import methods; {LINE}\n"


class LowRank(nnx.Module):
    """Cosine-like logits through a bottleneck: image, and class embeddings, to `rank` numbers each."""

    TITLE = "Low rank"
    RANGES: ClassVar = {"rank": AT_LEAST_1}
    reads = ("image",)
    open_vocabulary = True
    TRAINABLE = ("image", "text.kernel")

    def __init__(self, class_embeddings, *, rank=8, rngs):
        width = class_embeddings.shape[1]
        self.class_embeddings = Frozen(jax.numpy.asarray(class_embeddings))
        self.image = nnx.Linear(width, rank, rngs=rngs)
        self.text = nnx.Linear(width, rank, rngs=rngs)

    def label_axes(self):
        """The class embeddings go over the labels."""
        return {"class_embeddings": 0}

    def __call__(self, batch, keys=None):
        """Logits (b, K)."""
        del keys
        return self.image(batch["image"]) @ self.text(self.class_embeddings[...]).T
