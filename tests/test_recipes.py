"""Recipes by name and by path, their variants and overrides."""

import importlib
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mlclip_jax import InputError, configs
from mlclip_jax.commands.parsing import parse_flags
from mlclip_jax.configs import tai
from mlclip_jax.recipes import (
    check,
    check_same_run,
    define_config,
    find_recipe,
    flat_config,
    read_variant,
    schema,
    write_config,
)

SHIPPED = sorted(path.stem for path in Path(configs.__path__[0]).glob("*.py") if path.stem != "__init__")


def parse(*arguments):
    return parse_flags(["mlclip", *arguments], define_config).config


@pytest.mark.parametrize("name", ["tai", "tai.py", "configs/tai.py", "configs/tai"])
def test_shipped_recipes_are_found_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name).read_text().startswith('"""TaI-Adapter')


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "import ml_collections\ndef get_config(): return ml_collections.ConfigDict({'x': 1})"
    (tmp_path / "tai.py").write_text(own)
    assert parse("--config=tai.py").to_dict() == {"x": 1}
    with pytest.raises(InputError, match=r"no recipe 'other/tai\.py'"):
        find_recipe("other/tai.py")


def test_overrides_in_either_form_keep_their_types():
    config = parse("--config", "tai", "--config.train.steps", "7", "--config.optimizer.learning_rate=1")
    assert config.train.steps == 7
    assert (config.optimizer.learning_rate, type(config.optimizer.learning_rate)) == (1.0, float)
    assert config.is_locked


def test_variants():
    assert "class_embeddings" in parse("--config=tai").texts
    assert "backbone" in parse("--config=tai:templates")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ("first", {"loss": "hill", "shots": 4, "rate": 0.5})),
        ("second", ("second", {"loss": "hill", "shots": 4, "rate": 0.5})),
        ("second,shots=1,rate=2", ("second", {"loss": "hill", "shots": 1, "rate": 2.0})),
        (",loss=focal", ("first", {"loss": "focal", "shots": 4, "rate": 0.5})),
        ("third", "recipe mine has no variant 'third'; it has first, second"),
        (
            "first,shot=1",
            "recipe mine has no option 'shot' (did you mean shots?); its options, and defaults: loss=hill",
        ),
        ("first,shots", "recipe mine has no variant 'first,shots' (did you mean first?); it has first"),
        ("first,shots=few", "recipe mine takes a whole number as shots, not 'few'"),
    ],
)
def test_a_variant_and_its_options(given, expected):
    defaults = {"loss": "hill", "shots": 4, "rate": 0.5}
    if isinstance(expected, tuple):
        assert read_variant("mine", given, ("first", "second"), defaults) == expected
        assert defaults["shots"] == 4
    else:
        with pytest.raises(InputError, match=f"^{re.escape(expected)}"):
            read_variant("mine", given, ("first", "second"), defaults)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_names_its_recipe_whose_schema_is_its_own(name):
    module = importlib.import_module(f"mlclip_jax.configs.{name}")
    for variant in getattr(module, "VARIANTS", ("",)):
        config = module.get_config(variant)
        assert config.recipe.startswith(f"{name}:{variant}" if variant else name)
        assert schema(config).to_dict() == config.to_dict()
    assert module.get_config().to_dict() == module.get_config("").to_dict()


def test_a_recipe_may_have_been_moved(tmp_path):
    config = tai.get_config()
    config.recipe = f"{tmp_path}/gone.py:x"
    with pytest.raises(InputError, match=r"no recipe '.*gone\.py'"):
        schema(config)
    del config.recipe
    with pytest.raises(InputError, match="the config names no recipe; one's own begins with"):
        schema(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_gives_its_command_and_loads(name):
    module = importlib.import_module(f"mlclip_jax.configs.{name}")
    assert f"--config={name}" in module.__doc__
    assert flat_config(module.get_config())


EXPECTED = ConfigDict({"a": 1, "b": {"rate": 0.5, "name": "x", "on": True}, "path": None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"b.rate": 2}, None),
        ({"path": "p"}, None),
        ({"b.rate": -1.0}, r"invalid --config\.b\.rate=-1\.0: must be positive"),
        ({"b.rate": "fast"}, r"invalid --config\.b\.rate=fast: must be positive"),
        ({"b.name": 3}, r"invalid --config\.b\.name=3: must be of type str, such as 'x'"),
        ({"a": True}, r"invalid --config\.a=True: must be of type int, such as 1"),
        ({"a": 1.0}, r"invalid --config\.a=1\.0: must be of type int"),
        ({"b.on": "yes"}, r"invalid --config\.b\.on='yes': must be of type bool, such as True"),
        ({"path": 7}, r"invalid --config\.path=7: must be a string"),
        ({"b.rtae": 1.0}, r"the recipe has b\.rtae, which nothing reads \(did you mean b\.rate\?\)"),
        ({"zzz": 1.0}, r"the recipe has zzz, which nothing reads$"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_that_can(changes, message):
    config = flat_config(EXPECTED) | changes
    conditions = {"b.rate": (lambda rate: rate > 0, "positive")}
    if message is None:
        check(config, EXPECTED, (), conditions)
    else:
        with pytest.raises(InputError, match=f"^{message}"):
            check(config, EXPECTED, (), conditions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.stpes=3"], "no such config key: 'stpes'; did you mean 'steps'?"),
        (["--config.tarin.steps=3"], "no such config key: 'tarin'; did you mean 'train'?"),
        (["--config.train.steps=many"], "--config.train.steps must be a whole number; got 'many'"),
        (["--config.train.steps=2.5"], "--config.train.steps must be a whole number; got '2.5'"),
        (["--config.optimizer.learning_rate=fast"], "must be a number; got 'fast'"),
        (["--cofnig=tai"], "there is no flag --cofnig (did you mean --config?)"),
        (["--flagfile=missing"], "missing"),
    ],
)
def test_a_misspelt_key_or_flag_is_one_line(arguments, message):
    with pytest.raises(InputError) as raised:
        parse("--config=tai", *arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_keys_that_differ_from_those_of_the_run_are_named(tmp_path):
    config = tai.get_config()
    write_config(tmp_path, config)
    (tmp_path / "checkpoints/10").mkdir(parents=True)
    check_same_run(tmp_path, config, ("train.log_every",))
    config.train.update(steps=7, log_every=3)
    config.seed = 5
    del config.texts.number
    with pytest.raises(InputError) as raised:
        check_same_run(tmp_path, config, ("train.log_every",))
    assert "seed 0, not 5; texts.number 10000, not absent; train.steps 3000, not 7" in str(raised.value)


def test_flat_config():
    assert flat_config(ConfigDict({"a": 1, "b": {"c": {"d": 2}}})) == {"a": 1, "b.c.d": 2}
