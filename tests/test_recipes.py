"""Recipes by name and by path, their variants and overrides."""

import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mlclip_jax import InputError, configs
from mlclip_jax.recipes import define_config, find_recipe, flat_config, parse_flags

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


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_gives_its_command_and_loads(name):
    module = importlib.import_module(f"mlclip_jax.configs.{name}")
    assert f"--config={name}" in module.__doc__
    assert flat_config(module.get_config())


def test_flat_config():
    assert flat_config(ConfigDict({"a": 1, "b": {"c": {"d": 2}}})) == {"a": 1, "b.c.d": 2}
