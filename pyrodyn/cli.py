"""The command `pyrodyn`, an interface to the public API.

Errors are one line and exit code 2. Ctrl-C keeps the last checkpoint and exits with code 130.
"""

import importlib.metadata
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import xarray as xr

    from pyrodyn.models import LatentDynamics

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Latent neural dynamics: fit a recording, sample its posterior, analyse the dynamics.",
)
data_app = typer.Typer(no_args_is_help=True, help="Named recordings.")
app.add_typer(data_app, name="data")

GENERATED = (64, 200)
"""Trials and bins that a model generates to start a search from, if no recording is given."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

MODELS = (
    "lfads",
    "node-sae",
    "rnn-sae",
    "low-rank-rnn",
    "shallow-plrnn",
    "linear-dynamics",
    "ndt",
)
METHODS = ("guide", "dropout", "importance", "smoother", "pool", "exact", "mcmc")

Seed = Annotated[int, typer.Option(min=0, help="Seeds everything random.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a fit.")]
Recording = Annotated[str, typer.Argument(help="A file, or the name of a recording.")]
BinWidth = Annotated[
    float | None, typer.Option(help="Seconds per bin, for files that do not state it.")
]


def _completion(*names: str) -> Callable[[str], list[str]]:
    """Completes the beginning of a name in the shell."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Method = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}; if left out, the smoother for models"
        " fitted by a particle filter, exact for those fitted by the Kalman filter, dropout for"
        " ndt, otherwise the guide.",
        autocompletion=_completion(*METHODS),
    ),
]


