"""Time of one VSMC training step of a low-rank RNN (bound, gradient, Adam) at published sizes.

The named alternative is the same bound recorded by autograd: `SequentialMonteCarlo`, which serves
every state-space model, in place of the low-rank network's fused bound. Timed in turns.

    uv run python benchmarks/low_rank_step.py              CPU, one thread
    uv run python benchmarks/low_rank_step.py --profile    and where the time goes
    uv run python benchmarks/low_rank_step.py --device cuda
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import results
import torch
from timing import compare, print_row
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
    "EEG, 10 particles": Size(10, 50, 64, 10, EEG),
    "EEG, 64 particles": Size(10, 50, 64, 64, EEG),
    "Poisson, 10 particles": Size(10, 200, 40, 10, POISSON),
    "Poisson, 64 particles": Size(10, 200, 40, 64, POISSON),
}


class GeneralBound(models.LowRankRNN):
    """The same network without its fused bound."""

    def fused_vsmc(self, *_: object) -> None:
        """None: the general algorithm serves."""


def training_step(
    size: Size, device: str, model_class: type[models.LowRankRNN] = models.LowRankRNN
) -> Callable[[], None]:
    rng, shape = np.random.default_rng(0), (size.batch, size.bins, size.neurons)
    if size.sizes["observation"] == "gaussian":
        recording = data.recording(signal=rng.standard_normal(shape), bin_width=1 / 160)
    else:
        recording = data.recording(counts=rng.poisson(0.5, shape), bin_width=0.01)
    torch.manual_seed(0)
    model = model_class.for_recording(recording, **size.sizes).to(device)
    loss = VSMC(size.particles)(model, model.guide)
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)
    batch = model.trials_of(recording).batch()

    def step() -> None:
        optimizer.zero_grad()
        (loss(batch) / size.batch).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    rows = []
    print_row("size")
    for name in arguments.sizes:
        size = SIZES[name]
        step = training_step(size, arguments.device)
        general = training_step(size, arguments.device, GeneralBound)
        compared = compare(step, general, arguments.pairs, arguments.device)
        print_row(name, compared)
        rows.append({"size": name, **compared._asdict()})
        if arguments.profile:
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                step()
            print(profiled.key_averages().table("self_cpu_time_total", row_limit=25))
    results.save("low_rank_step" if arguments.device == "cpu" else "low_rank_step_cuda", rows)


if __name__ == "__main__":
    main()
