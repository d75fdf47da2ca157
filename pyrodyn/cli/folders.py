"""The folder of a fit, and recordings as that fit saw them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from pyrodyn.models import LatentDynamics


def fitted_in(folder: Path) -> "LatentDynamics":
    """The model of a fit, or a model saved by itself."""
    import pyrodyn

    return pyrodyn.load(model_folder(folder))


def require_own_guide(fitted: "LatentDynamics", folder: Path, instead: str) -> None:
    """Raise an error for a model whose own guide was not trained: another was, which is code."""
    guide = fitted.record.get("training", {}).get("guide")
    if guide is not None:
        raise ValueError(
            f"the fit in {folder} used the guide {guide}, which the command line cannot build;"
            f" {instead}"
        )


def model_folder(folder: Path) -> Path:
    """The folder of a fit's model, or that of a model saved by itself."""
    return folder / "model" if (folder / "model").exists() else folder


def marked_as_fitted(data: "xr.Dataset", fitted: "LatentDynamics") -> "xr.Dataset":
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
