"""Every method that scores images, by name: the one table. A class is imported when it is asked for.

A method is an `nnx.Module` in a file of its own, made from the embeddings (K, D) of the labels by
`Class(class_embeddings, **settings, rngs=rngs)`. It is called `method(batch, keys=None)`: `batch` is a dict
of features by name, of which it gets those that it reads, each with a leading b; `keys` are typed PRNG keys
(b,), one for each example, in training, and None otherwise. It returns logits (b, K), float32.

What else its class declares:

- `TITLE`: what tables and errors call it.
- `RANGES`: what its settings may be, see `ranges.py`. Their defaults are those of `__init__`.
- `reads`: names of the features that it reads, or a function of all settings that gives them; see
  `embeddings.store.Embeddings`: `image` (b, D), `image_local` (b, T, D), `text`, `text_local`, `pair`. Or
  `pixels` alone, the images themselves, of what scores all at once and encodes images its own way.
- `open_vocabulary`: whether other class embeddings may replace those of training, or a function of all
  settings that says so. They are then the method's `Frozen` variable `class_embeddings`.
- `label_axes()`: which of its arrays can be split over devices label by label: a dict from an array's path to
  the dimension that goes over the labels.

- `TRAINABLE`: beginnings of the paths of what is trained, such as `("context",)`, where not every `nnx.Param`
  is: a frozen tower inside a method stays frozen. Its `Frozen` variables are never trained. Of a method that
  is never trained, `()`.
- `USES`: of a method that is never trained, what it knows of the labels and of other images.

A method that is never trained may score all images at once, as one that encodes prompts while it compares
images with them. It is no module then: its class is made by `Class(**settings)` and has a method
`decide(images, labels)`, from features by name (N, ...) and a `zero_shot.prompts.LabelTexts` to a `Decided`.
See `zero_shot.prompts.ScoresAtOnce`.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mlclip_jax.errors import InputError
from mlclip_jax.options import nearest

METHODS = {
    "tai": "mlclip_jax.adapters.tai.TaIAdapter",
    "fc": "mlclip_jax.adapters.fc.FCAdapter",
    "mld": "mlclip_jax.adapters.mmm_mld.MLDAdapter",
    "ml_decoder": "mlclip_jax.adapters.ml_decoder.MLDecoder",
    "zero_shot": "mlclip_jax.zero_shot.classifier.ZeroShot",
    "zero_shot_per_template": "mlclip_jax.zero_shot.per_template.PerTemplate",
    "zero_shot_centred": "mlclip_jax.zero_shot.centred.CentredRidge",
    "zero_shot_compound": "mlclip_jax.zero_shot.compound.CompoundPrompts",
    "zero_shot_local": "mlclip_jax.zero_shot.local.LocalZeroShot",
    "zero_shot_patches": "mlclip_jax.patch_rule.ZeroShotPatches",
    "self_distilled": "mlclip_jax.zero_shot.distillation.SelfDistilled",
    "yes_no": "mlclip_jax.zero_shot.prompting.YesNo",
    "list_all": "mlclip_jax.zero_shot.prompting.ListAll",
    "top_all": "mlclip_jax.zero_shot.prompting.TopAll",
    "language_model_top_all": "mlclip_jax.zero_shot.prompting.LanguageModelTopAll",
}


class Method(NamedTuple):
    """A method with its settings, not yet made.

    Attributes:
      title: what tables and errors call it.
      settings: all of them, with the defaults of those that were not given.
      reads: names of the features that it reads.
      open_vocabulary: whether it takes other class embeddings after training.
      ranges: what its settings may be.
      trainable: beginnings of the paths of what is trained; None: every parameter; (): nothing.
      uses: of a method that is never trained, what it knows; else "".
      at_once: whether it scores all images at once, by `decide`, and is no module.
      make: `make(class_embeddings, rngs=rngs)` gives the module, with its `label_axes`; or what has `decide`,
        which is made of no embeddings.
    """

    title: str
    settings: dict
    reads: tuple[str, ...]
    open_vocabulary: bool
    ranges: dict
    trainable: tuple[str, ...] | None
    uses: str
    at_once: bool
    make: Callable[..., Any]

    @property
    def trains(self) -> bool:
        """Whether it is ever trained."""
        return self.trainable != ()


def find(settings: Mapping | ConfigDict) -> Method:
    """The method of a recipe.

    Args:
      settings: its `method`: a mapping of `name`, one of `METHODS`, and that method's own settings.

    Raises:
      InputError: there is no such method, or it has no such setting.
    """
    given = dict(settings)
    name = given.pop("name", None)
    if name not in METHODS:
        raise InputError(f"no method {name!r}{nearest(name, METHODS)}; there are {', '.join(METHODS)}")
    made_by = _class_of(name)
    parameters = inspect.signature(made_by.__init__).parameters.values()
    known = {p.name: p.default for p in parameters if p.default is not p.empty}
    for key in given.keys() - known.keys():
        raise InputError(
            f"{made_by.TITLE} has no setting {key!r}{nearest(key, known)}; it has {', '.join(known)}"
        )
    own, at_once = known | given, hasattr(made_by, "decide")
    once = functools.cache(lambda: made_by(**own))  # it may open files, and holds nothing of a run
    return Method(
        title=made_by.TITLE,
        settings=own,
        reads=_declared(made_by.reads, own),
        open_vocabulary=_declared(made_by.open_vocabulary, own),
        ranges=made_by.RANGES,
        trainable=getattr(made_by, "TRAINABLE", None),
        uses=getattr(made_by, "USES", ""),
        at_once=at_once,
        make=(lambda *_, **__: once())
        if at_once
        else lambda class_embeddings, *, rngs: made_by(class_embeddings, **own, rngs=rngs),
    )


def with_open_vocabulary() -> str:
    """Which methods take other class embeddings after training, in words."""
    titles = []
    for name in METHODS:
        made_by = _class_of(name)
        if getattr(made_by, "TRAINABLE", None) == ():
            continue
        if callable(made_by.open_vocabulary):
            titles.append(f"{made_by.TITLE} by some of its settings")
        elif made_by.open_vocabulary:
            titles.append(made_by.TITLE)
    return " and ".join(titles)


def _class_of(name):
    module, _, attribute = METHODS[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _declared(declared, settings):
    return declared(settings) if callable(declared) else declared
