"""Trainable adapters: embeddings to logits, one method a file."""

from mlclip_jax.adapters.fc import FCAdapter
from mlclip_jax.adapters.tai import TaIAdapter

# By the `adapter.name` of a recipe.
ADAPTERS = {"tai": TaIAdapter, "fc": FCAdapter}
TITLES = {"tai": "TaI-Adapter", "fc": "FC"}


def make_adapter(settings, width, num_labels, *, rngs):
    """The adapter of a recipe.

    Args:
      settings: its `adapter`: a mapping of `name` and that adapter's own settings.
      width: dimension D of the embeddings.
      num_labels: number K of labels.
      rngs: where the initial weights are drawn from.
    """
    own = {key: value for key, value in settings.items() if key != "name"}
    return ADAPTERS[settings["name"]](width, num_labels, **own, rngs=rngs)
