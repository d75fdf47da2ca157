"""Two pieces of work timed in turns, so that a machine whose speed drifts slows both alike."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch

WARM_UPS = 3
"""Runs of each side before any is timed: compilers, caches and allocators do their work in them."""


class Comparison(NamedTuple):
    """Times of two sides, measured A B A B ...

    Attributes:
        ours_ms: median milliseconds of the first side.
        theirs_ms: of the second.
        ratio: median over pairs of theirs / ours.
        lowest: smallest of these ratios.
        highest: largest.
    """

    ours_ms: float
    theirs_ms: float
    ratio: float
    lowest: float
    highest: float


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    pairs: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Both sides warmed up, then timed in turns, without Pyro's validation, as `fit` runs.

    Args:
        ours: the first side.
        theirs: the second.
        pairs: how often each is timed.
        device: that both run on.
        clock: in seconds; `time.process_time` on the CPU does not count what others compute.
    """
    with pyro.validation_enabled(False):
        for _ in range(WARM_UPS):
            ours()
            theirs()
        times = [
            (_milliseconds(ours, device, clock), _milliseconds(theirs, device, clock))
            for _ in range(pairs)
        ]
    ratios = [b / a for a, b in times]
    first, second = (statistics.median(side) for side in zip(*times, strict=True))
    return Comparison(first, second, statistics.median(ratios), min(ratios), max(ratios))


def _milliseconds(work: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    started = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (clock() - started)


def print_row(name: str, compared: Comparison | None = None) -> None:
    """One row of a table; without times, its header."""
    if compared is None:
        cells = ["ours ms", "theirs ms", "ratio", "lowest", "highest"]
    else:
        cells = [f"{value:.3g}" for value in compared]
    print(f"{name:>28}" + "".join(f"{cell:>12}" for cell in cells), flush=True)
