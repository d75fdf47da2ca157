"""Time of one LFADS training step (coordinated dropout, ELBO, gradient, Adam) at three sizes.

Printed beside one forward and backward pass of a `torch.nn.GRU` of the generator's size over the
same trials, timed in the same run and with the same memory settings, and beside what lfads-torch
needed per step on this class of machine (one thread): 190, 350 and 820 ms.

    uv run python benchmarks/step.py              CPU, one thread
    uv run python benchmarks/step.py --device cuda
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from pyrodyn import data, models
from pyrodyn.infer import ELBO
from pyrodyn.infer.training.allocator import keep_freed_memory


class Size(NamedTuple):
    """A benchmark's data and model."""

    batch: int
    bins: int
    forecast: int
    neurons: int
    held_out: int
    sizes: dict[str, int]
    lfads_torch_ms: float


LORENZ = {"generator_dim": 64, "factor_dim": 3, "encoder_dim": 64, "controller_encoder_dim": 64}
MAZE = {
    "generator_dim": 200,
    "factor_dim": 100,
    "encoder_dim": 64,
    "controller_encoder_dim": 64,
    "controller_dim": 64,
    "initial_condition_dim": 64,
}
SIZES = {
    "lorenz co_dim 0": Size(64, 100, 0, 30, 0, {**LORENZ, "inferred_input_dim": 0}, 190),
    "lorenz co_dim 1": Size(64, 100, 0, 30, 0, {**LORENZ, "inferred_input_dim": 1}, 350),
    "maze": Size(256, 45, 10, 182, 45, {**MAZE, "inferred_input_dim": 4}, 820),
}


def median_ms(work: Callable[[], None], repeats: int, device: str) -> float:
    times = []
    for repeat in range(repeats + 3):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat >= 3:
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def training_step(size: Size, device: str) -> Callable[[], None]:
    counts = np.random.default_rng(0).poisson(0.5, (size.batch, size.bins, size.neurons))
    recording = data.held_out(
        data.recording(counts=counts, bin_width=0.01),
        neurons=list(range(size.neurons - size.held_out, size.neurons)) or None,
        forecast_bins=size.forecast,
    )
    model = models.LFADS.for_recording(recording, **size.sizes).to(device)
    loss = ELBO()(model, model.guide)
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)
    dropout = data.CoordinatedDropout(0.3)
    batch = model.trials_of(recording).batch()

    def step() -> None:
        optimizer.zero_grad()
        (loss(dropout(batch)) / size.batch).backward()
        optimizer.step()

    return step


def plain_gru(size: Size, device: str) -> Callable[[], None]:
    gru = torch.nn.GRU(size.neurons, size.sizes["generator_dim"], batch_first=True).to(device)
    x = torch.randn(size.batch, size.bins, size.neurons, device=device)

    def step() -> None:
        gru(x)[0].sum().backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    device = arguments.device
    columns = ("size", "step ms", "steps/s", "nn.GRU ms", "x GRU", "x lfads-torch")
    print("".join(f"{column:>16}" for column in columns))
    for name, size in SIZES.items():
        step = median_ms(training_step(size, device), arguments.repeats, device)
        gru = median_ms(plain_gru(size, device), arguments.repeats, device)
        peer = step / size.lfads_torch_ms if device == "cpu" else float("nan")
        row = (step, 1e3 / step, gru, step / gru, peer)
        print(f"{name:>16}" + "".join(f"{value:>16.2f}" for value in row), flush=True)


if __name__ == "__main__":
    main()
