"""Labels images with a trained run, or by the names of labels alone.

    mlclip predict --workdir=RUN --images=FOLDER [--output=X.csv]
    mlclip predict --method=zero_shot --backbone=NAME --classes=labels.txt --images=photo.jpg

Of a run, each label has a probability, and those are predicted that reach their thresholds. Without training
it has a score of the method's rule, larger where it fits better, and the `TOP_K` highest of each image are
predicted, or what a prompting method decides. What is written says which it is: `probabilities` or `scores`
in JSON Lines, "most probable" or "highest scores" in the table that is printed; a column of a CSV has the
label's name either way.
"""

import csv
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Bool, Float

from mlclip_jax.commands.flags import define_checkpoint, define_encoding_flags, define_reading_flags
from mlclip_jax.data.datasets import FORMATS as DATASETS
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.images import decode_image, printable, read_file
from mlclip_jax.data.pipeline import Skipped
from mlclip_jax.data.sources import Source, list_images
from mlclip_jax.data.table_labels import labels_of_cells
from mlclip_jax.data.tables import COLUMN_NAMES, plain_name
from mlclip_jax.errors import InputError
from mlclip_jax.files import make_folder, replacing
from mlclip_jax.options import nearest
from mlclip_jax.report import draw_predictions, markdown_table
from mlclip_jax.texts.label_sets import read_names
from mlclip_jax.wording import counted

DRAWN = 48  # images in a picture, at most
FORMATS = (".csv", ".jsonl")
MOST_PROBABLE = 5  # labels of an image that are printed
NEEDED = {"backbone": "FOLDER_OR_NAME", "classes": "FILE, a label per line"}  # without training
TOP_K = 3  # labels that are predicted where there are no probabilities


def main(values: flags.FlagValues) -> None:
    """mlclip predict (--workdir=RUN | --method=zero_shot --backbone=CLIP --classes=FILE)
    --images=FILE_OR_FOLDER [--output=FILE.csv] [--picture=FILE.png]"""
    from mlclip_jax.embeddings.embed import report
    from mlclip_jax.scores import Scores, write_scores

    _check_flags(values)
    _check_outputs(values)
    source = find_images(values.images)
    run = _load(values)
    if values.output and Path(values.output).suffix == ".csv":
        check_columns(run.label_names)
    listed = Path(f"{values.output}.skipped.jsonl") if values.output else None
    skipped = Skipped(source.names, listed, values.max_skipped)
    kept, (logits, decided, _) = run.score_source(source, skipped, num_workers=values.num_workers)
    said = run.probabilities(logits) if run.gives_probabilities else logits
    if values.top_k is not None:
        predicted = highest(said, values.top_k)
    elif values.threshold is not None:
        predicted = said >= np.float64(values.threshold)
    else:  # a rule that only scores decides nothing
        predicted = highest(said, min(TOP_K, len(run.label_names))) if decided is None else decided
    are = {"probable": run.gives_probabilities}
    names = [source.names[i] for i in kept]
    if values.output:
        write_predictions(values.output, names, said, run.label_names, predicted, **are)
    if values.scores:
        origin = f"{run.method.title}, {source.title}"
        known = source.labels[kept] if source.label_names == tuple(run.label_names) else None
        write_scores(values.scores, Scores(logits, tuple(run.label_names), tuple(names), known, origin))
    skipped.write()
    report(source, skipped)
    if values.output:
        counts = f"{counted(len(names), 'image')}, {counted(len(run.label_names), 'label')}"
        print(f"{counts}: {values.output}")
    else:
        print(table_of(names, said, run.label_names, predicted, **are))
    if values.picture:
        images = [_thumbnail(source.read(i)) for i in kept[:DRAWN]]
        draw_predictions(
            values.picture,
            images,
            said[:DRAWN],
            run.label_names,
            predicted=predicted[:DRAWN],
            percent=run.gives_probabilities,
        )
        of_them = "" if len(images) == len(names) else f", the first {len(images)} of them"
        print(f"drawn{of_them}: {values.picture}")


def find_images(given: Sequence[str]) -> Source:
    """Image files, as given or below the folders given, as one `Source`; or a dataset, alone.

    Raises:
      InputError: one of them is neither file nor folder, or a folder holds no image.
    """
    if any(":" in name and name.split(":")[0] in DATASETS for name in given):
        if len(given) > 1:
            raise InputError("give a dataset alone, or any number of files and folders")
        return open_images(given[0])
    files, others = [], 0
    for name in given:
        if not name:
            raise InputError("an empty name among the images")
        path = Path(name)
        if path.is_file():
            files.append(path)
            continue
        images, rest = list_images(name)
        files += images
        others += len(rest)
    are = counted(others, "file in the folders is no image", "files in the folders are no images")
    remarks = [f"{are}, and left out"] if others else []
    return Source("images", map(printable, files), lambda i: read_file(files[i]), remarks=remarks)


