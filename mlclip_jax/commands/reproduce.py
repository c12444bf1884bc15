"""Tables and figures of papers, the published figures beside ours: `mlclip reproduce NAME`."""

import importlib

from absl import flags

from mlclip_jax.commands.flags import define_experiment
from mlclip_jax.errors import InputError
from mlclip_jax.options import nearest

POSITIONAL = "name"
TAI, ZERO_SHOT = "mlclip_jax.experiments.tai_adapter", "mlclip_jax.experiments.zero_shot_tables"
# What can be reproduced, and the module whose `reproduce` does it, which is imported when it is asked for.
EXPERIMENTS = {
    "tai_table1": TAI,
    "tai_table2": TAI,
    "tai_table3": TAI,
    "tai_fig5a": TAI,
    "tai_fig5b": TAI,
    "tai_fig5c": TAI,
    "tai_fig6a": TAI,
    "tai_fig6b": TAI,
    "tai_fig6c": TAI,
    "tai_fig7": TAI,
    "tai_fig10": TAI,
    "zero_shot_voc2007": ZERO_SHOT,
    "zero_shot_coco2014": ZERO_SHOT,
    "zero_shot_nus_wide": ZERO_SHOT,
}


def main(values: flags.FlagValues) -> None:
    """mlclip reproduce NAME --data=FOLDER --workdir=FOLDER [--seeds=1] [--set=KEY=VALUE ...]"""
    name = values.name or ""
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise InputError(f"no table or figure {name!r}{nearest(name, EXPERIMENTS)}; there are {known}")
    importlib.import_module(EXPERIMENTS[name]).reproduce(
        name,
        values.data,
        values.workdir,
        values.seeds,
        datasets=values.datasets or [],
        texts=values.texts or [],
        changes=values.set or [],
        report=print,
    )


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    flags.DEFINE_string(
        "name",
        None,
        "what to reproduce: tai_table1 (partial labels), tai_table2 (zero-shot), tai_table3 (few-shot), "
        "tai_fig5a (numbers of texts), tai_fig5b (sources of texts), tai_fig5c (language models), "
        "tai_fig6a (radius and sampling), tai_fig6b (few-shot), tai_fig6c (partial labels), "
        "tai_fig7 and tai_fig10 (centroids, by t-SNE); zero_shot_voc2007, zero_shot_coco2014, "
        "zero_shot_nus_wide (classification by patches, without training)",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data",
        None,
        "folder that holds the paper's datasets, as docs/datasets.md says; or scenes, for the built-in world",
        flag_values=values,
    )
    flags.DEFINE_list(
        "datasets",
        None,
        "of tai_ tables, which of the paper's (voc2007,coco2014,nus_wide); by default all",
        flag_values=values,
    )
    flags.DEFINE_list(
        "texts", None, "files of texts to compare, of tai_fig5b and tai_fig5c", flag_values=values
    )
    flags.DEFINE_multi_string(
        "set",
        None,
        "a key of the recipe and another value: train.steps=200; several of a key that varies",
        flag_values=values,
    )
    define_experiment(values)
    flags.mark_flag_as_required("data", values)
