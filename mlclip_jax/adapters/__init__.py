"""Trainable adapters: image to logits, one method a file.

All are called alike: `adapter(embeddings, local=None, keys=None)`, with embeddings (b, D), local features
(b, T, D) where it reads them, and in training a PRNG key for each example, (b,), which decides what is
dropped out of it; logits (b, K) come back, float32. `adapter.label_axes()` says which of its arrays can be
split over devices label by label: a dict from an array's path to the dimension that goes over the labels.
"""

import inspect

from mlclip_jax.adapters.fc import FCAdapter
from mlclip_jax.adapters.ml_decoder import MLDecoder
from mlclip_jax.adapters.mmm_mld import MLDAdapter
from mlclip_jax.adapters.tai import TaIAdapter
from mlclip_jax.errors import InputError

# By the `adapter.name` of a recipe.
ADAPTERS = {"tai": TaIAdapter, "fc": FCAdapter, "mld": MLDAdapter, "ml_decoder": MLDecoder}
TITLES = {"tai": "TaI-Adapter", "fc": "FC", "mld": "MLD", "ml_decoder": "ML-Decoder"}


def make_adapter(settings, class_embeddings, *, rngs):
    """The adapter of a recipe.

    Args:
      settings: its `adapter`: a mapping of `name` and that adapter's own settings.
      class_embeddings: of the K labels, float32 `(K, D)`; images' embeddings and local features are D wide
        too.
      rngs: where the initial weights are drawn from.

    Raises:
      InputError: it has no such setting, or the number of heads does not divide the width.
    """
    own = {key: value for key, value in settings.items() if key != "name"}
    known = _settings(settings["name"])
    for key in own.keys() - known.keys():
        raise InputError(f"{TITLES[settings['name']]} has no adapter.{key}; it has {', '.join(known)}")
    known |= own
    width, heads = known.get("width", class_embeddings.shape[1]), known.get("num_heads", 1)
    if width % heads:
        raise InputError(f"adapter.num_heads={heads} does not divide the width {width}")
    return ADAPTERS[settings["name"]](class_embeddings, **own, rngs=rngs)


def reads_local(settings):
    """Whether the adapter of a recipe reads an image's local features, and not its embedding alone."""
    return (_settings(settings["name"]) | dict(settings)).get("features") == "local"


def takes_other_labels(settings):
    """Whether the adapter of a recipe, once trained, labels by any class texts, and not by its own alone."""
    return settings["name"] == "mld" or settings.get("queries") == "text"


def _settings(name):
    """An adapter's own settings and their defaults."""
    parameters = inspect.signature(ADAPTERS[name].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
