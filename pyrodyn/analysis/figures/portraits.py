"""Figures of dynamics: phase portraits, eigenvalues, Lyapunov exponents, spectra, attractors. Each
function returns a matplotlib figure without showing it.

A phase portrait shows the vector field on a plane z = centre + x p + y q through state space (for
maps, the displacement over one bin)::

    arrows                 (p . f(z), q . f(z))
    nullclines             where one of the two is 0; in two dimensions they cross at fixed points

In two dimensions the plane is the state space itself; in more, it is that of the first two
principal components of the trajectories, and the component of f normal to it is not shown.
"""

from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy import ndarray
from numpy.typing import ArrayLike
from torch import Tensor

from pyrodyn.analysis.dynamics import constant_inputs, dynamics_of, states_for
from pyrodyn.analysis.fixed_points.newton import residual_of
from pyrodyn.models.dynamics import Dynamics

MARKERS = {
    "stable": ("o", "black"),
    "saddle": ("D", "white"),
    "unstable": ("o", "white"),
    "marginal": ("s", "0.6"),
    "kink": ("^", "0.6"),
}
"""Marker and fill colour of fixed points of each stability."""
COLORS = {"stable": "C0", "saddle": "C1", "unstable": "C3", "marginal": "0.5", "kink": "C4"}
GRID = 61
"""Grid points per axis at which the field is evaluated."""
MAX_TRAJECTORIES = 50
"""Trajectories drawn at most: more of them would hide the field."""


class Plane(NamedTuple):
    """A plane through state space.

    Attributes:
        centre: a point on it.
        axes: two orthonormal directions.
        names: of the two coordinates.
    """

    centre: Float[ndarray, " state"]
    axes: Float[ndarray, "2 state"]
    names: tuple[str, str]

    @classmethod
    def principal(cls, states: Float[ndarray, "row state"]) -> "Plane":
        """The plane of the first two principal components."""
        centre = states.mean(0)
        axes = np.linalg.svd(states - centre, full_matrices=False)[2][:2]
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
        return cls(centre, axes * signs, ("principal component 1", "principal component 2"))

    def project(self, states: Float[ndarray, "*left state"]) -> Float[ndarray, "*left 2"]:
        """Coordinates of states on the plane."""
        return (states - self.centre) @ self.axes.T

    def lift(self, coordinates: Float[ndarray, "*left 2"]) -> Float[ndarray, "*left state"]:
        """States at coordinates of the plane."""
        return self.centre + coordinates @ self.axes


def phase_portrait(
    model_or_dynamics: object,
    trajectories: ArrayLike | Tensor | None = None,
    fixed_points: xr.Dataset | None = None,
    plane: Plane | None = None,
    inputs: ArrayLike | Tensor | None = None,
) -> Figure:
    """The vector field on a plane, with trajectories, nullclines and fixed points.

    Args:
        model_or_dynamics: a model of the zoo, or dynamics.
        trajectories: ``(time, state)`` or ``(trial, time, state)``; the first 50 are drawn.
        fixed_points: from `pyrodyn.analysis.fixed_points.fixed_points`; marked by their stability.
        plane: the plane to show; by default the state space itself if it has two dimensions,
            otherwise that of the trajectories' first two principal components. Nullclines are drawn
            in two dimensions only: elsewhere they would be those of a projection, and mislead.
        inputs: constant, ``(input,)``; 0 by default.

    Raises:
        ValueError: if nothing defines the plane or its extent, or shapes do not fit.
    """
    dynamics = dynamics_of(model_or_dynamics)
    dim = dynamics.state_dim
    g = residual_of(dynamics, constant_inputs(dynamics, inputs))
    drawn = None if trajectories is None else _trajectories(dynamics, trajectories)
    shown = [] if drawn is None else [drawn.reshape(-1, dim)]
    if fixed_points is not None:
        shown.append(_points(fixed_points, dim))
    if not sum(len(states) for states in shown):
        raise ValueError(
            "a phase portrait needs trajectories or fixed_points, which define the part of state"
            " space to show"
        )
    if plane is None:
        if dim != 2 and drawn is None:
            raise ValueError(
                f"these dynamics have {dim} dimensions; give trajectories, whose principal"
                " components are shown, or a Plane"
            )
        names = ("state 1", "state 2")
        plane = (
            Plane(np.zeros(2), np.eye(2), names)
            if dim == 2 or drawn is None
            else Plane.principal(drawn.reshape(-1, dim))
        )
    if plane.axes.shape != (2, dim):
        raise ValueError(f"plane has axes of shape {plane.axes.shape}; give two of {dim} entries")

    x, y = _extent(plane.project(np.concatenate(shown)))
    grid = np.stack(np.meshgrid(x, y), -1)
    with torch.no_grad():
        moved = g.value(torch.from_numpy(plane.lift(grid).reshape(-1, dim))).numpy()
    u, v = np.moveaxis((moved @ plane.axes.T).reshape(grid.shape), -1, 0)
    speed = np.hypot(u, v) / dynamics.bin_width

    figure, axis = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    # Speeds span orders of magnitude: their logarithm is shown, from a thousandth of the largest.
    shade = np.log10(np.maximum(speed, max(speed.max() * 1e-3, np.finfo(float).tiny)))
    image = axis.pcolormesh(x, y, shade, cmap="Greys", alpha=0.4, shading="nearest", lw=0)
    unit = "per second" if dynamics.bin_width != 1 else "per unit of time"
    figure.colorbar(image, ax=axis, label=f"log10 of speed {unit}")
    if speed.max() > 0:
        axis.streamplot(x, y, u, v, color="0.3", density=1.1, linewidth=0.6, arrowsize=0.7)
    if dim == 2:
        for part, color, name in zip((u, v), ("C2", "C4"), plane.names, strict=True):
            if part.min() < 0 < part.max():
                axis.contour(x, y, part, levels=[0.0], colors=color, linewidths=1.4)
                axis.plot([], [], color=color, lw=1.4, label=f"nullcline of {name}")
    if drawn is not None:
        for index, states in enumerate(plane.project(drawn[:MAX_TRAJECTORIES])):
            label = "trajectories" if index == 0 else None
            axis.plot(*states.T, color="C0", lw=0.8, alpha=0.7, label=label)
    if fixed_points is not None:
        _mark(axis, plane.project(_points(fixed_points, dim)), fixed_points["stability"].values)
    axis.set(xlabel=plane.names[0], ylabel=plane.names[1], xlim=x[[0, -1]], ylim=y[[0, -1]])
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=4, fontsize=8)  # outside, to hide no point
    return figure


