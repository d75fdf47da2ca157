"""Time of one LFADS training step (coordinated dropout, ELBO, gradient, Adam) at three sizes.

The named alternative is one forward and backward pass of a `torch.nn.GRU` of the generator's size
over the same trials, timed in turns with the step and with the same memory settings: a training
step rolls five such networks (two encoders in both directions, and the generator).

    uv run python benchmarks/step.py              CPU, one thread
    uv run python benchmarks/step.py --device cuda
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import results
import torch
import xarray as xr
from timing import compare, print_row

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
    "Lorenz, no inferred input": Size(64, 100, 0, 30, 0, {**LORENZ, "inferred_input_dim": 0}),
    "Lorenz, one inferred input": Size(64, 100, 0, 30, 0, {**LORENZ, "inferred_input_dim": 1}),
    "maze, four inferred inputs": Size(256, 45, 10, 182, 45, {**MAZE, "inferred_input_dim": 4}),
}


def recording_and_model(size: Size, num_trials: int) -> tuple[xr.Dataset, models.LFADS]:
    counts = np.random.default_rng(0).poisson(0.5, (num_trials, size.bins, size.neurons))
    recording = data.held_out(
        data.recording(counts=counts, bin_width=0.01),
        neurons=list(range(size.neurons - size.held_out, size.neurons)) or None,
        forecast_bins=size.forecast,
    )
    return recording, models.LFADS.for_recording(recording, **size.sizes)


def training_step(size: Size, device: str) -> Callable[[], None]:
    recording, model = recording_and_model(size, size.batch)
    model.to(device)
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
    parser.add_argument("--pairs", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    rows = []
    print_row("size")
    for name, size in SIZES.items():
        compared = compare(
            training_step(size, arguments.device),
            plain_gru(size, arguments.device),
            arguments.pairs,
            arguments.device,
        )
        print_row(name, compared)
        rows.append({"size": name, **compared._asdict()})
    results.save("step" if arguments.device == "cpu" else "step_cuda", rows)


if __name__ == "__main__":
    main()
