"""What a benchmark found, as a JSON file from which the documentation's tables are generated."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("pyrodyn", "torch", "pyro-ppl", "numpy")


def machine() -> str:
    """Processor, number of cores, and the GPU if there is one."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {os.cpu_count()} cores{gpu}"


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of ``results/NAME.json``; none if there is no such file."""
    path = FOLDER / f"{name}.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def save(name: str, rows: list[dict[str, Any]], num_threads: int = 1) -> None:
    """Write ``results/NAME.json``: command, date, machine, versions and the table's rows.

    Args:
        name: of the benchmark, as `page` knows it.
        rows: one dict per row of the table, numbers as measured.
        num_threads: that torch used.
    """
    script, *options = sys.argv
    found = {
        "command": " ".join(["uv run python", f"benchmarks/{Path(script).name}", *options]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{machine()}, {num_threads} thread{'s' * (num_threads > 1)}",
        "versions": {package: version(package) for package in PACKAGES},
        "rows": rows,
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
