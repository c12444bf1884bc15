"""One training step of one device, written once in SPMD style over the axis "data"."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Num, Shaped
from ml_collections import ConfigDict

from mlclip_jax.distributed.data_parallel import sum_over_devices
from mlclip_jax.distributed.sharding import AXIS
from mlclip_jax.losses import COUPLED, LOSSES
from mlclip_jax.nnx_boundary import merge_module
from mlclip_jax.threefry import make_key

# `loss(logits, labels) -> (sum, count)`; and of one device: `step(state, frozen, batch, step, hyper)`, or a
# chunk of steps, gives the new state and metrics.
LossSum = Callable[..., tuple[Shaped[Array, ""], Shaped[Array, ""]]]
Step = Callable[..., tuple[dict, dict]]


def make_loss(settings: Mapping | ConfigDict) -> LossSum:
    """The loss of a recipe, of one device's share of the batch: `loss(logits, labels) -> (sum, count)`.

    Args:
      settings: its `loss`: a mapping of `name`, one of `losses.LOSSES`, and its constants.
    """
    sum_and_count = sum_and_count_of(settings)
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


def sum_and_count_of(settings: Mapping | ConfigDict) -> LossSum:
    """The `sum_and_count` of a recipe's loss, with its constants; see `losses`."""
    own = {key: value for key, value in settings.items() if key != "name"}
    return functools.partial(LOSSES[settings["name"]].sum_and_count, **own)


# Keys of a config that are arguments of the step, see `hyper_of`.
ARGUMENTS = ("seed", "optimizer.learning_rate", "optimizer.weight_decay")
ARGUMENTS += ("perturbation.radius", "perturbation.image_radius")


def hyper_of(config: ConfigDict) -> dict[str, Num[np.generic, ""]]:
    """What runs of one recipe may vary: numbers, which are an argument of the step.

    So one program trains with any of them, and under `jax.vmap` with many of them at once.

    Returns:
      A dict of `seed` (uint32), from which noise and dropout follow, and of `learning_rate` (the peak),
      `weight_decay` and, where there is perturbation, `radius` and `image_radius` (float32).
    """
    hyper = {
        "seed": np.uint32(config.seed),
        "learning_rate": np.float32(config.optimizer.learning_rate),
        "weight_decay": np.float32(config.optimizer.weight_decay),
    }
    if "perturbation" in config:
        hyper["radius"] = np.float32(config.perturbation.radius)
        hyper["image_radius"] = np.float32(config.perturbation.image_radius)
    return hyper


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: Callable[[Mapping], optax.GradientTransformation],
    loss_sum: LossSum,
    perturb: Callable,
    *,
    skip_nonfinite: bool = False,
    fuse_allreduce: bool = True,
) -> Step:
    """The training step of one device: `train_step(state, frozen, batch, step, hyper) -> (state, metrics)`.

    Written for any number of devices: `batch` is one device's share of the global batch: features by name,
    `labels`, and `is_text`, which rows are texts. Sums over examples run over the axis `"data"`. Noise and
    dropout of an example depend on the seed, the step and its position in the global batch alone, so the
    number of devices changes nothing.

    Args:
      graph: the method's `nnx.GraphDef`.
      optimizer: from `make_optimizer`.
      loss_sum: from `make_loss`.
      perturb: from `make_perturbation`.
      skip_nonfinite, fuse_allreduce: see `apply_gradients`.
    """

    def train_step(state, frozen, batch, step, hyper):
        labels = batch["labels"]
        positions = jax.lax.axis_index(AXIS) * len(labels) + jnp.arange(len(labels))
        key = jax.random.fold_in(make_key(hyper["seed"]), step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
        noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        perturbed = perturb(noise_keys, batch, hyper)
        features = {name: rows for name, rows in perturbed.items() if name not in ("labels", "is_text")}

        def loss(parameters):
            method = merge_module(graph, parameters, frozen)
            return loss_sum(method(features, dropout_keys), labels)

        sums, gradient = jax.value_and_grad(loss, has_aux=True)(state["parameters"])
        how = {"skip_nonfinite": skip_nonfinite, "fuse_allreduce": fuse_allreduce}
        return apply_gradients(optimizer(hyper), state, *sums, gradient, **how)

    return train_step


def make_chunk(train_step: Step) -> Step:
    """Many steps in one program: `chunk(state, frozen, data, indices, steps, hyper)`, for one device.

    `data` are all examples, `indices` (S, B / devices) those of each step, `steps` (S,) the steps' numbers;
    metrics come back with a leading S.
    """

    def chunk(state, frozen, data, indices, steps, hyper):
        def body(state, rows_and_step):
            rows, step = rows_and_step
            return train_step(state, frozen, jax.tree.map(lambda array: array[rows], data), step, hyper)

        return jax.lax.scan(body, state, (indices, steps))

    return chunk


def initial_state(parameters: dict, optimizer: optax.GradientTransformation) -> dict:
    """What a run trains and saves: dict of `parameters`, the `optimizer`'s state, and what was `skipped`."""
    with jax.numpy_dtype_promotion("standard"):
        return {
            "parameters": parameters,
            "optimizer": optimizer.init(parameters),
            "skipped": {"steps": np.zeros((), np.int32)},
        }


def apply_gradients(
    optimizer: optax.GradientTransformation,
    state: dict,
    total: Float[Array, ""],
    count: Float[Array, ""],
    gradient: dict,
    *,
    skip_nonfinite: bool = False,
    fuse_allreduce: bool = True,
) -> tuple[dict, dict[str, Shaped[Array, ""]]]:
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
