"""Recipes: config files, found by path or by name, and the flags that override their values."""

import json
import os
import re
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from mlclip_jax.errors import InputError
from mlclip_jax.files import write_text
from mlclip_jax.options import nearest, read_options, split_options

Option = str | bool | int | float  # of a recipe
ENDLESS = ("constant", "step")  # schedules that do not depend on the number of steps


def define_config(values: flags.FlagValues, argv: list[str], *, required: bool = True) -> None:
    """Defines `--config=RECIPE[:variant]`, whose keys `--config.key=value` overrides.

    A recipe is a path to a Python file with a `get_config`, or the name of one that ships with the package.
    """
    config_flags.DEFINE_config_file(
        "config",
        help_string=f"recipe, by name ({', '.join(shipped_recipes())}) or path, and its variant",
        flag_values=values,
        sys_argv=argv,
    )
    if required:
        flags.mark_flag_as_required("config", values)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship with the package: a dict of names and paths."""
    paths = (Path(str(file)) for file in files("mlclip_jax.configs").iterdir())
    return {path.stem: path for path in sorted(paths) if path.suffix == ".py" and path.stem != "__init__"}


def find_recipe(name: str) -> Path:
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
    known = ", ".join(sorted(shipped))
    raise InputError(f"no recipe {name!r}{nearest(name, shipped)}: neither a file nor one of {known}")


def base(
    recipe: str, given: str, variants: Sequence[str], **options: Option
) -> tuple[ConfigDict, str, dict[str, Option]]:
    """What the recipe of a method begins with; it sets what is its own.

    Args:
      recipe: its name; of one's own, `__file__`.
      given: what its `get_config` is given: `VARIANT,key=value,...`; an empty variant is the first one.
      variants: those there are.
      options: its options and their defaults, of which `loss` is one.

    Returns:
      A `ConfigDict` with the keys of every method; the variant; and the options, a dict of values of the same
      types as the defaults. The config's `recipe` names all three.

    Raises:
      InputError: there is no such variant or option, or no such loss.
    """
    defaults = {"loss": "binary_cross_entropy"} | options
    variant, options = read_variant(recipe, given, variants, defaults)
    config = frozen_base(recipe, variant, options, defaults)
    config.seed = 0
    config.init = placeholder(str)  # folder of a run, whose parameters this one begins with

    config.perturbation = ConfigDict()
    config.perturbation.radius = 0.0  # of texts, in units of the un-normalised embedding
    config.perturbation.sampling = "surface"
    config.perturbation.image_radius = 0.0  # of images
    config.perturbation.image_sampling = "interior"
    # Whether texts first move to where images of their labels are expected, by those of `examples`: "" (not),
    # "mean" (as published) or "regression".
    config.perturbation.shift = ""

    config.loss = loss(str(options["loss"]))

    config.optimizer, config.schedule, config.train = optimizer(), schedule(), training()
    return config, variant, options


def frozen_base(
    recipe: str, variant: str, options: Mapping[str, Option], defaults: Mapping[str, Option]
) -> ConfigDict:
    """Of that, what does not train: the recipe's name, the backbone, the labels, and images to score."""
    config = ConfigDict()
    given_options = (f"{key}={value}" for key, value in options.items() if value != defaults[key])
    config.recipe = f"{recipe}:{','.join([variant, *given_options])}"
    config.max_skipped = 0.01  # fraction of the images that may be unreadable

    config.backbone = placeholder(str)  # folder or hub name
    config.encoding = ConfigDict()  # how the backbone computes; what is left empty, it decides
    config.encoding.dtype = ""  # "float32" or "bfloat16"; by default float32 on CPUs, bfloat16 elsewhere
    config.encoding.image_size = ""  # "448", or "448x336" for height and width; by default its own
    config.encoding.resize = ""  # "crop" or "squash"; by default its own
    config.encoding.interpolation = ""  # "bicubic" or "bilinear", of resizing; by default its own
    config.encoding.decode = ""  # "full" (default), or "reduced": JPEG files faster, and nearly the same
    config.encoding.position_embeddings = ""  # of a CLIP ResNet: "pooled" (default), "all" or "none"
    config.encoding.antialias = ""  # "yes" or "no": of position embeddings at other image sizes
    config.encoding.clean = ""  # "yes" or "no": whether texts are repaired first; both by default as usual
    config.encoding.shard_parameters = False  # split over the devices, for large models

    config.texts = ConfigDict()
    config.texts.labels = placeholder(str)  # text file, a label per line; by default the images' own
    # What class embeddings are made by: a template, or averaged, a file or set of them such as "imagenet";
    # by default "a photo of {labels}.".
    config.texts.templates = ""

    config.evaluation = labelled_images()  # to score; left empty, the run only trains
    return config


