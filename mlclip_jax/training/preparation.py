"""What a run needs before its first step: a checked config, data, parameters, and what they came from."""

import copy
import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int
from ml_collections import ConfigDict

from mlclip_jax import calibration, methods, perturbation, recipes
from mlclip_jax.backbones import load_backbone_of
from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.distributed.data_parallel import PROGRAMS
from mlclip_jax.distributed.processes import all_or_none, check_alike, is_first
from mlclip_jax.embeddings.store import Embeddings, write_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.losses import LOSSES, RANGES, UNCALIBRATED, constants
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.perturbation import make_perturbation
from mlclip_jax.progress import note
from mlclip_jax.provenance import Origin
from mlclip_jax.ranges import AT_LEAST_0, AT_LEAST_1, FRACTION
from mlclip_jax.run_folders import (
    EMBEDDED,
    random_buffers,
    read_random_buffers,
    write_random_buffers,
    write_trained_on,
)
from mlclip_jax.texts.templates import read_templates
from mlclip_jax.training import optimizers
from mlclip_jax.training.checkpoints import has_checkpoints, saved_steps
from mlclip_jax.training.examples import Examples
from mlclip_jax.training.inputs import begin_from, read_data
from mlclip_jax.training.loop import open_workdir, run_conditions
from mlclip_jax.training.step import (
    ARGUMENTS,
    Step,
    hyper_of,
    initial_state,
    make_chunk,
    make_loss,
    make_train_step,
    sum_and_count_of,
)

PROGRAM = ("optimizer", "schedule", "loss", "perturbation")  # parts of a config that decide the program


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A run before its first step.

    Attributes:
      config: resolved: with the constants of its loss and the number of its steps.
      workdir: its folder.
      class_embeddings: of the labels.
      examples: to train on.
      images: to score, or None.
      method: with its settings.
      graph: of its module, an `nnx.GraphDef`.
      label_axes: of its arrays, see `methods`.
      frozen: what it does not train, a nested dict of arrays.
      buffers: of that, what it drew at random.
      state: of step 0, see `step.initial_state`.
      hyper: see `step.hyper_of`.
      origin: what its checkpoints belong to.
    """

    config: ConfigDict
    workdir: Path
    class_embeddings: Embeddings
    examples: Examples
    images: Embeddings | None
    method: methods.Method
    graph: nnx.GraphDef
    label_axes: dict[str, int]
    frozen: dict
    buffers: dict
    state: dict
    hyper: dict
    origin: Origin

    @property
    def latest_step(self) -> int:
        """Of its newest checkpoint, or 0."""
        return max(saved_steps(self.workdir / "checkpoints"), default=0)

    @property
    def described(self) -> dict:
        """The config as plain values, for JSON."""
        return json.loads(self.config.to_json())

    def indices(self, first: int, end: int) -> Int[np.ndarray, "S B"]:
        """The examples of steps `first` to `end - 1`."""
        size = self.config.train.batch_size
        return np.stack([self.examples.indices(self.config.seed, t, size) for t in range(first, end)])

    def chunk(self) -> Step:
        """Many steps on one device; see `step.make_chunk`. Runs of one program get the same function."""
        config = {part: self.config[part].to_dict() for part in PROGRAM}
        for path in ARGUMENTS:
            part, _, key = path.partition(".")
            config.get(part, {}).pop(key, None)
        train = {key: self.config.train[key] for key in ("steps", "max_skipped_steps", "label_shards")}
        return _make_chunk(self.graph, json.dumps(config | {"train": train}, sort_keys=True))

    def write(self, *, finished: bool) -> None:
        """Writes to the run's folder what later steps and commands need beside the checkpoints.

        Args:
          finished: whether no step is left; the run's calibration then still fits it.
        """
        with all_or_none():
            if is_first():
                write_random_buffers(self.workdir, self.buffers)
                recipes.write_config(self.workdir, self.config)
                if self.examples.seen_images is not None:
                    write_trained_on(self.workdir, self.examples.seen_images)
                if not finished:
                    # A calibration was fitted to parameters that are about to change.
                    (self.workdir / calibration.FILE).unlink(missing_ok=True)
                class_embeddings = self.class_embeddings.replace(origin=self.origin)
                write_embeddings(self.workdir / "classes.npz", class_embeddings)
        number = sum(x.size for x in jax.tree.leaves(self.state["parameters"]))
        dtype = self.method.settings.get("dtype", "float32")
        note(f"{self.method.title}: {number:,} parameters, {dtype}", once=True)
        name = self.config.loss.name
        if name in UNCALIBRATED:
            note(f"{name}: probabilities need `mlclip calibrate`", once=True)


@functools.lru_cache(maxsize=PROGRAMS)
def _make_chunk(graph, config):
    config = ConfigDict(json.loads(config))
    step = make_train_step(
        graph,
        optimizers.make_optimizer(config),
        make_loss(config.loss),
        make_perturbation(config.perturbation),
        skip_nonfinite=config.train.max_skipped_steps > 0,
        fuse_allreduce=config.train.label_shards == 1,
    )
    return make_chunk(step)


def prepare(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    embedded: str | os.PathLike | None = None,
    load_backbone: Callable[[ConfigDict], Backbone] = load_backbone_of,
) -> Prepared:
    """Checks a config, reads what it names, and makes the method that is to be trained.

    Args:
      config: a recipe's `ml_collections.ConfigDict`.
      workdir: folder of this run alone, made if it is missing.
      embedded: folder of embeddings that are made on the way, by default `workdir / EMBEDDED`.
      load_backbone: called with the config where there is something to embed.

    Raises:
      InputError: the recipe, what it names, or the folder cannot be used.
    """
    check_trainable(config)
    config = with_loss_constants(config)
    check(config, jax.device_count())
    workdir = open_workdir(workdir, config, MAY_CHANGE)
    embedded = workdir / EMBEDDED if embedded is None else Path(embedded)
    with all_or_none():
        class_embeddings, examples, images = read_data(config, embedded, lambda: load_backbone(config))
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
    origin = class_embeddings.origin.replace(examples=examples.digest, init=init)
    check_alike(json.loads(config.to_json()), origin.to_dict())
    optimizers.check_groups(config, parameters)
    hyper = hyper_of(config)
    return Prepared(
        config=config,
        workdir=workdir,
        class_embeddings=class_embeddings,
        examples=examples,
        images=images,
        method=method,
        graph=graph,
        label_axes=module.label_axes(),
        frozen=frozen | buffers,
        buffers=buffers,
        state=initial_state(parameters, optimizers.make_optimizer(config)(hyper)),
        hyper=hyper,
        origin=origin,
    )


def check_trainable(config: ConfigDict) -> None:
    """Refuses the recipe of a method that is never trained.

    Raises:
      InputError: it is one.
    """
    settings = config.get("method")
    if isinstance(settings, ConfigDict) and not (method := methods.find(settings)).trains:
        raise InputError(
            f"{method.title} has nothing to train: `mlclip train` writes its run, and there is no more to do"
        )


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
    "examples.embeddings",
    "examples.images",
    "examples.labels",
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
        "texts.per_combination": AT_LEAST_1,
        "texts.share": (lambda share: share == -1 or 0 <= share <= 1, "in [0, 1], or -1"),
        "examples.shots": AT_LEAST_0,
        "examples.known": FRACTION,
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
    if config.texts.get("templates"):
        read_templates(config.texts.templates)
    try:
        sum_and_count_of(config.loss)(np.zeros((1, 2), np.float32), np.array([[1, 0]], np.int8))
    except ValueError as error:
        raise InputError(f"loss {config.loss.name}: {error}") from error
