"""The boundary between Flax NNX modules, which define, and plain JAX, which computes."""

from flax import nnx


def split_module(module):
    """A module as a static graph and a nested dict of its parameters.

    `nnx.merge(graph, parameters)` gives the module back, inside any JAX transformation. The dict has string
    keys throughout (NNX numbers the layers of a list), as checkpoints and key tables expect.
    """
    graph, state = nnx.split(module)
    return graph, _string_keys(nnx.to_pure_dict(state))


def _string_keys(tree):
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
