"""Many runs in one program: one or several on each device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from mlclip_jax.distributed.data_parallel import PROGRAMS
from mlclip_jax.distributed.sharding import AXIS, make_mesh

RUNS = "runs"


def make_runs_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh whose axis `"runs"` goes over devices, by default of all processes; each has whole batches."""
    every = make_mesh(devices).devices.reshape(-1, 1)
    return Mesh(every, (RUNS, AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


@functools.lru_cache(maxsize=PROGRAMS)
def run_parallel(chunk: Callable[..., tuple[Any, Any]], mesh: Mesh) -> Callable[..., tuple[Any, Any]]:
    """Runs a chunk of training steps for R runs, R / devices on each device, side by side by `jax.vmap`.

    One run on a device is computed as it would be alone.

    Args:
      chunk: `chunk(state, frozen, data, indices, steps, hyper) -> (state, metrics)` of one run on one device.
      mesh: from `make_runs_mesh`.

    Returns:
      A compiled function of the same arguments and results, in which all but `data` and `steps` have a
      leading R. `state` is donated.
    """

    def on_device(state, frozen, data, indices, steps, hyper):
        runs = state, frozen, indices, hyper

        def run(own):
            own_state, own_frozen, own_indices, own_hyper = own
            return chunk(own_state, own_frozen, data, own_indices, steps, own_hyper)

        if len(indices) > 1:
            return jax.vmap(run)(runs)
        results = run(jax.tree.map(lambda array: array[0], runs))
        return jax.tree.map(lambda array: array[None], results)

    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P(RUNS), P(RUNS), P(), P(RUNS), P(), P(RUNS)),
        out_specs=P(RUNS),
        check_vma=False,  # as in `data_parallel`
    )
    return jax.jit(mapped, donate_argnums=0)
