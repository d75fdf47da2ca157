"""Shallow PLRNNs fitted by generalised teacher forcing: 64-channel EEG and the Lorenz-63 system.

EEG, as published (Hess et al. 2023): 16 latents, 512 clipped units, windows of 50 bins in batches
of 16, constant forcing 0.1, RAdam. Data, split, cuts and scores are those of
`eeg.py`, whose rank-3 networks and trivial generators are printed beside, with the numbers of
parameters and of latents. Runs are deterministic, as published: from the first bin of the data, by
the map alone, through readout and smoothing. "with noise" are free runs of the same network as a
stochastic model, with the process noise that `GTF` estimates.

Lorenz-63: 3 latents, 100 units, windows of 200 bins in batches of 16, identity readout and adaptive
forcing, of one trajectory of 100,000 bins of 0.01 time units with noise of 5 % of a standard
deviation. Compared over 40,000 bins: D_stsp (30 bins per dim) and D_H of a free run, the largest
Lyapunov exponent, and the fixed points, of which Lorenz' system has three. "another trajectory" is
the true system from another initial state.

Published fits take 250,000 steps; the hours that these would take on this machine are printed. The
shorter fits here begin with a higher learning rate, and their adaptive forcing falls faster
(``--gamma``; published 0.999).

    uv run python benchmarks/gtf.py eeg --steps 6000 --seeds 0
    uv run python benchmarks/gtf.py lorenz --steps 4000 --gamma 0.995 --seeds 0
"""

import argparse
import time
from typing import Any

import numpy as np
import results
import torch
import xarray as xr
from eeg import (
    BURN_IN,
    HANN,
    NUM_RUNS,
    NUM_UNITS,
    RANK,
    TRAIN_FRACTION,
    Array,
    generated,
    scored,
    show,
    show_all,
    summary,
    z_scored,
)
from torch import Tensor, nn

from pyrodyn import analysis, data, models
from pyrodyn.infer import GTF, AdaptiveForcing
from pyrodyn.infer.objectives.objective import Objective
from pyrodyn.models import ShallowPLRNN
from pyrodyn.models.observations import Gaussian

BATCH_SIZE = 16
LEARNING_RATES = 3e-3, 1e-5
PUBLISHED_STEPS = 5000 * 50
LORENZ_BINS, LORENZ_TEST_BINS, LORENZ_NOISE = 100_000, 40_000, 0.05
LORENZ_WINDOW, EEG_WINDOW, SHIFT = 200, 50, 5
LORENZ_STEP = 0.01
"""Units of time per bin."""

LORENZ_EXPONENT = 0.906
"""Largest Lyapunov exponent per unit of time (Sprott 2003)."""


def windows(signal: Array, length: int, bin_width: float) -> xr.Dataset:
    """A continuous signal as overlapping trials."""
    starts = np.arange(0, len(signal) - length + 1, SHIFT)
    return data.recording(
        signal=np.stack([signal[start : start + length] for start in starts]), bin_width=bin_width
    )


