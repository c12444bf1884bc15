"""What the README says of names, constants and sizes is what the code has."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from mlclip_jax import InputError, metrics, recipes
from mlclip_jax.adapters import make_adapter
from mlclip_jax.calibration import METHODS, RULES
from mlclip_jax.cli import COMMANDS
from mlclip_jax.configs import ml_decoder, mmm_clip, tai
from mlclip_jax.data.datasets import FORMATS, open_images
from mlclip_jax.losses import LOSSES, constants
from mlclip_jax.modules import split_trainable

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def table(header):
    """The rows of the table whose header begins so: lists of cells."""
    _, _, rest = README.partition(f"\n| {header}")
    rows = []
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_loss_with_its_constants():
    rows = {row[0].strip("`"): row for row in table("loss | source")}
    assert list(rows) == list(LOSSES)
    for name, (_, source, defaults, reduction) in rows.items():
        assert source
        written = dict(re.findall(r"`(\w+)=([^`]+)`", defaults)) | {"reduction": reduction.strip("`")}
        assert written == {key: str(value) for key, value in constants(name).items()}


def test_every_recipe_variant_of_an_adapter_with_its_size():
    class_texts = np.zeros((80, 512), np.float32)
    variants = set()
    for *_, recipe, _, count in table("adapter | recipe"):
        name, _, variant = recipe.strip("`").partition(":")
        module = {"tai": tai, "mmm_clip": mmm_clip, "ml_decoder": ml_decoder}[name]
        config = module.get_config(variant) if variant else module.get_config()
        variants.add((name, variant or module.VARIANTS[0]))
        adapter = make_adapter(config.adapter, class_texts, rngs=nnx.Rngs(0))
        number = sum(array.size for array in jax.tree.leaves(split_trainable(adapter)[1]))
        assert count == f"{number:,}", recipe
    for module in (mmm_clip, ml_decoder):
        name = module.__name__.split(".")[-1]
        assert {(name, variant) for variant in module.VARIANTS} <= variants


@pytest.mark.parametrize("name", sorted({*METHODS, *RULES, *metrics.PROTOCOLS, *COMMANDS}))
def test_every_name_is_said(name):
    assert f"`{name}`" in README or f"`mlclip {name} " in README


def test_every_recipe_is_listed():
    for name in recipes.shipped_recipes():
        assert f"[`{name}`](configs/{name}.py)" in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target


def test_every_dataset_is_said_with_options_that_it_has():
    """Each of the README's datasets is one that `open_images` takes, but for the files."""
    said = set()
    for spec in re.findall(r"`((?:table|voc|coco|nus_wide|tfds):[^`]+)`", README):
        kind, _, rest = spec.partition(":")
        said.add(kind)
        options = dict(option.split("=", 1) for option in rest.split(",")[1:])
        with pytest.raises(InputError) as raised:
            open_images(spec.replace("data/", "/nowhere/"))
        if rest:
            assert "no option" not in str(raised.value), (spec, options)
    assert said == FORMATS.keys()
