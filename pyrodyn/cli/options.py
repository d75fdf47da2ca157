"""Arguments and options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

METHODS = ("guide", "dropout", "importance", "smoother", "pool", "exact", "mcmc")

Seed = Annotated[int, typer.Option(min=0, help="Seeds everything random.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a fit.")]
Recording = Annotated[str, typer.Argument(help="A file, or the name of a recording.")]
BinWidth = Annotated[
    float | None, typer.Option(help="Seconds per bin, for files that do not state it.")
]


def completion(*names: str) -> Callable[[str], list[str]]:
    """Completes the beginning of a name in the shell."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Method = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}; if left out, the smoother for models"
        " fitted by a particle filter, exact for those fitted by the Kalman filter, dropout for"
        " ndt, otherwise the guide.",
        autocompletion=completion(*METHODS),
    ),
]
