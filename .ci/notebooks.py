"""Outputs of the committed notebooks: `refresh` runs notebooks, `check` finds what is out of date.

    uv run --all-groups python .ci/notebooks.py refresh quickstart   # no name: all that changed
    uv run --all-groups python .ci/notebooks.py check

A notebook is committed with the outputs of one complete run, so that it can be read where the code
is hosted. The run is recorded by a hash of the code cells: text may change without a new run.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import socket
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).parent.parent / "notebooks"
MAX_BYTES = 400_000
TIME_LIMIT = 600  # seconds, as in the documentation's run
DPI = 80
NUM_COLORS = 128  # figures are stored with a palette: a third of the bytes
PATHS = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|work|usr|opt|mnt|private|var)/[\w.-]+")

HOST = socket.gethostname()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: NotebookNode) -> str:
    """Hash of the sources of all code cells, in order."""
    joined = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def with_palette(png: str) -> str:
    """The same picture in base64, its colours reduced to a palette."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    # Maximum coverage, since a median cut loses the colours of small marks.
    how = {"method": Image.Quantize.MAXCOVERAGE, "dither": Image.Dither.NONE}
    picture.quantize(NUM_COLORS, **how).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def texts(cell: NotebookNode) -> list[str]:
    """Everything readable in the outputs of a cell."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        found += [output.get("text", "")]
        found += [text for kind, text in data.items() if kind.startswith("text/")]
    return found


def faults(path: Path) -> list[str]:
    """What keeps a notebook from being committed, one sentence each."""
    notebook = nbformat.read(path, as_version=4)
    script = path.with_suffix(".py")
    found = []
    if not script.exists() or jupytext.writes(notebook, "py:percent") != script.read_text():
        found.append(f"it differs from {script.name}: refresh it, or run 'jupytext --sync'")
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        found.append("it has no outputs of one complete run from the first cell to the last")
    elif notebook.metadata.get("run_of") != code_hash(notebook):
        found.append("its code has changed since its outputs were made")
    for number, cell in enumerate(code_cells(notebook), 1):
        where = f"code cell {number}"
        if any(output.get("name") == "stderr" for output in cell.outputs):
            found.append(f"{where} writes to stderr (a warning?)")
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"{where} ends with an error")
        shown = "\n".join(texts(cell))
        for private in {*PATHS.findall(shown), *({HOST} if HOST in shown else ())}:
            found.append(f"{where} shows {private}, which belongs to one machine")
    if (size := path.stat().st_size) > MAX_BYTES:
        found.append(f"it has {size // 1000} kB, more than {MAX_BYTES // 1000}: show less")
    return found


def refresh(path: Path) -> None:
    """Take the sources from the ``.py``, run them in an empty folder, keep light outputs."""
    from nbclient import NotebookClient

    old = nbformat.read(path, as_version=4) if path.exists() else None
    notebook = jupytext.read(path.with_suffix(".py"))
    if old is not None:
        notebook = jupytext.combine.combine_inputs_with_outputs(notebook, old)
    notebook.metadata = {
        "jupytext": {
            "cell_metadata_filter": "-all",
            "formats": "ipynb,py:percent",
            "notebook_metadata_filter": "-all",
        },
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    }
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in .ci/run
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        resources = {"metadata": {"path": empty}}
        (Path(empty) / "matplotlibrc").write_text(f"figure.dpi: {DPI}\n")
        client = NotebookClient(
            notebook, timeout=TIME_LIMIT, record_timing=False, resources=resources
        )
        client.execute()
    notebook.metadata.pop("language_info", None)
    notebook.metadata["run_of"] = code_hash(notebook)
    for cell in code_cells(notebook):
        cell.metadata = {}
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = with_palette(data["image/png"])
                data.pop("text/plain", None)
    nbformat.write(notebook, path)
    path.with_suffix(".py").write_text(jupytext.writes(notebook, "py:percent"))
    size = path.stat().st_size
    print(f"{path.stem}: {time.perf_counter() - started:.0f} s, {size // 1000} kB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["refresh", "check"])
    parser.add_argument("names", nargs="*", help="notebooks, by default all")
    options = parser.parse_args()
    names = options.names or sorted(path.stem for path in FOLDER.glob("*.py"))
    paths = [FOLDER / f"{Path(name).stem}.ipynb" for name in names]
    if options.command == "refresh":
        for path in paths:
            if options.names or not path.exists() or faults(path):
                refresh(path)
    found = [f"{path.name}: {fault}" for path in paths for fault in faults(path)]
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
