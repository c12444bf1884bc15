"""Every image adapter, on few and on many labelled images of the built-in world: `mlclip few_shot`."""

from absl import flags

from mlclip_jax.commands.flags import define_experiment


def main(values: flags.FlagValues) -> None:
    """mlclip few_shot --workdir=FOLDER [--seeds=1]"""
    from mlclip_jax.experiments.few_shot import few_shot

    few_shot(values.workdir, values.seeds, report=print)


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    define_experiment(values)
