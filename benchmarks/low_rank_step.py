"""Time of one VSMC training step of a low-rank RNN (bound, gradient, Adam) at published sizes.

Printed beside what the public code of Pals et al. (2024) needed per step on this class of machine
(one thread): 170 ms for EEG with 10 particles, 670 ms for Poisson with 64.

    uv run python benchmarks/low_rank_step.py              CPU, one thread
    uv run python benchmarks/low_rank_step.py --profile    and where the time goes
    uv run python benchmarks/low_rank_step.py --device cuda
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from pyrodyn import data, models
from pyrodyn.infer import VSMC
from pyrodyn.infer.training.allocator import keep_freed_memory


class Size(NamedTuple):
    """A benchmark's data and model."""

    batch: int
    bins: int
    neurons: int
    particles: int
    sizes: dict[str, Any]
    public_ms: float | None


EEG = {
    "latent_dim": 3,
    "num_units": 512,
    "activation": "clipped_relu",
    "noise": "full",
    "observation": "gaussian",
    "proposal": "optimal",
}
POISSON = {
    "latent_dim": 2,
    "num_units": 40,
    "activation": "relu",
    "noise": "diagonal",
    "observation": "poisson",
    "link": "softplus",
    "proposal": "causal_encoder",
}
SIZES = {
    "EEG K 10": Size(10, 50, 64, 10, EEG, 170.0),
    "EEG K 64": Size(10, 50, 64, 64, EEG, None),
    "Poisson K 10": Size(10, 200, 40, 10, POISSON, None),
    "Poisson K 64": Size(10, 200, 40, 64, POISSON, 670.0),
}


def training_step(size: Size, device: str) -> Callable[[], None]:
    rng, shape = np.random.default_rng(0), (size.batch, size.bins, size.neurons)
    if size.sizes["observation"] == "gaussian":
        recording = data.recording(signal=rng.standard_normal(shape), bin_width=1 / 160)
    else:
        recording = data.recording(counts=rng.poisson(0.5, shape), bin_width=0.01)
    torch.manual_seed(0)
    model = models.LowRankRNN.for_recording(recording, **size.sizes).to(device)
    loss = VSMC(size.particles)(model, model.guide)
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)
    batch = model.trials_of(recording).batch()

    def step() -> None:
        optimizer.zero_grad()
        (loss(batch) / size.batch).backward()
        optimizer.step()

    return step


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    columns = ("size", "step ms", "per bin ms", "public ms", "x public")
    print("".join(f"{column:>14}" for column in columns))
    for name in arguments.sizes:
        size = SIZES[name]
        step = training_step(size, arguments.device)
        ms = median_ms(step, arguments.repeats, arguments.device)
        # The public code's times are those of a CPU.
        has_peer = size.public_ms is not None and arguments.device == "cpu"
        public = size.public_ms if has_peer else float("nan")
        row = (ms, ms / size.bins, public, ms / public)
        print(f"{name:>14}" + "".join(f"{value:>14.3g}" for value in row), flush=True)
        if arguments.profile:
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                step()
            print(profiled.key_averages().table("self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
