"""The command `fit`."""

import inspect
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrodyn.cli.options import BinWidth, Seed, completion
from pyrodyn.cli.recordings import recording_of, summary

if TYPE_CHECKING:
    from pyrodyn.models import LatentDynamics

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

MODELS = {
    "lfads": "LFADS",
    "node-sae": "NodeSAE",
    "rnn-sae": "RnnSAE",
    "low-rank-rnn": "LowRankRNN",
    "shallow-plrnn": "ShallowPLRNN",
    "linear-dynamics": "LinearDynamics",
    "ndt": "NDT",
}
"""Names of the models, and of their classes."""

SIZES = {
    "--latents": "latent_dim",
    "--process-noise": "process_noise",
    "--factors": "factor_dim",
    "--inferred-inputs": "inferred_input_dim",
    "--generator": "generator_dim",
}
"""Options, and the arguments of a model for which they stand."""


def fit(
    recording: Annotated[
        str, typer.Argument(help="A file, or the name of a recording (see: data list).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, logs and model.")],
    model: Annotated[
        str,
        typer.Option(
            help="lfads, node-sae, rnn-sae, low-rank-rnn, shallow-plrnn, linear-dynamics or ndt.",
            autocompletion=completion(*MODELS),
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

    for option, given_fraction in (("valid-fraction", valid_fraction), ("held-out", held_out)):
        if given_fraction is not None and not 0 < given_fraction < 1:
            raise ValueError(f"--{option} {given_fraction:g} must lie between 0 and 1")
    fraction = 0.2 if valid_fraction is None else valid_fraction
    if not 0 <= test_fraction < 1 - fraction:
        raise ValueError(
            f"--test-fraction {test_fraction:g} must lie between 0 and {1 - fraction:g}, since"
            f" {fraction:g} of the trials are for validation"
        )
    if model.lower() not in MODELS:
        raise ValueError(f"--model {model} is unknown; the models are {', '.join(MODELS)}")
    kind = getattr(pyrodyn.models, MODELS[model.lower()])
    given = {
        "--latents": latents,
        "--process-noise": process_noise or None,
        "--factors": factors,
        "--inferred-inputs": inferred_inputs,
        "--generator": generator,
    }
    sizes = _sizes(kind, {option: size for option, size in given.items() if size is not None})
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
    data = recording_of(recording, bin_width, **{k: v for k, v in nwb.items() if v})
    typer.echo(f"read {recording}: {summary(data)}")
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


def _sizes(kind: "type[LatentDynamics]", given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a model that options stand for; those of other models are refused."""
    taken = inspect.signature(kind.for_recording).parameters
    foreign = [option for option in given if SIZES[option] not in taken]
    if foreign:
        own = [option for option, argument in SIZES.items() if argument in taken]
        raise ValueError(
            f"{', '.join(foreign)}: {kind.__name__} has no such size; of these options it takes"
            f" {', '.join(own) or 'none, see its for_recording in Python'}"
        )
    return {SIZES[option]: size for option, size in given.items()}
