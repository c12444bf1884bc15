"""The main job on the built-in world, from images to a table and a picture: `mlclip demo`."""

from absl import flags

from mlclip_jax.experiments.demo import demo


def main(values):
    """mlclip demo --workdir=FOLDER [--seeds=1]"""
    demo(values.workdir, values.seeds)


def define_flags(values, _):
    flags.DEFINE_string("workdir", None, "folder to work in, made if it is missing", flag_values=values)
    flags.DEFINE_integer(
        "seeds", 1, "how many times each adapter is trained", lower_bound=1, flag_values=values
    )
    flags.mark_flag_as_required("workdir", values)