def plot_eigenvalues(fixed_points: xr.Dataset) -> Figure:
    """Eigenvalues of all fixed points, and the boundary of stability: the unit circle for maps, the
    imaginary axis for flows. Points on kinks without a derivative have none.

    Args:
        fixed_points: from `pyrodyn.analysis.fixed_points.fixed_points`.
    """
    is_flow = fixed_points.attrs.get("kind") == "flow"
    eigenvalues, stability = (fixed_points[n].values for n in ("eigenvalues", "stability"))
    figure, axis = plt.subplots(figsize=(4.8, 4.6), layout="constrained")
    if is_flow:
        axis.axvline(0.0, color="0.4", lw=1)
    else:
        axis.add_patch(Circle((0, 0), 1.0, fill=False, color="0.4", lw=1))
        axis.plot([-1.1, 1.1], [-1.1, 1.1], alpha=0)  # room for all of the circle
    for kind, color in COLORS.items():
        values = eigenvalues[stability == kind].ravel()
        values = values[np.isfinite(values)]
        if len(values):
            axis.plot(
                values.real, values.imag, MARKERS[kind][0], color=color, ms=5, mec="white",
                mew=0.5, label=kind,
            )  # fmt: skip
    axis.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    unit = " (per second)" if is_flow else " (per bin)"
    axis.set(xlabel="real part" + unit, ylabel="imaginary part" + unit)
    if not is_flow:
        axis.set_aspect("equal")
    if axis.get_legend_handles_labels()[0]:
        figure.legend(
            loc="outside lower center", ncols=4, fontsize=8
        )  # outside, to hide no eigenvalue
    return figure


