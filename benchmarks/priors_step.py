"""Time of an LFADS training step with a prior on every weight of the readout, and without priors.

Timed in turns; "theirs" is the step with priors, so that the ratio is how many times as long it
takes. The sizes are those of `step.py`.

    uv run python benchmarks/priors_step.py              CPU, one thread
    uv run python benchmarks/priors_step.py --device cuda
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from step import SIZES, Size, recording_and_model
from timing import compare, print_row

from pyrodyn import data
from pyrodyn.infer import ELBO
from pyrodyn.infer.training.allocator import keep_freed_memory


def training_step(size: Size, device: str, priors: Mapping[str, Any]) -> Callable[[], None]:
    recording, model = recording_and_model(size, size.batch)
    model.set_priors(priors)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    print_row("size")
    for name in arguments.sizes:
        plain = training_step(SIZES[name], arguments.device, {})
        bayesian = training_step(SIZES[name], arguments.device, {"readout.*": dist.Normal(0, 1.0)})
        print_row(name, compare(plain, bayesian, arguments.pairs, arguments.device))


if __name__ == "__main__":
    main()
