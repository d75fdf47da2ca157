"""Solutions refined on the linear regions in which they lie, and merged.

The search accepts a solution of one combination of pieces when its residual is within an a-priori
bound, which is loose where the system is nearly singular. The same fixed point can then be found
from two combinations, the wrong one giving it less accurately. Each solution is therefore solved
again, on the pieces of the units at the solution itself; what does not lie in the region whose
system it solves is dropped, as the search also solves that region on its own. A linear region holds
at most one isolated fixed point, so that two solutions inside of the same region are one.

A unit is on a kink if the kink lies within the bound on the error of the solution. Such units may
be on either piece, and all combinations are solved as long as they are few.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrodyn.analysis.fixed_points.certified.boxes import inverted
from pyrodyn.analysis.fixed_points.certified.equation import Equation
from pyrodyn.analysis.fixed_points.certified.leaves import LARGEST_ERROR
from pyrodyn.analysis.fixed_points.certified.network import Array

MAX_COMBINATIONS = 64
"""Where units on kinks allow more combinations of pieces, only three of them are solved."""


class Solutions(NamedTuple):
    """Distinct solutions of an equation.

    Attributes:
        points: ``(solution, dim)``.
        errors: ``(solution, dim)`` bounds on their errors.
        first: ``(solution, unit)`` first piece of each unit within the error.
        last: ``(solution, unit)`` last piece; above ``first`` for units on a kink.
    """

    points: Array
    errors: Array
    first: NDArray[np.intp]
    last: NDArray[np.intp]


def refined(equation: Equation, points: Array, errors: Array, size: float) -> Solutions:
    """Solve each solution again on the pieces on which it lies, and merge those that coincide.

    Args:
        equation: what is solved.
        points: ``(solution, dim)`` approximate solutions.
        errors: ``(solution, dim)`` bounds on their errors.
        size: largest coordinate of the searched region.
    """
    first, last = pieces_within(equation, points, errors)
    _, chosen = np.unique(np.concatenate([first, last], 1), axis=0, return_index=True)
    refined_points, refined_errors = [points[:0]], [errors[:0]]
    for index in chosen:
        z, error = _solved_again(equation, first[index], last[index], points[index], size)
        on_kinks = (last[index] > first[index]).any()
        if not len(z) and on_kinks and _solves(equation, points[index], errors[index]):
            z, error = points[None, index], errors[None, index]
        refined_points.append(z)
        refined_errors.append(error)
    points, errors = np.concatenate(refined_points), np.concatenate(refined_errors)
    return _merged(points, errors, *pieces_within(equation, points, errors))


def pieces_within(
    equation: Equation, points: Array, errors: Array
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and last piece, ``(solution, unit)``, that each unit can be on within the errors.

    They differ for units on a kink at which the network has one: with weights and a change of
    slope.
    """
    y = points @ equation.incoming.T
    reach = (errors + equation.epsilon * np.abs(points)) @ np.abs(equation.incoming).T
    units = np.broadcast_to(np.arange(y.shape[1]), y.shape)
    first, last = equation.pieces(units, y - reach, y + reach)
    # Without any error, a unit on its kink is counted as on the piece after it, then before it.
    first, last = np.minimum(first, last), np.maximum(first, last)
    bends = equation.line(units, first)[0] != equation.line(units, last)[0]
    bends &= equation.incoming.any(1) & equation.outgoing.any(1)
    return np.where(bends, first, last), last


def systems(equation: Equation, pieces: NDArray[np.intp]) -> tuple[Array, Array]:
    """G and q of G z = q for combinations of pieces ``(combination, unit)``."""
    units = np.broadcast_to(np.arange(pieces.shape[1]), pieces.shape)
    slope, intercept = equation.line(units, pieces)
    linear = equation.linear + (equation.outgoing.T * slope[:, None]) @ equation.incoming
    return np.eye(len(equation.offset)) - linear, equation.offset + intercept @ equation.outgoing


def error_bound(
    equation: Equation, G: Array, inverse: Array, z: Array, size: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Bounds on the errors of solutions z of G z = q, and whether each system is regular."""
    with np.errstate(invalid="ignore", over="ignore"):
        defect = np.abs(np.eye(G.shape[1]) - inverse @ G).sum(-1).max(-1)
        error = 2 * (np.abs(inverse) @ equation.rounding(np.abs(z))[..., None])[..., 0]
    return error, (defect < 0.5) & (error.max(-1) <= LARGEST_ERROR * size)


def _solved_again(
    equation: Equation,
    first: NDArray[np.intp],
    last: NDArray[np.intp],
    point: Array,
    size: float,
) -> tuple[Array, Array]:
    """Solutions of the combinations between first and last that lie in their own region."""
    pieces = _combinations(equation, first, last, point)
    G, q = systems(equation, pieces)
    Y = inverted(G)
    with np.errstate(invalid="ignore", over="ignore"):
        z = (Y @ q[..., None])[..., 0]
        z += (Y @ (q[..., None] - G @ z[..., None]))[..., 0]
    error, regular = error_bound(equation, G, Y, z, size)
    z, error, pieces = z[regular], error[regular], pieces[regular]
    lowest, highest = pieces_within(equation, z, error)
    is_bent = equation.incoming.any(1) & equation.outgoing.any(1)
    inside = ((lowest <= pieces) & (pieces <= highest) | ~is_bent).all(1)
    return z[inside], error[inside]


def _combinations(
    equation: Equation, first: NDArray[np.intp], last: NDArray[np.intp], point: Array
) -> NDArray[np.intp]:
    """Combinations of pieces to solve, ``(combination, unit)``."""
    on_kink = np.nonzero(last > first)[0]
    choices = [range(first[unit], last[unit] + 1) for unit in on_kink]
    if np.prod([len(choice) for choice in choices], dtype=float) > MAX_COMBINATIONS:
        # At a point on the kinks themselves the systems of all combinations agree.
        y = equation.incoming @ point
        here = equation.pieces(np.arange(len(y)), y, y)[0]
        return np.stack([first, np.clip(here, first, last), last])
    combinations = list(product(*choices))
    pieces = np.tile(first, (len(combinations), 1))
    pieces[:, on_kink] = combinations
    return pieces


def _solves(equation: Equation, point: Array, error: Array) -> bool:
    """Whether the residual is what rounding and the error of the point can explain."""
    slack = 2 * (equation.rounding(np.abs(point)[None])[0] + equation.growth @ error)
    return bool((np.abs(equation.residual(point[None])[0]) <= slack).all())


def _merged(
    points: Array, errors: Array, first: NDArray[np.intp], last: NDArray[np.intp]
) -> Solutions:
    """One solution of each group that coincides within its errors; in one region there is one."""
    inside = (first == last).all(1)
    kept: list[int] = []
    # Those inside of a region come first: there is no doubt about them.
    for index in np.lexsort([*points.T[::-1], ~inside]):
        near = (np.abs(points[kept] - points[index]) <= errors[kept] + errors[index]).all(1)
        # Solutions inside of different regions differ, however close they are.
        differ = inside[kept] & inside[index] & (last[kept] != last[index]).any(1)
        if not (near & ~differ).any():
            kept.append(int(index))
    kept = sorted(kept, key=lambda index: tuple(points[index]))
    return Solutions(points[kept], errors[kept], first[kept], last[kept])