def labelled_images() -> ConfigDict:
    """Where images with labels are, to train on or to score: nothing yet."""
    images = ConfigDict()
    images.embeddings = placeholder(str)  # a file or a folder, a row per image
    images.images = placeholder(str)  # or a folder of images, or "voc:FOLDER,split=test"
    images.labels = placeholder(str)  # a table, where these have no labels
    return images


def training_images() -> ConfigDict:
    """Where images with labels are to train on, and how little of them is known."""
    images = labelled_images()
    images.shots = 0  # images that are left for each label, few-shot; 0: all
    images.known = 1.0  # fraction of their labels that is known; the published benchmarks' choice of them
    return images


def optimizer(**changes: object) -> ConfigDict:
    """How a run descends, see `training/optimizers.py`."""
    config = ConfigDict()
    config.name = "adamw"  # or "adam", "sgd", "muon"
    config.learning_rate = 1e-3  # the peak
    config.weight_decay = 0.01
    config.b2 = 0.999  # of Adam: the mean of squared gradients
    config.momentum = 0.9  # of SGD
    config.nesterov = False  # of SGD and Muon
    config.max_norm = 0.0  # of the gradient, which is scaled down to it; 0: any
    config.groups = ConfigDict()  # of parameters, by paths, with factors of their own
    config.update(changes)
    return config


def schedule(**changes: object) -> ConfigDict:
    """The learning rate over the steps, see `training/optimizers.py`."""
    config = ConfigDict()
    config.name = "one_cycle"  # or "cosine", "step", "constant"
    config.warmup = 0  # steps, linear from 0; the one cycle has its own
    config.every = 1_000  # steps, of "step": the rate is multiplied by `factor` after so many
    config.factor = 0.1
    config.update(changes)
    return config


def training(**changes: object) -> ConfigDict:
    """The length of a run, and what happens on the way."""
    config = ConfigDict()
    config.steps = 3_000
    config.epochs = 0.0  # in place of steps, unless it is 0
    config.batch_size = 64  # over all devices
    config.parallel = "shard_map"  # or "pmap"
    config.label_shards = 1  # devices that share many thousands of labels; the batch has the others
    config.log_every = 100  # steps
    config.evaluate_every = 0  # steps; 0: only at the end
    config.best_by = "mAP"  # what the best checkpoint is chosen by; or "micro_f1", "loss", of the evaluation
    config.patience = 0  # evaluations without a better one, after which the run ends; 0: none ends it
    config.checkpoint_every = 1_000  # steps
    config.max_skipped_steps = 0  # with a loss or gradient that is not finite; one more ends the run
    config.stall_seconds = 1_800  # without progress, until a process ends; 0: never
    config.update(changes)
    return config


def method(name: str, **settings: object) -> ConfigDict:
    """The settings of a method, see `methods.METHODS`: its own defaults, but for those given here."""
    from mlclip_jax import methods

    settings = {"name": name} | settings
    return ConfigDict({"name": name} | methods.find(settings).settings)


def loss(name: str) -> ConfigDict:
    """The name and the constants of a loss; its `reduction` is empty, which means its source's.

    Raises:
      InputError: there is no such loss.
    """
    from mlclip_jax.losses import LOSSES, constants

    if name not in LOSSES:
        raise InputError(f"no loss {name!r}; there are {', '.join(LOSSES)}")
    return ConfigDict({"name": name} | constants(name) | {"reduction": ""})


def read_variant(
    recipe: str, given: str, variants: Sequence[str], options: Mapping[str, Option]
) -> tuple[str, dict[str, Option]]:
    """A variant and its options, `VARIANT,key=value,...`; see `base` and `options.py`."""
    variant, rest = split_options(given)
    variant = variant or variants[0]
    if variant not in variants:
        raise InputError(
            f"recipe {recipe} has no variant {variant!r}{nearest(variant, variants)}; it has "
            f"{', '.join(variants)}"
        )
    return variant, {**options, **read_options(f"recipe {recipe}", rest, options)}


def check_choice(recipe: str, option: str, value: object, choices: Sequence[str]) -> None:
    """Refuses an option's value that is none of its choices.

    Raises:
      InputError: it is none of them.
    """
    if value not in choices:
        near = nearest(value, choices)
        raise InputError(f"recipe {recipe} has no {option}={value}{near}; it has {', '.join(choices)}")


def schema(config: ConfigDict) -> ConfigDict:
    """The config that a recipe gives before anything of it is changed: which keys there are, of which types.

    Raises:
      InputError: the config names no recipe, or that cannot be found or read any more.
    """
    recipe = config.get("recipe")
    if not isinstance(recipe, str):
        raise InputError(
            "the config names no recipe; one's own begins with `mlclip_jax.recipes.base(__file__, ...)`"
        )
    return read(recipe)


