"""The application: its commands, errors in one line, and exit codes."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer

from pyrodyn.cli.dynamics import fixed_points
from pyrodyn.cli.fitting import INTERRUPTED, fit
from pyrodyn.cli.options import Seed
from pyrodyn.cli.recordings import fetch, list_data, sessions, simulate
from pyrodyn.cli.results import check, plot, posterior, score

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Latent neural dynamics: fit a recording, sample its posterior, analyse the dynamics.",
)
data_app = typer.Typer(no_args_is_help=True, help="Named recordings.")
app.add_typer(data_app, name="data")


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


for command in (simulate, sessions, fit, posterior, check, score, plot):
    app.command()(command)
app.command("fixed-points")(fixed_points)
data_app.command("list")(list_data)
data_app.command("fetch")(fetch)
