"""Imports run one way: from the command down to data and kernels, and no two files in a circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pyrodyn

PACKAGE = Path(pyrodyn.__file__).parent
LEVELS = (
    ("data", "kernels"),
    ("nn", "distributions"),
    ("models",),
    ("infer",),
    ("analysis", "posterior"),
    ("__init__",),
    ("demo",),
    ("cli",),
)
"""Rooms from the lowest up; a room imports from itself and from lower levels."""

LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def name_of(file: Path) -> str:
    """Full name of a module of the package."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(file: Path, everywhere: bool) -> Iterator[tuple[int, str]]:
    """Line and module of each import of the package's own modules.

    Args:
        file: that imports.
        everywhere: also inside functions, where an import runs later and makes no circle.
    """
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyrodyn"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if whole in FILES else node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("pyrodyn"):
                    yield node.lineno, alias.name


def pointing_up(files: dict[str, Path]) -> Iterator[str]:
    """Imports of a room at the same level or above, one sentence each."""
    for name, file in files.items():
        room = room_of(name)
        for line, imported in imports_of(file, everywhere=True):
            target = room_of(imported)
            if target != room and LEVEL_OF[target] >= LEVEL_OF[room]:
                yield f"{name} (line {line}) imports {imported}: {room} may not import {target}"


def test_every_room_has_a_level():
    assert {room_of(name) for name in FILES} == set(LEVEL_OF)


def test_imports_point_down():
    assert next(pointing_up(FILES), None) is None


def test_an_import_that_points_up_is_named(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text("def late():\n    from pyrodyn.infer.traces import Program\n")
    found = next(pointing_up({"pyrodyn.models.wrong": file}))
    assert found == (
        "pyrodyn.models.wrong (line 2) imports pyrodyn.infer.traces: models may not import infer"
    )


def test_no_circle():
    graph = {
        name: {module for _, module in imports_of(file, everywhere=False)}
        for name, file in FILES.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) >= len(FILES)
