"""Time of a neural ODE's roll, forward and back: hand-written steps beside torchdiffeq's.

70 bins, 3 latents, a tanh perceptron of 128 units, one step per bin; the same field, method and
grid for both in the same run, and the same gradient (checked).

    uv run python benchmarks/node_step.py                  CPU, one thread
    uv run python benchmarks/node_step.py --device cuda
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from pyrodyn.infer.training.allocator import keep_freed_memory
from pyrodyn.nn.fields import MLPField
from pyrodyn.nn.solvers import Flow

NUM_BINS, LATENT_DIM = 70, 3


def rolls(method: str, batch: int, device: str) -> tuple[Callable[[], Tensor], ...]:
    """Ours and theirs; each returns the gradient of one weight."""
    torch.manual_seed(0)
    flow = Flow(MLPField(LATENT_DIM), method).to(device)
    start = torch.randn(batch, LATENT_DIM, device=device)
    inputs = start.new_zeros(batch, NUM_BINS, 0)
    times = torch.arange(NUM_BINS + 1.0, device=device)

    def gradient(path: Tensor) -> Tensor:
        flow.zero_grad()
        path.square().mean().backward()
        weight = flow.field.linear_layers()[0].weight
        assert weight.grad is not None
        return weight.grad.clone()

    def ours() -> Tensor:
        return gradient(flow.roll(start, inputs))

    def theirs() -> Tensor:
        field = flow.field
        path = odeint(lambda _, z: field(z, inputs[:, 0]), start, times, method=method)
        return gradient(path[1:].transpose(0, 1))

    return ours, theirs


def median_ms(work: Callable[[], Tensor], repeats: int, device: str) -> float:
    times = []
    for repeat in range(repeats + 2):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat >= 2:
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 650])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    columns = ("method", "trials", "pyrodyn ms", "torchdiffeq", "faster by")
    print("".join(f"{column:>13}" for column in columns))
    for method in ("midpoint", "rk4"):
        for batch in arguments.batches:
            ours, theirs = rolls(method, batch, arguments.device)
            torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-5)
            fast, slow = (median_ms(w, arguments.repeats, arguments.device) for w in (ours, theirs))
            row = f"{fast:>13.1f}{slow:>13.1f}{slow / fast:>13.2f}"
            print(f"{method:>13}{batch:>13}" + row, flush=True)


if __name__ == "__main__":
    main()
