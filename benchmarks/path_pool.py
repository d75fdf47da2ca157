"""A pool of paths that all trials share, beside as many paths for every trial of its own.

A neural ODE of three latents with process noise, 160 trials of 100 bins and 60 neurons, untrained.
The alternative is `importance_sample` with the bootstrap proposal, which draws from the same law.
Printed are nanoseconds per path and trial that are weighed, best of some runs, and their ratio.

    uv run python benchmarks/path_pool.py
"""

import argparse
import time
from collections.abc import Callable

import torch

from pyrodyn import data, models
from pyrodyn.infer import importance_sample, path_pool
from pyrodyn.models.state_space import Bootstrap

NUM_TRIALS, NUM_BINS, NUM_NEURONS = 160, 100, 60


def nanoseconds(work: Callable[[], object], num_weighed: int, repeats: int) -> float:
    """Per path and trial, the best of some runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) / num_weighed * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=50_000, help="in the pool")
    parser.add_argument("--own", type=int, default=50, help="particles of every trial's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recording = data.simulate(
        "lorenz", num_trials=NUM_TRIALS, num_bins=NUM_BINS, num_neurons=NUM_NEURONS, seed=0
    )
    torch.manual_seed(0)
    model = models.NodeSAE.for_recording(recording, latent_dim=3, process_noise=True).eval()
    batch = model.trials_of(recording).batch()
    pool = nanoseconds(
        lambda: path_pool(model, batch, num_particles=arguments.particles),
        arguments.particles * NUM_TRIALS,
        arguments.repeats,
    )
    model.proposal = Bootstrap()
    own = nanoseconds(
        lambda: importance_sample(model, model.guide, batch, arguments.own),
        arguments.own * NUM_TRIALS,
        arguments.repeats,
    )
    print(f"{'a pool, ns':>14}{'its own, ns':>14}{'faster by':>14}")
    print(f"{pool:>14.0f}{own:>14.0f}{own / pool:>14.0f}")


if __name__ == "__main__":
    main()