def main() -> None:
    """Run the command line; turn bad input into one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message()
        if message:  # empty after the help of a command without arguments
            typer.echo(message if "\n" in message else f"pyrodyn: {message}", err=True)
        sys.exit(2)
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        typer.echo(f"pyrodyn: {error}", err=True)
        sys.exit(2)
    if code == INTERRUPTED:
        typer.echo("\npyrodyn: interrupted", err=True)
    sys.exit(code)


def _print_version(is_wanted: bool) -> bool:
    if is_wanted:
        typer.echo(f"pyrodyn {importlib.metadata.version('pyrodyn')}")
        raise typer.Exit
    return is_wanted


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for figures and model.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(help="Minutes of training.")] = 2.2,
    seed: Seed = 0,
) -> None:
    """Simulate a chaotic network with input pulses, fit LFADS, score it against the truth and
    draw figures.
    """
    from pyrodyn.demo import run

    run(out, minutes, seed)


@app.command()
def simulate(
    system: Annotated[
        str, typer.Argument(help="lorenz, rossler, arneodo, chaotic_rnn, pulsed_rnn, ...")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .npz, .nc or .zarr.")],
    trials: int = 400,
    bins: int = 100,
    neurons: int = 50,
    channels: Annotated[
        int, typer.Option(help="Channels of a signal in addition to the spikes.")
    ] = 0,
    bin_width: Annotated[float, typer.Option(help="Seconds per bin.")] = 0.01,
    mean_rate: Annotated[float, typer.Option(help="Spikes per second.")] = 20.0,
    seed: Seed = 0,
) -> None:
    """Simulate a recording with known truth and write it."""
    from pyrodyn.data import simulate as simulate_recording
    from pyrodyn.data import write

    if out.exists():
        raise ValueError(f"{out} exists; choose another file, or remove it first")
    write(
        simulate_recording(
            system,
            trials,
            bins,
            neurons,
            num_channels=channels,
            bin_width=bin_width,
            mean_rate=mean_rate,
            seed=seed,
        ),
        out,
    )
    typer.echo(f"wrote {trials} trials x {bins} bins x {neurons} neurons to {out}")


@app.command()
def fit(
    recording: Annotated[
        str, typer.Argument(help="A file, or the name of a recording (see: data list).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, logs and model.")],
    model: Annotated[
        str,
        typer.Option(
            help="lfads, node-sae, rnn-sae, low-rank-rnn, shallow-plrnn, linear-dynamics or ndt.",
            autocompletion=_completion(*MODELS),
        ),
    ] = "lfads",
    latents: Annotated[
        int | None,
        typer.Option(
            help="Latent dimensions of the others.",
            show_default="6, low-rank-rnn, shallow-plrnn and linear-dynamics 5",
        ),
    ] = None,
    process_noise: Annotated[
        bool, typer.Option("--process-noise", help="Noise in the dynamics of node- and rnn-sae.")
    ] = False,
    factors: Annotated[
        int | None, typer.Option(help="Factors of lfads.", show_default="20")
    ] = None,
    inferred_inputs: Annotated[
        int | None,
        typer.Option(
            help="Dimension of lfads' inferred input; 0 for none.",
            show_default="2, for small recordings 0",
        ),
    ] = None,
    generator: Annotated[
        int | None, typer.Option(help="Generator units of lfads.", show_default="100")
    ] = None,
    observation: Annotated[
        str | None,
        typer.Option(
            help="Observation model; by default poisson for counts and gaussian for a signal. For a"
            " recording of both two names, such as poisson,gaussian."
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Fraction hidden by coordinated dropout, 0 for none; by default as recommended."
        ),
    ] = None,
    valid_fraction: Annotated[
        float | None,
        typer.Option(
            help="Fraction of trials drawn for validation; by default the file's own parts, if any,"
            " otherwise 0.2."
        ),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Fraction of trials that the fit leaves to check, score and plot.")
    ] = 0.0,
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Fraction of neurons hidden from the encoder, by which score compares the model"
            " with baselines; by default those that the file marks, if any."
        ),
    ] = None,
    bin_width: BinWidth = None,
    align_to: Annotated[
        str | None, typer.Option(help="NWB: column of the event that becomes time 0.")
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="NWB: first and last edge of the bins around the event, in seconds."),
    ] = None,
    condition: Annotated[
        str | None, typer.Option(help="NWB: column of the trials' condition.")
    ] = None,
    behavior: Annotated[
        list[str] | None, typer.Option(help="NWB: a time series to keep; may be repeated.")
    ] = None,
    signal: Annotated[
        str | None, typer.Option(help="NWB: the time series to model, beside spikes if any.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Training steps; by default as recommended.")
    ] = None,
    max_epochs: Annotated[
        int | None, typer.Option(help="Passes over the training trials, in place of steps.")
    ] = None,
    max_minutes: float | None = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Trials per step; by default as recommended.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Initial learning rate of Adam; by default as recommended."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Fit a model to a recording.

    Objective, dropout, schedule, batch size and length are those that pyrodyn.recommended gives for
    the model and the recording, unless given here.
    """
    import torch

    import pyrodyn
    from pyrodyn.data import CoordinatedDropout, split
    from pyrodyn.data import held_out as with_held_out
    from pyrodyn.infer.training.checkpoint import CHECKPOINT

    autoencoder = {"latent_dim": latents, "process_noise": process_noise}
    generator_sizes = {
        "factor_dim": factors,
        "inferred_input_dim": inferred_inputs,
        "generator_dim": generator,
    }
    zoo: dict[str, tuple[type[pyrodyn.models.LatentDynamics], dict[str, Any]]] = {
        "lfads": (pyrodyn.models.LFADS, generator_sizes),
        "node-sae": (pyrodyn.models.NodeSAE, autoencoder),
        "rnn-sae": (pyrodyn.models.RnnSAE, autoencoder),
        "low-rank-rnn": (pyrodyn.models.LowRankRNN, {"latent_dim": latents}),
        "shallow-plrnn": (pyrodyn.models.ShallowPLRNN, {"latent_dim": latents}),
        "linear-dynamics": (pyrodyn.models.LinearDynamics, {"latent_dim": latents}),
        "ndt": (pyrodyn.models.NDT, {}),
    }
    for option, given_fraction in (("valid-fraction", valid_fraction), ("held-out", held_out)):
        if given_fraction is not None and not 0 < given_fraction < 1:
            raise ValueError(f"--{option} {given_fraction:g} must lie between 0 and 1")
    fraction = 0.2 if valid_fraction is None else valid_fraction
    if not 0 <= test_fraction < 1 - fraction:
        raise ValueError(
            f"--test-fraction {test_fraction:g} must lie between 0 and {1 - fraction:g}, since"
            f" {fraction:g} of the trials are for validation"
        )
    if model.lower() not in zoo:
        raise ValueError(f"--model {model} is unknown; the models are {', '.join(zoo)}")
    kind, given = zoo[model.lower()]
    sizes = {name: size for name, size in given.items() if size is not None}
    if observation:
        names = observation.split(",")
        is_pair = len(names) == 2
        named = dict(zip(("counts", "signal"), names, strict=True)) if is_pair else observation
        sizes = {**sizes, "observation": named}
    nwb: dict[str, Any] = {
        "align_to": align_to,
        "window": window,
        "condition": condition,
        "behavior": behavior,
        "signal": signal,
    }
    data = _recording(recording, bin_width, **{k: v for k, v in nwb.items() if v})
    typer.echo(f"read {recording}: {_summary(data)}")
    if held_out is not None:
        data = with_held_out(data, neurons=held_out, seed=seed)
    parts = ("train", "valid")
    has_parts = "split" in data.coords and set(parts) <= set(data["split"].values)
    if valid_fraction is None and has_parts:
        if test_fraction:
            raise ValueError(
                f"{recording} states which trials to train and validate on; leave --test-fraction"
                " out, or give --valid-fraction too, to draw all parts anew"
            )
        train, valid = (data.isel(trial=data["split"].values == part) for part in parts)
    else:
        fractions = [1 - fraction - test_fraction, fraction, test_fraction]
        train, valid = split(data, fractions if test_fraction else fractions[:2], seed=seed)[:2]
    transforms = None
    if dropout is not None:
        transforms = [CoordinatedDropout(dropout)] if dropout else []
    torch.manual_seed(seed)
    sized = kind.for_recording(train, **sizes)
    try:
        fitted = pyrodyn.fit(
            sized,
            train,
            valid,
            transforms=transforms,
            max_steps=max_steps,
            max_epochs=max_epochs,
            max_minutes=max_minutes,
            batch_size=batch_size,
            learning_rate=learning_rate,
            out=out,
            resume=resume,
            seed=seed,
        )
    except KeyboardInterrupt:
        if (out / CHECKPOINT).exists():
            again = [argument for argument in sys.argv[1:] if argument != "--resume"]
            typer.echo(
                "\npyrodyn: interrupted; the last checkpoint is kept, continue with: "
                f"{shlex.join(['pyrodyn', *again, '--resume'])}",
                err=True,
            )
        else:
            typer.echo(
                "\npyrodyn: interrupted before the end of the first epoch; start again", err=True
            )
        sys.exit(INTERRUPTED)
    loss = float(fitted.history["valid_loss"][fitted.best_epoch])
    typer.echo(
        f"best epoch {fitted.best_epoch} of {fitted.history.sizes['epoch']}: "
        f"validation loss {loss:.2f} nats per trial; model in {out / 'model'}"
    )


