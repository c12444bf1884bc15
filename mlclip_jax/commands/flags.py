"""The flags that several commands have."""

from absl import flags

from mlclip_jax.choices import CHECKPOINTS
from mlclip_jax.data.pipeline import MAX_SKIPPED


def define_process_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean(
        "multihost",
        False,
        "be one of several processes, as TPU pods, SLURM, Kubernetes and MPI tell",
        flag_values=values,
    )
    flags.DEFINE_string("coordinator", None, "or as told here: HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many there are", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "process_id", None, "which of them this is, from 0", lower_bound=0, flag_values=values
    )


def define_max_skipped(values: flags.FlagValues) -> None:
    flags.DEFINE_float(
        "max_skipped",
        MAX_SKIPPED,
        "fraction of the images that may be unreadable",
        lower_bound=0,
        upper_bound=1,
        flag_values=values,
    )


def define_reading_flags(values: flags.FlagValues) -> None:
    define_max_skipped(values)
    flags.DEFINE_integer(
        "num_workers",
        0,
        "processes that read and decode in place of threads",
        lower_bound=0,
        flag_values=values,
    )


def define_encoding_flags(values: flags.FlagValues) -> None:
    """How a backbone computes; their names are those of `backbones.ENCODING`."""
    flags.DEFINE_string(
        "dtype", None, "float32 (default on CPUs) or bfloat16 (elsewhere)", flag_values=values
    )
    flags.DEFINE_string(
        "image_size", None, "448, or 448x336 for height and width; default: its own", flag_values=values
    )
    flags.DEFINE_string("resize", None, "crop or squash; default: its own", flag_values=values)
    flags.DEFINE_string("interpolation", None, "bicubic or bilinear; default: its own", flag_values=values)
    flags.DEFINE_string(
        "decode",
        None,
        "full (default), or reduced: JPEG files faster, and nearly the same",
        flag_values=values,
    )
    flags.DEFINE_string(
        "position_embeddings", None, "of a CLIP ResNet: pooled (default), all or none", flag_values=values
    )
    flags.DEFINE_string(
        "antialias",
        None,
        "yes or no: smooth position embeddings for other image sizes; default: as usual in its layout",
        flag_values=values,
    )
    flags.DEFINE_string(
        "clean",
        None,
        "yes or no: repair texts first (quotes, HTML entities); default: as usual in its layout",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "shard_parameters", False, "split the parameters over the devices", flag_values=values
    )


def define_checkpoint(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "checkpoint",
        "latest",
        CHECKPOINTS,
        "the latest, or the best of those that train.evaluate_every scored on the way",
        flag_values=values,
    )


def define_experiment(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder to work in, made if it is missing", flag_values=values)
    flags.DEFINE_integer(
        "seeds", 1, "how many times each adapter is trained", lower_bound=1, flag_values=values
    )
    flags.mark_flag_as_required("workdir", values)
