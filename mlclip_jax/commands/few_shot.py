"""Every image adapter, on few and on many labelled images of the built-in world: `mlclip few_shot`."""

from mlclip_jax.commands.flags import define_experiment


def main(values):
    """mlclip few_shot --workdir=FOLDER [--seeds=1]"""
    from mlclip_jax.experiments.few_shot import few_shot

    few_shot(values.workdir, values.seeds)


def define_flags(values, _):
    define_experiment(values)
