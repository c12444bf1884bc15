"""Trains an adapter by a recipe.

Read from top to bottom: what is trained on, one step, the loop. Started again in the same folder, a run
resumes from its newest checkpoint, to the result that it would have had undisturbed.
"""

import copy
import functools
import json
import os
from collections.abc import Callable, Mapping

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int8
from ml_collections import ConfigDict

from mlclip_jax import calibration, methods, perturbation, recipes
from mlclip_jax.comparison import describe_comparison
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.processes import (
    all_or_none,
    check_alike,
    held_by_this_run,
    is_first,
)
from mlclip_jax.distributed.sharding import (
    LABEL_AXIS,
    describe_mesh,
    local_copy,
    make_mesh,
    place,
    replicated,
    split_by_labels,
)
from mlclip_jax.embeddings.store import write_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.evaluation import evaluate
from mlclip_jax.losses import LOSSES, RANGES, UNCALIBRATED, constants
from mlclip_jax.metrics import decision_figures, mean_average_precision
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.perturbation import make_perturbation
from mlclip_jax.progress import note
from mlclip_jax.ranges import AT_LEAST_1, FRACTION
from mlclip_jax.runs import (
    random_buffers,
    read_random_buffers,
    read_run,
    write_random_buffers,
    write_trained_on,
)
from mlclip_jax.scoring import score_images
from mlclip_jax.training import optimizers
from mlclip_jax.training.checkpoints import METRIC, Checkpoints, has_checkpoints
from mlclip_jax.training.examples import digest_of
from mlclip_jax.training.inputs import begin_from, read_data
from mlclip_jax.training.loop import (
    BEST_BY,
    is_finished,
    make_run_chunk,
    next_boundary,
    open_workdir,
    resume,
    run_conditions,
    run_steps,
)
from mlclip_jax.training.step import (
    hyper_of,
    initial_state,
    make_chunk,
    make_loss,
    make_train_step,
    sum_and_count_of,
)


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    score: bool = True,
    report: Callable[[str], object] | None = None,
) -> dict:
    """Trains to the end, resuming from the newest checkpoint in `workdir`; then scores.

    Leaves in `workdir` the resolved `config.json`, `classes.npz` (the labels and their embeddings),
    `metrics.jsonl`, the checkpoints, and `evaluation.json` where the config names images to score.

    Args:
      config: a recipe's `ml_collections.ConfigDict`.
      workdir: folder of this run alone.
      score: whether to score the images that the config's `evaluation` names, at the end.
      report: called with what a command prints at the end, as `print`.

    Returns:
      The trained parameters, a nested dict of arrays.

    Raises:
      InputError: the recipe, what it names, or the folder cannot be used.
    """
    config = with_loss_constants(config)
    check(config, jax.device_count())
    mesh = make_mesh(label_shards=config.train.label_shards)
    workdir = open_workdir(workdir, config, MAY_CHANGE)
    note(describe_mesh(mesh, config.train.batch_size))
    with all_or_none():
        class_embeddings, examples, images = read_data(config, workdir)
    config = optimizers.with_steps(config, len(examples))

    method = methods.find(config.method)
    module = method.make(class_embeddings.vectors, rngs=nnx.Rngs(config.seed))
    graph, parameters, frozen = split_trainable(module, method.trainable)
    buffers, init = random_buffers(frozen), ""
    with all_or_none():
        if config.init:
            parameters, buffers, init = begin_from(config.init, parameters, class_embeddings)
        if has_checkpoints(workdir / "checkpoints"):  # which belong to the buffers of that time
            buffers = read_random_buffers(workdir)
    frozen |= buffers
    learnt = "" if examples.images is None else digest_of(examples.images)
    origin = class_embeddings.origin.replace(examples=learnt, init=init)
    described = json.loads(config.to_json())
    check_alike(described, origin.to_dict())
    optimizers.check_groups(config, parameters)
    optimizer, hyper = optimizers.make_optimizer(config), hyper_of(config)
    state = initial_state(parameters, optimizer(hyper))
    state_shardings = shardings_of(state, module.label_axes(), optimizer(hyper), mesh)
    frozen_on_device = place(frozen, split_by_labels(mesh, frozen, module.label_axes()))

    step_function = make_train_step(
        graph,
        optimizer,
        make_loss(config.loss),
        make_perturbation(config.perturbation),
        skip_nonfinite=config.train.max_skipped_steps > 0,
        fuse_allreduce=config.train.label_shards == 1,
    )

    def compiled(split_data):
        run = data_parallel(
            make_chunk(step_function),
            config.train.parallel,
            mesh,
            split_data=split_data,
            state_shardings=state_shardings,
        )
        # The backbone's work is in the data already; what is frozen are the class embeddings and the like.
        return lambda state, data, indices, steps: run(state, frozen_on_device, data, indices, steps, hyper)

    def indices_of(first, end):
        size = config.train.batch_size
        return np.stack([examples.indices(config.seed, t, size) for t in range(first, end)])

    end_after = functools.partial(next_boundary, train=config.train)
    run_chunk = make_run_chunk(compiled, examples.data, indices_of, end_after, mesh)

    def evaluate_on(images, state):
        own = local_copy((state["parameters"], frozen_on_device), mesh)
        scores = score_images(graph, *own, images.only(method.reads))
        return figures_on_the_way(config, scores, np.asarray(images.labels))

    def names_of(t):
        return examples.suspects(indices_of(t, t + 1)[0])

    scored_on = None
    if images is not None and config.train.evaluate_every:
        scored_on = f"{digest_of(images)} by {config.train.best_by}"
    with (
        held_by_this_run(workdir),
        Checkpoints(workdir / "checkpoints", origin, config=described, scored_on=scored_on) as checkpoints,
    ):
        step, state = resume(checkpoints, state, config.train, state_shardings)
        with all_or_none():
            if is_first():
                write_random_buffers(workdir, buffers)
                recipes.write_config(workdir, config)
                if examples.images is not None:
                    write_trained_on(workdir, examples.images)
                if not is_finished(config.train, checkpoints.best, step):
                    # A calibration was fitted to parameters that are about to change.
                    (workdir / calibration.FILE).unlink(missing_ok=True)
                write_embeddings(workdir / "classes.npz", class_embeddings.replace(origin=origin))
        number = sum(x.size for x in jax.tree.leaves(parameters))
        note(f"{method.title}: {number:,} parameters, {method.settings.get('dtype', 'float32')}")
        if config.loss.name in UNCALIBRATED:
            note(f"{config.loss.name}: probabilities need `mlclip calibrate`")
        state = run_steps(
            run_chunk,
            state,
            step,
            config.train,
            checkpoints,
            workdir / "metrics.jsonl",
            None if images is None else functools.partial(evaluate_on, images),
            names_of,
        )
        last = checkpoints.latest_step
    report = report or (lambda _: None)
    report(f"{workdir}: trained {last} steps on {examples} about {len(class_embeddings)} labels")
    if images is not None and score:
        report(describe_comparison(*evaluate([read_run(workdir)], images)))
    return state["parameters"]