@app.command()
def posterior(
    folder: Folder,
    recording: Recording,
    out: Annotated[Path, typer.Option(help="A new .zarr folder for the tree.")],
    draws: Annotated[
        int | None,
        typer.Option(help="Posterior draws per trial.", show_default="100, mcmc 400 of 4 chains"),
    ] = None,
    method: Method = None,
    particles: Annotated[int, typer.Option(help="Particles of importance and smoother.")] = 256,
    bin_width: BinWidth = None,
    seed: Seed = 0,
) -> None:
    """Sample the posterior of a recording into an ArviZ DataTree on disk."""
    import pyrodyn
    from pyrodyn.posterior.source import BY_GUIDE

    fitted = _fitted(folder)
    if method in (None, *BY_GUIDE):
        call = f"pyrodyn.load({str(_model_folder(folder))!r}, guide=...)"
        _require_own_guide(
            fitted, folder, f"draw in Python: pyrodyn.to_datatree({call}, recording)"
        )
    started = time.monotonic()
    tree = pyrodyn.to_datatree(
        fitted,
        _marked_as_fitted(_recording(recording, bin_width), fitted),
        num_draws=draws,
        method=method,
        num_particles=particles,
        seed=seed,
        path=out,
    )
    groups = ", ".join(tree.children)
    typer.echo(f"wrote {out} in {time.monotonic() - started:.0f} s: {groups}")


