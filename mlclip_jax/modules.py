"""The boundary between Flax NNX modules, which define, and plain JAX, which computes."""

from flax import nnx


def split_module(module):
    """A module as a static graph and a nested dict of its parameters.

    The dict has string keys throughout, as checkpoints and key tables expect; NNX numbers the layers of a
    list with integers.
    """
    graph, state = nnx.split(module)
    return graph, _map_keys(nnx.to_pure_dict(state), str)


def merge_module(graph, parameters):
    """The module that `split_module` split; works inside any JAX transformation."""
    # NNX pairs a dict with its graph by sorted order, in which the string "10" would come before "2".
    return nnx.merge(graph, _map_keys(parameters, lambda key: int(key) if key.isdigit() else key))


def _map_keys(tree, change):
    return {change(k): _map_keys(v, change) for k, v in tree.items()} if isinstance(tree, dict) else tree
