"""`mc_maze_large_9cond`: co-smoothing and decoding, 5-fold over trials, 25 % of neurons held out of
the encoder.

``lfads`` is fitted by the ELBO, ``low_rank`` (a stochastic low-rank RNN of rank 5) by VSMC. Printed
per fold on the held-out trials: co-smoothing bits/spike beside that of the condition-averaged PSTH
on the same neurons, and R2 of hand velocity (x, y), 100 ms later, from the rates by ridge, beside
the same from smoothed spikes.

    uv run python benchmarks/maze.py --folds 0 1 2 3 4 --minutes 3 --threads 1
    uv run python benchmarks/maze.py --model low_rank --folds 0 1 2 3 4 --minutes 2.5
"""

import argparse
import warnings
from collections.abc import Callable
from typing import NamedTuple

import results
import torch
import xarray as xr

from pyrodyn import analysis, data, fit, models, predict
from pyrodyn.infer import ELBO, VSMC, Objective, Ramp, Schedule
from pyrodyn.models.proposals import EncoderFactor

LAG = 20
"""Lag from rates to velocity, in bins."""


class Recipe(NamedTuple):
    """Settings of a fit.

    Attributes:
        build: an untrained model for training trials.
        objective: what is minimised.
        hidden: fraction of entries that coordinated dropout hides.
        learning_rate: the initial one.
    """

    build: Callable[[xr.Dataset], models.LatentDynamics]
    objective: Objective
    hidden: float
    learning_rate: float


def lfads(train: xr.Dataset) -> models.LFADS:
    return models.LFADS.for_recording(
        train, factor_dim=20, generator_dim=100, dropout=0.1, inferred_input_dim=0
    )


def low_rank(train: xr.Dataset) -> models.LowRankRNN:
    """The encoder's window is a quarter of a second around every bin, wider than the default of 31
    bins of 5 ms.
    """
    model = models.LowRankRNN.for_recording(
        train, latent_dim=5, num_units=128, noise="full", proposal="encoder"
    )
    model.proposal = EncoderFactor(train.sizes["neuron"], 5, kernels=(61, 31, 1), num_channels=32)
    return model


RECIPES = {
    "lfads": Recipe(lfads, ELBO(beta={"g0": Ramp(500)}), 0.3, 5e-3),
    # With few particles the bound depends more on the encoder, which predicts the rates.
    "low_rank": Recipe(low_rank, VSMC(num_particles=4), 0.5, 2e-3),
}


def run(name: str, fold: int, minutes: float) -> dict[str, float]:
    recording = data.held_out(data.load("mc_maze_large_9cond"), neurons=0.25, seed=0)
    outer, test = data.folds(recording, 5, seed=0)[fold]
    train, valid = data.split(outer, (0.85, 0.15), seed=0)
    torch.manual_seed(fold)
    recipe = RECIPES[name]
    model = recipe.build(train)
    fitted = fit(
        model,
        train,
        valid,
        objective=recipe.objective,
        transforms=[data.CoordinatedDropout(recipe.hidden)],
        max_epochs=10_000,
        max_minutes=minutes,
        batch_size=32,
        schedule=Schedule(learning_rate=recipe.learning_rate, patience=45, stop_patience=180),
        seed=fold,
        progress=False,
    )
    velocity, test_velocity = (
        part["behavior"].sel(quantity=["hand velocity x", "hand velocity y"])
        for part in (outer, test)
    )
    smoothed, test_smoothed = (
        analysis.smooth(part["counts"], part.attrs["bin_width"], 0.05) for part in (outer, test)
    )
    from_spikes = analysis.decode(smoothed, velocity, test_smoothed, test_velocity, lag=LAG)
    rates = predict(model, test)["rates"]
    from_rates = analysis.decode(
        predict(model, outer)["rates"], velocity, rates, test_velocity, lag=LAG
    )
    psth = analysis.condition_psth(outer, test)
    return {
        "fold": fold,
        "steps": fitted.num_steps,
        "co-bps": analysis.recording_bits_per_spike(rates, test, "held_out"),
        "PSTH co-bps": analysis.recording_bits_per_spike(psth, test, "held_out"),
        "velocity": from_rates.r2,
        "x": from_rates.per_quantity[0],
        "y": from_rates.per_quantity[1],
        "spikes": from_spikes.r2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lfads", choices=list(RECIPES))
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*never fire")
    rows = []
    for fold in arguments.folds:
        row = run(arguments.model, fold, arguments.minutes)
        if not rows:
            print("  ".join(f"{name:>12}" for name in row))
        rows.append(row)
        print("  ".join(f"{value:>12.4g}" for value in row.values()), flush=True)
    results.save(f"maze_{arguments.model}", rows, arguments.threads)


if __name__ == "__main__":
    main()
