"""Mutation testing: change one expression of the package at a time, run the nearest tests, list the
mutants that no test notices.

    uv run python tests/mutation.py pyrodyn/infer/smc pyrodyn/kernels --number 20 --seed 1
    uv run python tests/mutation.py pyrodyn/analysis/scores/psth.py --list

A mutant swaps an arithmetic or comparison operator, negates a condition, moves an integer by one,
flips a boolean, or swaps ``min`` and ``max``. It lives in a copy of the package in a temporary
folder; the working tree is never changed. The nearest tests are those of the module's own test file
and, where that has none, of its room. A survivor is a hole in the tests or an equivalent program:
look at it.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE, TESTS = ROOT / "pyrodyn", ROOT / "tests"
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """One changed expression.

    Attributes:
        file: of the package.
        line: of the expression, from 1.
        before: its source.
        after: what replaces it.
        text: the whole mutated file.
    """

    file: Path
    line: int
    before: str
    after: str
    text: str


def changed(node: ast.AST) -> ast.AST | None:
    """The mutated expression; None for a node that no rule applies to."""
    match node:
        case ast.BinOp(op=op) if type(op) in SWAPS:
            return ast.BinOp(node.left, SWAPS[type(op)](), node.right)  # type: ignore[arg-type]
        case ast.BoolOp(op=op):
            return ast.BoolOp(SWAPS[type(op)](), node.values)  # type: ignore[arg-type]
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            swapped = SWAPS[type(op)]()
            return ast.Compare(node.left, [swapped], node.comparators)  # type: ignore[list-item]
        case ast.UnaryOp(op=ast.Not()):
            return node.operand
        case ast.Constant(value=bool(value)):
            return ast.Constant(not value)
        case ast.Constant(value=int(value)):
            return ast.Constant(value + 1)
        case ast.Attribute(attr=name) if name in NAMES:
            return ast.Attribute(node.value, NAMES[name], ast.Load())
        case ast.IfExp():
            return ast.IfExp(node.test, node.orelse, node.body)
    return None


def bodies(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements of functions, without docstrings and annotations, which change nothing."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                is_text = isinstance(statement, ast.Expr) and isinstance(
                    statement.value, ast.Constant
                )
                if not is_text and not isinstance(statement, ast.FunctionDef | ast.Raise):
                    yield statement


def mutants(file: Path) -> Iterator[Mutant]:
    """All mutants of a file."""
    source = file.read_text()
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw, seen = source.encode(), set()
    for statement in bodies(ast.parse(source)):
        for node in ast.walk(statement):
            replacement = changed(node)
            if replacement is None or not isinstance(node, ast.expr):
                continue
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            if (begin, end) in seen:
                continue
            seen.add((begin, end))
            after = f"({ast.unparse(ast.fix_missing_locations(replacement))})"
            text = (raw[:begin] + after.encode() + raw[end:]).decode()
            yield Mutant(file, node.lineno, raw[begin:end].decode(), after, text)


def nearest_tests(file: Path) -> list[Path]:
    """The module's test files, or those of its room."""
    named = sorted(TESTS.rglob(f"test_{file.stem}*.py"))
    room = TESTS / file.relative_to(PACKAGE).parent
    return named or [room if room.exists() else TESTS]


def survives(mutant: Mutant, seconds: float) -> bool:
    """Whether the nearest tests pass on the mutant; one that runs too long is noticed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "pyrodyn"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / mutant.file.relative_to(PACKAGE)).write_text(mutant.text)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
        try:
            run = subprocess.run(
                [*command, *map(str, nearest_tests(mutant.file))],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": folder,
                    "PYTHONSAFEPATH": "1",
                    "OMP_NUM_THREADS": "1",
                },
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return run.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders of the package")
    parser.add_argument("--number", type=int, default=20, help="mutants drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0, help="limit per mutant")
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
    arguments = parser.parse_args()
    files = sorted(
        file.resolve()
        for path in arguments.paths
        for file in (path.rglob("*.py") if path.is_dir() else [path])
    )
    found = [mutant for file in files for mutant in mutants(file)]
    drawn = random.Random(arguments.seed).sample(found, min(arguments.number, len(found)))
    print(f"{len(drawn)} of {len(found)} mutants of {len(files)} files", flush=True)
    survivors = 0
    for mutant in drawn:
        place = f"{mutant.file.relative_to(ROOT)}:{mutant.line}"
        what = f"{mutant.before!r} -> {mutant.after!r}"
        if arguments.list:
            print(f"{place}  {what}")
            continue
        is_survivor = survives(mutant, arguments.seconds)
        survivors += is_survivor
        print(f"{'SURVIVED' if is_survivor else 'killed  '}  {place}  {what}", flush=True)
    if not arguments.list:
        print(f"{survivors} survivors")


if __name__ == "__main__":
    main()
