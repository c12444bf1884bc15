"""Trains a recipe over values of its keys: `mlclip sweep --config=RECIPE --over=KEY=VALUES`."""

from absl import flags

from mlclip_jax import recipes
from mlclip_jax.commands.flags import define_process_flags


def main(values: flags.FlagValues) -> None:
    """mlclip sweep --config=RECIPE --workdir=FOLDER --over=KEY=VALUE,VALUE,... [--over=seed=0..4 ...]"""
    from mlclip_jax.experiments.sweep import read_over, sweep

    sweep(values.config, read_over(values.over or [], values.config), values.workdir, report=print)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    recipes.define_config(values, argv)
    flags.DEFINE_multi_string(
        "over",
        None,
        "a key of the recipe and its values: perturbation.radius=0,5,25, or seed=0..4 for 0 to 4",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "folder of the sweep, made if it is missing", flag_values=values)
    define_process_flags(values)
    flags.mark_flag_as_required("workdir", values)
