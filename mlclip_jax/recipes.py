"""Recipes: config files, found by path or by name, and the flags that override their values."""

import re
from importlib.resources import files
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mlclip_jax.errors import InputError


def define_config(values, argv):
    """Defines `--config=RECIPE[:variant]`, required, whose keys `--config.key=value` overrides.

    A recipe is a path to a Python file with a `get_config`, or the name of one that ships with the package.
    """
    config_flags.DEFINE_config_file(
        "config",
        help_string=f"recipe, by name ({', '.join(shipped_recipes())}) or path, and its variant",
        flag_values=values,
        sys_argv=argv,
    )
    flags.mark_flag_as_required("config", values)


def parse_flags(argv, define_flags):
    """Parses a command's flags.

    Args:
      argv: the command's name and its arguments.
      define_flags: called with an empty `absl.flags.FlagValues` and the arguments, to define the flags.

    Returns:
      The parsed `FlagValues`.

    Raises:
      InputError: a flag, recipe, variant or key is unknown or missing, or a value cannot be read.
    """
    argv = _with_recipe_path(argv)
    values = flags.FlagValues()
    define_flags(values, argv)
    try:
        rest = values(argv)
    except (AttributeError, KeyError) as error:  # what ml_collections raises for a key that is not there
        raise InputError(_unknown_key(str(error.args[0]))) from error
    except (flags.Error, SyntaxError, ImportError) as error:
        # The last line says what was wrong; what comes before is the traceback of a recipe.
        reason = str(error).strip().splitlines()[-1]
        missing = re.search(r"[Ff]lag --(\w+) must have a value other than None", reason)
        raise InputError(f"--{missing[1]} is missing" if missing else reason) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return values


def shipped_recipes():
    """The recipes that ship with the package: a dict of names and paths."""
    paths = (Path(str(file)) for file in files("mlclip_jax.configs").iterdir())
    return {path.stem: path for path in sorted(paths) if path.suffix == ".py" and path.stem != "__init__"}


def find_recipe(name):
    """The path of a recipe given by path or by the name of one that ships with the package.

    Raises:
      InputError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    # "configs/tai.py" works from anywhere too, as it does from a checkout.
    if re.fullmatch(r"(configs/)?\w+(\.py)?", name) and Path(name).stem in shipped:
        return shipped[Path(name).stem]
    raise InputError(f"no recipe {name!r}: neither a file nor one of {', '.join(sorted(shipped))}")


def flat_config(config):
    """A config as a flat dict, {"train.steps": 3000, ...}."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= {f"{key}.{name}": inner for name, inner in flat_config(value).items()}
        else:
            flat[key] = value
    return flat


def _unknown_key(message):
    suggestion = re.search(r'Did you mean "(.+?)" instead of "(.+?)"', message)
    if suggestion:
        return f"no such config key: {suggestion[2]!r}; did you mean {suggestion[1]!r}?"
    return f"no such config key in this recipe and variant: {' '.join(message.split())}"


def _with_recipe_path(argv):
    """Joins `--config RECIPE` to `--config=RECIPE`, and puts the recipe's path for its name."""
    resolved, arguments = [], iter(argv)
    for argument in arguments:
        if argument in ("--config", "-config"):
            argument = f"--config={next(arguments, '')}"
        match = re.fullmatch(r"--?config=([^:]*)(:.*)?", argument)
        if match:
            argument = f"--config={find_recipe(match[1])}{match[2] or ''}"
        resolved.append(argument)
    return resolved
