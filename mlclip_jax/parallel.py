"""Devices, processes, and the two ways in which one per-device function runs on all of them."""

import contextlib
import functools
import hashlib
import json
import os
import secrets
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlclip_jax import progress
from mlclip_jax.errors import InputError
from mlclip_jax.files import locked

AXIS = "data"
LABEL_AXIS = "labels"
MODES = ("shard_map", "pmap")
WEEK = 7 * 24 * 3600
PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")


def define_process_flags(values):
    flags.DEFINE_boolean(
        "multihost",
        False,
        "be one of several processes, as TPU pods, SLURM, Kubernetes and MPI tell",
        flag_values=values,
    )
    flags.DEFINE_string("coordinator", None, "or as told here: HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many there are", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "process_id", None, "which of them this is, from 0", lower_bound=0, flag_values=values
    )


def start_processes(values, *, independent=False):
    """Makes this process one of several, if the flags of `define_process_flags` say so.

    Comes before any use of a device. Only the first process prints results and progress; all print errors.

    Args:
      values: the parsed flags.
      independent: whether the processes work without another, and may end at quite different times.

    Raises:
      InputError: the flags do not belong together, or no cluster is found.
      SystemExit: the others cannot be reached.
    """
    given = {name: getattr(values, name) for name in PROCESS_FLAGS if getattr(values, name) is not None}
    if not given and not values.multihost:
        return
    if given and values.multihost:
        raise InputError(f"give either --multihost or --{', --'.join(PROCESS_FLAGS)}")
    if given and len(given) < len(PROCESS_FLAGS):
        missing = [f"--{name}" for name in PROCESS_FLAGS if name not in given]
        raise InputError(f"{', '.join(missing)} missing beside --{', --'.join(given)}")
    if given and ":" not in given["coordinator"]:
        raise InputError(f"--coordinator={given['coordinator']} lacks a port: give HOST:PORT")
    if given and given["process_id"] >= given["num_processes"]:
        raise InputError(
            f"--process_id={given['process_id']} cannot be: of {given['num_processes']} processes "
            f"the last is {given['num_processes'] - 1}"
        )
    how = {"shutdown_timeout_seconds": WEEK} if independent else {}
    if given:
        names = {"coordinator": "coordinator_address"}
        how |= {names.get(name, name): value for name, value in given.items()}
        how["cluster_detection_method"] = "deactivate"
    # JAX would take SIGTERM for itself from now on; it is asked to when the steps begin.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**how)
    except ValueError as error:
        if given:
            raise InputError(f"--coordinator={values.coordinator}: {' '.join(str(error).split())}") from error
        raise InputError(
            f"--multihost found no TPU pod, SLURM, Kubernetes or MPI here ({' '.join(str(error).split())}); "
            "give --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    except RuntimeError as error:  # which may pass: no mistake of the user's, and worth a restart
        raise SystemExit(f"cannot join the other processes: {' '.join(str(error).split())}") from error
    if not is_first():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
        progress.silence()


def is_first():
    """Whether this process is the one that prints and writes files for all of them."""
    return jax.process_index() == 0


def make_mesh(devices=None, label_shards=1):
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


def describe_mesh(mesh, batch_size):
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


@contextlib.contextmanager
def all_or_none():
    """What fails in this block on one process fails on all, so that none waits for another for ever.

    Every process must come here. Such blocks may be nested; nothing else within them may wait for the others.

    Raises:
      InputError: the block failed on another process.
    """
    try:
        yield
    except _Announced:
        raise
    except Exception as error:
        if not getattr(error, "announced", False):
            everywhere(False)
            error.announced = True
        raise
    if not everywhere(True):
        raise _Announced("another process could not go on; its own message says why")


class _Announced(InputError):
    """All processes know of this failure already."""

    announced = True


def check_shared(folder):
    """Refuses a folder that not all processes see, as each has one of that name on its own disk.

    Raises:
      InputError: it is none of those that the first process writes in.
    """
    token = str(agreed(np.uint32(secrets.randbits(32))))
    sign = Path(folder) / f".shared.{token}"
    with all_or_none():
        if is_first():
            sign.touch()
    try:
        with all_or_none():
            if not sign.exists():
                raise InputError(
                    f"{folder} is not the folder that process 0 sees; name one on storage that all share"
                )
    finally:
        if is_first():
            sign.unlink()


def check_alike(*content):
    """Refuses processes of one run that were given different configs or data.

    Args:
      content: what describes these; anything that JSON can hold.

    Raises:
      InputError: this process, or another, has other content than the first.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    own = np.frombuffer(digest, np.uint8)
    first = np.asarray(agreed(own))
    with all_or_none():
        if not np.array_equal(own, first):
            raise InputError(
                f"process {jax.process_index()} has another config, or finds other data under the same "
                "names, than process 0; give all the same"
            )


@contextlib.contextmanager
def held_by_this_run(folder):
    """`files.locked` for all processes of this run: the first holds the folder.

    Raises:
      InputError: another run holds it.
    """
    with contextlib.ExitStack() as held:
        with all_or_none():
            if is_first():
                held.enter_context(locked(folder))
        yield


def everywhere(holds):
    """Whether something holds on every process; all of them must ask."""
    if jax.process_count() == 1:
        return bool(holds)
    return bool(multihost_utils.process_allgather(np.array(holds)).all())


def agreed(value):
    """The first process's `value`, an array or number, on every process."""
    return multihost_utils.broadcast_one_to_all(value) if jax.process_count() > 1 else value


def replicated(mesh):
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def split_widest(mesh, array):
    """The sharding of an array that is split along the largest of the dimensions that the devices divide."""
    sizes = [(size, axis) for axis, size in enumerate(array.shape) if size % mesh.size == 0]
    if not sizes:
        return NamedSharding(mesh, P())
    _, axis = max(sizes)
    return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names))