def write_predictions(
    path: str | os.PathLike,
    files: Sequence[str | os.PathLike],
    probabilities: Float[np.ndarray, "N K"],
    label_names: Sequence[str],
    predicted: Bool[np.ndarray, "N K"],
    *,
    probable: bool = True,
) -> None:
    """Writes a row for each file: its name, the labels predicted, every label's probability or score.

    `data.tables.read_table` reads the same labels back from either.

    Args:
      path: ends in `.csv` (labels joined by `|`, or JSON lists of them where names could be misread so; and a
        column for each label) or `.jsonl` (an object per line, with `file`, `labels`, and `probabilities` or
        `scores`).
      files: N names.
      probabilities: of each label in each image; or scores.
      label_names: K names.
      predicted: which labels are.
      probable: whether these are probabilities.
    """
    path = Path(path)
    join = "|".join if _can_be_joined(label_names) else functools.partial(json.dumps, ensure_ascii=False)
    if path.suffix == ".csv":
        check_columns(label_names)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as output:
        if path.suffix == ".csv":
            table = csv.writer(output)
            table.writerow(["file", "labels", *label_names])
        for file, row, chosen in zip(files, probabilities, predicted):
            present = [name for name, there in zip(label_names, chosen) if there]
            if path.suffix == ".csv":
                table.writerow([file, join(present), *(f"{p:.4f}" if probable else f"{p:.6g}" for p in row)])
            else:
                digits = 4 if probable else 6
                every = {name: round(float(p), digits) for name, p in zip(label_names, row)}
                line = {"file": str(file), "labels": present, _what(probable): every}
                output.write(json.dumps(line, ensure_ascii=False) + "\n")


def table_of(
    files: Sequence[str | os.PathLike],
    probabilities: Float[np.ndarray, "N K"],
    label_names: Sequence[str],
    predicted: Bool[np.ndarray, "N K"],
    *,
    probable: bool = True,
) -> str:
    """The same as a Markdown table, with the most probable labels of each file, or the highest scores."""
    rows = []
    for file, row, chosen in zip(files, probabilities, predicted):
        present = [name for name, there in zip(label_names, chosen) if there]
        order = np.argsort(-row, kind="stable")[:MOST_PROBABLE]
        rows.append(
            [
                str(file),
                ", ".join(present),
                ", ".join(f"{label_names[k]} {_short(row[k], probable)}" for k in order),
            ]
        )
    best = "most probable" if probable else "highest scores"
    return markdown_table(["image", "labels", best], rows, "lll")


def _short(value, probable):
    return f"{value:.2f}" if probable or abs(value) >= 1 else f"{value:.2g}"


def highest(scores: Float[np.ndarray, "N K"], top_k: int) -> Bool[np.ndarray, "N K"]:
    """Where the `top_k` highest scores of each image are; of equal ones the first."""
    places = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, places, True, axis=1)
    return chosen


def check_columns(label_names: Sequence[str]) -> None:
    """Refuses names of labels for columns of a CSV that has `file` and `labels` already.

    Raises:
      InputError: one would be read as the column of something else.
    """
    taken = {name for names in COLUMN_NAMES.values() for name in names}
    for name in label_names:
        if plain_name(name) in taken:
            raise InputError(
                f"a label is called {name!r}, as columns of other things are in a CSV: write a .jsonl file"
            )


def _can_be_joined(label_names):
    """Whether names with bars between them are read back as they are."""
    try:
        alone = all(labels_of_cells("", [name]).names == [name] for name in label_names)
        together = labels_of_cells("", ["|".join(label_names)]).names
    except InputError:
        return False
    return alone and set(together) == set(label_names)


def _what(probable):
    return "probabilities" if probable else "scores"


