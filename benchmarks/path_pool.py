"""One pool of trajectories shared by all trials, beside separate trajectories for every trial.

A neural ODE of three latents with process noise, 160 trials of 100 bins and 60 neurons, untrained.
The named alternative is `importance_sample` with the bootstrap proposal, which draws from the same
prior. Printed are nanoseconds per trajectory and trial weighted; both timed in turns.

    uv run python benchmarks/path_pool.py
"""

import argparse
import copy

import results
import torch
from timing import compare

from pyrodyn import data, models
from pyrodyn.infer import importance_sample, path_pool
from pyrodyn.models.state_space import Bootstrap

NUM_TRIALS, NUM_BINS, NUM_NEURONS = 160, 100, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=50_000, help="in the pool")
    parser.add_argument("--own", type=int, default=50, help="separate particles per trial")
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recording = data.simulate(
        "lorenz", num_trials=NUM_TRIALS, num_bins=NUM_BINS, num_neurons=NUM_NEURONS, seed=0
    )
    torch.manual_seed(0)
    model = models.NodeSAE.for_recording(recording, latent_dim=3, process_noise=True).eval()
    batch = model.trials_of(recording).batch()
    bootstrap = copy.deepcopy(model)
    bootstrap.proposal = Bootstrap()
    compared = compare(
        lambda: path_pool(model, batch, num_particles=arguments.particles),
        lambda: importance_sample(bootstrap, bootstrap.guide, batch, arguments.own),
        arguments.pairs,
    )
    scale = arguments.particles / arguments.own
    row = {
        "pool_ns": 1e6 * compared.ours_ms / (arguments.particles * NUM_TRIALS),
        "own_ns": 1e6 * compared.theirs_ms / (arguments.own * NUM_TRIALS),
        "ratio": compared.ratio * scale,
        "lowest": compared.lowest * scale,
        "highest": compared.highest * scale,
    }
    print("".join(f"{name:>12}" for name in row))
    print("".join(f"{value:>12.4g}" for value in row.values()))
    results.save("path_pool", [row])


if __name__ == "__main__":
    main()
