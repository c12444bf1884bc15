"""Scores trained adapters against plain cosine: `mlclip evaluate --workdir=RUN[,RUN...]`.

Or rules without training: `mlclip evaluate --config=zero_shot:all --config.backbone=NAME --images=FOLDER`.
"""

import functools
from pathlib import Path

from absl import flags

from mlclip_jax import recipes
from mlclip_jax.choices import PROTOCOLS
from mlclip_jax.commands.flags import define_checkpoint, define_max_skipped
from mlclip_jax.errors import InputError
from mlclip_jax.texts.label_sets import read_names


def main(values: flags.FlagValues) -> None:
    """mlclip evaluate --workdir=RUN[,RUN...] [--embeddings=FILE | --images=FOLDER] [--labels=FILE] ..."""
    from mlclip_jax.comparison import describe_comparison
    from mlclip_jax.embeddings.labelled import read_images
    from mlclip_jax.evaluation import evaluate, evaluate_scores
    from mlclip_jax.run_folders import EMBEDDED
    from mlclip_jax.runs import read_run
    from mlclip_jax.scores import read_together

    ways = [values.workdir, values.scores, values.config]
    if sum(map(bool, ways)) != 1:
        raise InputError(
            "give one of --workdir=RUN[,RUN...], --scores=FILE[,FILE...] and --config=zero_shot:all"
        )
    if values.config:
        _evaluate_rules(values)
        return
    if values.output:
        raise InputError("--output is of --config: leave it out, or see what a run's folder holds")
    if values.scores:
        if values.embeddings or values.images or values.classes:
            raise InputError("--scores are about images and labels of their own: leave out those of runs")
        paths = [path for given in values.scores for path in given.split(",")]
        known, labels = read_together(paths, values.labels)
        names = [Path(path).stem for path in paths]
        if len(set(names)) < len(names):
            names = paths
        print(describe_comparison(*evaluate_scores(known, labels, names, values.bootstrap, values.protocol)))
        return
    workdirs = [workdir for given in values.workdir for workdir in given.split(",")]
    runs = [read_run(workdir, checkpoint=values.checkpoint) for workdir in workdirs]
    config = runs[0].config
    load_backbone = functools.cache(lambda: runs[0].loaded_backbone())
    if values.classes:
        names = read_names(values.classes)
        runs = [run.with_backbone(load_backbone()).with_labels(names) for run in runs]
    source = {"embeddings": values.embeddings, "images": values.images, "labels": values.labels}
    if not (values.embeddings or values.images):  # the images of the run, perhaps with other labels
        source = {**config.evaluation, "labels": values.labels or config.evaluation.labels}
    reads = tuple(dict.fromkeys(name for run in runs for name in run.method.reads))
    folder = Path(workdirs[0]) / EMBEDDED
    class_embeddings, allowed = runs[0].class_embeddings, values.max_skipped
    images = read_images(source, class_embeddings, load_backbone, folder, reads=reads, max_skipped=allowed)
    print(describe_comparison(*evaluate(runs, images, values.bootstrap, values.protocol)))


def _evaluate_rules(values):
    from mlclip_jax.experiments.zero_shot_rules import compare_rules
    from mlclip_jax.untrained import is_untrained

    config = values.config
    if not ("rules" in config or is_untrained(config)):
        raise InputError(
            f"--config={config.get('recipe', '?')} is trained before it scores images: give the folder of "
            "its run, --workdir=RUN, or --config=zero_shot:all"
        )
    for name in ("embeddings", "images", "labels"):
        if values[name].value is not None:
            config.evaluation[name] = values[name].value
    if values.classes:
        config.texts.labels = values.classes
    if values["max_skipped"].present:
        config.max_skipped = values.max_skipped
    compare_rules(
        config,
        num_samples=values.bootstrap,
        protocol=values.protocol,
        output=values.output,
        report=print,
    )


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    recipes.define_config(values, argv, required=False)
    flags.DEFINE_string("output", None, "CSV file of the table of --config", flag_values=values)
    flags.DEFINE_multi_string("workdir", None, "folders of runs, separated by commas", flag_values=values)
    flags.DEFINE_multi_string(
        "scores",
        None,
        "or files of scores (scores.npz), of any program, separated by commas",
        flag_values=values,
    )
    flags.DEFINE_string("embeddings", None, "embeddings of images, a file or a folder", flag_values=values)
    flags.DEFINE_string("images", None, "or a folder of images, or a dataset", flag_values=values)
    flags.DEFINE_string("labels", None, "table of their labels", flag_values=values)
    flags.DEFINE_string(
        "classes",
        None,
        "text file, a label per line: score these labels, not the run's own, with an adapter that reads them",
        flag_values=values,
    )
    define_checkpoint(values)
    flags.DEFINE_enum("protocol", "ap", list(PROTOCOLS), "of average precision", flag_values=values)
    flags.DEFINE_integer("bootstrap", 1000, "resamples of the intervals", lower_bound=1, flag_values=values)
    define_max_skipped(values)
