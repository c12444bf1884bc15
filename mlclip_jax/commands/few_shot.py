"""Every image adapter, on few and on many labelled images of the built-in world: `mlclip few_shot`."""

from absl import flags

from mlclip_jax.experiments.few_shot import few_shot


def main(values):
    """mlclip few_shot --workdir=FOLDER [--seeds=1]"""
    few_shot(values.workdir, values.seeds)


def define_flags(values, _):
    flags.DEFINE_string("workdir", None, "folder to work in, made if it is missing", flag_values=values)
    flags.DEFINE_integer(
        "seeds", 1, "how many times each adapter is trained", lower_bound=1, flag_values=values
    )
    flags.mark_flag_as_required("workdir", values)
