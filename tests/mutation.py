"""Mutation testing: change one expression of the package at a time, run the tests that execute it,
list the mutants that no test notices.

    uv run python tests/mutation.py pyrodyn/infer/smc pyrodyn/kernels --number 20 --seed 1
    uv run python tests/mutation.py pyrodyn/analysis/scores/psth.py:89 --tests tests/analysis/scores
    uv run python tests/mutation.py pyrodyn/analysis --list

A mutant swaps an arithmetic or comparison operator, negates a condition, drops a sign, moves an
integer by one, flips a boolean, swaps ``min`` and ``max`` or the branches of a conditional. It
lives in a copy of the package in a temporary folder; the working tree is never changed. Docstrings,
annotations, assertions and the texts of errors are left alone.

First the tests of the mutated rooms run once on the unchanged package, which records the functions
that each test executes and its processor time; ``--map`` keeps this record in a file. Each mutant
then meets the tests that execute its function: those of its own test file first, then the fastest.
All processes are forks of one that has imported the libraries. A survivor is a hole in the tests or
an equivalent program: look at it. An "untested" mutant is in a function that no test executes, a
"timed out" one took three times the processor time of its tests.
"""

import argparse
import ast
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE, TESTS = ROOT / "pyrodyn", ROOT / "tests"
LIBRARIES = ("torch", "pyro", "lightning", "xarray", "arviz", "scipy.stats", "matplotlib.pyplot")
"""Imported before the forks; the package itself is imported after them."""

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
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any"}
WITHOUT_EFFECT = (ast.Raise, ast.Assert, ast.JoinedStr, ast.FunctionDef, ast.ClassDef)
"""Nodes whose expressions are not changed: errors, checks of types, and what is visited apart."""


class Mutant(NamedTuple):
    """One changed expression.

    Attributes:
        file: of the package, relative to it.
        function: qualified name of the function.
        line: of the expression, from 1.
        before: its source.
        after: what replaces it.
        text: the whole mutated file.
    """

    file: Path
    function: str
    line: int
    before: str
    after: str
    text: str


class Record(NamedTuple):
    """What one test does on the unchanged package.

    Attributes:
        seconds: of processor time.
        functions: that it executes, as ``file::qualified name``.
    """

    seconds: float
    functions: list[str]


# ------------------------------------------------------------------ mutants


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
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            return operand
        case ast.Constant(value=bool(value)):
            return ast.Constant(not value)
        case ast.Constant(value=int(value)):
            return ast.Constant(value + 1)
        case ast.Attribute(attr=name) if name in NAMES:
            return ast.Attribute(node.value, NAMES[name], ast.Load())
        case ast.IfExp():
            return ast.IfExp(node.test, node.orelse, node.body)
    return None


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef(name=name):
                yield prefix + name, node
                yield from functions(node, f"{prefix}{name}.<locals>.")
            case ast.ClassDef(name=name):
                yield from functions(node, f"{prefix}{name}.")
            case _:
                yield from functions(node, prefix)


