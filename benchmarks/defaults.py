"""Every model by its bare call beside baselines: ``fit(Model.for_recording(train), train, valid)``.

A quarter of the neurons (channels) is held out of the encoder. One row per model, recording and
seed: co-smoothing of the test trials in bits per spike (of a signal: R2, mean over channels), that
of the baselines of `pyrodyn.analysis.baselines`, R2 of behaviour decoded from the rates (and from
those of the Poisson GLM), R2 against true rates, processor seconds of the fit, and the number of
its diagnostics. Rows of other models, recordings and seeds in the file of results are kept.

    uv run python benchmarks/defaults.py --seeds 0 1 2
    uv run python benchmarks/defaults.py --models LFADS --recordings mc_maze_large_9cond
"""

import argparse
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import results
import torch
import xarray as xr

from pyrodyn import analysis, data, fit, models, predict

NAME = "defaults"
MODELS = ("LFADS", "LowRankRNN", "NodeSAE", "NDT")


class Task(NamedTuple):
    """A recording in parts.

    Attributes:
        train: trials to fit.
        valid: trials to validate on.
        test: trials to score.
        lag: bins by which behaviour follows the rates.
    """

    train: xr.Dataset
    valid: xr.Dataset
    test: xr.Dataset
    lag: int = 0


def fold(recording: xr.Dataset, number: int, lag: int = 0) -> Task:
    """One of five folds, with a quarter of the neurons held out."""
    marked = data.held_out(recording, neurons=0.25, seed=0)
    outer, test = data.folds(marked, 5, seed=0)[number]
    return Task(*data.split(outer, (0.85, 0.15), seed=0), test, lag)


def maze(seed: int) -> Task:
    """The last fold of `benchmarks/maze.py`."""
    recording = data.load("mc_maze_large_9cond")
    velocity = ["hand velocity x", "hand velocity y"]
    return fold(recording.sel(quantity=velocity), 4, lag=20)


def chewie(seed: int) -> Task:
    recording = data.load("chewie_m1_co_1003")
    return fold(recording.sel(quantity=["hand velocity x", "hand velocity y"]), 0)


def lorenz(seed: int) -> Task:
    recording = data.held_out(data.load("lorenz_lfads_truth"), neurons=0.25, seed=0)
    outer, test = (
        recording.isel(trial=(recording["split"] == part).values) for part in ("train", "valid")
    )
    return Task(*data.split(outer, (0.85, 0.15), seed=0), test)


def imagery(seed: int) -> Task:
    """EEG in windows of a second, every second sample, standardised per channel."""
    signal = data.load("eegmmidb_s001_imagery")["signal"].values[:, :19_840:2]
    windows = signal.reshape(-1, 80, signal.shape[-1])
    standard = (windows - windows.mean((0, 1))) / windows.std((0, 1))
    return fold(data.recording(signal=standard, bin_width=1 / 80), 0)


def pulses(seed: int) -> Task:
    """A small simulated recording: 40 trials of a chaotic network with pulses."""
    recording = data.simulate("pulsed_rnn", 40, 80, 40, mean_rate=20, seed=seed)
    return fold(recording, 0)


RECORDINGS: dict[str, Callable[[int], Task]] = {
    "mc_maze_large_9cond": maze,
    "chewie_m1_co_1003": chewie,
    "lorenz_lfads_truth": lorenz,
    "eegmmidb_s001_imagery": imagery,
    "pulsed_rnn": pulses,
}


def run(name: str, recording: str, seed: int) -> dict[str, Any]:
    train, valid, test, lag = RECORDINGS[recording](seed)
    torch.manual_seed(seed)
    model = getattr(models, name).for_recording(train)
    started = time.process_time()
    fitted = fit(model, train, valid, seed=seed, progress=False)
    seconds = time.process_time() - started
    row: dict[str, Any] = {
        "model": name,
        "recording": recording,
        "seed": seed,
        "seconds": seconds,
        "steps": fitted.num_steps,
        "diagnostics": len(fitted.diagnostics),
    }
    everything = xr.concat([train, valid], "trial")
    rates = [predict(fitted, part)["rates"] for part in (everything, test)]
    scores = analysis.prediction_scores(everything, test, *rates, lag=lag)
    table = baselines_of(recording, seed)
    row["co-smoothing"] = scores["co_smoothing"]
    row |= table["co_smoothing"].to_dict()
    if "rate_r2" in scores:
        row["rate R2"] = scores["rate_r2"]
    if "behavior_r2" in scores:
        row["behaviour"] = scores["behavior_r2"]
        row["behaviour of GLM"] = table["behavior_r2"]["Poisson GLM"]
    return row


@functools.cache
def baselines_of(recording: str, seed: int) -> pd.DataFrame:
    """The same for all models."""
    train, valid, test, lag = RECORDINGS[recording](seed)
    return analysis.baselines(xr.concat([train, valid], "trial"), test, lag=lag)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--recordings", nargs="+", default=[*RECORDINGS], choices=[*RECORDINGS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    np.seterr(all="ignore")
    for recording in arguments.recordings:
        for model in arguments.models:
            for seed in arguments.seeds:
                row = run(model, recording, seed)
                print(row, flush=True)
                keep(row, arguments.threads)


def keep(row: dict[str, Any], num_threads: int) -> None:
    """Replace this row, or add it, in the order of models and recordings above."""
    rows = results.rows(NAME)
    key = ("recording", "model", "seed")
    others = [each for each in rows if any(each[k] != row[k] for k in key)]
    order = [*RECORDINGS], [*MODELS]

    def place(each: dict[str, Any]) -> tuple[int, int, int]:
        return order[0].index(each["recording"]), order[1].index(each["model"]), each["seed"]

    results.save(NAME, sorted([*others, row], key=place), num_threads)


if __name__ == "__main__":
    main()