def fitted(
    trials: xr.Dataset, objective: Objective, steps: int, seed: int, **sizes: Any
) -> tuple[ShallowPLRNN, float]:
    """A network after ``steps`` steps, and processor seconds per step."""
    model = ShallowPLRNN.for_recording(trials, seed=seed, **sizes)
    assert isinstance(model.observation, Gaussian)
    with torch.no_grad():  # at first the squared error of standardised channels
        model.observation.log_scale.zero_()
    loss, tensors = objective(model, model.guide), model.trials_of(trials)
    first, last = LEARNING_RATES
    optimizer = torch.optim.RAdam(model.parameters(), lr=first)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (last / first) ** (1 / steps))
    torch.manual_seed(seed)
    started = time.process_time()
    for step in range(steps):
        batch = tensors.batch(torch.randint(len(tensors), (BATCH_SIZE,)))
        # Per entry, so that the gradient is clipped at the same length whatever the recording.
        value = loss.evaluate(batch, step).loss / (len(tensors) * batch.x[0].numel())
        optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        if not torch.isfinite(norm):
            raise ArithmeticError(f"the gradient of seed {seed} is not finite at step {step}")
        optimizer.step()
        schedule.step()
        if step % (steps // 10) == 0:
            print(f"{step:>8} steps, loss {value.detach():.4f}, alpha {loss.alpha:.3f}", flush=True)
    return model.eval(), (time.process_time() - started) / steps


@torch.no_grad()
def latents_of(model: ShallowPLRNN, x: Array) -> Tensor:
    """The latents ``(1, latent)`` of an observation ``(neuron,)``, by the pseudo-inverse."""
    emission = model.gaussian_emission()
    observed = torch.from_numpy(x).to(emission.offset)
    return (observed - emission.offset)[None] @ torch.linalg.pinv(emission.matrix).mT


@torch.no_grad()
def run_of_the_map(model: ShallowPLRNN, x: Array, num_bins: int) -> Array:
    """Means of a run by the map alone, from the latents of an observation ``(neuron,)``."""
    emission, dynamics = model.gaussian_emission(), model.dynamics()
    z, path = latents_of(model, x), []
    for _ in range(num_bins):
        path.append(z)
        z = dynamics.step(z, dynamics.no_inputs(z))
    read = torch.cat(path) @ emission.matrix.mT + emission.offset
    return read.numpy().astype(float)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def eeg(seeds: list[int], steps: int, alpha: float) -> list[dict[str, Any]]:
    """The networks' rows, and those of `eeg.py`."""
    recording = data.load("eeg_durstewitz_smoothed")
    bin_width = recording.attrs["bin_width"]
    whole = z_scored(recording["signal"].values[0].astype(float))
    num_train = round(TRAIN_FRACTION * len(whole))
    trials = windows(whole[:num_train], EEG_WINDOW, bin_width)
    name = f"shallow PLRNN, {steps} steps"
    rows: dict[str, list[list[float]]] = {name: [], f"{name}, with noise": []}
    for seed in seeds:
        model, seconds = fitted(
            trials, GTF(alpha), steps, seed, latent_dim=16, num_units=512, noise="diagonal"
        )
        series = run_of_the_map(model, whole[0], BURN_IN + len(whole) + len(HANN) - 1)[BURN_IN:]
        smooth = np.apply_along_axis(np.convolve, 0, series, HANN / HANN.sum(), mode="valid")
        # A run that ends in a fixed point has no spectrum.
        moves = bool((smooth.std(0) > 1e-6).all())
        noisy = generated(model, len(whole), NUM_RUNS, seed)
        for which, row in (
            (name, scored(whole, smooth, num_train) if moves else [np.nan] * 6),
            (f"{name}, with noise", np.mean([scored(whole, x, num_train) for x in noisy], 0)),
        ):
            rows[which].append(list(row))
            show(f"seed {seed}", f"{seconds * steps:.0f} s", rows[which][-1])
    for which, found in rows.items():
        show_all(which, found)
    print(f"{PUBLISHED_STEPS} steps take {PUBLISHED_STEPS * seconds / 3600:.1f} h per seed")
    low_rank = models.LowRankRNN.for_recording(
        trials, latent_dim=RANK, num_units=NUM_UNITS, activation="clipped_relu", noise="full"
    )
    sizes = {
        "shallow PLRNN": (num_parameters(model), len(model.A)),
        f"rank {RANK}": (num_parameters(low_rank), RANK),
    }
    table = [*(summary(which, found) for which, found in rows.items()), *results.rows("eeg")]
    for row in table:
        size = [size for start, size in sizes.items() if row["generator"].startswith(start)]
        row["parameters"], row["latents"] = size[0] if size else (None, None)
        scores = [np.nan if row[c] is None else row[c] for c in row if c.startswith("D_")]
        about = f"{row['parameters']} / {row['latents']}" if size else ""
        show(row["generator"][:32], about, scores)
    return table


def lorenz(seeds: list[int], steps: int, gamma: float) -> list[dict[str, Any]]:
    """The networks' rows, and those of trivial generators."""
    true, other = (
        simulated(num_bins, seed) for num_bins, seed in ((LORENZ_BINS, 0), (LORENZ_TEST_BINS, 1))
    )
    rng = np.random.default_rng(0)
    trials = windows(true + LORENZ_NOISE * rng.normal(size=true.shape), LORENZ_WINDOW, LORENZ_STEP)
    test = true[:LORENZ_TEST_BINS]
    table = []
    trivial = {
        "another trajectory": other,
        **analysis.attractor_baselines(true, LORENZ_TEST_BINS),
    }
    for name, series in trivial.items():
        table.append({"generator": name, **lorenz_scores(test, series)})
        print(table[-1], flush=True)
    for seed in seeds:
        model, seconds = fitted(
            trials,
            GTF(AdaptiveForcing(gamma=gamma)),
            steps,
            seed,
            latent_dim=3,
            num_units=100,
            readout="identity",
        )
        series = run_of_the_map(model, true[0], LORENZ_TEST_BINS)
        start = latents_of(model, series[-1])
        spectrum = analysis.lyapunov_spectrum(model, start, 20_000, num_exponents=1)
        found = analysis.fixed_points(model, max_seconds=60)
        table.append(
            {
                "generator": f"shallow PLRNN, {steps} steps, seed {seed}",
                **lorenz_scores(test, series),
                "largest exponent": float(spectrum["exponents_per_bin"][0]) / LORENZ_STEP,
                "true exponent": LORENZ_EXPONENT,
                "fixed points": found.sizes["fixed_point"],
                "complete": found.attrs["complete"],
                "parameters": num_parameters(model),
                "latents": 3,
            }
        )
        print(table[-1], f"{seconds * steps:.0f} s", flush=True)
        print(f"{PUBLISHED_STEPS} steps take {PUBLISHED_STEPS * seconds / 3600:.1f} h per seed")
    return table


def simulated(num_bins: int, seed: int) -> Array:
    """States of Lorenz' system, z-scored."""
    recorded = data.simulate(
        "lorenz", 1, num_bins, 3, observation="gaussian", time_per_bin=LORENZ_STEP, seed=seed
    )
    return z_scored(recorded["latents"].values[0].astype(float))


def lorenz_scores(true: Array, series: Array) -> dict[str, float]:
    return {"D_stsp": analysis.d_stsp(true, series), "D_H": analysis.d_h(true, series)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", choices=["eeg", "lorenz"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=PUBLISHED_STEPS)
    parser.add_argument("--alpha", type=float, default=0.1, help="forcing on EEG")
    parser.add_argument("--gamma", type=float, default=0.999, help="of adaptive forcing")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.recording == "eeg":
        table = eeg(arguments.seeds, arguments.steps, arguments.alpha)
    else:
        table = lorenz(arguments.seeds, arguments.steps, arguments.gamma)
    results.save(f"gtf_{arguments.recording}", table, arguments.threads)


if __name__ == "__main__":
    main()
