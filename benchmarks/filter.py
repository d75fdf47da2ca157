"""Time of a bootstrap particle filter: 1000 trials of 100 bins with 256 particles each.

The model is the rank-2 limit cycle of `pyrodyn.data.teacher` (20 units, 20 channels, observation
noise 1), filtered with its own weights, systematic resampling below an effective sample size of one
half. Printed beside the package `particles` (Chopin's) on the same trials in the same run, its
model given as bare numpy functions, which is the fastest way it has; it takes one trial at a time,
so that a few trials tell its time per particle and bin. Both estimate the same evidence, printed to
show it.

    uv run python benchmarks/filter.py
    uv run python benchmarks/filter.py --device cuda
"""

import argparse
import importlib.util
import time
from typing import Any

import numpy as np
import torch
import xarray as xr
from known_teacher import teacher_as_model
from numpy.typing import NDArray

from pyrodyn import data
from pyrodyn.data.teachers import teacher_network
from pyrodyn.infer import particle_filter
from pyrodyn.infer.training.allocator import keep_freed_memory

NUM_UNITS = 20
PROCESS_NOISE, OBSERVATION_NOISE = 0.2, 1.0


def theirs(recording: xr.Dataset, num_trials: int, num_particles: int) -> tuple[float, Any]:
    """Seconds that `particles` needs for the first trials, and their log evidences."""
    import particles

    network = teacher_network("limit_cycle", NUM_UNITS)
    loading, bias = recording["teacher_loading"].values, recording["teacher_bias"].values
    constant = -0.5 * NUM_UNITS * np.log(2 * np.pi * OBSERVATION_NOISE**2)
    rng = np.random.default_rng(0)

    class Bootstrap(particles.FeynmanKac):
        def __init__(self, signal: NDArray[np.float64]) -> None:
            super().__init__(T=len(signal))
            self.signal = signal

        def M0(self, N: int) -> NDArray[np.float64]:  # noqa: N802 (theirs)
            return recording.attrs["start_noise"] * rng.standard_normal((N, 2))

        def M(self, t: int, xp: NDArray[np.float64]) -> NDArray[np.float64]:  # noqa: N802
            return network.mean_step(xp) + PROCESS_NOISE * rng.standard_normal(xp.shape)

        def logG(self, t: int, xp: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:  # noqa: N802
            wrong = (self.signal[t] - x @ loading.T - bias) / OBSERVATION_NOISE
            return constant - 0.5 * np.square(wrong).sum(-1)

    signals = recording["signal"].values[:num_trials].astype(float)
    started, evidence = time.perf_counter(), []
    for signal in signals:
        run = particles.SMC(
            fk=Bootstrap(signal), N=num_particles, resampling="systematic", ESSrmin=0.5
        )
        run.run()
        evidence.append(run.logLt)
    return time.perf_counter() - started, np.array(evidence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--bins", type=int, default=100)
    parser.add_argument("--particles", type=int, default=256)
    parser.add_argument("--peer-trials", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as `fit` does
    num_trials, num_bins, num_particles = arguments.trials, arguments.bins, arguments.particles
    recording = data.teacher(
        "limit_cycle",
        num_trials,
        num_bins,
        NUM_UNITS,
        process_noise=PROCESS_NOISE,
        observation_noise=OBSERVATION_NOISE,
    )
    model = teacher_as_model(recording).to(arguments.device)
    batch = model.trials_of(recording).batch()
    torch.manual_seed(0)
    seconds = []
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        filtered = particle_filter(model, batch, num_particles)
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    evidence = filtered.log_evidence.sum(0).double().cpu().numpy()
    ours = 1e9 * min(seconds) / (num_trials * num_bins * num_particles)
    print(f"pyrodyn    {min(seconds):8.2f} s for {num_trials} trials {ours:10.1f} ns/particle-step")
    print(f"           resampled at {filtered.resampled.float().mean():.0%} of bins")
    if importlib.util.find_spec("particles") is None:
        print("The package `particles` is not installed here, so that nothing stands beside it.")
        return
    peer_trials = min(arguments.peer_trials, num_trials)
    took, their_evidence = theirs(recording, peer_trials, num_particles)
    peer = 1e9 * took / (peer_trials * num_bins * num_particles)
    print(f"particles  {took:8.2f} s for {peer_trials} trials {peer:10.1f} ns/particle-step")
    difference = evidence[:peer_trials] - their_evidence
    error = difference.std() / np.sqrt(peer_trials)
    print(f"pyrodyn needs {ours / peer:.2f} of the time; mean log evidence")
    print(f"differs by {difference.mean():.3f} +- {error:.3f} of {their_evidence.mean():.1f} nats")


if __name__ == "__main__":
    main()
