"""One training step of one device, written once in SPMD style over the axis "data"."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlclip_jax.distributed.data_parallel import sum_over_devices
from mlclip_jax.distributed.sharding import AXIS
from mlclip_jax.losses import COUPLED, LOSSES
from mlclip_jax.nnx_boundary import merge_module
from mlclip_jax.perturbation import perturb


def make_loss(settings):
    """The loss of a recipe, of one device's share of the batch: `loss(logits, labels) -> (sum, count)`.

    Args:
      settings: its `loss`: a mapping of `name`, one of `losses.LOSSES`, and its constants.
    """
    sum_and_count = _sum_and_count(settings)
    if settings["name"] not in COUPLED:
        return sum_and_count

    def gathered(logits, labels):
        devices = jax.lax.axis_size(AXIS)
        if devices > 1:
            logits, labels = jax.lax.all_gather((logits, labels), AXIS, tiled=True)
        total, count = sum_and_count(logits, labels)
        # Every device computes all of it, so each answers for its share.
        return total / devices, count / devices

    return gathered


def _sum_and_count(settings):
    own = {key: value for key, value in settings.items() if key != "name"}
    return functools.partial(LOSSES[settings["name"]].sum_and_count, **own)


def make_train_step(
    graph, optimizer, loss_sum, perturbation, key, *, skip_nonfinite=False, fuse_allreduce=True
):
    """The training step of one device: `train_step(state, frozen, batch, step) -> (state, metrics)`.

    Written for any number of devices: `batch` is one device's share of the global batch, and sums over
    examples run over the axis `"data"`. Noise and dropout of an example depend on the key, the step and its
    position in the global batch alone, so the number of devices changes nothing.

    Args:
      graph: the adapter's `nnx.GraphDef`.
      optimizer: an `optax.GradientTransformation`.
      loss_sum: from `make_loss`.
      perturbation: `radius` and `sampling`; see `perturbation.perturb`.
      key: the run's typed PRNG key.
      skip_nonfinite, fuse_allreduce: see `apply_gradients`.
    """

    def perturb_one(key, embedding):
        return perturb(key, embedding, perturbation.radius, perturbation.sampling)

    def train_step(state, frozen, batch, step):
        size = len(batch["labels"])
        positions = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), positions)
        noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        embeddings = jax.vmap(perturb_one)(noise_keys, batch["embeddings"])

        def loss(parameters):
            adapter = merge_module(graph, parameters, frozen)
            return loss_sum(adapter(embeddings, batch.get("local"), dropout_keys), batch["labels"])

        sums, gradient = jax.value_and_grad(loss, has_aux=True)(state["parameters"])
        return apply_gradients(
            optimizer, state, *sums, gradient, skip_nonfinite=skip_nonfinite, fuse_allreduce=fuse_allreduce
        )

    return train_step


def make_chunk(train_step):
    """Many steps in one program: `chunk(state, frozen, data, indices, steps)`, for one device.

    `data` are all examples, `indices` (S, B / devices) those of each step, `steps` (S,) the steps' numbers;
    metrics come back with a leading S.
    """

    def chunk(state, frozen, data, indices, steps):
        def body(state, rows_and_step):
            rows, step = rows_and_step
            return train_step(state, frozen, jax.tree.map(lambda array: array[rows], data), step)

        return jax.lax.scan(body, state, (indices, steps))

    return chunk


def initial_state(parameters, optimizer):
    """What a run trains and saves: dict of `parameters`, the `optimizer`'s state, and what was `skipped`."""
    with jax.numpy_dtype_promotion("standard"):
        return {
            "parameters": parameters,
            "optimizer": optimizer.init(parameters),
            "skipped": {"steps": np.zeros((), np.int32)},
        }


def apply_gradients(optimizer, state, total, count, gradient, *, skip_nonfinite=False, fuse_allreduce=True):
    """The end of a training step: what one device found out, summed over all, moves the parameters.

    Args:
      optimizer: an `optax.GradientTransformation`.
      state: from `initial_state`.
      total: this device's sum of losses, a scalar.
      count: what the sum is to be divided by, once both are summed over devices.
      gradient: of `total`.
      skip_nonfinite: whether a step whose loss or gradient is not finite leaves the state as it was.
      fuse_allreduce: see `data_parallel.sum_over_devices`.

    Returns:
      The new state, and the metrics: the mean `loss`, whether it and the gradient are `finite`, and how many
      steps of the run were not (`skipped`).
    """
    # Sums first, then one division: devices may know different numbers of labels.
    total, count, gradient = sum_over_devices((total, count, gradient), fuse_allreduce)
    count = jnp.maximum(count, 1)
    gradient = jax.tree.map(lambda g: g / count, gradient)
    finite = jnp.isfinite(total)
    for array in jax.tree.leaves(gradient):
        finite &= jnp.isfinite(array).all()
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes; all else here runs strictly
        updates, optimizer_state = optimizer.update(gradient, state["optimizer"], state["parameters"])
    moved = {"parameters": optax.apply_updates(state["parameters"], updates), "optimizer": optimizer_state}
    if skip_nonfinite:
        moved = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), moved, {k: state[k] for k in moved}
        )
    skipped = state["skipped"]["steps"] + jnp.where(finite, 0, 1)
    metrics = {"loss": total / count, "finite": finite, "skipped": skipped}
    return moved | {"skipped": {"steps": skipped}}, metrics
