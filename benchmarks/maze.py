"""LFADS on `mc_maze_large_9cond`: co-smoothing and decoding, 5-fold over trials, 25 % of neurons
held out of the encoder.

Printed per fold on the held-out trials: co-smoothing bits/spike beside that of the
condition-averaged PSTH on the same neurons, and R2 of hand velocity (x, y) from the rates by
ridge, beside the same from smoothed spikes.

    uv run python benchmarks/maze.py --folds 0 1 2 3 4 --minutes 6
"""

import argparse
import warnings

import numpy as np
import torch

from pyrodyn import analysis, data, fit, models, predict
from pyrodyn.infer import ELBO, Ramp, Schedule

LAG = 0


def run(fold: int, minutes: float, arguments: argparse.Namespace) -> dict[str, float]:
    seed = fold
    recording = data.held_out(data.load("mc_maze_large_9cond"), neurons=0.25, seed=0)
    outer, test = data.folds(recording, 5, seed=0)[fold]
    train, valid = data.split(outer, (0.85, 0.15), seed=0)
    torch.manual_seed(seed)
    model = models.LFADS.for_recording(
        train,
        factor_dim=arguments.factors,
        inferred_input_dim=arguments.inputs,
        generator_dim=100,
        dropout=arguments.dropout,
    )
    ramps = {"g0": Ramp(500)}
    if arguments.inputs:
        ramps["u"] = Ramp(500)
    fitted = fit(
        model,
        train,
        valid,
        objective=ELBO(beta=ramps),
        transforms=[data.CoordinatedDropout(arguments.cd)],
        max_epochs=10_000,
        max_minutes=minutes,
        batch_size=32,
        schedule=Schedule(learning_rate=5e-3, patience=15),
        seed=seed,
        progress=False,
    )
    rates = {"train": predict(model, outer)["rates"], "test": predict(model, test)["rates"]}
    velocity = {
        name: part["behavior"].sel(quantity=["hand velocity x", "hand velocity y"])
        for name, part in (("train", outer), ("test", test))
    }
    smoothed = {
        name: analysis.smooth(part["counts"], part.attrs["bin_width"], 0.05)
        for name, part in (("train", outer), ("test", test))
    }
    from_rates, from_spikes = (
        analysis.decode(
            np.log(features["train"] + 1e-4) if logs else features["train"],
            velocity["train"],
            np.log(features["test"] + 1e-4) if logs else features["test"],
            velocity["test"],
            lag=20,
        )
        for features, logs in ((rates, False), (smoothed, False))
    )
    psth = analysis.condition_psth(outer, test)
    return {
        "fold": fold,
        "steps": fitted.num_steps,
        "co-bps": analysis.recording_bits_per_spike(rates["test"], test, "held_out"),
        "PSTH co-bps": analysis.recording_bits_per_spike(psth, test, "held_out"),
        "velocity": from_rates.r2,
        "x": from_rates.per_quantity[0],
        "y": from_rates.per_quantity[1],
        "spikes": from_spikes.r2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--inputs", type=int, default=0)
    parser.add_argument("--factors", type=int, default=20)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--cd", type=float, default=0.3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*never fire")
    for position, fold in enumerate(arguments.folds):
        row = run(fold, arguments.minutes, arguments)
        if position == 0:
            print("  ".join(f"{name:>12}" for name in row))
        print("  ".join(f"{value:>12.4g}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
