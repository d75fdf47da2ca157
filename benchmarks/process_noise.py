"""Process noise that is learned with few particles, beside the maximum of the likelihood.

A Poisson low-rank network (rank 2, 40 units and neurons, 100 trials of 100 bins, bootstrap
proposal) generates the data. Its process noise alone is learned, from twice the true value, Adam's
learning rate falling from 0.05 to 0.005; printed is the mean of the last quarter of the steps. The
likelihood is profiled with many particles, and its maximum interpolated by a parabola.

    uv run python benchmarks/process_noise.py
"""

import argparse

import numpy as np
import results
import torch
from pyro import poutine

from pyrodyn.data.batch import Batch
from pyrodyn.infer import VSMC, Objective, SmoothedScore, particle_filter
from pyrodyn.infer.traces import traced
from pyrodyn.models import LowRankRNN

NOISE, NUM_TRIALS, NUM_BINS, NUM_UNITS, BATCH = 0.15, 100, 100, 40, 20
GRID = (0.13, 0.14, 0.15, 0.16, 0.17, 0.18)
OBJECTIVES = (VSMC(32), SmoothedScore(32), VSMC(128))


def simulated(seed: int) -> tuple[LowRankRNN, Batch]:
    """The network and its data."""
    torch.manual_seed(seed)
    model = LowRankRNN(
        NUM_UNITS, latent_dim=2, num_units=NUM_UNITS, activation="tanh", noise="scalar",
        proposal="bootstrap",
    )  # fmt: skip
    model.raw_noise.fill_(np.log(NOISE))
    model.raw_start_noise.fill_(np.log(0.5))
    shape = (NUM_TRIALS, NUM_BINS, NUM_UNITS)
    everywhere = torch.ones(shape, dtype=torch.bool)
    batch = Batch(
        None, torch.zeros(shape), everywhere, everywhere, torch.zeros(*shape[:2], 0),
        torch.arange(NUM_TRIALS), NUM_BINS,
    )  # fmt: skip
    x = traced(poutine.mask(model.model, mask=False), batch).nodes["x"]["value"]
    return model, batch.replace(x=x, seen=x)


def learned(model: LowRankRNN, batch: Batch, objective: Objective, num_steps: int) -> float:
    """The noise at the end of a fit, mean of its last quarter."""
    model.requires_grad_(False)
    model.raw_noise.fill_(np.log(2 * NOISE))
    model.raw_noise.requires_grad_(True)
    loss = objective(model, model.guide)
    optimiser = torch.optim.Adam([model.raw_noise], lr=0.05)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1 ** (1 / num_steps))
    found = []
    for _ in range(num_steps):
        part = batch.take(torch.randperm(NUM_TRIALS)[:BATCH])
        optimiser.zero_grad()
        loss(part).backward()
        optimiser.step()
        falling.step()
        found.append(float(model.raw_noise.detach().exp()))
    return float(np.mean(found[-num_steps // 4 :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--particles", type=int, default=512, help="of the profile")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        model, batch = simulated(arguments.seed)
        profile = []
        for noise in GRID:
            model.raw_noise.fill_(np.log(noise))
            filtered = particle_filter(model, batch, arguments.particles)
            profile.append(float(filtered.log_evidence.sum(0).mean()))
            print(f"noise {noise:.2f}: {profile[-1]:.2f} nats per trial", flush=True)
        curvature, slope, _ = np.polyfit(GRID, profile, 2)
    rows = [{"objective": "likelihood", "noise": float(-slope / (2 * curvature))}]
    for objective in OBJECTIVES:
        with torch.no_grad():
            model.raw_noise.fill_(np.log(NOISE))
            variance = particle_filter(model, batch, objective.num_particles).log_evidence_variance
        rows.append(
            {
                "objective": f"{type(objective).__name__}({objective.num_particles})",
                "noise": learned(model, batch, objective, arguments.steps),
                "log_evidence_variance": float(variance.mean()),
            }
        )
    print(f"truth {NOISE}")
    for row in rows:
        print("  ".join(f"{v:.3f}" if isinstance(v, float) else f"{v:<18}" for v in row.values()))
    results.save("process_noise", rows)


if __name__ == "__main__":
    main()
