"""Peak memory of inference against the number of trials, bins and particles.

Each size runs in a process of its own, which builds model and recording, runs the same work once
on a small recording, notes the memory in use and prints the peak above it. The exponent compares a
size with the one before: 0 does not grow, 1 grows in proportion.

    uv run python benchmarks/memory.py
    uv run python benchmarks/memory.py --only "particle filter, trials"
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import results


class Size(NamedTuple):
    """Of a recording and an inference."""

    trials: int = 64
    bins: int = 100
    neurons: int = 30
    particles: int = 64


SERIES: dict[str, tuple[str, list[Size]]] = {
    "importance_sample, particles": (
        "importance",
        [Size(100, particles=k) for k in (250, 500, 1000)],
    ),
    "importance_sample, trials": (
        "importance",
        [Size(n, particles=250) for n in (100, 300, 1000)],
    ),
    "to_datatree importance, particles": (
        "tree",
        [Size(32, particles=k) for k in (250, 1000, 4000)],
    ),
    "to_datatree(path=), trials": ("streamed", [Size(n, 50) for n in (100, 300, 1000)]),
    "particle filter, trials": ("filter", [Size(n, particles=256) for n in (100, 300, 1000)]),
    "particle filter LFADS, particles": ("states", [Size(particles=k) for k in (64, 256, 1024)]),
    "VSMC step, particles": ("vsmc", [Size(64, 200, particles=k) for k in (16, 64, 256)]),
    "VSMC step, bins": ("vsmc", [Size(64, t, particles=64) for t in (100, 300, 1000)]),
    "LFADS step, trials": ("lfads", [Size(n) for n in (64, 128, 256)]),
}
"""What grows, by what is run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SERIES, default=list(SERIES))
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        work, *numbers = arguments.run
        return measure(work, Size(*map(int, numbers)))
    rows = []
    for name in arguments.only:
        work, sizes = SERIES[name]
        grown = name.rpartition(", ")[2]
        before: tuple[int, float] | None = None
        for size in sizes:
            command = [sys.executable, __file__, "--run", work, *map(str, size)]
            peak = float(subprocess.run(command, check=True, capture_output=True).stdout)
            at = getattr(size, grown)
            exponent = math.log(peak / before[1]) / math.log(at / before[0]) if before else None
            before = at, peak
            row = {"work": name, **size._asdict(), "peak_mb": peak, "exponent": exponent}
            rows.append(row)
            shown = "" if exponent is None else f"{exponent:10.2f}"
            print(
                f"{name:36}",
                *(f"{number:6}" for number in size),
                f"{peak:8.0f} MB{shown}",
                flush=True,
            )
    if arguments.only == list(SERIES):
        results.save("memory", rows)
    return None


def measure(work: str, size: Size) -> None:
    """Print the peak of a piece of work above the memory in use, in megabytes."""
    import torch

    torch.set_num_threads(1)
    small = Size(4, 10, size.neurons, 32)
    with tempfile.TemporaryDirectory() as folder:
        piece(work, small, Path(folder) / "small.zarr")()
        run = piece(work, size, Path(folder) / "large.zarr")
        start = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        run()
        print(memory("VmHWM") - start)


def memory(key: str) -> float:
    """Megabytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(key))


def piece(work: str, size: Size, path: Path):  # type: ignore[no-untyped-def]
    """A piece of work of a size, ready to be run."""
    import pyrodyn
    from pyrodyn import data, models
    from pyrodyn.infer import ELBO, VSMC, importance_sample, particle_filter

    counts = np.random.default_rng(0).poisson(0.3, (size.trials, size.bins, size.neurons))
    recording = data.recording(counts=counts, bin_width=0.02)
    if work in ("filter", "vsmc"):
        model = models.LowRankRNN.for_recording(recording, seed=0)
    else:
        inputs = 2 if work in ("states", "lfads") else 0
        model = models.LFADS.for_recording(recording, inferred_input_dim=inputs, seed=0)
    batch = model.trials_of(recording).batch()
    match work:
        case "importance":
            return lambda: importance_sample(model.eval(), model.guide, batch, size.particles)
        case "tree":
            return lambda: pyrodyn.to_datatree(
                model, recording, method="importance", num_particles=size.particles
            )
        case "streamed":
            return lambda: pyrodyn.to_datatree(
                model, recording, num_draws=50, path=path, progress=False
            )
        case "filter" | "states":
            return lambda: particle_filter(model.eval(), batch, size.particles)
        case "vsmc":
            loss = VSMC(num_particles=size.particles).loss(model, model.guide)
        case _:
            loss = ELBO().loss(model, model.guide)
    return lambda: loss(batch).backward()


if __name__ == "__main__":
    main()
