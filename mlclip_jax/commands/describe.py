"""What is in a set of images, before anything is trained: `mlclip data describe --images=SPEC`."""

from pathlib import Path

from absl import flags

from mlclip_jax import recipes
from mlclip_jax.data.datasets import open_images
from mlclip_jax.describe import _images_of, describe, draw_sheet, with_labels
from mlclip_jax.errors import InputError
from mlclip_jax.files import make_folder

USES_JAX = False
KEYS = ("examples", "evaluation", "images")  # of a config, that say where images are


def main(values: flags.FlagValues) -> None:
    """mlclip data describe --images=SPEC [--labels=FILE] | --config=RECIPE [--output=SHEET.png]"""
    if values.output is not None:
        if Path(values.output).suffix != ".png":
            raise InputError(f"cannot draw {values.output!r}: its name must end in .png")
        make_folder(Path(values.output).parent)
    wanted = _find_wanted(values)
    for number, (key, spec, labels) in enumerate(wanted):
        source = open_images(spec)
        if labels:
            source = with_labels(source, labels)
        if key:
            print(("\n" if number else "") + f"## {key}\n")
        print(describe(source))
        if values.output is not None:
            path = Path(values.output)
            if len(wanted) > 1:
                path = path.with_stem(f"{path.stem}_{key.split('.')[0]}")
            draw_sheet(path, source, values.number, values.seed)
            drawn = min(values.number, len(_images_of(source)))
            print(f"\n{drawn} of its images, chosen at random, are drawn in {path}")


def _find_wanted(values):
    """What is to be described: a list of its key in the config or None, the images, and a table or None."""
    if (values.config is None) == (values.images is None):
        raise InputError("give either --images=SPEC or --config=RECIPE")
    if values.images is not None:
        return [(None, values.images, values.labels)]
    if values.labels is not None:
        raise InputError("--labels goes with --images; a recipe's are --config.evaluation.labels=FILE")
    wanted = []
    for key in KEYS:
        part, name = values.config.get(key) or {}, "source" if key == "images" else "images"
        if part.get(name):
            wanted.append((f"{key}.{name}", part[name], part.get("labels")))
    if not wanted:
        raise InputError(
            "this recipe names no images: give --config.examples.images, --config.evaluation.images or "
            "--config.images.source, whichever it has"
        )
    return wanted


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    recipes.define_config(values, argv, required=False)
    flags.DEFINE_string(
        "images", None, "images to describe: a folder, or FORMAT:PATH,option=value,...", flag_values=values
    )
    flags.DEFINE_string(
        "labels", None, "table of their labels, in place of those that they have", flag_values=values
    )
    flags.DEFINE_string("output", None, ".png to draw some of the images in", flag_values=values)
    flags.DEFINE_integer("number", 24, "images to draw", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the images that are drawn", lower_bound=0, flag_values=values)
