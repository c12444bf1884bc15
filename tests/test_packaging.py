"""What a user installs: the recipes are inside, and `--config=tai` finds them."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_the_recipes(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("mlclip_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("mlclip_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    recipes = {f"mlclip_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mlclip_jax").rglob("*.py")}
    clip = ROOT / "mlclip_jax/backbones/scenes_clip"
    built_in = {path.relative_to(ROOT).as_posix() for path in clip.iterdir()}
    assert recipes | modules | built_in | {"mlclip_jax/py.typed"} <= held
    # From the wheel alone, far from the checkout.
    code = "from mlclip_jax.recipes import find_recipe; print(find_recipe('tai'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "installed",
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path / "installed" / "mlclip_jax" / "configs" / "tai.py"


def test_the_package_imports_nothing_of_the_tests_extras():
    """hypothesis, torch and torchmetrics serve the tests, never the package."""
    for path in (ROOT / "mlclip_jax").rglob("*.py"):
        text = path.read_text()
        for name in ("hypothesis", "torch", "tensorflow"):
            assert not re.search(rf"^\s*(import|from) {name}\b", text, re.MULTILINE), path


def test_a_plain_import_reaches_the_pure_modules_and_loads_nothing():
    code = """
import sys
import mlclip_jax
assert not {"jax", "flax", "numpy"} & set(sys.modules), sorted(sys.modules)
for name in dir(mlclip_jax):
    assert getattr(mlclip_jax, name) is not None
print(mlclip_jax.losses.LOSSES["focal"].__name__, mlclip_jax.metrics.PROTOCOLS["ap"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("focal mAP: average precision")
