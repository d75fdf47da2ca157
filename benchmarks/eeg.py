"""Rank-3 RNNs on 64-channel EEG: does what they generate look like the data, beside trivial series?

One `LowRankRNN` per seed (512 units, clipped relu, full process noise, optimal proposal), fitted by
VSMC to the first 75 % of `eeg_durstewitz_smoothed` (7230 of 9640 bins), in overlapping windows of
50 bins as trials. Then, as published (Hess et al. 2023; Pals et al. 2024), 9640 bins after 2400 of
burn-in are generated and smoothed by a Hann window of 15 bins.

    D_H       Hellinger distance of power spectra, goal .12
    D_stsp    KL in state space, Gaussian mixtures, goal 2.05

Published rank-3 models reach D_H .155 and D_stsp 2.11, all in sample. Here the generated series is
cut as the data are: its first 7230 bins against the data's first 7230 (in sample), its last 2410
against the data's last 2410 (held out), and all against all (whole, as published: three quarters
were seen), each cut z-scored. A spectrum's kernel of 20 frequency bins is wider in Hz for a shorter
cut, and fewer points make another mixture: compare within a column.

The bound is about the next bins and the distances about the long run, which may get worse as the
bound gets better. Two networks are therefore printed per seed: the last, and the one chosen among
ten along the way by the distances of other free runs to the first 75 %. The choice makes the latter
optimistic in sample and in the whole; nothing held out took part in either.

Beside them the six trivial generators of `analysis.attractor_baselines`, made from the first 75 %,
and "earlier data": the 2410 bins before the held-out ones, scored as if they had been generated.

    uv run python benchmarks/eeg.py --seeds 0 1 2 --minutes 6
"""

import argparse
import copy
import time
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyrodyn import analysis, data, fit, models
from pyrodyn.infer import VSMC, Schedule
from pyrodyn.models.observations import Gaussian

Array = NDArray[np.float64]

TRAIN_SHARE = 0.75
WINDOW, STRIDE = 50, 5
INTERVALS = 10
GOALS = (0.12, 2.05)
RANK, NUM_UNITS = 3, 512
BURN_IN, HANN = 2400, np.hanning(15)


def windows(signal: Array, bin_width: float) -> xr.Dataset:
    """A continuous signal as overlapping trials."""
    starts = np.arange(0, len(signal) - WINDOW + 1, STRIDE)
    return data.recording(
        signal=np.stack([signal[start : start + WINDOW] for start in starts]), bin_width=bin_width
    )


class Fitted(NamedTuple):
    """A network when time is up, and as it was when its free runs were nearest to the data."""

    last: models.LowRankRNN
    chosen: models.LowRankRNN
    num_steps: int
    chosen_after: int


def fitted(train: Array, bin_width: float, seed: int, minutes: float) -> Fitted:
    """A network fitted for so many minutes, judged at equal intervals."""
    trials = windows(train, bin_width)
    torch.manual_seed(seed)
    model = models.LowRankRNN.for_recording(
        trials,
        latent_dim=RANK,
        num_units=NUM_UNITS,
        activation="clipped_relu",
        noise="full",
        proposal="optimal",
    )
    with torch.no_grad():
        _start_from_components(model, train)
    chosen, least, num_steps, chosen_after = copy.deepcopy(model), np.inf, 0, 0
    for interval in range(INTERVALS):
        # Few particles find the dynamics; more make the bound that is wanted.
        num_particles, learning_rate = (4, 5e-3) if interval < 0.6 * INTERVALS else (10, 1e-3)
        num_steps += fit(
            model,
            trials,
            objective=VSMC(num_particles),
            max_epochs=100_000,
            max_minutes=minutes / INTERVALS,
            batch_size=16,
            schedule=Schedule(learning_rate=learning_rate),
            seed=INTERVALS * seed + interval,
            progress=False,
        ).num_steps
        # Other runs than those that are reported.
        runs = generated(model, len(train), 2, 1000 + seed)
        shares = np.mean([distances(train, run) for run in runs], 0) / GOALS
        if shares.sum() < least:
            chosen, least, chosen_after = copy.deepcopy(model), shares.sum(), num_steps
    return Fitted(model, chosen, num_steps, chosen_after)


