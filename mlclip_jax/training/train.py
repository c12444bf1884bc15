"""Trains an adapter by a recipe.

Read from top to bottom: what is trained on, one step, the loop. Started again in the same folder, a run
resumes from its newest checkpoint, to the result that it would have had undisturbed.
"""

import functools
import os
from collections.abc import Callable, Mapping

import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int8
from ml_collections import ConfigDict

from mlclip_jax.comparison import describe_comparison
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.processes import held_by_this_run
from mlclip_jax.distributed.sharding import (
    LABEL_AXIS,
    describe_mesh,
    local_copy,
    make_mesh,
    place,
    replicated,
    split_by_labels,
)
from mlclip_jax.errors import InputError
from mlclip_jax.evaluation import evaluate
from mlclip_jax.metrics import decision_figures, mean_average_precision
from mlclip_jax.progress import note
from mlclip_jax.recipes import flat_config
from mlclip_jax.runs import read_run
from mlclip_jax.scoring import score_images
from mlclip_jax.training import optimizers
from mlclip_jax.training.checkpoints import METRIC, Checkpoints
from mlclip_jax.training.examples import digest_of
from mlclip_jax.training.loop import (
    BEST_BY,
    is_finished,
    make_run_chunk,
    next_boundary,
    resume,
    run_steps,
)
from mlclip_jax.training.preparation import Prepared, prepare
from mlclip_jax.training.step import sum_and_count_of


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
    return train_prepared(prepare(config, workdir), score=score, report=report)


def train_prepared(
    run: Prepared, *, score: bool = True, report: Callable[[str], object] | None = None
) -> dict:
    """The same for a run that `preparation.prepare` made ready."""
    config, workdir, examples, images = run.config, run.workdir, run.examples, run.images
    mesh = make_mesh(label_shards=config.train.label_shards)
    note(describe_mesh(mesh, config.train.batch_size))
    optimizer = optimizers.make_optimizer(config)(run.hyper)
    state_shardings = shardings_of(run.state, run.label_axes, optimizer, mesh)
    frozen_on_device = place(run.frozen, split_by_labels(mesh, run.frozen, run.label_axes))
    chunk = run.chunk()

    def compiled(split_data):
        parallel = data_parallel(
            chunk, config.train.parallel, mesh, split_data=split_data, state_shardings=state_shardings
        )
        # The backbone's work is in the data already; what is frozen are the class embeddings and the like.
        return lambda state, *inputs: parallel(state, frozen_on_device, *inputs, run.hyper)

    end_after = functools.partial(next_boundary, train=config.train)
    run_chunk = make_run_chunk(compiled, examples.data, run.indices, end_after, mesh)

    def evaluate_on(images, state):
        own = local_copy((state["parameters"], frozen_on_device), mesh)
        scores = score_images(run.graph, *own, images.only(run.method.reads))
        return figures_on_the_way(config, scores, np.asarray(images.labels))

    def names_of(t):
        return examples.suspects(run.indices(t, t + 1)[0])

    scored_on = None
    if images is not None and config.train.evaluate_every:
        scored_on = f"{digest_of(images)} by {config.train.best_by}"
    folder = workdir / "checkpoints"
    with (
        held_by_this_run(workdir),
        Checkpoints(folder, run.origin, config=run.described, scored_on=scored_on) as checkpoints,
    ):
        step, state = resume(checkpoints, run.state, config.train, state_shardings)
        run.write(finished=is_finished(config.train, checkpoints.best, step))
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
    report(f"{workdir}: trained {last} steps on {examples} about {len(run.class_embeddings)} labels")
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
    for path, array in flat_config(state["parameters"]).items():
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
