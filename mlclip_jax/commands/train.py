"""Trains an adapter by a recipe: `mlclip train --config=RECIPE --workdir=FOLDER`."""

from absl import flags

from mlclip_jax import recipes
from mlclip_jax.commands.flags import define_process_flags


def main(values: flags.FlagValues) -> None:
    """mlclip train --config=RECIPE[:variant] --workdir=FOLDER [--config.key=value ...]"""
    from mlclip_jax.training.train import train
    from mlclip_jax.untrained import is_untrained, write_untrained

    begin = write_untrained if is_untrained(values.config) else train
    begin(values.config, values.workdir, report=print)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    recipes.define_config(values, argv)
    flags.DEFINE_string("workdir", None, "folder of this run, made if it is missing", flag_values=values)
    define_process_flags(values)
    flags.mark_flag_as_required("workdir", values)
