"""Trains a small CLIP on captioned images: `mlclip pretrain --config=RECIPE --workdir=FOLDER`."""

import json

from absl import flags

from mlclip_jax import recipes
from mlclip_jax.commands.flags import define_process_flags


def main(values: flags.FlagValues) -> None:
    """mlclip pretrain --config=RECIPE --workdir=FOLDER [--config.key=value ...]"""
    from mlclip_jax.training.pretrain import pretrain

    figures = pretrain(values.config, values.workdir)
    print(f"{values.workdir}/clip: {json.dumps(figures)}")


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    recipes.define_config(values, argv)
    flags.DEFINE_string("workdir", None, "folder of this run, made if it is missing", flag_values=values)
    define_process_flags(values)
    flags.mark_flag_as_required("workdir", values)