def split_rows(mesh, labels_axis=None):
    """The sharding of an array whose first dimension is split over the devices, each with rows of its own.

    A later one, `labels_axis`, may go over the labels, and be split as they are.
    """
    if labels_axis is None:
        return NamedSharding(mesh, P(AXIS))
    return NamedSharding(mesh, P(AXIS, *[None] * (labels_axis - 1), LABEL_AXIS))


def split_labels(mesh, axis):
    """The sharding of an array whose dimension `axis` goes over the labels, and is split as they are."""
    return NamedSharding(mesh, P(*[None] * axis, LABEL_AXIS))


def split_by_labels(mesh, tree, label_axes):
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


def place(tree, shardings):
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


def place_shares(tree, size, mesh):
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


def local_copy(tree, mesh):
    """Arrays that lie on the devices of all processes, whole on the first of this process's own.

    Every process must call this, as it may have to ask the others.
    """
    if not all(array.is_fully_replicated for array in jax.tree.leaves(tree)):
        tree = _gathering(mesh)(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


@functools.cache
def _gathering(mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def own_rows(number, multiple):
    """Which of `number` rows are this process's: a slice, whose length is a multiple but at the end."""
    start = jax.process_index() * _share(number, multiple)
    return slice(min(start, number), min(start + _share(number, multiple), number))


def _share(number, multiple):
    return -(-number // (multiple * jax.process_count())) * multiple


def gather_rows(rows, number, multiple):
    """All `number` rows, of which each process gives those that `own_rows` says, as a NumPy array."""
    if jax.process_count() == 1:
        return np.asarray(rows)
    padded = np.zeros((_share(number, multiple), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return multihost_utils.process_allgather(padded, tiled=True)[:number]


def sum_over_devices(tree, at_once=True):
    """`jax.lax.psum` of a tree of arrays over the axis `"data"`, of one device's step.

    Args:
      tree: of arrays.
      at_once: whether arrays may travel as one. XLA sends them so between accelerators, but not between
        processes of CPUs, where each message takes about a millisecond. Not for those split over labels too.
    """
    if jax.lax.axis_size(AXIS) == 1:  # where XLA has no sum for what is split over labels
        return tree
    if not at_once or jax.process_count() == 1 or jax.default_backend() != "cpu":
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


def data_parallel(chunk, mode, mesh, *, split_data=False, state_shardings=None):
    """Runs a per-device chunk of training steps on every device of a mesh, over all processes.

    Args:
      chunk: `chunk(state, frozen, data, indices, steps) -> (state, metrics)`, written for one device: its
        `indices` are (S, B / devices), and it reduces over the axis `"data"` itself. What is split over the
        labels the compiler takes care of.
      mode: `"shard_map"` (under `jit`, the form JAX recommends) or `"pmap"`, which splits no labels. Both
        give the same results.
      mesh: from `make_mesh`.
      split_data: whether each device has data of its own: a leading dimension over devices, that `chunk` does
        not see. Otherwise every device has all.
      state_shardings: of the state that comes back, where it is not replicated.

    Returns:
      A compiled function of the same arguments with `indices` (S, B), a NumPy array. The others but `steps`
      lie on the devices; `state` is donated.
    """
    if mode == "pmap":
        return _pmapped(chunk, mesh, split_data)

    def on_device(state, frozen, data, indices, steps):
        if split_data:
            data = jax.tree.map(lambda array: array[0], data)
        return chunk(state, frozen, data, indices, steps)

    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        axis_names={AXIS},
        in_specs=(P(), P(), P(AXIS) if split_data else P(), P(None, AXIS), P()),
        out_specs=P(),
        # With the check, the gradient of a replicated parameter arrives already summed over devices, and
        # the sum in the step would count every device twice; without it both modes mean the same.
        check_vma=False,
    )
    shardings = replicated(mesh) if state_shardings is None else state_shardings
    return jax.jit(mapped, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _pmapped(chunk, mesh, split_data):
    """`data_parallel` by `pmap`, which sees the arrays and rows of this process's devices alone."""
    mapped = jax.pmap(
        chunk,
        axis_name=AXIS,
        in_axes=(None, None, 0 if split_data else None, 1, None),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    mine = [place for place, device in enumerate(mesh.devices.flat) if device in set(jax.local_devices())]

    def run(state, frozen, data, indices, steps):
        rows = indices.reshape(len(indices), mesh.size, -1)[:, mine]
        if jax.process_count() == 1:
            return mapped(state, frozen, data, rows, steps)
        to_local = functools.partial(multihost_utils.global_array_to_host_local_array, global_mesh=mesh)
        state, frozen = to_local((state, frozen), pspecs=P())
        data = to_local(data, pspecs=P(AXIS) if split_data else P())
        results = mapped(state, frozen, data, rows, steps)
        return multihost_utils.host_local_array_to_global_array(results, mesh, P())

    return run