def _start_from_components(model: models.LowRankRNN, signal: Array) -> None:
    """Loading from principal components, such that latents start with unit variance; noise from
    what the decay alone does not explain of them.
    """
    centred = signal - signal.mean(0)
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)
    loading = directions[:RANK].T * scales[:RANK] / np.sqrt(len(signal))
    z = centred @ np.linalg.pinv(loading).T
    noise = np.linalg.cholesky(np.cov(z[1:] - float(model.decay()) * z[:-1], rowvar=False))
    assert isinstance(model.observation, Gaussian)
    for parameter, start in (
        (model.loading, loading),
        (model.observation.log_scale, np.log((centred - z @ loading.T).std(0))),
        (model.raw_noise, np.tril(noise, -1) + np.diag(np.log(np.diag(noise)))),
    ):
        parameter.copy_(torch.tensor(start))


def z_scored(series: Array) -> Array:
    return (series - series.mean(0)) / series.std(0)


def generated(model: models.LowRankRNN, num_bins: int, num_runs: int, seed: int) -> Array:
    """Free runs, smoothed, ``(run, num_bins, channel)``."""
    raw = analysis.free_run(model, num_runs, num_bins + len(HANN) - 1, burn_in=BURN_IN, seed=seed)
    x = raw["x"].values.astype(float)
    return np.apply_along_axis(np.convolve, 1, x, HANN / HANN.sum(), mode="valid")


def scored(eeg: Array, series: Array, num_train: int) -> list[float]:
    """D_H and D_stsp in sample, held out and of the whole."""
    row = []
    for cut in (slice(num_train), slice(num_train, None), slice(None)):
        row += distances(eeg[cut], series[cut])
    return row


def distances(true: Array, series: Array) -> list[float]:
    true, series = z_scored(true), z_scored(series)
    return [analysis.d_h(true, series), analysis.d_stsp(true, series)]


def show(name: str, about: str, row: list[float] | Array) -> None:
    print(f"{name:>18}{about:>16}  " + "  ".join(f"{value:>7.3f}" for value in row), flush=True)


def show_all(name: str, rows: list[list[float]]) -> None:
    """Mean and standard deviation over seeds."""
    show(name, "mean", np.mean(rows, 0))
    show("", "sd", np.std(rows, 0, ddof=1) if len(rows) > 1 else np.full(len(rows[0]), np.nan))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recording = data.load("eeg_durstewitz_smoothed")
    bin_width = recording.attrs["bin_width"]
    eeg = z_scored(recording["signal"].values[0].astype(float))
    num_train = round(TRAIN_SHARE * len(eeg))
    train, held_out = eeg[:num_train], eeg[num_train:]
    print(" " * 34 + "  ".join(f"{part:>16}" for part in ("in sample", "held out", "whole")))
    print(" " * 34 + "  ".join(["    D_H", " D_stsp"] * 3))

    earlier = train[-len(held_out) :]
    show("earlier data", "", [np.nan] * 2 + distances(held_out, earlier) + [np.nan] * 2)
    baselines: dict[str, list[list[float]]] = {}
    for seed in arguments.seeds:
        for name, series in analysis.attractor_baselines(train, len(eeg), seed=seed).items():
            baselines.setdefault(name, []).append(scored(eeg, series, num_train))
    for name, rows in baselines.items():
        show_all(name, rows)

    networks: dict[str, list[list[float]]] = {"last": [], "chosen": []}
    for seed in arguments.seeds:
        started = time.monotonic()
        found = fitted(train, bin_width, seed, arguments.minutes)
        about = {
            "last": f"{time.monotonic() - started:.0f} s, {found.num_steps}",
            "chosen": f"after {found.chosen_after}",
        }
        for which, model in (("last", found.last), ("chosen", found.chosen)):
            series = generated(model, len(eeg), 1, seed)[0]
            networks[which].append(scored(eeg, series, num_train))
            show(f"{which}, seed {seed}", about[which], networks[which][-1])
    for which, rows in networks.items():
        show_all(f"rank {RANK}, {which}", rows)


if __name__ == "__main__":
    main()
