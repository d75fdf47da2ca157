"""Committed notebooks carry the outputs of one complete run, and the check finds the others."""

import base64
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / ".ci/notebooks.py"
for package in ("jupytext", "nbformat"):
    pytest.importorskip(package)
if not SCRIPT.exists():
    pytest.skip("the notebooks are not here", allow_module_level=True)
spec = importlib.util.spec_from_file_location("notebooks", SCRIPT)
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)

import jupytext  # noqa: E402
import nbformat  # noqa: E402
from nbformat import v4  # noqa: E402


def pair(folder: Path, change=lambda notebook: None) -> Path:
    """A notebook of two code cells and its script; ``change`` acts on what is written."""
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# A title"),
            v4.new_code_cell("1 + 1", execution_count=1),
            v4.new_code_cell("print(2)", execution_count=2),
        ],
        metadata={"jupytext": {"notebook_metadata_filter": "-all"}},
    )
    notebook.cells[2].outputs = [v4.new_output("stream", name="stdout", text="2\n")]
    notebook.metadata["run_of"] = notebooks.code_hash(notebook)
    path = folder / "small.ipynb"
    path.with_suffix(".py").write_text(jupytext.writes(notebook, "py:percent"))
    change(notebook)
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("path", sorted(notebooks.FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_notebook_is_committed_with_its_outputs(path):
    assert notebooks.faults(path.with_suffix(".ipynb")) == []


def test_a_notebook_with_its_outputs_has_no_fault(tmp_path):
    assert notebooks.faults(pair(tmp_path)) == []


def without_outputs(notebook):
    for cell in notebook.cells[1:]:
        cell.execution_count, cell.outputs = None, []


def run_in_another_order(notebook):
    notebook.cells[1].execution_count = 3


def other_code(notebook):
    notebook.cells[1].source = "1 + 2"


def with_warning(notebook):
    warning = v4.new_output("stream", name="stderr", text="UserWarning")
    notebook.cells[1].outputs = [warning]


def with_error(notebook):
    notebook.cells[1].outputs = [
        v4.new_output("error", ename="ValueError", evalue="", traceback=[])
    ]


def with_path(notebook):
    notebook.cells[2].outputs[0].text = "saved to /home/someone/run"


def too_large(notebook):
    notebook.cells[2].outputs[0].text = "2" * notebooks.MAX_BYTES


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (without_outputs, ["no outputs of one complete run"]),
        (run_in_another_order, ["no outputs of one complete run"]),
        (other_code, ["differs from small.py", "its code has changed"]),
        (with_warning, ["code cell 1 writes to stderr"]),
        (with_error, ["code cell 1 ends with an error"]),
        (with_path, ["code cell 2 shows /home/someone"]),
        (too_large, ["more than 400"]),
    ],
)
def test_each_fault_is_found_and_no_other(tmp_path, change, sentences):
    found = notebooks.faults(pair(tmp_path, change))
    assert len(found) == len(sentences)
    for fault, sentence in zip(found, sentences, strict=True):
        assert sentence in fault


def test_a_palette_keeps_small_marks():
    image = pytest.importorskip("PIL.Image")
    shades = np.random.default_rng(0).integers(0, 256, (60, 80, 1))
    picture = np.broadcast_to(shades, (60, 80, 3)).astype(np.uint8).copy()
    picture[30, 40] = (0, 255, 255)
    file = io.BytesIO()
    image.fromarray(picture).save(file, "png")
    small = notebooks.with_palette(base64.b64encode(file.getvalue()).decode())
    back = np.asarray(image.open(io.BytesIO(base64.b64decode(small))).convert("RGB"))
    assert np.abs(back.astype(int) - picture).max() <= 16
