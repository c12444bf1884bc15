"""The main job on the built-in world, from images to a table and a picture: `mlclip demo`."""

from absl import flags

from mlclip_jax.commands.flags import define_experiment


def main(values: flags.FlagValues) -> None:
    """mlclip demo --workdir=FOLDER [--seeds=1]"""
    from mlclip_jax.experiments.demo import demo

    demo(values.workdir, values.seeds, report=print)


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    define_experiment(values)
