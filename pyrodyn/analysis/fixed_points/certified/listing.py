"""What was found, as a dataset: points, eigenvalues, stability, pieces, and whether that is all."""

import time

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyrodyn.analysis.fixed_points.certified.equation import at_infinity, equation_of
from pyrodyn.analysis.fixed_points.certified.network import Array, PiecewiseLinear, check
from pyrodyn.analysis.fixed_points.certified.search import Budget, Found, holding_everything, search

MARGIN = 1e-9
"""Eigenvalues closer than this to modulus one are called marginal."""


def fixed_points_of(
    network: PiecewiseLinear,
    *,
    region: tuple[ArrayLike, ArrayLike] | None = None,
    max_seconds: float | None = None,
    max_boxes: int = 1_000_000,
    period: int = 1,
) -> xr.Dataset:
    """All z = F(z), or all cycles of one period, of F(z) = a z + n phi(m z) + offset.

    Args:
        network: the network.
        region: lower and upper corner, ``(latent,)`` each, of the box to search (each point of a
            cycle must lie in it); by default a box that provably holds everything, if there is one.
        max_seconds: stop after this time with what is certified by then.
        max_boxes: stop after so many boxes.
        period: 1 for fixed points, 2 or 3 for cycles that close after exactly so many steps. The
            search is over ``period x latent`` dimensions.

    Returns:
        ``point (fixed_point, latent)``, ``jacobian (fixed_point, latent, by)``, a + n phi' m,
        ``eigenvalues (fixed_point, mode)`` of it, largest modulus first,
        ``stability (fixed_point)`` ("stable" if all are inside the unit circle, "unstable" if all
        outside, else "saddle"; "marginal" if one is on it),
        ``residual (fixed_point)``, the largest entry of F(z) - z, and
        ``region (fixed_point, neuron)``, the piece of each unit. For a period above 1 the dims are
        ``cycle`` and, for point and region, ``phase``; the Jacobian is that of the whole cycle and
        each cycle appears once, rotated so that its first latent starts at its maximum. In
        the attributes:

        - ``complete``: 1 if it is certified that there is no other in all of latent space;
        - ``num_boxes``, ``num_boxes_left``: boxes examined, and boxes that remain undecided. If
          none remain and ``num_singular`` is 0, nothing else lies in the searched region;
        - ``num_singular``: boxes where the linear system is singular to working precision and has
          solutions: a continuum, which is not listed;
        - ``lower``, ``upper``: the searched region; ``seconds``; ``warning``: why it is not
          complete, or "".

    Raises:
        ValueError: if the network, the region, the period or a limit is not valid.
    """
    start = time.monotonic()
    check(network, period)
    if max_boxes < 1 or (max_seconds is not None and not max_seconds > 0):
        raise ValueError("max_boxes and max_seconds must be above 0; leave them out for no limit")
    wanted = None if region is None else _corners(region, len(network.a))
    seconds = np.inf if max_seconds is None else max_seconds
    equation = equation_of(network, period)
    # No more than half goes to the proof of a bound, so that something is searched.
    first = Budget(max_boxes // 2, start + seconds / 2)
    bound = holding_everything(network, equation, first)
    budget = Budget(max_boxes - max_boxes // 2 + first.boxes, start + seconds)
    if wanted is None and bound is None:
        size = 10 * at_infinity(equation)[1][: len(network.a)] / (1 - network.a) + 1
        wanted = -size, size
    lower, upper = wanted or bound  # type: ignore[misc]
    holds_all = bound is not None and bool(((lower <= bound[0]) & (bound[1] <= upper)).all())
    found = search(equation, np.tile(lower, period), np.tile(upper, period), period, budget)
    points, errors = _rotated(found, period)
    points = points[_distinct(points, errors)]
    reasons = {
        "not all of latent space is proved to lie outside the region": not holds_all,
        "the search stopped early or met boxes it could not decide": found.num_left > 0,
        "there is a continuum of solutions, which is not listed": found.num_singular > 0,
    }
    result = _described(network, points, period)
    result.attrs = {
        "complete": int(not any(reasons.values())),
        "num_boxes": max_boxes - budget.boxes,
        "num_boxes_left": found.num_left,
        "num_singular": found.num_singular,
        "lower": lower,
        "upper": upper,
        "seconds": time.monotonic() - start,
        "warning": "; ".join(reason for reason, holds in reasons.items() if holds),
    }
    return result


def _rotated(found: Found, period: int) -> tuple[Array, Array]:
    """Solutions and errors as ``(solution, phase, latent)``, without those of a shorter period."""
    points, errors = (
        array.reshape(len(array), period, array.shape[1] // period)
        for array in (found.points, found.errors)
    )
    if period == 1:
        return points, errors
    apart = np.abs(points[:, 1:] - points[:, :1]) > 4 * (errors[:, 1:] + errors[:, :1])
    proper = apart.any((1, 2))
    points, errors = points[proper], errors[proper]
    turn = (np.arange(period) + points[:, :, 0].argmax(1)[:, None]) % period
    row = np.arange(len(points))[:, None]
    return points[row, turn], errors[row, turn]


def _distinct(points: Array, errors: Array) -> NDArray[np.intp]:
    """Index of one solution of each group that coincides within its errors, up to rotation."""
    kept: list[int] = []
    for i in np.lexsort(points.reshape(len(points), points[0].size if len(points) else 1).T[::-1]):
        others, reach = points[kept], 2 * (errors[i] + errors[kept])
        turns = [np.roll(points[i], k, axis=0) for k in range(points.shape[1])]
        if not any((np.abs(others - turn) <= reach).all((1, 2)).any() for turn in turns):
            kept.append(int(i))
    return np.array(kept, np.intp)


def _described(network: PiecewiseLinear, points: Array, period: int) -> xr.Dataset:
    """Eigenvalues, stability, residual and pieces of solutions, ``(solution, phase, latent)``."""
    unit = np.arange(len(network.m))
    y = points @ network.m.T
    piece = (y[..., None] >= network.breakpoints).sum(-1)
    slope = network.slopes[unit, piece]
    image = (
        network.a * points
        + (slope * y + network.intercepts[unit, piece]) @ network.n.T
        + network.offset
    )
    one_step = np.diag(network.a) + (network.n * slope[..., None, :]) @ network.m
    jacobian = one_step[:, 0]
    for phase in range(1, period):
        jacobian = one_step[:, phase] @ jacobian
    eigenvalues = np.linalg.eigvals(jacobian).astype(complex)
    order = np.argsort(-np.abs(eigenvalues), axis=1)
    eigenvalues = np.take_along_axis(eigenvalues, order, 1)
    modulus = np.abs(eigenvalues)
    stability = np.select(
        [
            (np.abs(modulus - 1) <= MARGIN).any(1),
            (modulus < 1).all(1),
            (modulus > 1).all(1),
        ],
        ["marginal", "stable", "unstable"],
        "saddle",
    )
    name, phases = ("fixed_point", ()) if period == 1 else ("cycle", ("phase",))
    where = 0 if period == 1 else slice(None)
    return xr.Dataset(
        {
            "point": ((name, *phases, "latent"), points[:, where]),
            "jacobian": ((name, "latent", "by"), jacobian),
            "eigenvalues": ((name, "mode"), eigenvalues),
            "stability": (name, stability),
            "residual": (name, np.abs(image - np.roll(points, -1, axis=1)).max((1, 2))),
            "region": ((name, *phases, "neuron"), piece[:, where].astype(np.int8)),
        }
    )


def _corners(region: tuple[ArrayLike, ArrayLike], latent_dim: int) -> tuple[Array, Array]:
    """The corners of a region, checked."""
    lower, upper = (np.asarray(corner, float) for corner in region)
    if lower.shape != (latent_dim,) or upper.shape != lower.shape:
        raise ValueError(
            f"region has corners of shape {lower.shape} and {upper.shape}; give a lower and an "
            f"upper corner of shape ({latent_dim},)"
        )
    if not (np.isfinite(lower) & np.isfinite(upper) & (lower < upper)).all():
        raise ValueError("region must be finite with lower < upper in every latent; reorder it")
    return lower, upper
