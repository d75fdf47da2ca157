"""The demo: a simulated recording, its posterior, scores and figures.

A chaotic rate network receives one input pulse per trial at a random time. LFADS sees the spikes of
50 neurons but not the pulses; its inferred inputs should recover them, and its rates the true ones.
"""

from pathlib import Path

import numpy as np
import torch
import typer
import xarray as xr

from pyrodyn import analysis, data, fit, models, predict, to_datatree


def run(out: Path, minutes: float, seed: int) -> None:
    """Simulate, fit, score, draw; write model, tree and figures to ``out``.

    Args:
        out: a new folder.
        minutes: minutes of training.
        seed: seeds simulation, weights and training.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder with --out")
    typer.echo("simulating a pulsed chaotic network: 400 trials x 100 bins x 50 neurons")
    recording = data.simulate("pulsed_rnn", 400, 100, 50, mean_rate=20, seed=seed)
    train, valid = data.split(recording, (0.8, 0.2), seed=seed)

    torch.manual_seed(seed)
    model = models.LFADS.for_recording(train, factor_dim=10, inferred_input_dim=1)
    typer.echo(f"fitting LFADS for {minutes:g} minutes")
    fitted = fit(
        model,
        train,
        valid,
        max_minutes=minutes,
        out=out / "fit",
        seed=seed,
    )
    predicted = predict(model, valid)
    tree = to_datatree(model, valid, num_draws=50, path=out / "posterior.zarr")

    figures = {
        "rates": analysis.plot_rates(valid, predicted),
        "factors": analysis.plot_factors(predicted),
        "inferred_inputs": analysis.plot_inferred_inputs(valid, predicted),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)

    epochs = fitted.history.sizes["epoch"]
    typer.echo(
        f"\n{epochs} epochs, {fitted.num_steps} steps. On {valid.sizes['trial']} new trials:"
    )
    for name, value in _scores(train, valid, predicted).items():
        typer.echo(f"  {name:<58} {value:7.3f}")
    typer.echo(f"\nposterior groups: {', '.join(tree.children)}")
    typer.echo(
        f"written to {out}: {', '.join(f'{name}.png' for name in figures)}, posterior.zarr, fit/"
    )


def _scores(train: xr.Dataset, valid: xr.Dataset, predicted: xr.Dataset) -> dict[str, float]:
    r2 = analysis.rate_r2(predicted["rates"], valid["rates"])
    smoothed = analysis.smooth(valid["counts"], valid.attrs["bin_width"], 0.05)
    baseline = analysis.rate_r2(smoothed, valid["rates"])
    size = np.abs(predicted["u"].values).sum(-1)
    error = np.abs(size.argmax(1) - valid["pulse_bin"].values)
    return {
        "rate R2 against the truth, pooled": r2.pooled,
        "  the same for spikes smoothed by a 50 ms Gaussian": baseline.pooled,
        "fraction of trials with largest inferred input <= 3 bins away": float((error <= 3).mean()),
    }
