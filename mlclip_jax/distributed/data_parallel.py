"""The two ways in which one per-device function runs on every device: `shard_map` and `pmap`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mlclip_jax.distributed.sharding import AXIS, replicated

MODES = ("shard_map", "pmap")
PROGRAMS = 8  # that are kept, so that a later run of the same program in this process is not traced again


def sum_over_devices(tree: Any, fuse_allreduce: bool = True) -> Any:
    """`jax.lax.psum` of a tree of arrays over the axis `"data"`, of one device's step.

    Args:
      tree: of arrays.
      fuse_allreduce: whether arrays may travel as one. XLA sends them so between accelerators, but not
        between processes of CPUs, where each message takes about a millisecond. Not for those split over
        labels too.
    """
    if jax.lax.axis_size(AXIS) == 1:  # where XLA has no sum for what is split over labels
        return tree
    if not fuse_allreduce or jax.process_count() == 1 or jax.default_backend() != "cpu":
        return jax.lax.psum(tree, AXIS)
    arrays, structure = jax.tree.flatten(tree)
    sums = [None] * len(arrays)
    for dtype in sorted({array.dtype for array in arrays}, key=str):
        own = [place for place, array in enumerate(arrays) if array.dtype == dtype]
        *starts, size = np.cumsum([0, *(arrays[place].size for place in own)]).tolist()
        # XLA:CPU would compute what a concatenation joins anew for each element.
        together = jnp.zeros(size, dtype)
        for place, start in zip(own, starts):
            together = jax.lax.dynamic_update_slice(together, jnp.ravel(arrays[place]), (start,))
        together = jax.lax.psum(together, AXIS)
        for place, start in zip(own, starts):
            part = together[start : start + arrays[place].size]
            sums[place] = part.reshape(arrays[place].shape)
    return jax.tree.unflatten(structure, sums)


def data_parallel(
    chunk: Callable[..., tuple[Any, Any]],
    mode: str,
    mesh: Mesh,
    *,
    split_data: bool = False,
    state_shardings: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """Runs a per-device chunk of training steps on every device of a mesh, over all processes.

    Args:
      chunk: `chunk(state, frozen, data, indices, steps, hyper) -> (state, metrics)`, for one device: its
        `indices` are (S, B / devices), and it reduces over the axis `"data"` itself. What is split over the
        labels the compiler takes care of.
      mode: `"shard_map"` (under `jit`, the form JAX recommends) or `"pmap"`, which splits no labels. Both
        give the same results.
      mesh: from `make_mesh`.
      split_data: whether each device has data of its own: a leading dimension over devices, that `chunk` does
        not see. Otherwise every device has all.
      state_shardings: of the state that comes back, where it is not replicated.

    Returns:
      A compiled function of the same arguments with `indices` (S, B), a NumPy array, as are `steps` and
      `hyper`. The others lie on the devices; `state` is donated.
    """
    if mode == "pmap":
        return _pmapped(chunk, mesh, split_data)
    shardings, structure = jax.tree.flatten(replicated(mesh) if state_shardings is None else state_shardings)
    return _sharded(chunk, mesh, split_data, tuple(shardings), structure)


@functools.lru_cache(maxsize=PROGRAMS)
def _sharded(chunk, mesh, split_data, state_shardings, structure):
    """`data_parallel` by `shard_map`."""

    def on_device(state, frozen, data, indices, steps, hyper):
        if split_data:
            data = jax.tree.map(lambda array: array[0], data)
        return chunk(state, frozen, data, indices, steps, hyper)

    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        axis_names={AXIS},
        in_specs=(P(), P(), P(AXIS) if split_data else P(), P(None, AXIS), P(), P()),
        out_specs=P(),
        # With the check, the gradient of a replicated parameter arrives already summed over devices, and
        # the sum in the step would count every device twice; without it both modes mean the same.
        check_vma=False,
    )
    out_shardings = jax.tree.unflatten(structure, state_shardings), replicated(mesh)
    return jax.jit(mapped, donate_argnums=0, out_shardings=out_shardings)


@functools.lru_cache(maxsize=PROGRAMS)
def _pmapped(chunk, mesh, split_data):
    """`data_parallel` by `pmap`, which sees the arrays and rows of this process's devices alone."""
    mapped = jax.pmap(
        chunk,
        axis_name=AXIS,
        in_axes=(None, None, 0 if split_data else None, 1, None, None),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    mine = [place for place, device in enumerate(mesh.devices.flat) if device in set(jax.local_devices())]

    def run(state, frozen, data, indices, steps, hyper):
        rows = indices.reshape(len(indices), mesh.size, -1)[:, mine]
        if jax.process_count() == 1:
            return mapped(state, frozen, data, rows, steps, hyper)
        to_local = functools.partial(multihost_utils.global_array_to_host_local_array, global_mesh=mesh)
        state, frozen = to_local((state, frozen), pspecs=P())
        data = to_local(data, pspecs=P(AXIS) if split_data else P())
        results = mapped(state, frozen, data, rows, steps, hyper)
        return multihost_utils.host_local_array_to_global_array(results, mesh, P())

    return run
