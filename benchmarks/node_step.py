"""Time of rolling out a neural ODE, forward and backward: the hand-written kernel beside
torchdiffeq and beside a plain loop under autograd.

70 bins, 3 latents, a tanh perceptron of 128 units, one step per bin; the same field, method and
grid for all in the same run, timed in turns, and the same gradient (checked).

    uv run python benchmarks/node_step.py                  CPU, one thread
    uv run python benchmarks/node_step.py --device cuda
"""

import argparse
from collections.abc import Callable

import results
import torch
from timing import compare, print_row
from torch import Tensor
from torchdiffeq import odeint

from pyrodyn.infer.training.allocator import keep_freed_memory
from pyrodyn.nn.fields import MLPField
from pyrodyn.nn.solvers import Flow

NUM_BINS, LATENT_DIM = 70, 3


def rolls(method: str, batch: int, device: str) -> tuple[Callable[[], Tensor], ...]:
    """Ours, torchdiffeq's and a plain loop; each returns the gradient of one weight."""
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

    def loop() -> Tensor:
        field, z, path = flow.field, start, []
        u = inputs[:, 0]
        for _ in range(NUM_BINS):
            k1 = field(z, u)
            k2 = field(z + 0.5 * k1, u)
            if method == "midpoint":
                z = z + k2
            else:  # the classical fourth-order rule
                k3 = field(z + 0.5 * k2, u)
                z = z + (k1 + 2 * k2 + 2 * k3 + field(z + k3, u)) / 6
            path.append(z)
        return gradient(torch.stack(path, 1))

    return ours, theirs, loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 650])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    rows = []
    print_row("method, trials, beside")
    for method in ("midpoint", "rk4"):
        for batch in arguments.batches:
            ours, theirs, loop = rolls(method, batch, arguments.device)
            torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(ours(), loop(), rtol=1e-3, atol=1e-5)
            for beside, other in (("torchdiffeq", theirs), ("plain loop", loop)):
                compared = compare(ours, other, arguments.pairs, arguments.device)
                print_row(f"{method}, {batch}, {beside}", compared)
                about = {"method": method, "trials": batch, "beside": beside}
                rows.append({**about, **compared._asdict()})
    results.save("node_step" if arguments.device == "cpu" else "node_step_cuda", rows)


if __name__ == "__main__":
    main()
