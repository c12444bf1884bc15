"""Optimisers and learning-rate schedules."""

import optax

from mlclip_jax.ranges import NOT_NEGATIVE, POSITIVE

RANGES = {"learning_rate": POSITIVE, "weight_decay": NOT_NEGATIVE}


def make_optimizer(config):
    """AdamW under `make_schedule`: `optimizer(hyper)` gives an `optax.GradientTransformation`.

    The learning rate and the weight decay are those of `hyper`, see `step.hyper_of`; the state does not
    depend on them.
    """
    schedule = make_schedule(config.train.steps)

    def optimizer(hyper):
        return optax.adamw(
            lambda count: hyper["learning_rate"] * schedule(count), weight_decay=hyper["weight_decay"]
        )

    return optimizer


def make_schedule(num_steps):
    """The 1-cycle schedule, with a peak of 1: a cosine up over the first 30% of the steps, then one down."""
    return optax.cosine_onecycle_schedule(num_steps, 1.0)