def _load(values):
    """The run that is to label the images, with the labels that it is to choose from."""
    from mlclip_jax.backbones import ENCODING, load_backbone, read_encoding
    from mlclip_jax.runs import read_run
    from mlclip_jax.untrained import RECIPE, check_zero_shot, load_zero_shot

    names = read_names(values.classes) if values.classes else []
    if values.method:
        if values.method != RECIPE:
            raise InputError(
                f"no method {values.method!r} without training{nearest(values.method, [RECIPE])}: give "
                f"--method={RECIPE}, or the folder of a run, --workdir=RUN"
            )
        for flag, given in (("backbone", values.backbone), ("classes", names)):
            if not given:
                raise InputError(f"--method={values.method} needs --{flag}={NEEDED[flag]}")
        _check_top_k(values.top_k, names)
        rule, templates = values.rule or "ridge", values.templates or "imagenet"
        encoding = read_encoding({name: values[name].value for name in ENCODING})
        check_zero_shot(names, rule=rule, templates=templates)  # before a backbone is loaded
        backbone = load_backbone(values.backbone, **encoding)
        return load_zero_shot(backbone, names, rule=rule, templates=templates)
    run = read_run(values.workdir, checkpoint=values.checkpoint)
    if run.gives_probabilities and values.threshold is not None and not 0 <= values.threshold <= 1:
        raise InputError(f"--threshold={values.threshold:g} is no probability: give one in [0, 1]")
    run = run.with_backbone(values.backbone)
    _check_top_k(values.top_k, names or run.label_names)
    return run.with_labels(names) if names else run


def _check_top_k(top_k, names):
    if top_k is not None and top_k > len(names):
        raise InputError(
            f"--top_k={top_k} is more than the {counted(len(names), 'label')}; give at most {len(names)}"
        )


def _check_flags(values):
    """What does not go together."""
    from mlclip_jax.backbones import ENCODING

    if bool(values.workdir) == bool(values.method):
        raise InputError("give either --workdir=RUN, or --method=zero_shot, which needs no training")
    own = [name for name in ("rule", "templates", *ENCODING) if values[name].present]
    if values.workdir and own:
        raise InputError(f"--{own[0]} is of --method=zero_shot: leave it out with --workdir")
    if values.method and values["checkpoint"].present:
        raise InputError("--checkpoint is of a trained run: leave it out with --method")
    if values.top_k is not None and values.threshold is not None:
        raise InputError("--top_k and --threshold both choose the labels of an image: give one of them")


def _check_outputs(values):
    """What cannot be written is known before the work is done, not after."""
    for path in filter(None, (values.output, values.picture, values.scores)):
        if Path(path).is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give a file")
    if values.output and Path(values.output).suffix not in FORMATS:
        raise InputError(f"cannot write {values.output}: its name must end in {' or '.join(FORMATS)}")
    if values.picture and Path(values.picture).suffix != ".png":
        raise InputError(f"cannot draw {values.picture}: its name must end in .png")
    if values.scores and Path(values.scores).suffix != ".npz":
        raise InputError(f"cannot write scores to {values.scores}: its name must end in .npz")
    for path in filter(None, (values.output, values.picture, values.scores)):
        make_folder(Path(path).parent)


def _thumbnail(data, side=192):
    image = decode_image(data)
    image.thumbnail((side, side))
    return image


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    flags.DEFINE_string("workdir", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string(
        "method",
        None,
        "or zero_shot: a method that needs --backbone and --classes, and no training; it gives scores, "
        "larger where a label fits better, and no probabilities",
        flag_values=values,
    )
    flags.DEFINE_string(
        "rule",
        None,
        "of zero_shot: ridge (default), standardised, cosine, softmax, centred, compound, local, "
        "self_distilled, yes_no, list_all, top_all and more, as the recipe zero_shot has them, with their "
        "options: self_distilled,bank=FOLDER",
        flag_values=values,
    )
    flags.DEFINE_string(
        "templates",
        None,
        "of zero_shot, what labels are put into: a template, a file of them, or a set such as imagenet "
        "(default), over which embeddings are averaged",
        flag_values=values,
    )
    flags.DEFINE_alias("template", "templates", flag_values=values)
    define_checkpoint(values)
    flags.DEFINE_multi_string(
        "images",
        None,
        "image files and folders, each a flag of its own; or a dataset",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, ".csv or .jsonl file to write; without it, a table is printed", flag_values=values
    )
    flags.DEFINE_string(
        "scores", None, ".npz file to write the logits to, for evaluate and calibrate", flag_values=values
    )
    flags.DEFINE_string("picture", None, f".png to draw the first {DRAWN} images in", flag_values=values)
    flags.DEFINE_float(
        "threshold",
        None,
        "probability from which a label is predicted; by default that of mlclip calibrate, or 0.5; of "
        "zero_shot a score",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k",
        None,
        "or how many labels of each image are predicted, those of highest probability or score; of zero_shot "
        f"{TOP_K} by default",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "classes",
        None,
        "text file, a label per line: these labels, not the run's own, with a method that reads them",
        flag_values=values,
    )
    flags.DEFINE_string(
        "backbone", None, "folder or name of a backbone, unless the run names it", flag_values=values
    )
    define_encoding_flags(values)
    define_reading_flags(values)
    flags.mark_flag_as_required("images", values)
