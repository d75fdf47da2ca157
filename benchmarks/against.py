"""Step times of an older commit and of the working tree, measured in turns.

Two processes, one per tree, each build the same pieces of work from their own tree's benchmark
scripts; the parent lets them run one after the other, A B A B, so that a drifting machine slows
both alike. Times are the processor's, which do not count what others compute. Printed is the ratio
now / before: below 1 is faster than before.

    uv run python benchmarks/against.py COMMIT
    uv run python benchmarks/against.py COMMIT --only step filter
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import results

ROOT = Path(__file__).parent.parent
WARM_UPS, BLOCK = 3, 5
"""Steps before any is timed, and steps per timed block."""


def work(script: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """The pieces of work of a script, by functions that scripts of all commits have."""
    module: Any = import_module(script)
    if script in ("step", "low_rank_step"):
        for number, size in enumerate(module.SIZES.values()):
            yield f"{script} {number}", module.training_step(size, "cpu")
    elif script == "node_step":
        for method in ("midpoint", "rk4"):
            for batch in (64, 256, 650):
                yield f"{script} {method} {batch}", module.rolls(method, batch, "cpu")[0]
    else:
        from known_teacher import teacher_as_model

        from pyrodyn import data
        from pyrodyn.infer import particle_filter

        for num_trials in (1, 1000):
            recording = data.teacher("limit_cycle", num_trials, 100, 20, observation_noise=1.0)
            model = teacher_as_model(recording)
            batch = model.trials_of(recording).batch()
            run = lambda m=model, b=batch: particle_filter(m, b, 256)  # noqa: E731
            yield f"{script} {num_trials} trials", run


def serve(script: str) -> None:
    """In a tree's process: a block of each piece of work per line read, milliseconds per step."""
    import pyro
    import torch

    torch.set_num_threads(1)
    pieces = dict(work(script))
    with pyro.validation_enabled(False):
        for step in pieces.values():
            for _ in range(WARM_UPS):
                step()
        print("\t".join(pieces), flush=True)
        for name in sys.stdin:
            started = time.process_time()
            for _ in range(BLOCK):
                pieces[name.strip()]()
            print(1e3 * (time.process_time() - started) / BLOCK, flush=True)


def start(tree: Path, script: str) -> "subprocess.Popen[str]":
    paths = os.pathsep.join([str(tree), str(tree / "benchmarks"), str(ROOT / "benchmarks")])
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--serve", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
    )


def ask(process: "subprocess.Popen[str]", name: str) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", help="the older commit")
    scripts = ["step", "low_rank_step", "node_step", "filter"]
    parser.add_argument("--only", nargs="+", default=scripts, choices=scripts)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    if arguments.commit is None:
        parser.error("name the commit to compare with")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(before), arguments.commit], check=True)
        try:
            print(f"{'':>26}" + "".join(f"{h:>12}" for h in ("before", "now", "ratio", "range")))
            for script in arguments.only:
                old, new = start(before, script), start(ROOT, script)
                assert old.stdout is not None and new.stdout is not None
                old.stdout.readline()
                for name in new.stdout.readline().strip().split("\t"):
                    pairs = [(ask(old, name), ask(new, name)) for _ in range(arguments.pairs)]
                    ratios = sorted(b / a for a, b in pairs)
                    first, second = map(statistics.median, zip(*pairs, strict=True))
                    row = {
                        "work": name,
                        "before_ms": first,
                        "now_ms": second,
                        "ratio": statistics.median(ratios),
                        "lowest": ratios[0],
                        "highest": ratios[-1],
                    }
                    rows.append(row)
                    print(
                        f"{name:>26}{first:>12.3g}{second:>12.3g}{row['ratio']:>12.3f}"
                        f"   {ratios[0]:.2f} to {ratios[-1]:.2f}",
                        flush=True,
                    )
                for process in (old, new):
                    process.communicate()
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    results.save("against", rows)


if __name__ == "__main__":
    main()
