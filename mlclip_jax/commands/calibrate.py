"""Makes a run's probabilities right, and finds thresholds: `mlclip calibrate --workdir=RUN --images=...`."""

from pathlib import Path

import numpy as np
from absl import flags

from mlclip_jax.choices import CALIBRATIONS, THRESHOLD_RULES
from mlclip_jax.commands.flags import define_checkpoint, define_max_skipped
from mlclip_jax.errors import InputError
from mlclip_jax.report import markdown_table
from mlclip_jax.wording import counted


def main(values: flags.FlagValues) -> None:
    """mlclip calibrate --workdir=RUN (--embeddings=FILE | --images=FOLDER) [--labels=FILE] ..."""
    from mlclip_jax.calibration import FILE, cross_validated, fit, write_calibration
    from mlclip_jax.runs import read_run

    if values.rule in ("precision", "recall") and values.target is None:
        raise InputError(f"--rule={values.rule} needs a {values.rule} to reach, for example --target=0.9")
    if values.rule not in ("precision", "recall") and values.target is not None:
        raise InputError(
            f"--target={values.target:g} is for --rule=precision and --rule=recall, not --rule={values.rule}"
        )
    if values.target == 0:
        raise InputError("--target=0 is reached by everything; give a precision or recall above it")
    run = read_run(values.workdir, calibrated=False, checkpoint=values.checkpoint)
    if run.method.at_once and not run.method.make().scores_alone:
        raise InputError(
            f"{run.method.title} scores an image by those beside it, and a calibration holds for no others; "
            "calibrate a run with a bank of its own (bank=FOLDER; by patches unlabelled=FOLDER)"
        )
    read = _read_scores if values.scores else _score_images
    logits, labels, split, fitted_on = read(values, run)
    if len(logits) < 2:
        raise InputError(f"{split} holds one image; a calibration needs many")
    before, after = cross_validated(logits, labels, values.method, values.rule, values.target)
    calibration = fit(logits, labels, values.method, values.rule, values.target)
    settings = {name: values[name].value for name in ("method", "rule", "target")}
    origin = {"parameters": run.digest, "split": split}
    calibration = calibration._replace(fitted_on=fitted_on)
    write_calibration(values.workdir, calibration, origin | settings | {"before": before, "after": after})
    _print(run.label_names, split, labels, calibration, before, after)
    print(f"\n{Path(values.workdir) / FILE}: `mlclip predict` and `mlclip evaluate` use it from now on")


def _score_images(values, run):
    """Logits of held-out images, labels, both (N, K), where they come from, and hashes of the embeddings."""
    from mlclip_jax.embeddings.labelled import read_images
    from mlclip_jax.provenance import row_hashes
    from mlclip_jax.run_folders import EMBEDDED

    images = read_images(
        {"embeddings": values.embeddings, "images": values.images, "labels": values.labels},
        run.class_embeddings,
        run.loaded_backbone,
        Path(values.workdir) / EMBEDDED,
        purpose="calibrate on",
        reads=run.method.reads,
        max_skipped=values.max_skipped,
    )
    seen = run.count_trained_on(images)
    if seen:
        raise InputError(
            f"{seen} of the {len(images)} images were trained on, where every probability looks "
            "right; calibrate on others"
        )
    logits = np.asarray(run.score(images))
    return logits, images.labels, images.origin.split, row_hashes(images.vectors)


def _read_scores(values, run):
    """The same from a file of the run's logits; which embeddings they are of is not known."""
    from mlclip_jax.scores import read_together, with_columns

    if values.embeddings or values.images:
        raise InputError("give either --scores=FILE, --embeddings=FILE or --images=FOLDER")
    [scores], labels = read_together([values.scores], values.labels)
    if sorted(scores.label_names) != sorted(run.label_names):
        raise InputError(f"{values.scores} scores other labels than those of {values.workdir}")
    scores = with_columns(scores._replace(labels=labels), run.label_names)
    return scores.scores.astype(np.float32), scores.labels, str(values.scores), np.empty(0, np.uint64)


def _print(label_names, split, labels, calibration, before, after):
    from mlclip_jax.calibration import FOLDS, fittable

    names = list(before)
    rows = [
        [when, *(f"{100 * figures[name]:.1f}" for name in names)]
        for when, figures in (("plain sigmoid, threshold 0.5", before), ("calibrated", after))
    ]
    folds = min(FOLDS, len(labels))
    print(f"{counted(len(labels), 'image')}, {split}; percent; calibrated: over {folds} folds")
    print(f"\n{markdown_table(['', *names], rows)}")
    left_alone = [name for name, fits in zip(label_names, fittable(labels)) if not fits]
    flat = [name for name, slope in zip(label_names, calibration.slopes) if slope == 0]
    never = [name for name, t in zip(label_names, calibration.thresholds) if np.isinf(t)]
    for listed, what in (
        (left_alone, "not both present and absent there, left as before"),
        (flat, "falling with the logits there, given one probability for every image"),
        (never, "out of reach of the target, never predicted"),
    ):
        if listed:
            print(f"{counted(len(listed), 'label')} {what}: {', '.join(listed)}")


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    flags.DEFINE_string("workdir", None, "folder of a trained run", flag_values=values)
    define_checkpoint(values)
    flags.DEFINE_string(
        "embeddings", None, "embeddings of held-out images, a file or a folder", flag_values=values
    )
    flags.DEFINE_string("images", None, "or a folder or dataset of held-out images", flag_values=values)
    flags.DEFINE_string(
        "scores", None, "or a file of this run's scores of them (predict --scores)", flag_values=values
    )
    flags.DEFINE_string("labels", None, "table of their labels", flag_values=values)
    flags.DEFINE_enum("method", "platt", CALIBRATIONS, "how probabilities are fitted", flag_values=values)
    flags.DEFINE_enum("rule", "f1", THRESHOLD_RULES, "how thresholds are chosen", flag_values=values)
    flags.DEFINE_float(
        "target",
        None,
        "precision or recall that --rule is to reach",
        lower_bound=0,
        upper_bound=1,
        flag_values=values,
    )
    define_max_skipped(values)
    flags.mark_flag_as_required("workdir", values)