@app.command()
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
    fitted = _fitted(folder)
    _require_own_guide(fitted, folder, "check it in Python: pyrodyn.posterior.check")
    data = _marked_as_fitted(_recording(recording, bin_width), fitted)
    report = check_fit(fitted, data, method=method, seed=seed)
    typer.echo(report)
    if out is not None:
        typer.echo(f"\nwrote {report.save(out)}")


@app.command()
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

    fitted = _fitted(folder)
    _require_own_guide(fitted, folder, "score it in Python: pyrodyn.analysis.prediction_scores")
    data = _marked_as_fitted(_recording(recording, bin_width), fitted)
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


@app.command()
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

    fitted, out = _fitted(folder), out or folder / "figures"
    if out.exists():
        raise ValueError(f"{out} exists; choose another folder with --out, or remove it first")
    _require_own_guide(fitted, folder, "draw in Python, with pyrodyn.load(folder, guide=...)")
    data = _marked_as_fitted(_recording(recording, bin_width), fitted)
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


@app.command("fixed-points")
def fixed_points(
    folder: Folder,
    recording: Annotated[
        str | None,
        typer.Argument(
            help="A file, or the name of a recording, whose states start the search. Without one"
            " it starts from states that the model generates."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Path of the .nc and .png to write, no suffix; FOLDER/fixed_points by default."
        ),
    ] = None,
    bin_width: BinWidth = None,
    seed: Seed = 0,
) -> None:
    """List the fixed points of a fitted model's dynamics; write them and a phase portrait."""
    import numpy as np

    from pyrodyn.analysis import fixed_points as found_points
    from pyrodyn.analysis import free_run, phase_portrait, visited_states

    fitted, out = _fitted(folder), out or folder / "fixed_points"
    if recording is None:
        num_trials, num_bins = GENERATED
        undriven = np.zeros((num_trials, num_bins, fitted.config["input_dim"]))
        try:
            run = free_run(fitted, num_trials, num_bins, inputs=undriven, seed=seed)
        except ArithmeticError as problem:
            raise typer.BadParameter(
                f"{problem}. The model diverges without inputs: name a recording after the folder,"
                " whose states the search then starts from"
            ) from None
        states = run["states"].values
    else:
        _require_own_guide(
            fitted, folder, "leave RECORDING out to start from states that the model generates"
        )
        data = _marked_as_fitted(_recording(recording, bin_width), fitted)
        states = visited_states(fitted, data, seed=seed).cpu().numpy()
    points = found_points(fitted, starts=states, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    # netCDF has no complex numbers.
    parts = {
        f"{name}_{part}": getattr(points[name], part)
        for name in points
        if np.iscomplexobj(points[name])
        for part in ("real", "imag")
    }
    written = points.drop_vars([name for name in points if np.iscomplexobj(points[name])])
    written.assign(parts).to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    portrait = phase_portrait(fitted, states[:8], fixed_points=points)
    portrait.savefig(out.with_suffix(".png"), dpi=150)
    typer.echo(_table(points))
    if points.sizes.get("slow_point"):
        slowest = float(points["slow_residual"].min())
        typer.echo(f"{points.sizes['slow_point']} slow points, the slowest of speed {slowest:.1e}")
    typer.echo(
        f"{points.sizes['fixed_point']} fixed point{'s' * (points.sizes['fixed_point'] != 1)},"
        f" {'the complete set' if points.attrs['complete'] else 'possibly not all'};"
        f" wrote {out.with_suffix('.nc')} and {out.with_suffix('.png')}"
    )


@data_app.command("list")
def list_data() -> None:
    """List the named recordings: description, licence, size, and whether they are present; `fit`
    and `data fetch` download one that is absent.
    """
    from pyrodyn.data import catalog

    rows = catalog()
    name_width, shape_width = (
        max(len(getattr(row.entry, field)) for row in rows) for field in ("name", "shape")
    )
    for entry, path in rows:
        here = "absent" if path is None else "present"
        typer.echo(
            f"{entry.name:<{name_width}}  {here:<7}  {entry.size:>7}  {entry.shape:<{shape_width}}"
            f"  {entry.licence}\n    {entry.what}"
        )


@data_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="A named recording (see: data list).")],
) -> None:
    """Download a named recording into the cache, unless it is present."""
    from pyrodyn.data import load

    typer.echo(f"{name} is present: {_summary(load(name))}")


