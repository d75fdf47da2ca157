"""The command `fixed-points`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyrodyn.cli.folders import fitted_in, marked_as_fitted, require_own_guide
from pyrodyn.cli.options import BinWidth, Folder, Seed
from pyrodyn.cli.recordings import recording_of

if TYPE_CHECKING:
    import xarray as xr

GENERATED = (64, 200)
"""Trials and bins that a model generates to start a search from, if no recording is given."""


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

    fitted, out = fitted_in(folder), out or folder / "fixed_points"
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
        require_own_guide(
            fitted, folder, "leave RECORDING out to start from states that the model generates"
        )
        data = marked_as_fitted(recording_of(recording, bin_width), fitted)
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
    typer.echo(table_of(points))
    if points.sizes.get("slow_point"):
        slowest = float(points["slow_residual"].min())
        typer.echo(f"{points.sizes['slow_point']} slow points, the slowest of speed {slowest:.1e}")
    typer.echo(
        f"{points.sizes['fixed_point']} fixed point{'s' * (points.sizes['fixed_point'] != 1)},"
        f" {'the complete set' if points.attrs['complete'] else 'possibly not all'};"
        f" wrote {out.with_suffix('.nc')} and {out.with_suffix('.png')}"
    )


def table_of(points: "xr.Dataset") -> str:
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
