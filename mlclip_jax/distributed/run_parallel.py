"""Many runs in one program: several on each device, side by side or one after the other."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from mlclip_jax.distributed.sharding import AXIS, make_mesh

RUNS = "runs"


def make_runs_mesh() -> Mesh:
    """A mesh whose axis `"runs"` goes over the devices of all processes, each of which has whole batches."""
    devices = make_mesh().devices.reshape(-1, 1)
    return Mesh(devices, (RUNS, AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def run_parallel(
    chunk: Callable[..., tuple[Any, Any]], mesh: Mesh, *, side_by_side: bool
) -> Callable[..., tuple[Any, Any]]:
    """Runs a chunk of training steps for R runs, R / devices on each device.

    Args:
      chunk: `chunk(state, frozen, data, indices, steps, hyper) -> (state, metrics)` of one run on one device.
      mesh: from `make_runs_mesh`.
      side_by_side: whether a device computes its runs in one go, by `jax.vmap`, which fills an accelerator;
        or one after the other, which suits a CPU: there one run fills the cores and its caches.

    Returns:
      A compiled function of the same arguments and results, in which all but `data` and `steps` have a
      leading R. `state` is donated.
    """

    def on_device(state, frozen, data, indices, steps, hyper):
        def run(own):
            own_state, own_frozen, own_indices, own_hyper = own
            return chunk(own_state, own_frozen, data, own_indices, steps, own_hyper)

        runs = state, frozen, indices, hyper
        return jax.vmap(run)(runs) if side_by_side else jax.lax.map(run, runs)

    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P(RUNS), P(RUNS), P(), P(RUNS), P(), P(RUNS)),
        out_specs=P(RUNS),
        check_vma=False,  # as in `data_parallel`
    )
    return jax.jit(mapped, donate_argnums=0)