def _table(points: "xr.Dataset") -> str:
    """Fixed points, one per line: stability, number of growing modes, eigenvalue of the fastest,
    residual and position.
    """
    import numpy as np

    is_flow = points.attrs["kind"] == "flow"
    per = "per second" if is_flow else "per bin"
    lines = [f"     stability  growing  first eigenvalue, {per:<10}  residual  point"]
    for number, point in enumerate(points["point"].values):
        eigenvalues = points["eigenvalues"].values[number]
        growing = int((eigenvalues.real > 0 if is_flow else np.abs(eigenvalues) > 1).sum())
        # On the kinks of piecewise-linear units there may be no derivative.
        has_none = np.isnan(eigenvalues).any()
        counted = "-" if has_none else growing
        first = "-" if has_none else f"{eigenvalues[0]:.3g}"
        at = ", ".join(f"{x:.3g}" for x in point[:6]) + (", ..." if len(point) > 6 else "")
        lines.append(
            f"{number:>3}  {points['stability'].values[number]:<9}  {counted:>7}"
            f"  {first:>28}  {float(points['residual'][number]):>8.1e}  ({at})"
        )
    return "\n".join(lines)


def _fitted(folder: Path) -> "LatentDynamics":
    """The model of a fit, or a model saved by itself."""
    import pyrodyn

    return pyrodyn.load(_model_folder(folder))


def _require_own_guide(fitted: "LatentDynamics", folder: Path, instead: str) -> None:
    """Raise an error for a model whose own guide was not trained: another was, which is code."""
    guide = fitted.record.get("training", {}).get("guide")
    if guide is not None:
        raise ValueError(
            f"the fit in {folder} used the guide {guide}, which the command line cannot build;"
            f" {instead}"
        )


def _model_folder(folder: Path) -> Path:
    """The folder of a fit's model, or that of a model saved by itself."""
    return folder / "model" if (folder / "model").exists() else folder


def _summary(data: "xr.Dataset") -> str:
    """Sizes, bin width and mean rate of a recording."""
    from pyrodyn.data.schema import blocks, measured

    width = data.attrs["bin_width"]
    units = " and ".join(f"{block.size} {block.unit}s" for block in blocks(data))
    sizes = f"{data.sizes['trial']} trials x {data.sizes['time']} bins of {width:g} s x {units}"
    if "counts" not in data:
        return sizes
    mean = float(data["counts"].where(measured(data, blocks(data)[0])).mean())
    return f"{sizes}, {mean / width:.3g} spikes per second and neuron"


def _recording(name: str, bin_width: float | None, **nwb: Any) -> "xr.Dataset":
    """The file of that name, if any, otherwise the named recording."""
    from pyrodyn.data import load, read, read_nwb

    if nwb:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in nwb)
        if Path(name).suffix.lower() != ".nwb":
            raise ValueError(f"{options}: for NWB files, which {name} is not")
        if bin_width is None:
            raise ValueError(f"{name} holds spike times; give --bin-width in seconds")
        return read_nwb(name, bin_width=bin_width, **nwb)
    if Path(name).exists() or Path(name).suffix:
        return read(name) if bin_width is None else read(name, bin_width=bin_width)
    if bin_width is not None:
        raise ValueError(
            f"--bin-width {bin_width:g} is for files that do not state it; {name} is a named"
            " recording, which does"
        )
    return load(name)


def _marked_as_fitted(data: "xr.Dataset", fitted: "LatentDynamics") -> "xr.Dataset":
    """A recording whose encoder must not see the neurons that the fit held out, unless it has marks
    of its own.
    """
    from pyrodyn.data import held_out
    from pyrodyn.data.schema import blocks

    for block, argument in zip(blocks(data), ("neurons", "channels"), strict=False):
        hidden = fitted.record.get("data", {}).get(block.held_out)
        is_there = bool(hidden) and max(hidden) < block.size
        if is_there and block.held_out not in data.coords:
            data = held_out(data, **{argument: hidden})
    return data


if __name__ == "__main__":
    main()
