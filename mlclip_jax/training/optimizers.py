"""Optimizers, learning-rate schedules, and the length of a run."""

import math
import re
from collections.abc import Callable, Mapping

import jax
import optax
from ml_collections import ConfigDict

from mlclip_jax.errors import InputError
from mlclip_jax.ranges import AT_LEAST_0, AT_LEAST_1, BELOW_1, NOT_NEGATIVE, POSITIVE, one_of


def _adamw(settings, rate, weight_decay):
    return optax.adamw(rate, b2=settings.b2, weight_decay=weight_decay)


def _adam(settings, rate, weight_decay):
    """Weight decay as in `torch.optim.Adam`: added to the gradient."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(rate, b2=settings.b2))


def _sgd(settings, rate, weight_decay):
    """As `torch.optim.SGD`."""
    momentum = settings.momentum or None
    descent = optax.sgd(rate, momentum=momentum, nesterov=settings.nesterov)
    return optax.chain(optax.add_decayed_weights(weight_decay), descent)


def _muon(settings, rate, weight_decay):
    """Muon for matrices, with updates as large as AdamW's; Adam, without weight decay, for the rest.

    Jordan et al. 2024; Liu et al. 2025 (arXiv 2502.16982).
    """
    return optax.contrib.muon(
        rate, weight_decay=weight_decay, nesterov=settings.nesterov, adam_b2=settings.b2, consistent_rms=0.2
    )


def _one_cycle(settings, num_steps):
    """A cosine up from 1/25 over the first 30% of the steps, then a cosine down (Smith et al. 2017)."""
    del settings
    return optax.cosine_onecycle_schedule(num_steps, 1.0)


def _cosine(settings, num_steps):
    """Half a cosine, from the end of the warm-up down to 0."""
    warmup = min(settings.warmup, num_steps - 1)
    return _after_warmup(warmup, optax.cosine_decay_schedule(1.0, num_steps - warmup))


def _step(settings, num_steps):
    """Times `factor` after every `every` steps."""
    del num_steps
    steps = optax.exponential_decay(1.0, settings.every, settings.factor, staircase=True)
    return _after_warmup(settings.warmup, steps)


def _constant(settings, num_steps):
    del num_steps
    return _after_warmup(settings.warmup, optax.constant_schedule(1.0))


OPTIMIZERS = {"adamw": _adamw, "adam": _adam, "sgd": _sgd, "muon": _muon}
SCHEDULES = {"one_cycle": _one_cycle, "cosine": _cosine, "step": _step, "constant": _constant}
RANGES = {
    "optimizer.name": one_of(OPTIMIZERS),
    "optimizer.learning_rate": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.b2": BELOW_1,
    "optimizer.momentum": BELOW_1,
    "optimizer.max_norm": NOT_NEGATIVE,
    "schedule.name": one_of(SCHEDULES),
    "schedule.warmup": AT_LEAST_0,
    "schedule.every": AT_LEAST_1,
    "schedule.factor": POSITIVE,
    "train.epochs": AT_LEAST_0,
}


def make_optimizer(config: ConfigDict) -> Callable[[Mapping], optax.GradientTransformation]:
    """The optimizer of a recipe: `optimizer(hyper)` gives an `optax.GradientTransformation`.

    The learning rate and the weight decay are those of `hyper`, see `step.hyper_of`, times what the groups of
    parameters say; the state does not depend on them.

    Args:
      config: of a recipe; its `optimizer`, `schedule` and `train.steps` are read. `optimizer.groups` has for
        each group of parameters its `paths`, a regular expression that matches their paths in full, such as
        ".*/bias", and the factors `learning_rate` and `weight_decay`. The first group that matches counts.
    """
    settings, schedule = config.optimizer, make_schedule(config)

    def rule(hyper, group):
        factors = {"learning_rate": 1.0, "weight_decay": 1.0} | dict(group)
        return OPTIMIZERS[settings.name](
            settings,
            lambda count: factors["learning_rate"] * hyper["learning_rate"] * schedule(count),
            factors["weight_decay"] * hyper["weight_decay"],
        )

    def optimizer(hyper):
        rules = rule(hyper, {})
        if settings.groups:
            own = {name: rule(hyper, group) for name, group in settings.groups.items()}
            rules = optax.partition(
                {"": rules} | own, lambda parameters: _groups_of(parameters, settings.groups)
            )
        clip = optax.clip_by_global_norm(settings.max_norm) if settings.max_norm else optax.identity()
        return optax.chain(clip, rules)

    return optimizer


def _groups_of(parameters, groups):
    """The name of each parameter's group, "" for none, as a tree."""

    def group_of(path, _):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return next((name for name, group in groups.items() if re.fullmatch(group.paths, path)), "")

    return jax.tree.map_with_path(group_of, parameters)


def check_groups(config: ConfigDict, parameters: dict) -> None:
    """Refuses groups of parameters that none belongs to.

    Args:
      config: of a recipe.
      parameters: a nested dict of arrays.

    Raises:
      InputError: a group's `paths` is no regular expression, or matches no parameter that is left to it.
    """
    groups = config.optimizer.groups
    try:
        used = set(jax.tree.leaves(_groups_of(parameters, groups)))
    except re.error as error:
        raise InputError(f"optimizer.groups: a path is no regular expression: {error}") from error
    for name in set(groups.keys()) - used:
        flat = jax.tree.leaves_with_path(parameters)
        paths = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat)
        raise InputError(
            f"optimizer.groups.{name}.paths={groups[name].paths!r} matches no parameter, or none that "
            f"the groups before leave; there are {', '.join(paths)}"
        )


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """The learning rate as a fraction of its peak: a function of the step, from 0."""
    return SCHEDULES[config.schedule.name](config.schedule, config.train.steps)


def _after_warmup(warmup, schedule):
    """A linear increase from 0 over `warmup` steps, then the schedule."""
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), schedule], [warmup])


def with_steps(config: ConfigDict, num_examples: int) -> ConfigDict:
    """A recipe whose `train.epochs`, if it has any, have become its `train.steps`.

    Args:
      config: a `ConfigDict`.
      num_examples: to train on.
    """
    if config.train.epochs:
        config = config.copy_and_resolve_references()
        config.train.steps = math.ceil(config.train.epochs * num_examples / config.train.batch_size)
    return config
