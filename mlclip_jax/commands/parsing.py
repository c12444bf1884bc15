"""The flags of a command line, and what is wrong with them in plain words."""

import re
from collections.abc import Callable

from absl import flags

from mlclip_jax.errors import InputError
from mlclip_jax.recipes import find_recipe


def parse_flags(
    argv: list[str],
    define_flags: Callable[[flags.FlagValues, list[str]], None],
    positional: str | None = None,
) -> flags.FlagValues:
    """Parses a command's flags.

    Args:
      argv: the command's name and its arguments.
      define_flags: called with an empty `absl.flags.FlagValues` and the arguments, to define the flags.
      positional: the flag, if any, whose value may come without its name.

    Returns:
      The parsed `FlagValues`.

    Raises:
      InputError: a flag, recipe, variant or key is unknown or missing, or a value cannot be read.
    """
    argv = _with_recipe_path(argv)
    values = flags.FlagValues()
    try:
        define_flags(values, argv)
        define_common_flags(values)
        rest = values(argv)
        if positional and len(rest) > 1:
            values[positional].parse(rest.pop(1))
    except (AttributeError, KeyError) as error:  # what ml_collections raises for a key that is not there
        raise InputError(_unknown_key(str(error.args[0]))) from error
    except (flags.Error, SyntaxError, ImportError) as error:
        # The last line says what was wrong; what comes before is the traceback of a recipe.
        raise InputError(_in_plain_words(str(error).strip().split("\n")[-1])) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return values


def _in_plain_words(reason):
    """What absl says of a flag, without Python's words for it."""
    if missing := re.search(r"[Ff]lag --(\w+) must have a value other than None", reason):
        return f"--{missing[1]} is missing"
    if unknown := re.match(
        r"Unknown command line flag '(\S+)'(?:. Did you mean: (\S+)(?: or .*)? \?)?", reason
    ):
        meant = f" (did you mean --{unknown[2]}?)" if unknown[2] else ""
        return f"there is no flag --{unknown[1]}{meant}"
    if wrong := re.match(r"flag --([\w.]+)=(.*?): (.*)", reason):
        name, value, what = wrong.groups()
        if "invalid literal for int" in what:
            return f"--{name} must be a whole number; got {value!r}"
        if "could not convert string to float" in what:
            return f"--{name} must be a number; got {value!r}"
        if choices := re.fullmatch(r"value should be one of <(.*)>", what):
            return f"--{name} must be one of {choices[1].replace('|', ', ')}; got {value!r}"
    return reason


def define_common_flags(values: flags.FlagValues) -> None:
    """The flags of every command."""
    flags.DEFINE_boolean(
        "compilation_cache",
        True,
        "keep compiled programs, and take those that are kept",
        flag_values=values,
    )
    flags.DEFINE_boolean("quiet", False, "say nothing on the way but warnings", flag_values=values)


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
