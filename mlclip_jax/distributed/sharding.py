"""Meshes, and how arrays lie on their devices."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

AXIS = "data"
LABEL_AXIS = "labels"


def make_mesh(devices: Sequence[jax.Device] | None = None, label_shards: int = 1) -> Mesh:
    """A mesh over `devices` (all by default), with the axes `"data"` and `"labels"`.

    Args:
      devices: a list of them.
      label_shards: over how many of them the labels of an adapter are split.
    """
    if devices is None:  # each process's side by side, which `jax.make_mesh` does not promise on TPUs
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    # Explicit axes, JAX's default, reject gathers by sharded indices, and bring data parallelism nothing.
    return Mesh(
        np.array(devices).reshape(-1, label_shards),
        (AXIS, LABEL_AXIS),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def describe_mesh(mesh: Mesh, batch_size: int) -> str:
    """What a run runs on, in a line: devices, processes, mesh, global and per-device batch."""
    kind = mesh.devices.flat[0].device_kind
    shape = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
    processes = _counted(jax.process_count(), "process")
    return (
        f"{_counted(mesh.size, 'device')} ({kind}) in {processes}, mesh {shape}; "
        f"batch {batch_size}, {batch_size // mesh.shape[AXIS]} on each device"
    )


def _counted(number, noun):
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def split_widest(mesh: Mesh, array: Shaped[Array | np.ndarray, "..."]) -> NamedSharding:
    """The sharding of an array that is split along the largest of the dimensions that the devices divide."""
    sizes = [(size, axis) for axis, size in enumerate(array.shape) if size % mesh.size == 0]
    if not sizes:
        return NamedSharding(mesh, P())
    _, axis = max(sizes)
    return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names))


def split_rows(mesh: Mesh, labels_axis: int | None = None) -> NamedSharding:
    """The sharding of an array whose first dimension is split over the devices, each with rows of its own.

    A later one, `labels_axis`, may go over the labels, and be split as they are.
    """
    if labels_axis is None:
        return NamedSharding(mesh, P(AXIS))
    return NamedSharding(mesh, P(AXIS, *[None] * (labels_axis - 1), LABEL_AXIS))


def split_labels(mesh: Mesh, axis: int) -> NamedSharding:
    """The sharding of an array whose dimension `axis` goes over the labels, and is split as they are."""
    return NamedSharding(mesh, P(*[None] * axis, LABEL_AXIS))


def split_by_labels(mesh: Mesh, tree: dict, label_axes: Mapping[str, int]) -> dict:
    """The shardings of a nested dict of arrays: those that go over the labels are split as these are.

    Args:
      mesh: from `make_mesh`.
      tree: of arrays.
      label_axes: dict from an array's path, such as `"linear.kernel"`, to its dimension over labels. Where
        this cannot be divided by the mesh's axis `"labels"`, the array is replicated.
    """

    def sharding_of(path, array):
        axis = label_axes.get(jax.tree_util.keystr(path, simple=True, separator="."))
        if axis is None or array.shape[axis] % mesh.shape[LABEL_AXIS]:
            return replicated(mesh)
        return split_labels(mesh, axis)

    return jax.tree.map_with_path(sharding_of, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays of the host on the devices of all processes.

    Args:
      tree: of arrays, the same on every process.
      shardings: one for all of them, or a tree of one for each.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def place_one(array, sharding):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place_one, tree, shardings)


def place_shares(tree: Any, size: int, mesh: Mesh) -> Any:
    """What `data_parallel` takes as `data` with `split_data`, of arrays of which each process gives its part.

    Args:
      tree: of arrays (B / processes, ...).
      size: of each device's share, B / devices.
      mesh: from `make_mesh`.
    """

    def place_one(array):
        own = array.reshape(len(array) // size, size, *array.shape[1:])
        whole = (mesh.shape[AXIS], *own.shape[1:])
        return jax.make_array_from_process_local_data(split_rows(mesh), own, whole)

    return jax.tree.map(place_one, tree)


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Arrays that lie on the devices of all processes, whole on the first of this process's own.

    Every process must call this, as it may have to ask the others.
    """
    if not all(array.is_fully_replicated for array in jax.tree.leaves(tree)):
        tree = _gathering(mesh)(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


@functools.cache
def _gathering(mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def own_rows(number: int, multiple: int) -> slice:
    """Which of `number` rows are this process's: a slice, whose length is a multiple but at the end."""
    start = jax.process_index() * _share(number, multiple)
    return slice(min(start, number), min(start + _share(number, multiple), number))


def _share(number, multiple):
    return -(-number // (multiple * jax.process_count())) * multiple


def gather_rows(rows: Shaped[np.ndarray, "M ..."], number: int, multiple: int) -> Shaped[np.ndarray, "N ..."]:
    """All `number` rows, of which each process gives those that `own_rows` says, as a NumPy array."""
    if jax.process_count() == 1:
        return np.asarray(rows)
    padded = np.zeros((_share(number, multiple), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return multihost_utils.process_allgather(padded, tiled=True)[:number]