def figures_on_the_way(
    config: ConfigDict, scores: Float[np.ndarray, "N K"], labels: Int8[np.ndarray, "N K"]
) -> dict[str, float]:
    """What is measured of scores (N, K) on the way: mAP, and what the best checkpoint is chosen by."""
    figures = {METRIC: 100 * float(mean_average_precision(scores, labels)[0])}
    name, _ = BEST_BY[config.train.best_by]
    if config.train.best_by == "micro_f1":
        figures[name] = 100 * float(decision_figures(scores >= 0, labels)["OF1"])
    elif config.train.best_by == "loss":
        total, count = sum_and_count_of(config.loss)(scores, labels)
        figures[name] = float(total / np.maximum(count, 1))
    return figures


def shardings_of(
    state: dict, label_axes: Mapping[str, int], optimizer: optax.GradientTransformation, mesh: Mesh
) -> dict:
    """The shardings of a run's state: what goes over the labels is split as `train.label_shards` says.

    Raises:
      InputError: the labels, or an adapter's groups of them, cannot be split into so many parts.
    """
    parameters = split_by_labels(mesh, state["parameters"], label_axes)
    shards = mesh.shape[LABEL_AXIS]
    for path, array in recipes.flat_config(state["parameters"]).items():
        axis = label_axes.get(path)
        if axis is not None and array.ndim > 1 and array.shape[axis] % shards:
            raise InputError(
                f"--config.train.label_shards={shards} does not divide the {array.shape[axis]} labels, or "
                f"groups of labels, of {path}; give a divisor of it"
            )
    return {
        "parameters": parameters,
        "optimizer": optax.tree.map_params(
            optimizer,
            lambda _, sharding: sharding,
            state["optimizer"],
            parameters,
            transform_non_params=lambda _: replicated(mesh),
        ),
        "skipped": {"steps": replicated(mesh)},
    }


