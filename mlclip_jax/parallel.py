"""Devices, and the two ways in which one per-device function runs on all of them."""

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
MODES = ("shard_map", "pmap")


def make_mesh(devices=None):
    """A one-dimensional mesh over `devices` (all by default), with the axis `"data"`."""
    devices = jax.devices() if devices is None else devices
    # Explicit axes, JAX's default, reject gathers by sharded indices, and bring data parallelism nothing.
    return jax.make_mesh((len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh):
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def split_widest(mesh, array):
    """The sharding of an array that is split along the largest of the dimensions that the devices divide."""
    sizes = [(size, axis) for axis, size in enumerate(array.shape) if size % mesh.size == 0]
    if not sizes:
        return NamedSharding(mesh, P())
    _, axis = max(sizes)
    return NamedSharding(mesh, P(*[None] * axis, AXIS))


def split_rows(mesh):
    """The sharding of an array whose first dimension is split over the devices."""
    return NamedSharding(mesh, P(AXIS))


def data_parallel(chunk, mode, mesh):
    """Runs a per-device chunk of training steps on every device of a mesh.

    Args:
      chunk: `chunk(state, frozen, data, indices, steps) -> (state, metrics)`, written for one device: its
        `indices` are (S, B / devices), and it reduces over the axis `"data"` itself.
      mode: `"shard_map"` (under `jit`, the form JAX recommends) or `"pmap"`. Both give the same results.
      mesh: from `make_mesh`.

    Returns:
      A compiled function of the same arguments with `indices` (S, B). State, frozen, data and steps are
      replicated; `state` is donated.
    """
    if mode == "pmap":
        mapped = jax.pmap(
            chunk,
            axis_name=AXIS,
            in_axes=(None, None, None, 1, None),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=0,
        )

        def run(state, frozen, data, indices, steps):
            return mapped(state, frozen, data, indices.reshape(len(indices), mesh.size, -1), steps)

        return run
    mapped = jax.shard_map(
        chunk,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(None, AXIS), P()),
        out_specs=P(),
        # With the check, the gradient of a replicated parameter arrives already summed over devices, and
        # the sum in the step would count every device twice; without it both modes mean the same.
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)
