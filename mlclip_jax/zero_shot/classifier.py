"""Zero-shot classification as a method: a rule on the embeddings of images and of the labels' names."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Key

from mlclip_jax.nnx_boundary import Frozen
from mlclip_jax.ranges import NOT_NEGATIVE, POSITIVE, one_of
from mlclip_jax.zero_shot.prompts import check_several
from mlclip_jax.zero_shot.rules import cosine_scores, log_softmax_scores, ridge_scores, standardise

# From embeddings of images and of classes, the penalty and the temperature to scores.
RULES: dict[str, Callable] = {
    "ridge": lambda images, classes, penalty, _: standardise(ridge_scores(images, classes, penalty)),
    "standardised": lambda images, classes, *_: standardise(cosine_scores(images, classes)),
    "cosine": lambda images, classes, _, temperature: cosine_scores(images, classes) / temperature,
    "softmax": lambda images, classes, _, temperature: log_softmax_scores(
        cosine_scores(images, classes), temperature
    ),
}


class ZeroShot(nnx.Module):
    """Scores by the names of the labels alone; it has no parameters, and nothing to train.

    - `rule="ridge"`: weights of a ridge regression on the class embeddings, standardised over the labels.
    - `rule="standardised"`: cosines, standardised over the labels.
    - `rule="cosine"`: cosines over the temperature, CLIP's own logits.
    - `rule="softmax"`: log-probabilities of CLIP's softmax over the labels.

    What each reads on photographs stands in `rules`, which has the functions.

    Args:
      class_embeddings: of the labels, `(K, D)`.
      rule: one of `RULES`.
      penalty: of the ridge regression.
      temperature: what cosines are divided by.
      rngs: not used, as nothing is drawn.

    Raises:
      InputError: there is one label alone, and a rule that compares labels with one another.
    """

    TITLE = "Zero-shot"
    USES = "names"
    RANGES: ClassVar = {"rule": one_of(RULES), "penalty": NOT_NEGATIVE, "temperature": POSITIVE}
    TRAINABLE = ()
    reads = ("image",)
    open_vocabulary = True

    def __init__(
        self,
        class_embeddings: Float[Array | np.ndarray, "K D"],
        *,
        rule: str = "ridge",
        penalty: float = 3.0,
        temperature: float = 0.01,
        rngs: nnx.Rngs,
    ) -> None:
        del rngs
        if rule != "cosine":
            check_several(f"rule={rule}", len(class_embeddings))
        self.rule, self.penalty, self.temperature = rule, penalty, temperature
        self.class_embeddings = Frozen(jnp.asarray(class_embeddings))

    def label_axes(self) -> dict[str, int]:
        """See `methods`."""
        return {"class_embeddings": 0}

    def __call__(
        self, batch: Mapping[str, Float[Array | np.ndarray, "B ..."]], keys: Key[Array, " B"] | None = None
    ) -> Float32[Array, "B K"]:
        """Scores, of `image` (b, D); see `methods`."""
        del keys
        images = jnp.asarray(batch["image"], jnp.float32)
        return RULES[self.rule](images, self.class_embeddings[...], self.penalty, self.temperature)