def with_loss_constants(config: ConfigDict) -> ConfigDict:
    """A recipe, with its source's constants where the loss leaves them out or empty.

    Raises:
      InputError: there is no such loss, or it has no such constant.
    """
    config = copy.deepcopy(config)
    name = config.loss.get("name") if isinstance(config.get("loss"), ConfigDict) else None
    if name not in LOSSES:
        raise InputError(f"the recipe's loss.name must be one of {', '.join(LOSSES)}")
    own = constants(name)
    given = {key: value for key, value in config.loss.items() if key != "name" and value != ""}
    for key in given.keys() - own.keys():
        raise InputError(
            f"loss {name} has no {key}; it has {', '.join(own)} (to change a recipe's loss with its "
            f"constants, name it after the variant: --config=RECIPE:VARIANT,loss={name})"
        )
    config.loss = ConfigDict({"name": name} | own | given)
    return config


# What does not change the result; for paths, fingerprints tell whether what they lead to is the same.
MAY_CHANGE = (
    "recipe",
    "init",
    "evaluation.",
    "examples.",
    "max_skipped",
    "backbone",
    "encoding.shard_parameters",
    "texts.class_embeddings",
    "texts.labels",
    "train.parallel",
    "train.label_shards",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.max_skipped_steps",
    "train.stall_seconds",
)


def check(config: ConfigDict, num_devices: int) -> None:
    """Refuses what could only fail later, or silently mean something else; whoever owns a key says what fits.

    Args:
      config: of a recipe, with the loss's constants.
      num_devices: of all processes.

    Raises:
      InputError: a key is missing, unknown or left open, or a value is outside its range.
    """
    expected = recipes.schema(config)
    expected.loss = recipes.loss(config.loss.name)
    if not isinstance(config.get("method"), ConfigDict):
        raise InputError("the recipe has no method: it needs config.method.name")
    method = methods.find(config.method)
    conditions: dict[str, tuple[Callable, str]] = {
        "max_skipped": FRACTION,
        "texts.number": AT_LEAST_1,
        "texts.max_labels": AT_LEAST_1,
        "texts.share": FRACTION,
    }
    for part, ranges in (
        ("method", method.ranges),
        ("loss", RANGES),
        ("perturbation", perturbation.ranges(method.reads)),
    ):
        conditions |= {f"{part}.{name}": condition for name, condition in ranges.items()}
    conditions |= optimizers.RANGES
    required = ("backbone", "texts.class_embeddings")
    conditions |= run_conditions(config.get("train", {}), num_devices)
    recipes.check(config, expected, required, conditions)
    try:
        sum_and_count_of(config.loss)(np.zeros((1, 2), np.float32), np.array([[1, 0]], np.int8))
    except ValueError as error:
        raise InputError(f"loss {config.loss.name}: {error}") from error
