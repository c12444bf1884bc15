"""The boundary between Flax NNX modules, which define, and plain JAX, which computes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict


class Frozen(nnx.Variable):
    """An array that a module reads and training leaves as it is."""


def split_module(module: nnx.Module) -> tuple[nnx.GraphDef, dict]:
    """A module as a static graph and a nested dict of its parameters.

    The dict has string keys throughout, as checkpoints and key tables expect; NNX numbers the layers of a
    list with integers.
    """
    graph, state = nnx.split(module)
    return graph, _map_keys(nnx.to_pure_dict(state), str)


def split_trainable(
    module: nnx.Module, trainable: Sequence[str] | None = None
) -> tuple[nnx.GraphDef, dict, dict]:
    """What `split_module` gives, in three: the graph, what is trained, and what is frozen.

    Args:
      module: of a method.
      trainable: beginnings of the paths of what is trained, such as "context" or "head.bias"; all other
        parameters are frozen. None: every `nnx.Param` is trained.

    Raises:
      ValueError: there is no parameter at one of these paths.
    """

    def is_named(path, _=None):
        dotted = ".".join(map(str, path))
        return trainable is None or any(f"{dotted}.".startswith(f"{named}.") for named in trainable)

    trained = nnx.All(nnx.Param, is_named)
    graph, parameters, frozen = nnx.split(module, trained, nnx.Any(nnx.Param, Frozen))
    parameters, frozen = (_map_keys(nnx.to_pure_dict(state), str) for state in (parameters, frozen))
    paths = [".".join(path) for path in flatten_dict(parameters)]
    for named in trainable or ():
        if not any(f"{path}.".startswith(f"{named}.") for path in paths):
            raise ValueError(f"{type(module).__name__} has no parameter {named!r} to train")
    return graph, parameters, frozen


def abstract_module(make: Callable[..., nnx.Module]) -> tuple[nnx.GraphDef, dict]:
    """What `split_module` gives of `make(rngs=)`, with shapes for arrays; nothing is computed.

    NNX would trace every random number, in a time that grows with the square of their count: 9 seconds for a
    ViT-L/14, where this takes one.
    """

    return split_module(nnx.eval_shape(lambda: make(rngs=_OneKey())))


class _OneKey(nnx.Rngs):
    """The same key for every parameter."""

    def params(self):
        return jax.random.key(0)


def merge_module(graph: nnx.GraphDef, *states: dict) -> Any:
    """The module that `split_module` or `split_trainable` split; works inside any JAX transformation."""
    # NNX pairs a dict with its graph by sorted order, in which the string "10" would come before "2".
    own = (_map_keys(state, lambda key: int(key) if key.isdigit() else key) for state in states)
    return nnx.merge(graph, *own)


def _map_keys(tree, change):
    return {change(k): _map_keys(v, change) for k, v in tree.items()} if isinstance(tree, dict) else tree
