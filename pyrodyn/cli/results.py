"""Commands that show what a fitted model makes of a recording."""

import time
from pathlib import Path
from typing import Annotated

import typer

from pyrodyn.cli.folders import fitted_in, marked_as_fitted, model_folder, require_own_guide
from pyrodyn.cli.options import BinWidth, Folder, Method, Recording, Seed
from pyrodyn.cli.recordings import recording_of


def posterior(
    folder: Folder,
    recording: Recording,
    out: Annotated[Path, typer.Option(help="A new .zarr folder for the tree.")],
    draws: Annotated[
        int | None,
        typer.Option(help="Posterior draws per trial.", show_default="100, mcmc 400 of 4 chains"),
    ] = None,
    method: Method = None,
    particles: Annotated[
        int | None,
        typer.Option(help="Particles of importance, smoother and pool.", show_default="1000"),
    ] = None,
    bin_width: BinWidth = None,
    seed: Seed = 0,
) -> None:
    """Sample the posterior of a recording into an ArviZ DataTree on disk."""
    import pyrodyn
    from pyrodyn.posterior.source import BY_GUIDE

    fitted = fitted_in(folder)
    if method in (None, *BY_GUIDE):
        call = f"pyrodyn.load({str(model_folder(folder))!r}, guide=...)"
        require_own_guide(fitted, folder, f"draw in Python: pyrodyn.to_datatree({call}, recording)")
    started = time.monotonic()
    tree = pyrodyn.to_datatree(
        fitted,
        marked_as_fitted(recording_of(recording, bin_width), fitted),
        num_draws=draws,
        method=method,
        num_particles=particles,
        seed=seed,
        path=out,
    )
    groups = ", ".join(tree.children)
    typer.echo(f"wrote {out} in {time.monotonic() - started:.0f} s: {groups}")


def check(
    folder: Folder,
    recording: Recording,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; without it the summary is printed.")
    ] = None,
    method: Method = None,
    bin_width: BinWidth = None,
    seed: Seed = 0,
) -> None:
    """Report what a fitted model misses on trials that the fit has not seen, if there are any."""
    from pyrodyn.posterior import check as check_fit

    if out is not None and out.suffix != ".html":
        raise ValueError(f"--out {out} must end in .html")
    fitted = fitted_in(folder)
    require_own_guide(fitted, folder, "check it in Python: pyrodyn.posterior.check")
    data = marked_as_fitted(recording_of(recording, bin_width), fitted)
    report = check_fit(fitted, data, method=method, seed=seed)
    typer.echo(report)
    if out is not None:
        typer.echo(f"\nwrote {report.save(out)}")


def score(
    folder: Folder,
    recording: Recording,
    lag: Annotated[int, typer.Option(help="Bins by which behaviour follows the rates.")] = 0,
    method: Method = None,
    bin_width: BinWidth = None,
    seed: Seed = 0,
) -> None:
    """Score a fitted model on trials that the fit has not seen, beside baselines: held-out neurons,
    true rates and decoded behaviour, as far as the recording has them.
    """
    import pandas as pd

    import pyrodyn
    from pyrodyn import analysis
    from pyrodyn.posterior.report import ROLES, least_seen
    from pyrodyn.posterior.tree import role_in_fit

    fitted = fitted_in(folder)
    require_own_guide(fitted, folder, "score it in Python: pyrodyn.analysis.prediction_scores")
    data = marked_as_fitted(recording_of(recording, bin_width), fitted)
    if lag and "behavior" not in data:
        raise ValueError(f"--lag {lag}: {recording} has no behaviour that could follow the rates")
    role, test = least_seen(fitted, data)
    if role not in ("unseen", "validated"):
        raise ValueError(
            f"{recording} has no trial that is known to be new to the fit in {folder}; give other"
            " trials, or leave some out of the fit by --test-fraction"
        )
    train = data.isel(trial=[each != role for each in role_in_fit(fitted, data) or ()])
    if train.sizes["trial"] < 2:
        raise ValueError(
            f"{recording} lacks the trials that the fit was trained on, with which baselines and"
            " decoders are fitted; give the whole recording"
        )
    rates = [
        pyrodyn.predict(fitted, part, method=method, seed=seed)["rates"] for part in (train, test)
    ]
    scores = analysis.prediction_scores(train, test, *rates, lag=lag)
    if not scores:
        raise ValueError(
            f"{recording} has neither held-out neurons (fit with --held-out 0.25) nor behaviour nor"
            " true rates to score by; pyrodyn check needs none"
        )
    table = pd.DataFrame({type(fitted).__name__: scores}).T
    if "co_smoothing" in scores:
        table = pd.concat([table, analysis.baselines(train, test, lag=lag)])
    typer.echo(f"{test.sizes['trial']} trials. {ROLES[role]}\n")
    typer.echo(table.to_string(float_format=lambda value: f"{value:.3f}", na_rep="-"))
    if "co_smoothing" not in scores:
        typer.echo("\nBaselines need held-out neurons: fit with --held-out 0.25.")


def plot(
    folder: Folder,
    recording: Recording,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the figures; FOLDER/figures by default.")
    ] = None,
    trial: Annotated[int, typer.Option(min=0, help="Position of the trial to show.")] = 0,
    bin_width: BinWidth = None,
    seed: Seed = 0,
) -> None:
    """Draw one trial's rates, latent trajectories, and PSTHs by condition, if there are any."""
    import pyrodyn
    from pyrodyn import analysis

    fitted, out = fitted_in(folder), out or folder / "figures"
    if out.exists():
        raise ValueError(f"{out} exists; choose another folder with --out, or remove it first")
    require_own_guide(fitted, folder, "draw in Python, with pyrodyn.load(folder, guide=...)")
    data = marked_as_fitted(recording_of(recording, bin_width), fitted)
    if trial >= data.sizes["trial"]:
        raise ValueError(f"--trial {trial}: {recording} has {data.sizes['trial']} trials")
    predicted = pyrodyn.predict(fitted, data, seed=seed)
    figures = {"rates": analysis.plot_rates(data, predicted, trial=trial)}
    if fitted.has_latents:
        figures["latents"] = analysis.plot_factors(predicted)
        num_latents = analysis.latents_of(predicted).sizes["latent"]
        if num_latents >= 2:
            num_dims = min(3, num_latents)
            figures["trajectories"] = analysis.plot_latents(predicted, data, num_dims=num_dims)
    if "condition" in data:
        figures["psths"] = analysis.plot_psths(data, predicted)
    if "u" in predicted and "inferred_input" in predicted["u"].dims:
        figures["inferred_inputs"] = analysis.plot_inferred_inputs(data, predicted)
    out.mkdir(parents=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    typer.echo(f"wrote {out}: {', '.join(f'{name}.png' for name in figures)}")