def plot_lyapunov(spectrum: xr.Dataset) -> Figure:
    """Lyapunov exponents with two standard errors, and the convergence of their estimates.

    Args:
        spectrum: from `pyrodyn.analysis.lyapunov_spectrum`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    exponents = spectrum["exponents_per_second"].values
    number = np.arange(1, len(exponents) + 1)
    time = spectrum["time"].values
    for index, running in enumerate(spectrum["running"].values.T):
        left.plot(time, running, lw=1.2, color=f"C{index % 10}")
    left.axhline(0.0, color="0.4", lw=0.8, zorder=0)
    left.set(xlabel="time (s)", ylabel="running estimate (1/s)")
    error = 2 * np.nan_to_num(spectrum["standard_error_per_second"].values)
    right.errorbar(number, exponents, yerr=error, fmt="o", ms=5, capsize=3, color="black")
    right.axhline(0.0, color="0.4", lw=0.8, zorder=0)
    if len(number) <= 20:
        right.set_xticks(number)
    dimension = float(spectrum["kaplan_yorke"])
    title = "" if np.isnan(dimension) else f"Kaplan-Yorke dimension {dimension:.3f}"
    right.set(xlabel="exponent", ylabel="Lyapunov exponent (1/s)", title=title)
    return figure


def plot_spectra(spectra: Mapping[str, xr.DataArray]) -> Figure:
    """Power spectra of several signals on logarithmic axes: thin lines per dim, a thick one for
    their mean.

    Args:
        spectra: by name, from `pyrodyn.analysis.power_spectrum`.

    Raises:
        ValueError: for no spectra, and for arrays that are not spectra.
    """
    if not spectra:
        raise ValueError("there is no spectrum to plot; give at least one, by name")
    figure, axis = plt.subplots(figsize=(5.4, 3.8), layout="constrained")
    for index, (name, spectrum) in enumerate(spectra.items()):
        if spectrum.dims != ("frequency", "dim"):
            raise ValueError(
                f"{name!r} has dims {spectrum.dims}; give a result of power_spectrum, with dims"
                " ('frequency', 'dim')"
            )
        positive = spectrum.isel(frequency=spectrum["frequency"].values > 0)  # log axes
        frequency, color = positive["frequency"].values, f"C{index % 10}"
        axis.loglog(frequency, positive.values, color=color, lw=0.5, alpha=0.3)
        axis.loglog(frequency, positive.mean("dim").values, color=color, lw=1.8, label=name)
    axis.set(xlabel="frequency (Hz)", ylabel="power per Hz")
    axis.legend(fontsize=8)
    return figure


def plot_attractors(true: ArrayLike | Tensor, inferred: ArrayLike | Tensor) -> Figure:
    """Trajectories on two attractors in three dimensions, side by side on the same scale.

    Args:
        true: ``(time, 3)`` or ``(trial, time, 3)``; its first 50 trials are drawn.
        inferred: the same, in comparable coordinates, such as after a regression onto the true
            ones (`pyrodyn.analysis.align`).

    Raises:
        ValueError: for trajectories of another shape.
    """
    given = {"true": _array(true), "inferred": _array(inferred)}
    for title, states in given.items():
        if states.ndim not in (2, 3) or states.shape[-1] != 3:
            raise ValueError(
                f"{title} must be trajectories of shape (time, 3) or (trial, time, 3), not"
                f" {states.shape}"
            )
    all_states = np.concatenate([states.reshape(-1, 3) for states in given.values()])
    figure = plt.figure(figsize=(8.4, 4.2))
    figure.subplots_adjust(left=0.0, right=0.95, bottom=0.04, top=0.92, wspace=0.08)
    for position, (title, states) in enumerate(given.items(), 1):
        axis = figure.add_subplot(1, 2, position, projection="3d")
        for trial in states.reshape(-1, *states.shape[-2:])[:MAX_TRAJECTORIES]:
            axis.plot(*trial.T, lw=0.6, color="black" if position == 1 else "C3")
        axis.set(title=title, xlabel="x", ylabel="y")
        axis.set_zlabel("z")
        axis.auto_scale_xyz(*all_states.T)
        axis.set_box_aspect(None, zoom=0.96)  # keeps the labels inside
    return figure


def _array(values: ArrayLike | Tensor) -> Float[ndarray, "..."]:
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(plain, float)


def _trajectories(
    dynamics: Dynamics, trajectories: ArrayLike | Tensor
) -> Float[ndarray, "trial time state"]:
    array = _array(trajectories)
    states_for(dynamics.state_dim, array, "trajectories")
    if array.ndim not in (2, 3):
        raise ValueError(
            f"trajectories must be (time, {dynamics.state_dim}) or (trial, time,"
            f" {dynamics.state_dim}), not {array.shape}"
        )
    return array.reshape(-1, *array.shape[-2:])


def _points(fixed_points: xr.Dataset, dim: int) -> Float[ndarray, "point state"]:
    points = np.asarray(fixed_points["point"].values, float)
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(
            f"fixed_points have points of shape {points.shape}; these dynamics have {dim}"
            " dimensions"
        )
    return points


def _extent(shown: Float[ndarray, "row 2"]) -> tuple[ndarray, ndarray]:
    """Grid coordinates along both axes, with a margin around the shown states."""
    low, high = shown.min(0), shown.max(0)
    width = high - low
    width = np.where(width > 0, width, width.max() if width.max() > 0 else 2.0)
    middle = (low + high) / 2
    x, y = (np.linspace(m - 0.6 * w, m + 0.6 * w, GRID) for m, w in zip(middle, width, strict=True))
    return x, y


def _mark(axis: Axes, positions: Float[ndarray, "point 2"], stability: ndarray) -> None:
    for kind, (marker, filling) in MARKERS.items():
        of_kind = positions[stability == kind]
        if len(of_kind):
            x, y = of_kind.T
            axis.scatter(
                x, y, s=55, c=filling, marker=marker, edgecolor="black", zorder=5, label=kind
            )
