"""Optimisers and learning-rate schedules."""

import optax


def make_optimizer(config):
    """AdamW under `make_schedule`."""
    return optax.adamw(make_schedule(config), weight_decay=config.optimizer.weight_decay)


def make_schedule(config):
    """The 1-cycle learning rate: a cosine up over the first 30% of the steps, then a cosine down."""
    return optax.cosine_onecycle_schedule(config.train.steps, config.optimizer.learning_rate)
