"""Trains an adapter by a recipe.

Read from top to bottom: what is trained on, one step, the loop. Started again in the same folder, a run
goes on from its newest checkpoint to the result it would have had undisturbed.
"""

import copy
import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from mlclip_jax import calibration, recipes
from mlclip_jax.adapters import ADAPTERS, TITLES, fc, layers, make_adapter, ml_decoder, mmm_mld, reads_local
from mlclip_jax.comparison import compare, print_comparison
from mlclip_jax.configs import ml_decoder as ml_decoder_recipe
from mlclip_jax.configs import mmm_clip, tai
from mlclip_jax.data.pipeline import batch_indices
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.processes import (
    all_or_none,
    check_alike,
    check_shared,
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
from mlclip_jax.embeddings.labelled import digest
from mlclip_jax.embeddings.store import write_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.files import make_folder
from mlclip_jax.losses import LOSSES, RANGES, UNCALIBRATED, constants
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.perturbation import LENGTHS
from mlclip_jax.progress import note
from mlclip_jax.runs import (
    read_random_buffers,
    read_run,
    score_images,
    write_random_buffers,
    write_trained_on,
)
from mlclip_jax.training.checkpoints import METRIC, Checkpoints
from mlclip_jax.training.inputs import read_data, suspects
from mlclip_jax.training.loop import make_run_chunk, next_boundary, resume, run_conditions, run_steps
from mlclip_jax.training.optimizers import make_optimizer
from mlclip_jax.training.step import (
    _sum_and_count,
    initial_state,
    make_chunk,
    make_loss,
    make_train_step,
)


def train(config, workdir):
    """Trains to the end, or goes on from the newest checkpoint in `workdir`; then scores, and prints a table.

    Leaves in `workdir` the resolved `config.json`, `classes.npz` (the labels and their embeddings),
    `metrics.jsonl`, the checkpoints, and `evaluation.json` where the config names images to score.

    Args:
      config: a recipe's `ml_collections.ConfigDict`.
      workdir: folder of this run alone.

    Returns:
      The trained parameters, a nested dict of arrays.

    Raises:
      InputError: the recipe, what it names, or the folder cannot be used.
    """
    config = with_loss_constants(config)
    _check(config, jax.device_count())
    mesh = make_mesh(label_shards=config.train.label_shards)
    workdir = Path(workdir)
    with all_or_none():
        make_folder(workdir)
        recipes.check_same_run(workdir, config, MAY_CHANGE)
    check_shared(workdir)
    note(describe_mesh(mesh, config.train.batch_size))
    with all_or_none():
        class_embeddings, examples, images = read_data(config, workdir)
    local, origin = reads_local(config.adapter), class_embeddings.origin
    if "examples" in config:
        origin = origin | {"examples": digest(examples)}
    described = json.loads(config.to_json())
    check_alike(described, origin)

    adapter = make_adapter(config.adapter, class_embeddings.vectors, rngs=nnx.Rngs(config.seed))
    graph, parameters, frozen = split_trainable(adapter)
    optimizer = make_optimizer(config)
    state = initial_state(parameters, optimizer)
    state_shardings = shardings_of(state, adapter.label_axes(), optimizer, mesh)

    step_function = make_train_step(
        graph,
        optimizer,
        make_loss(config.loss),
        config.perturbation,
        jax.random.key(config.seed),
        skip_nonfinite=config.train.max_skipped_steps > 0,
        fuse_allreduce=config.train.label_shards == 1,
    )
    data = {"embeddings": examples.vectors, "labels": examples.labels}
    if local:
        data["local"] = examples.local

    def compiled(split_data):
        run = data_parallel(
            make_chunk(step_function),
            config.train.parallel,
            mesh,
            split_data=split_data,
            state_shardings=state_shardings,
        )
        # The backbone's work is in the data already; what is frozen are the class texts and the like.
        return lambda state, data, indices, steps: run(state, frozen_on_device, data, indices, steps)

    def indices_of(first, end):
        number, size = len(examples.vectors), config.train.batch_size
        return np.stack([batch_indices(config.seed, t, number, size) for t in range(first, end)])

    end_after = functools.partial(next_boundary, train=config.train)
    run_chunk = make_run_chunk(compiled, data, indices_of, end_after, mesh)

    def evaluate_now(state):
        own = local_copy((state["parameters"], frozen_on_device), mesh)
        scores = score_images(graph, *own, images)
        return {METRIC: 100 * mean_average_precision(scores, np.asarray(images.labels))[0]}

    def names_of(t):
        return suspects(examples, indices_of(t, t + 1)[0])

    scored_on = digest(images) if images is not None and config.train.evaluate_every else None
    kept_with_each = {"config": described, "scored_on": scored_on}
    with (
        held_by_this_run(workdir),
        Checkpoints(workdir / "checkpoints", origin, **kept_with_each) as checkpoints,
    ):
        step, state = resume(checkpoints, state, config.train, state_shardings)
        with all_or_none():
            if is_first():
                if not step:
                    write_random_buffers(workdir, frozen)
                recipes.write_config(workdir, config)
                if "examples" in config:
                    write_trained_on(workdir, examples)
                if step < config.train.steps:  # it was fitted to parameters that are about to change
                    (workdir / calibration.FILE).unlink(missing_ok=True)
                write_embeddings(workdir / "classes.npz", class_embeddings)
        with all_or_none():
            frozen |= read_random_buffers(workdir)
        frozen_on_device = place(frozen, split_by_labels(mesh, frozen, adapter.label_axes()))
        title, number = TITLES[config.adapter.name], sum(x.size for x in jax.tree.leaves(parameters))
        note(f"{title}: {number:,} parameters, {config.adapter.dtype}")
        if config.loss.name in UNCALIBRATED:
            note(f"{config.loss.name}: probabilities need `mlclip calibrate`")
        state = run_steps(
            run_chunk,
            state,
            step,
            config.train,
            checkpoints,
            workdir / "metrics.jsonl",
            evaluate_now if images is not None else None,
            names_of,
        )
    learnt_from = f"{len(examples.vectors)} {'images' if 'examples' in config else 'texts'}"
    labels = f"{len(class_embeddings.names)} labels"
    print(f"{workdir}: trained {config.train.steps} steps on {learnt_from} about {labels}")
    if images is not None:
        print_comparison(compare([read_run(workdir)], images))
    return state["parameters"]


def shardings_of(state, label_axes, optimizer, mesh):
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


def with_loss_constants(config):
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


def _check(config, num_devices):
    """Refuses what could only fail later, or silently mean something else."""
    adapter = config.get("adapter")
    if not isinstance(adapter, ConfigDict) or adapter.get("name") not in ADAPTERS:
        raise InputError(f"the recipe's adapter.name must be one of {', '.join(ADAPTERS)}")
    if config.adapter.name == "tai":
        expected = tai.get_config("templates" if "backbone" in config else "embeddings")
    elif config.adapter.name == "ml_decoder":
        expected = ml_decoder_recipe.get_config()
    else:
        expected = mmm_clip.get_config(config.adapter.name)
    expected.loss = ConfigDict({"name": config.loss.name} | constants(config.loss.name))
    conditions = {
        "max_skipped": (lambda f: 0 <= f <= 1, "in [0, 1]"),
        "texts.number": (lambda n: n >= 1, "at least 1"),
        "texts.max_labels": (lambda n: n >= 1, "at least 1"),
        "perturbation.radius": (lambda r: 0 <= r < math.inf, "finite and not negative"),
        "perturbation.sampling": (lambda s: s in LENGTHS, f"one of {', '.join(LENGTHS)}"),
        "adapter.hidden": (lambda n: n >= 1, "at least 1"),
        "adapter.depth": (lambda n: n >= 1, "at least 1"),
        "adapter.dropout": (lambda p: 0 <= p < 1, "in [0, 1)"),
        "adapter.dtype": (lambda d: d in layers.DTYPES, f"one of {', '.join(layers.DTYPES)}"),
        "adapter.text": (lambda t: t in fc.TEXTS, f"one of {', '.join(fc.TEXTS)}"),
        "adapter.features": (lambda f: f in layers.FEATURES, f"one of {', '.join(layers.FEATURES)}"),
        "adapter.readout": (lambda r: r in mmm_mld.READOUTS, f"one of {', '.join(mmm_mld.READOUTS)}"),
        "adapter.queries": (lambda q: q in ml_decoder.QUERIES, f"one of {', '.join(ml_decoder.QUERIES)}"),
        "adapter.blocks": (lambda n: n >= 1, "at least 1"),
        "adapter.num_heads": (lambda n: n >= 1, "at least 1"),
        "adapter.groups": (lambda n: n >= 1, "at least 1"),
        "adapter.width": (lambda n: n >= 1, "at least 1"),
        "optimizer.learning_rate": (lambda r: 0 < r < math.inf, "finite and positive"),
        "optimizer.weight_decay": (lambda w: 0 <= w < math.inf, "finite and not negative"),
    }
    conditions |= {f"loss.{name}": condition for name, condition in RANGES.items()}
    if reads_local(config.adapter):
        no_noise = "0 with local features, which no noise is added to"
        conditions["perturbation.radius"] = (lambda r: r == 0, no_noise)
    required = ("backbone", "texts.class_embeddings")
    conditions |= run_conditions(config.get("train", {}), num_devices)
    recipes.check(config, expected, required, conditions)
    try:
        _sum_and_count(config.loss)(np.zeros((1, 2), np.float32), np.array([[1, 0]], np.int8))
    except ValueError as error:
        raise InputError(f"loss {config.loss.name}: {error}") from error
