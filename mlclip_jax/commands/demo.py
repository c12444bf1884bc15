"""The main job on the built-in world, from images to a table and a picture: `mlclip demo`."""

from mlclip_jax.commands.flags import define_experiment


def main(values):
    """mlclip demo --workdir=FOLDER [--seeds=1]"""
    from mlclip_jax.experiments.demo import demo

    demo(values.workdir, values.seeds)


def define_flags(values, _):
    define_experiment(values)
