"""Time of the exact evidence beside its estimate by a particle filter.

1000 trials of 100 bins and 20 channels of a rank-2 linear network; the particle filter has the
optimal proposal and the number of particles that is given. Both compute log p(x) of every trial,
without gradients; the estimate's error is printed too.

    uv run python benchmarks/kalman.py
"""

import argparse

import numpy as np
import results
import torch
from timing import compare

from pyrodyn.data import recording
from pyrodyn.infer import kalman_filter, particle_filter
from pyrodyn.infer.training.allocator import keep_freed_memory
from pyrodyn.models import LinearDynamics

NUM_TRIALS, NUM_BINS, NUM_CHANNELS = 1000, 100, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    rng = np.random.default_rng(0)
    angle = 0.2
    A = 0.95 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    C = rng.normal(size=(NUM_CHANNELS, 2)) / np.sqrt(2)
    z, x = rng.normal(size=(NUM_TRIALS, 2)), []
    for _ in range(NUM_BINS):
        z = z @ A.T + 0.2 * rng.normal(size=z.shape)
        x.append(z @ C.T + rng.normal(size=(NUM_TRIALS, NUM_CHANNELS)))
    recorded = recording(signal=np.stack(x, 1), bin_width=0.01)
    model = LinearDynamics.for_recording(recorded, latent_dim=2, seed=0)
    batch = model.trials_of(recorded).batch()
    rows = []
    with torch.no_grad():
        exact = kalman_filter(model, batch).log_evidence.sum(0)
        print(f"{'particles':>12}{'exact ms':>12}{'filter ms':>12}{'ratio':>8}{'error, nats':>14}")
        for num_particles in arguments.particles:
            compared = compare(
                lambda: kalman_filter(model, batch),
                lambda k=num_particles: particle_filter(model, batch, k),
                arguments.pairs,
            )
            found = particle_filter(model, batch, num_particles).log_evidence.sum(0)
            error = float((found - exact).square().mean().sqrt())
            rows.append(
                {
                    "particles": num_particles,
                    "exact_ms": compared.ours_ms,
                    "filter_ms": compared.theirs_ms,
                    "ratio": compared.ratio,
                    "root_mean_square_error": error,
                }
            )
            print(
                f"{num_particles:>12}{compared.ours_ms:>12.0f}{compared.theirs_ms:>12.0f}"
                f"{compared.ratio:>8.1f}{error:>14.2f}",
                flush=True,
            )
    results.save("kalman", rows)


if __name__ == "__main__":
    main()
