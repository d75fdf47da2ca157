"""Time of a bootstrap particle filter beside the package `particles` (Chopin).

The model is the rank-2 limit cycle of `pyrodyn.data.teacher` (20 units, 20 channels, 100 bins,
observation noise 1), filtered with its own weights, systematic resampling below an effective sample
size of one half. `particles` gets the model as bare numpy functions, the fastest way it has, and
filters one trial at a time, so a few trials give its time per particle and bin. Both are warmed up
(its resampling is compiled at the first call) and timed in turns. Both estimate the same evidence;
the difference is printed.

    uv run python benchmarks/filter.py
    uv run python benchmarks/filter.py --device cuda
"""

import argparse

import numpy as np
import particles
import results
import torch
import xarray as xr
from known_teacher import teacher_as_model
from numpy.typing import NDArray
from timing import compare

from pyrodyn import data
from pyrodyn.data.teachers import teacher_network
from pyrodyn.infer import particle_filter
from pyrodyn.infer.training.allocator import keep_freed_memory

NUM_UNITS, NUM_BINS = 20, 100
PROCESS_NOISE, OBSERVATION_NOISE = 0.2, 1.0
SIZES = ((1, 256), (1000, 16), (1000, 64), (1000, 256), (1000, 1024))
"""Trials and particles."""


class Bootstrap(particles.FeynmanKac):
    """One trial of the teacher, as `particles` takes it."""

    def __init__(self, recording: xr.Dataset, trial: int, rng: np.random.Generator) -> None:
        super().__init__(T=NUM_BINS)
        self.signal = recording["signal"].values[trial].astype(float)
        self.loading, self.bias = (recording[f"teacher_{n}"].values for n in ("loading", "bias"))
        self.start_noise, self.rng = recording.attrs["initial_sd"], rng
        self.network = teacher_network("limit_cycle", NUM_UNITS)
        self.constant = -0.5 * NUM_UNITS * np.log(2 * np.pi * OBSERVATION_NOISE**2)

    def M0(self, N: int) -> NDArray[np.float64]:  # noqa: N802 (the package's names)
        """Draws of the initial state."""
        return self.start_noise * self.rng.standard_normal((N, 2))

    def M(self, t: int, xp: NDArray[np.float64]) -> NDArray[np.float64]:  # noqa: N802
        """Draws of the next state."""
        return self.network.mean_step(xp) + PROCESS_NOISE * self.rng.standard_normal(xp.shape)

    def logG(  # noqa: N802
        self, t: int, xp: NDArray[np.float64], x: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Log density of the observation."""
        residual = (self.signal[t] - x @ self.loading.T - self.bias) / OBSERVATION_NOISE
        return self.constant - 0.5 * np.square(residual).sum(-1)


def theirs(recording: xr.Dataset, num_trials: int, num_particles: int) -> NDArray[np.float64]:
    """Log evidences of the first trials by `particles`."""
    rng, evidence = np.random.default_rng(0), []
    for trial in range(num_trials):
        algorithm = particles.SMC(
            fk=Bootstrap(recording, trial, rng),
            N=num_particles,
            resampling="systematic",
            ESSrmin=0.5,
        )
        algorithm.run()
        evidence.append(algorithm.logLt)
    return np.array(evidence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-trials", type=int, default=20, help="trials given to `particles`")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    rows = []
    heads = ("trials", "particles", "pyrodyn ns", "particles ns", "ratio", "lowest", "highest")
    print("".join(f"{head:>14}" for head in (*heads, "evidence, nats")))
    for num_trials, num_particles in SIZES:
        recording = data.teacher(
            "limit_cycle",
            num_trials,
            NUM_BINS,
            NUM_UNITS,
            process_noise=PROCESS_NOISE,
            observation_noise=OBSERVATION_NOISE,
        )
        model = teacher_as_model(recording).to(arguments.device)
        batch = model.trials_of(recording).batch()
        peer_trials = min(arguments.peer_trials, num_trials)
        torch.manual_seed(0)
        compared = compare(
            lambda m=model, b=batch, k=num_particles: particle_filter(m, b, k),
            lambda r=recording, n=peer_trials, k=num_particles: theirs(r, n, k),
            arguments.pairs,
            arguments.device,
        )
        # Each side's own number of particle-steps, so that ratios compare time per step.
        ours_ns, theirs_ns = (
            1e6 * ms / (trials * NUM_BINS * num_particles)
            for ms, trials in zip(compared[:2], (num_trials, peer_trials), strict=True)
        )
        per_step = num_trials / peer_trials
        evidence = particle_filter(model, batch, num_particles).log_evidence.sum(0)
        gap = evidence[:peer_trials].double().cpu().numpy() - theirs(
            recording, peer_trials, num_particles
        )
        row = {
            "trials": num_trials,
            "particles": num_particles,
            "ours_ns": ours_ns,
            "theirs_ns": theirs_ns,
            "ratio": compared.ratio * per_step,
            "lowest": compared.lowest * per_step,
            "highest": compared.highest * per_step,
            "evidence_difference": float(gap.mean()),
            "its_standard_error": float(gap.std() / np.sqrt(peer_trials)),
        }
        rows.append(row)
        numbers = [f"{value:.3g}" for value in list(row.values())[2:7]]
        sizes = (num_trials, num_particles, *numbers, f"{gap.mean():.2f}")
        print("".join(f"{cell:>14}" for cell in sizes), flush=True)
    results.save("filter" if arguments.device == "cpu" else "filter_cuda", rows)


if __name__ == "__main__":
    main()
