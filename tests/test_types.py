"""Every public function says what it takes and gives, and names the axes of arrays by one list of letters."""

import ast
import re
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from jaxtyping import Float

from mlclip_jax.zero_shot import cosine_scores

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "mlclip_jax").rglob("*.py"))
# As CONTRIBUTING.md lists them; a size that one file alone speaks of is a word.
AXES = set("B N M K D T H W C Q S".split())
SPECIAL = {"python", "typing"}


def trees():
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in FILES]


def public_functions(tree):
    """Functions and methods that others may call, with whether they are methods; nested ones are nobody's."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                dunder = isinstance(inner, ast.FunctionDef) and inner.name.startswith("__")
                if isinstance(inner, ast.FunctionDef) and (dunder or not inner.name.startswith("_")):
                    static = any(ast.unparse(d) == "staticmethod" for d in inner.decorator_list)
                    yield inner, not static


def test_every_public_function_is_annotated():
    lacking = []
    for name, tree in trees():
        for function, is_method in public_functions(tree):
            arguments = [*function.args.posonlyargs, *function.args.args][is_method:]
            arguments += [*function.args.kwonlyargs, function.args.vararg, function.args.kwarg]
            bare = [a.arg for a in arguments if a is not None and a.annotation is None and a.arg != "_"]
            if function.returns is None and function.name != "__init__":
                bare.append("what it returns")
            if bare:
                lacking.append(f"{name}: {function.name} lacks {', '.join(bare)}")
    assert not lacking, "\n".join(lacking)


def test_axes_have_the_letters_of_one_list():
    kinds = {name for name in dir(jaxtyping) if name[0].isupper()}
    found = set()
    for name, tree in trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)):
                continue
            kind, axes = ast.unparse(node.value), node.slice.elts[-1]
            if kind in kinds and isinstance(axes, ast.Constant) and isinstance(axes.value, str):
                found |= {(axis, name) for axis in axes.value.split()}
    assert len(found) > 50
    strange = sorted(f"{axis!r} in {name}" for axis, name in found if not _is_known(axis))
    assert not strange, "\n".join(strange)


def _is_known(axis):
    return axis in AXES or axis == "..." or re.fullmatch(r"\d+|\*?[a-z_]{3,}", axis) is not None


def test_a_wrong_shape_is_refused_while_tests_run():
    """By the import hook of `conftest.py`; without it, none of the annotations would be checked."""
    with pytest.raises(jaxtyping.TypeCheckError):
        cosine_scores(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
    assert isinstance(np.ones((2, 3), np.float32), Float[np.ndarray, "N D"])
