"""Arrows point down: what lies below knows nothing of what lies above."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlclip_jax"
TOP = ("commands", "experiments", "cli")
RUNS = (*TOP, "training", "runs", "evaluation", "recipes", "methods", "report", "scoring")
# Rooms and files, and what none of them may import.
NOT_ABOVE = {
    "data": (*RUNS, "adapters", "embeddings", "backbones", "distributed"),
    "texts": (*RUNS, "adapters", "embeddings", "backbones", "distributed"),
    "backbones": (*RUNS, "adapters", "data.datasets", "embeddings.store"),
    "adapters": (*RUNS, "distributed", "data", "embeddings"),
    "embeddings": (*TOP, "runs", "evaluation", "recipes", "methods", "report", "scoring"),
    "distributed": (*RUNS, "adapters", "backbones", "data"),
    "training": TOP,
    "commands": ("experiments.scenes",),
    **{
        f"{name}.py": (*RUNS, "distributed", "backbones", "adapters", "data", "embeddings")
        for name in ("losses", "metrics", "perturbation", "ranges", "options", "streams")
    },
    "zero_shot": (*RUNS, "distributed", "backbones", "adapters", "data", "embeddings"),
    "calibration.py": (*RUNS, "distributed", "backbones", "adapters", "data", "embeddings"),
    "comparison.py": (*TOP, "training", "runs", "evaluation", "recipes", "methods", "distributed"),
    "scores.py": (*TOP, "training", "runs", "recipes", "methods", "distributed"),
}


def imported_by(path):
    """Modules of the package that a file imports, wherever in it, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlclip_jax"):
            own = node.module.removeprefix("mlclip_jax").removeprefix(".")
            for alias in node.names:
                yield ".".join(filter(None, (own, alias.name)))


@pytest.mark.parametrize("place", NOT_ABOVE)
def test_nothing_below_imports_what_is_above(place):
    found = PACKAGE / place
    files = [found] if found.is_file() else sorted(found.rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in files
        for module in imported_by(path)
        for above in NOT_ABOVE[place]
        if f"{module}.".startswith(f"{above}.")
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_read_in_one_sitting():
    long = {path.relative_to(PACKAGE): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {path: lines for path, lines in long.items() if lines > 420}