def expressions(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions of a statement that have an effect on results."""
    if isinstance(node, WITHOUT_EFFECT):
        return
    if isinstance(node, ast.expr):
        yield node
    for name, field in ast.iter_fields(node):
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and name != "annotation":
                yield from expressions(child)


def mutants(file: Path) -> Iterator[Mutant]:
    """All mutants of a file."""
    source = file.read_text()
    raw, starts = source.encode(), [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    for function, definition in functions(ast.parse(source)):
        for node in (node for statement in definition.body for node in expressions(statement)):
            replacement = changed(node)
            if replacement is None:
                continue
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            after = f"({ast.unparse(ast.fix_missing_locations(replacement))})"
            text = (raw[:begin] + after.encode() + raw[end:]).decode()
            before = raw[begin:end].decode()
            yield Mutant(file.relative_to(PACKAGE), function, node.lineno, before, after, text)


# ------------------------------------------------------------------ what tests execute


class Recorder:
    """A plugin of pytest that records the functions and the processor time of every test.

    What a fixture of a wider scope executes counts for all tests that use it.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.of_fixture: dict[str, set[str]] = {}
        self.executed: set[str] = set()
        monitor = sys.monitoring
        monitor.use_tool_id(monitor.COVERAGE_ID, "mutation")
        monitor.register_callback(monitor.COVERAGE_ID, monitor.events.PY_START, self._started)
        monitor.set_events(monitor.COVERAGE_ID, monitor.events.PY_START)

    def _started(self, code: Any, offset: int) -> object:
        _, is_ours, name = code.co_filename.partition(f"{PACKAGE}{os.sep}")
        if is_ours:
            # Comprehensions and lambdas belong to the function around them.
            function = code.co_qualname.partition(".<locals>.<")[0]
            self.executed.add(f"{name}::{function}")
        return sys.monitoring.DISABLE

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before, self.executed = self.executed, set()
        sys.monitoring.restart_events()
        result = yield
        if fixturedef.scope != "function":
            self.of_fixture[fixturedef.argname] = self.executed
        self.executed = before | self.executed
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.executed, begin = set(), time.process_time()
        sys.monitoring.restart_events()
        result = yield
        for name in item.fixturenames:
            self.executed |= self.of_fixture.get(name, set())
        seconds = time.process_time() - begin
        self.records[item.nodeid] = Record(round(seconds, 2), sorted(self.executed))
        return result


def in_fork(task: Callable[[], int], seconds: float) -> int:
    """Run a task in a fork and return its exit status, negative for a signal.

    Args:
        task: returns an exit status.
        seconds: limit of processor time.
    """
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            limit = int(seconds) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            signal.alarm(20 * limit)  # for a task that waits
            status = task()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_tests(tests: Iterable[str], *plugins: object) -> int:
    """Exit status of pytest in this process."""
    arguments = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    return int(pytest.main([*arguments, *tests], plugins=list(plugins)))


def record(tests: Iterable[str]) -> dict[str, Record]:
    """The record of tests on the unchanged package."""

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "records.json"

        def task() -> int:
            recorder = Recorder()
            status = run_tests(tests, recorder)
            kept.write_text(json.dumps(recorder.records))
            return status

        if in_fork(task, 7200) != 0:
            sys.exit("these tests fail on the unchanged package: " + " ".join(tests))
        return {name: Record(*fields) for name, fields in json.loads(kept.read_text()).items()}


# ------------------------------------------------------------------ mutants meet tests


def chosen(mutant: Mutant, records: dict[str, Record], seconds: float) -> list[str]:
    """Tests that execute the mutated function, nearest first, within so much processor time."""
    function = f"{mutant.file}::{mutant.function}"
    own = f"/test_{mutant.file.stem}"
    able = [name for name, record in records.items() if function in record.functions]
    able.sort(key=lambda name: (own not in name, records[name].seconds))
    total, taken = 0.0, []
    for name in able:
        total += records[name].seconds
        if taken and total > seconds:
            break
        taken.append(name)
    return taken


def verdict(mutant: Mutant, tests: list[str], seconds: float) -> str:
    """What the tests say of the mutant: killed, timed out, SURVIVED or untested."""
    if not tests:
        return "untested"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "pyrodyn"
        shutil.copytree(PACKAGE, copy)
        (copy / mutant.file).write_text(mutant.text)

        def task() -> int:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            sys.path.insert(0, folder)
            os.environ["PYTHONPATH"] = folder
            status = run_tests(tests)
            used = Path(sys.modules["pyrodyn"].__file__ or "").is_relative_to(folder)
            return status if used else 71

        status = in_fork(task, seconds)
    if status in (70, 71, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"the tests of {mutant.file}:{mutant.line} did not run (status {status})")
    if status in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM):
        return "timed out"
    return "killed" if status else "SURVIVED"


def candidates(paths: Iterable[str]) -> list[Mutant]:
    """All mutants of files, folders, or lines of files, as in ``pyrodyn/cli.py:12``."""
    found = []
    for path in paths:
        name, _, line = path.partition(":")
        place = Path(name).resolve()
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found += [each for each in mutants(file) if not line or each.line == int(line)]
    return found


def sampled(found: list[Mutant], number: int, seed: int) -> list[Mutant]:
    """Some mutants; integers, mostly dims and positions, are drawn at a quarter of the rate."""
    rng = random.Random(seed)
    keys = {each: rng.random() ** (4 if each.before.isdigit() else 1) for each in found}
    return sorted(found, key=lambda each: -keys[each])[:number]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", help="files, lines of files, or folders of the package")
    parser.add_argument("--number", type=int, default=20, help="mutants drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests per mutant")
    parser.add_argument("--tests", nargs="+", help="instead of those of the mutated rooms")
    parser.add_argument("--map", type=Path, help="file that keeps what each test executes")
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
    arguments = parser.parse_args()
    found = candidates(arguments.paths)
    drawn = sampled(found, arguments.number, arguments.seed)
    print(f"{len(drawn)} of {len(found)} mutants", flush=True)
    places = [f"{each.file}:{each.line}  {each.before!r} -> {each.after!r}" for each in drawn]
    if arguments.list:
        print("\n".join(places))
        return
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    for library in LIBRARIES:
        importlib.import_module(library)
    if arguments.map and arguments.map.exists():
        kept = json.loads(arguments.map.read_text())
        records = {name: Record(*fields) for name, fields in kept.items()}
    else:
        rooms = {str(TESTS / each.file.parts[0]) for each in drawn}
        records = record(arguments.tests or sorted(rooms))
        if arguments.map:
            arguments.map.write_text(json.dumps(records))
    verdicts = []
    for mutant, place in zip(drawn, places, strict=True):
        tests = chosen(mutant, records, arguments.seconds)
        limit = 60 + 3 * sum(records[name].seconds for name in tests)
        verdicts.append(verdict(mutant, tests, limit))
        print(f"{verdicts[-1]:9}  {place}  ({len(tests)} tests)", flush=True)
    print(", ".join(f"{verdicts.count(each)} {each}" for each in sorted(set(verdicts))))


if __name__ == "__main__":
    main()