def read(recipe: str) -> ConfigDict:
    """The config of a recipe, `NAME:VARIANT,key=value,...`, as `--config` takes it.

    Raises:
      InputError: there is no such recipe, variant or option.

    Example:
      >>> config = recipes.read("tai:templates,loss=asymmetric")
    """
    name, _, variant = recipe.partition(":")
    return runpy.run_path(str(find_recipe(name)))["get_config"](variant)


def write_config(folder: str | os.PathLike, config: ConfigDict) -> None:
    """Writes a resolved config to `config.json` in a run's folder."""
    write_text(Path(folder) / "config.json", config.to_json(indent=2) + "\n")


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config of the run in a folder, a `ConfigDict`.

    Raises:
      InputError: the folder holds no run, or its config.json is damaged.
    """
    path = Path(workdir) / "config.json"
    try:
        config = ConfigDict(json.loads(path.read_text(encoding="utf-8")))
        if "evaluation" not in config:
            raise ValueError("it is no config of a run")
        if "recipe" not in config:
            raise InputError(
                f"{workdir} holds a run of an earlier version, which this one does not read; train again"
            )
    except FileNotFoundError:
        raise InputError(f"{workdir} holds no run: it has no config.json; train there first") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {path} ({reason}); restore it, or train in another folder") from error
    return config


def check_same_run(workdir: str | os.PathLike, config: ConfigDict, may_change: tuple[str, ...]) -> None:
    """Refuses a folder whose checkpoints are of another config.

    Args:
      workdir: folder of a run that has checkpoints.
      config: of the run that is to resume there, a `ConfigDict`.
      may_change: beginnings of the keys that do not change a result; more `train.steps` continue a run,
        where its schedule is `ENDLESS`.

    Raises:
      InputError: other keys have other values there; all of them are named.
    """
    there, here = flat_config(read_config(workdir)), flat_config(json.loads(config.to_json()))
    if here.get("train.epochs"):  # from which the steps there were computed
        may_change = (*may_change, "train.steps")
    had, wanted = (flat.get("train.steps") for flat in (there, here))
    schedule, stretched = here.get("schedule.name"), ""
    if isinstance(had, int) and isinstance(wanted, int) and wanted > had:
        if schedule in ENDLESS:
            may_change = (*may_change, "train.steps")
        elif "train.steps" not in may_change:
            endless = " and ".join(ENDLESS)
            stretched = f" (more steps would stretch its schedule, {schedule}; {endless} have no end)"
    keys = sorted(key for key in there.keys() | here.keys() if not key.startswith(may_change))
    differing = [
        f"{key} {_value_at(there, key)}, not {_value_at(here, key)}"
        for key in keys
        if key not in there or key not in here or there[key] != here[key]
    ]
    if differing:
        raise InputError(
            f"{workdir} holds a run with {'; '.join(differing)}{stretched}: give what it has, "
            "or another --workdir"
        )


def check(
    config: Mapping | ConfigDict,
    expected: Mapping | ConfigDict,
    required: Iterable[str],
    conditions: Mapping[str, tuple[Callable[[Any], bool], str]],
) -> None:
    """Refuses a config that could only fail later, or silently mean something else.

    Args:
      config: a `ConfigDict`.
      expected: one with the same keys, and values of the right types.
      required: keys that no run can do without, where `expected` has them.
      conditions: dict from a key to a test of its value, and what is wanted, in words.

    Raises:
      InputError: a key is missing, unknown or left open, or a value is invalid.
    """
    flat, examples = flat_config(config), flat_config(expected)
    for key in sorted(flat.keys() - examples.keys()):
        raise InputError(f"the recipe has {key}, which nothing reads{nearest(key, examples)}")
    for key in sorted(examples.keys() - flat.keys()):
        raise InputError(f"the recipe lacks {key}")
    for key in required:
        if key in flat and not flat[key]:
            raise InputError(f"the recipe leaves {key} open: set --config.{key}=...")
    for key, (holds, wanted) in conditions.items():
        if key not in flat:
            continue
        try:
            fits = isinstance(flat[key], (type(examples[key]), int)) and holds(flat[key])
        except TypeError:  # a word where a number belongs
            fits = False
        if not fits:
            raise InputError(f"invalid --config.{key}={flat[key]}: must be {wanted}")
    for key, value in flat.items():
        example = examples[key]
        if value is None or type(value) is type(example):
            continue
        if (example is None and isinstance(value, str)) or (type(example), type(value)) == (float, int):
            continue
        kind = "a string" if example is None else f"of type {type(example).__name__}, such as {example!r}"
        raise InputError(f"invalid --config.{key}={value!r}: must be {kind}")


def _value_at(flat, key):
    return repr(flat[key]) if key in flat else "absent"


def flat_config(config: Mapping | ConfigDict) -> dict[str, Any]:
    """A config as a flat dict, {"train.steps": 3000, ...}."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= {f"{key}.{name}": inner for name, inner in flat_config(value).items()}
        else:
            flat[key] = value
    return flat
