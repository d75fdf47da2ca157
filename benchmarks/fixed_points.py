"""Processor time of a search for fixed points: Levenberg-Marquardt as in
`pyrodyn.analysis.fixed_points.fixed_points`, compared with the common minimisation of |g|^2 by
Adam, from the same starts to the same residual.

Adam updates all starts at once, in double precision, with a learning rate that decays from
``--rate`` by a factor of 100 over its steps; it stops when as many starts are below the residual as
in the other search, or after ``--adam-steps``. Points are counted after the same merging, as
coarse as the residual allows. Both searches run once before, on a few starts, so that nothing is
timed that happens once. Seconds are of processor time, on one thread; ours are the mean of a run
before Adam's and one after it.

    uv run python benchmarks/fixed_points.py
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import results
import torch
from torch import Tensor

from pyrodyn import models
from pyrodyn.analysis.dynamics import dynamics_of, known_dynamics
from pyrodyn.analysis.fixed_points.newton import Residual, levenberg_marquardt, merged, residual_of
from pyrodyn.data.simulate import trajectory
from pyrodyn.infer.training.allocator import keep_freed_memory
from pyrodyn.models import Dynamics

COUNTED_AS_ONE = 1e-3
"""Points closer than this are one: as far as the residual lets them scatter."""


def lorenz(num_starts: int) -> tuple[Dynamics, Tensor]:
    """The Lorenz field, from states of its attractor and noise about them."""
    visited = trajectory("lorenz", 4 * num_starts, 0.01)[::4]
    noise = visited.std(0) * np.random.default_rng(0).standard_normal(visited.shape)
    noise[::2] = 0
    return known_dynamics("lorenz"), torch.from_numpy(visited + noise)


def generator(num_starts: int, gain: float) -> tuple[Dynamics, Tensor]:
    """A random LFADS generator, from states that it visits and noise about them."""
    torch.manual_seed(0)
    model = models.LFADS(30, generator_dim=64, inferred_input_dim=0)
    with torch.no_grad():
        model.generator.weight_hh_l0 *= gain
    dynamics = dynamics_of(model)
    state = torch.randn(num_starts, 64, dtype=torch.float64)
    for _ in range(20):
        state = dynamics.step(state, dynamics.no_inputs(state))
    noise = state.std(0) * torch.randn_like(state)
    noise[::2] = 0
    return dynamics, state + noise


def adam(g: Residual, starts: Tensor, residual: float, wanted: int, steps: int, rate: float):
    """Descend until ``wanted`` starts are within the residual; where they end, and the steps."""
    state = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([state], lr=rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
    for step in range(steps):
        optimizer.zero_grad()
        value = g.value(state)
        if int(is_within(value.detach(), state.detach(), residual).sum()) >= wanted:
            return state.detach(), step
        (0.5 * value.square().sum()).backward()
        optimizer.step()
        schedule.step()
    return state.detach(), steps


def is_within(value: Tensor, state: Tensor, residual: float) -> Tensor:
    """Whether each state is a fixed point, as `levenberg_marquardt` judges it."""
    return value.abs().amax(-1) <= residual * (1 + state.abs().amax(-1))


def timed[Result](search: Callable[[], Result]) -> tuple[Result, float]:
    """What a search returns, and its processor time in seconds."""
    began = time.process_time()
    result = search()
    return result, time.process_time() - began


def compare(dynamics: Dynamics, starts: Tensor, arguments: argparse.Namespace) -> dict[str, float]:
    """Print a row per search; seconds and distinct points of both."""
    g = residual_of(dynamics, torch.zeros(dynamics.input_dim, dtype=torch.float64))
    residual = arguments.residual
    search = torch.no_grad()(levenberg_marquardt)
    search(g, starts[:8], residual)
    adam(g, starts[:8], residual, 9, 3, arguments.rate)

    ours, before = timed(lambda: search(g, starts, residual))
    wanted = int(ours.is_fixed.sum())
    (state, steps), seconds = timed(
        lambda: adam(g, starts, residual, wanted, arguments.adam_steps, arguments.rate)
    )
    _, after = timed(lambda: search(g, starts, residual))
    our_seconds = (before + after) / 2
    theirs = state[is_within(g.value(state), state, residual)]
    points = []
    print_row("search", "seconds", "steps", "converged", "points", "ratio")
    for name, spent, num_steps, fixed, ratio in (
        ("Levenberg-Marquardt", our_seconds, ours.num_iterations, ours.state[ours.is_fixed], ""),
        ("Adam", seconds, steps, theirs, f"{seconds / our_seconds:.1f}"),
    ):
        points.append(len(merged(fixed, g, COUNTED_AS_ONE)[0]))
        print_row(name, f"{spent:.3f}", num_steps, len(fixed), points[-1], ratio)
    return {
        "ours_s": our_seconds,
        "our_points": points[0],
        "adam_s": seconds,
        "adam_points": points[1],
        "ratio": seconds / our_seconds,
    }


def print_row(*entries: object) -> None:
    print("".join(f"{entry:>20}" for entry in entries), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=512)
    parser.add_argument("--residual", type=float, default=1e-6)
    parser.add_argument("--adam-steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=0.05)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    cases = {
        "Lorenz field": lorenz(arguments.starts),
        "LFADS generator, 64 units, weights x 2": generator(arguments.starts, 2.0),
        "LFADS generator, 64 units, weights x 4": generator(arguments.starts, 4.0),
    }
    rows = []
    for name, (dynamics, starts) in cases.items():
        print(f"{name}, {len(starts)} starts, residual {arguments.residual:g}")
        rows.append({"dynamics": name, **compare(dynamics, starts, arguments)})
    results.save("fixed_points", rows)


if __name__ == "__main__":
    main()
