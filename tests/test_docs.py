"""What README and docs say of names, constants and sizes is what the code has."""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.flags import FlagValues
from flax import nnx

from mlclip_jax import InputError, methods, metrics, recipes
from mlclip_jax.calibration import METHODS, RULES
from mlclip_jax.cli import COMMANDS
from mlclip_jax.commands import calibrate
from mlclip_jax.configs import ml_decoder, mmm_clip, tai
from mlclip_jax.data.datasets import FORMATS, open_images
from mlclip_jax.losses import LOSSES, constants
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.options import split_options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
DOCS = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def table(header):
    """The rows of the table whose header begins so: lists of cells."""
    _, _, rest = DOCS.partition(f"\n| {header}")
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
    class_embeddings = np.zeros((80, 512), np.float32)
    variants = set()
    for *_, recipe, _, count in table("adapter | recipe"):
        name, _, variant = recipe.strip("`").partition(":")
        module = {"tai": tai, "mmm_clip": mmm_clip, "ml_decoder": ml_decoder}[name]
        config = module.get_config(variant) if variant else module.get_config()
        variants.add((name, variant or module.VARIANTS[0]))
        adapter = methods.find(config.method).make(class_embeddings, rngs=nnx.Rngs(0))
        number = sum(array.size for array in jax.tree.leaves(split_trainable(adapter)[1]))
        assert count == f"{number:,}", recipe
    for module in (mmm_clip, ml_decoder):
        name = module.__name__.split(".")[-1]
        assert {(name, variant) for variant in module.VARIANTS} <= variants


def test_the_constants_of_mld_and_ml_decoder_are_said():
    titles = {row[0]: row[2] for row in table("adapter | recipe") if row[0]}
    for title, recipe, variant in (("MLD", mmm_clip, "mld"), ("ML-Decoder", ml_decoder, "frozen")):
        adapter, how = recipe.get_config(variant).method, titles[title]
        assert f"{adapter.num_heads} heads" in how
        assert f"FFN {adapter.hidden:,}" in how
    assert f"dropout {mmm_clip.get_config('mld').method.dropout}" in titles["MLD"]
    assert f"at most {ml_decoder.get_config().method.groups} random queries" in titles["ML-Decoder"]
    assert f"{ml_decoder.get_config().method.width} wide" in titles["ML-Decoder"]


def names_in(header, pattern=r"`(\w+)`"):
    """What the first cells of a table's rows name, in order."""
    return [name for row in table(header) for name in re.findall(pattern, row[0])]


@pytest.mark.parametrize(("flag", "there"), [("method", METHODS), ("rule", RULES)])
def test_every_choice_of_calibrate_has_its_row_and_the_default_is_said(flag, there):
    assert sorted(names_in(f"`--{flag}` |")) == sorted(there)
    [default] = names_in(f"`--{flag}` |", r"`(\w+)` \(default\)")
    values = FlagValues()
    calibrate.define_flags(values, [])
    assert values[flag].default == default


def test_every_metric_is_there_and_every_protocol_has_its_row():
    header = "metric of [`mlclip_jax.metrics`](../mlclip_jax/metrics.py) |"
    assert sorted(names_in(header, r"protocol `(\w+)`")) == sorted(metrics.PROTOCOLS)
    figures = metrics.decision_figures(np.eye(2, dtype=bool), np.eye(2, dtype=np.int8)).keys()
    for name in set(names_in(header)) - set(metrics.PROTOCOLS):
        assert name in figures or callable(getattr(metrics, name)), name
    assert figures <= set(names_in(header))


def test_every_command_has_a_row_with_flags_that_it_has():
    rows = {row[0].strip("`"): row for row in table("command | what it does")}
    named = [next(name for name in COMMANDS if f"{line} ".startswith(f"mlclip {name} ")) for line in rows]
    assert sorted(named) == sorted(COMMANDS)
    for name, (line, row) in zip(named, rows.items()):
        values = FlagValues()
        importlib.import_module(COMMANDS[name][0]).define_flags(values, [])
        for flag in re.findall(r"--(\w+)", " ".join([line, *row])):
            assert flag in values, (name, flag)


def test_every_recipe_has_its_row_with_every_variant():
    rows, name = {}, None
    for first, variants, *_ in table("recipe | variant"):
        name = re.fullmatch(r"\[`(\w+)`\]\(\.\./configs/\1\.py\)", first)[1] if first else name
        rows.setdefault(name, set()).update(re.findall(r"`(\w+)`", variants))
    assert rows.keys() == recipes.shipped_recipes().keys()
    for name, variants in rows.items():
        module = importlib.import_module(f"mlclip_jax.configs.{name}")
        if name != "few_shot":  # which names the adapters in a table of its own
            assert variants == set(getattr(module, "VARIANTS", ())), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    headings = {}
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"(?m)^#+ (.+)$", linked.read_text(encoding="utf-8"))
            headings[linked] = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert heading in headings[linked], target


def test_every_page_is_in_the_readmes_index():
    readme = PAGES[0].read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in readme, page
    assert len(readme.splitlines()) < 140


def test_every_method_has_its_settings_and_defaults():
    rows = {row[0].strip("`"): row[1] for row in table("method | settings and defaults")}
    assert rows.keys() == methods.METHODS.keys()
    for name, cell in rows.items():
        said = dict(setting.split("=") for setting in re.findall(r"`(\w+=[^`]*)`", cell))
        assert said == {key: str(value) for key, value in methods.find({"name": name}).settings.items()}, name


def test_every_key_of_every_recipe_has_its_default():
    rows = {row[0].strip("`"): row[1].strip("`") for row in table("key | default")}
    parts = {"optimizer": recipes.optimizer(), "schedule": recipes.schedule(), "train": recipes.training()}
    expected = {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}
    assert rows == {key: "" if key == "optimizer.groups" else str(value) for key, value in expected.items()}


def test_every_dataset_is_said_with_options_that_it_has():
    """Each dataset that is said is one that `open_images` takes, but for the files."""
    said = set()
    for spec in re.findall(r"`((?:table|voc|coco|nus_wide|tfds|scenes):[^`]+)`", DOCS):
        kind, _, rest = spec.partition(":")
        said.add(kind)
        if kind == "scenes":  # which needs no files
            open_images(
                f"{spec},number=1" if "number" not in spec else re.sub(r"number=\d+", "number=1", spec)
            )
            continue
        options = dict(option.split("=", 1) for option in split_options(rest)[1])
        with pytest.raises(InputError) as raised:
            open_images(spec.replace("data/", "/nowhere/"))
        if rest:
            assert "no option" not in str(raised.value), (spec, options)
    assert said == FORMATS.keys()
