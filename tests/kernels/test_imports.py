"""The rooms below the models import one way: data, kernels <- nn, distributions."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import pyrodyn

MAY_IMPORT = {
    "data": {"data"},
    "kernels": {"kernels"},
    "nn": {"nn", "kernels", "data"},
    "distributions": {"distributions", "kernels", "data"},
}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_import_points_up(room):
    root = Path(pyrodyn.__file__).parent
    for file in sorted((root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                if name.startswith("pyrodyn."):
                    where = f"{file.relative_to(root)} imports {name}"
                    assert name.split(".")[1] in MAY_IMPORT[room], where


@pytest.mark.parametrize("room", ["kernels", "nn", "distributions"])
def test_the_example_of_each_room_runs(room):
    module = importlib.import_module(f"pyrodyn.{room}")
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
