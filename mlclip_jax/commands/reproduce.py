"""TaI-Adapter's tables and figures, the published figures beside ours: `mlclip reproduce NAME`."""

from absl import flags

from mlclip_jax.commands.flags import define_experiment

POSITIONAL = "name"


def main(values: flags.FlagValues) -> None:
    """mlclip reproduce NAME --data=FOLDER --workdir=FOLDER [--seeds=1] [--set=KEY=VALUE ...]"""
    from mlclip_jax.experiments.tai_adapter import reproduce

    reproduce(
        values.name or "",
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
        "tai_fig7 and tai_fig10 (centroids, by t-SNE)",
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
        "which of the paper's (voc2007,coco2014,nus_wide); by default all",
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
