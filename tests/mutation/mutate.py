"""Which small faults of the core would no test notice?

    .venv/bin/python tests/mutation/mutate.py --number=120 --output=mutants.jsonl

Each mutant is one random change of one expression: a comparison, an operator, a number, a condition, the
order of two arguments. It is made in a copy of the project, where the tests of its file run, and survives if
all pass. The same seed draws the same mutants; those that the output holds already are not run again.

What survives is for a person to judge. Some mutants change nothing: a bound that is never met, a size of a
buffer. Others are noticed by a test of another file, which running all tests on the mutant would tell.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds; a mutant may never end
ADAPTERS = "adapters training/test_image_adapters.py"
TRAINING = "training/test_train.py training/test_faults.py training/test_streaming.py distributed"
TESTS = {  # of each file that is mutated, those that should notice, in the order in which they run
    "losses.py": "test_losses.py",
    "metrics.py": "test_metrics.py",
    "calibration.py": "test_calibration.py",
    "perturbation.py": "test_perturbation.py training/test_train.py",
    "adapters/fc.py": ADAPTERS,
    "adapters/layers.py": ADAPTERS,
    "adapters/ml_decoder.py": ADAPTERS,
    "adapters/mmm_mld.py": ADAPTERS,
    "adapters/tai.py": ADAPTERS + " training/test_train.py",
    **dict.fromkeys(("training/train.py", "training/step.py", "training/loop.py"), TRAINING),
    "training/checkpoints.py": "training/test_checkpoints.py training/test_faults.py",
    "embeddings/shards.py": "embeddings/test_shards.py",
    "data/splits.py": "data/test_splits.py data/test_datasets.py",
    "data/pipeline.py": "data/test_pipeline.py training/test_streaming.py",
}

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
OPERATORS = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.MatMult: "*",
}  # fmt: skip
NAMES = {
    "minimum": "maximum",
    "maximum": "minimum",
    "sum": "mean",
    "mean": "sum",
    "argmax": "argmin",
    "any": "all",
}
NAMES |= {"all": "any", "min": "max", "max": "min", "floor": "ceil", "psum": "pmean", "pmax": "pmin"}


def mutants_of(source):
    """Every mutant of a file: the offsets of what is replaced, in bytes, and what replaces it."""
    lines = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]

    def span(node):
        begin, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
        return [starts[line - 1] + column for line, column in (begin, end)]

    def text(node):
        return ast.get_source_segment(source, node)

    for node in _code(ast.parse(source)):
        match node:
            case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
                left, right = text(node.left), text(node.comparators[0])
                yield *span(node), f"({left}) {COMPARISONS[type(operator)]} ({right})"
            case ast.BinOp(op=operator) if type(operator) in OPERATORS and not _is_text(node):
                yield *span(node), f"(({text(node.left)}) {OPERATORS[type(operator)]} ({text(node.right)}))"
            case ast.BoolOp(values=[first, *others], op=operator):
                word = " or " if isinstance(operator, ast.And) else " and "
                yield *span(node), "(" + word.join(f"({text(value)})" for value in (first, *others)) + ")"
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield *span(node), f"({text(node.operand)})"
            case ast.If(test=test) | ast.IfExp(test=test):
                yield *span(test), f"(not ({text(test)}))"
            case ast.Constant(value=bool() as value):
                yield *span(node), str(not value)
            case ast.Constant(value=int() | float() as value):
                yield *span(node), f"({value} + 1)" if value in (0, 1) else f"({value} * 2)"
            case ast.Attribute(attr=name) if name in NAMES:
                begin, end = span(node)
                yield end - len(name), end, NAMES[name]
            case ast.Call(func=function, args=[first, second, *_]) if text(first) != text(second):
                begin, end = span(first)[0], span(second)[1]
                if "axis" not in text(function) and "=" not in text(second):
                    yield begin, end, f"{text(second)}, {text(first)}"


def _code(node):
    """The nodes beneath one that compute: no annotations, no messages of errors, no checks of types."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(node, ast.Raise):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _checks_type(child):
                yield from _code(child)


def _checks_type(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"


def _is_text(node):
    return any(
        isinstance(part, ast.JoinedStr | ast.Constant) and not _is_number(part) for part in ast.walk(node)
    )


def _is_number(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def draw(number, seed):
    """Random mutants, files in proportion to how many each allows."""
    every = []
    for name in TESTS:
        source = (ROOT / "mlclip_jax" / name).read_text(encoding="utf-8")
        for begin, end, new in mutants_of(source):
            every.append({"file": name, "begin": begin, "end": end, "new": new})
    drawn = random.Random(seed).sample(every, number)
    return drawn, len(every)


def run(mutant):
    """The mutant, with where it is, and what noticed it: None if nothing did."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs")
        shutil.copytree(ROOT, copy, ignore=ignored)
        path = copy / "mlclip_jax" / mutant["file"]
        source = path.read_bytes()
        old = source[mutant["begin"] : mutant["end"]]
        path.write_bytes(source[: mutant["begin"]] + mutant["new"].encode() + source[mutant["end"] :])
        line = source[: mutant["begin"]].count(b"\n") + 1
        noticed = _first_failure(copy, TESTS[mutant["file"]].split())
    return mutant | {"line": line, "old": old.decode(), "noticed": noticed}


def _first_failure(copy, files):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "--no-header", "-p", "no:cacheprovider"]
    command += [str(copy / "tests" / file) for file in files]
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"no end after {PATIENCE} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what the tests had started
    if process.returncode == 0:
        return None
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else output[-300:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=120, help="of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="that run at a time")
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"), help="a line for each mutant")
    values = parser.parse_args()
    drawn, possible = draw(values.number, values.seed)
    done = [json.loads(line) for line in values.output.open()] if values.output.exists() else []
    known = {(m["file"], m["begin"], m["end"], m["new"]) for m in done}
    left = [m for m in drawn if (m["file"], m["begin"], m["end"], m["new"]) not in known]
    with concurrent.futures.ThreadPoolExecutor(values.processes) as pool, values.output.open("a") as file:
        for result in pool.map(run, left):
            done.append(result)
            print(json.dumps(result), file=file, flush=True)
            print("survived" if result["noticed"] is None else "noticed ", *_where(result), flush=True)
    survivors = [mutant for mutant in done if mutant["noticed"] is None]
    print(f"{len(done)} of {possible} possible mutants: {len(survivors)} survived")
    for mutant in survivors:
        print(*_where(mutant))


def _where(mutant):
    return (
        f"{mutant['file']}:{mutant['line']}",
        " ".join(mutant["old"].split()),
        "->",
        " ".join(mutant["new"].split()),
    )


if __name__ == "__main__":
    main()
