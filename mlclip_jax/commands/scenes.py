"""Writes images of the built-in world, with labels and captions: `mlclip scenes --output=FOLDER`."""

from absl import flags

from mlclip_jax.data.scenes import DEFAULT, Difficulty, Scenes, write_scenes
from mlclip_jax.data.scenes_source import LABEL_SETS

USES_JAX = False


def main(values: flags.FlagValues) -> None:
    """mlclip scenes --output=FOLDER [--number=1000] [--seed=0] [--labels=first]"""
    difficulty = Difficulty._make(values[name].value for name in Difficulty._fields)
    scenes = Scenes(
        values.seed,
        values.number,
        label_names=LABEL_SETS[values.labels],
        side=values.side,
        difficulty=difficulty,
        partial=values.partial,
    )
    write_scenes(scenes, values.output)
    print(f"{values.output}: {len(scenes)} scenes in images/, their labels and captions in labels.csv")


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    flags.DEFINE_string("output", None, "folder to write, made if it is missing", flag_values=values)
    flags.DEFINE_integer("number", 1000, "how many scenes", flag_values=values)
    flags.DEFINE_integer("seed", 0, "which scenes", flag_values=values)
    flags.DEFINE_enum("labels", "first", list(LABEL_SETS), "which objects", flag_values=values)
    flags.DEFINE_integer("side", 64, "of the images, in pixels", flag_values=values)
    flags.DEFINE_float("partial", 0.5, "fraction of captions that name only some objects", flag_values=values)
    for name, default in DEFAULT._asdict().items():
        define = flags.DEFINE_integer if isinstance(default, int) else flags.DEFINE_float
        define(name, default, "difficulty, see data/scenes.py", flag_values=values)
    flags.mark_flag_as_required("output", values)
