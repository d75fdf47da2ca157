"""Boxes of latent space and the bounds in each: relax, contract, halve::

    G z = q + sum_u g_u e_u,  |e_u| <= 1            relaxed: undecided units are chords + intervals
    z in c - Y (G c - q) +- (|I - Y G| w + sum_u |Y g_u| + |Y| eta)            contracted

Units without a kink in the box are decided, for it and all boxes within it: their slopes are added
to the box's matrix and they leave its list of undecided units, so that smaller boxes are cheaper.
All operations are vectorised over boxes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrodyn.analysis.fixed_points.certified.equation import Equation
from pyrodyn.analysis.fixed_points.certified.network import Array


class Boxes(NamedTuple):
    """Boxes centre +- radius; in each, matrix z = constant + output of the undecided units."""

    centre: Array
    radius: Array
    matrix: Array
    constant: Array
    undecided: NDArray[np.intp]

    def at(self, index: NDArray[np.bool_] | slice) -> "Boxes":
        """Some of the boxes."""
        return Boxes(*(np.asarray(field[index]) for field in self))  # type: ignore[arg-type]


class Relaxed(NamedTuple):
    """``G z = q + sum_u g_u e_u`` with ``|e_u| <= 1``, up to rounding; with pieces per unit."""

    G: Array
    q: Array
    g: Array
    rounding: Array
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    score: Array


def joined(parts: list[Boxes]) -> Boxes:
    """Several batches as one, their lists of undecided units padded with the idle unit."""
    width = max(part.undecided.shape[1] for part in parts)
    filled = [
        np.pad(part.undecided, ((0, 0), (0, width - part.undecided.shape[1])), constant_values=-1)
        for part in parts
    ]
    first = [np.concatenate(fields) for fields in zip(*(part[:4] for part in parts), strict=True)]
    return Boxes(first[0], first[1], first[2], first[3], np.concatenate(filled))


def whole_boxes(equation: Equation, centre: Array, radius: Array) -> Boxes:
    """Boxes in which every unit is undecided."""
    count, dim = centre.shape
    units = np.tile(np.arange(len(equation.incoming) - 1), (count, 1))
    matrix = np.tile(np.eye(dim) - equation.linear, (count, 1, 1))
    return Boxes(centre, radius, matrix, np.tile(equation.offset, (count, 1)), units)


def relax(equation: Equation, boxes: Boxes) -> tuple[Boxes, Relaxed]:
    """Decide the units without a kink in the box, and bound the others by chords."""
    centre, radius, matrix, constant, units = boxes
    reach = np.abs(centre) + radius
    n, m = equation.outgoing.take(units, 0), equation.incoming.take(units, 0)
    middle = (m @ centre[..., None])[..., 0]
    half = (np.abs(m) @ (radius + equation.epsilon * reach)[..., None])[..., 0]
    low, high = middle - half, middle + half
    first, last = equation.pieces(units, low, high)
    decided = first >= last
    slope, intercept = equation.line(units, first)
    n *= decided[..., None]
    constant = constant + (intercept[:, None] @ n)[:, 0]
    n *= slope[..., None]
    matrix = matrix - n.mT @ m

    width = int((~decided).sum(1).max(initial=0))
    order = np.argsort(decided, axis=1, kind="stable")[:, :width]
    units = np.where(decided, -1, units)
    units, low, high, first, last = (
        np.take_along_axis(field, order, 1) for field in (units, low, high, first, last)
    )
    idle = units < 0
    first, last = np.where(idle, 0, first), np.where(idle, 0, last)
    n, m = equation.outgoing.take(units, 0), equation.incoming.take(units, 0)
    slope, intercept = equation.line(units, first)
    at_low = slope * low + intercept
    slope, intercept = equation.line(units, last)
    chord = (slope * high + intercept - at_low) / np.where(idle, np.inf, high - low)
    # The remainder phi - chord is piecewise linear: its extrema are at the ends and the kinks.
    at_end = at_low - chord * low
    lowest, highest = at_end, at_end
    for kink, (position, value) in enumerate(
        zip(equation.kinks, equation.kink_values, strict=True)
    ):
        remainder = value.take(units) - chord * position.take(units)
        remainder = np.where((first <= kink) & (kink < last), remainder, at_end)
        lowest, highest = np.minimum(lowest, remainder), np.maximum(highest, remainder)
    half_gap = (highest - lowest) / 2
    middle_of_gap = constant + (((lowest + highest) / 2)[:, None] @ n)[:, 0]
    loose = equation.strength.take(units) * half_gap / np.where(idle, np.inf, high - low)
    relaxed = Relaxed(
        matrix - (n * chord[..., None]).mT @ m,
        middle_of_gap,
        n * half_gap[..., None],
        equation.rounding(reach),
        first,
        last,
        (loose[:, None] @ np.abs(m))[:, 0] * radius,
    )
    return Boxes(centre, radius, matrix, constant, units), relaxed


def inverted(matrix: Array) -> Array:
    """Inverses, or pseudo-inverses of the whole stack if one is singular."""
    try:
        return np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return np.linalg.pinv(matrix)


def gain(boxes: Boxes, relaxed: Relaxed) -> tuple[Array, Array]:
    """Kalman gain of z ~ (c, diag(w^2)) observed by G z = q + g e, and the row that best separates
    the misfit at c from those within the box. Any values would be valid; these reduce boxes most.
    """
    scaled = relaxed.G * boxes.radius[:, None]
    covariance = scaled @ scaled.mT + relaxed.g.mT @ relaxed.g
    ridge = 1e-14 * np.trace(covariance, axis1=1, axis2=2)
    weight = inverted(covariance + ridge[:, None, None] * np.eye(scaled.shape[1]))
    misfit = relaxed.G @ boxes.centre[..., None] - relaxed.q[..., None]
    return (scaled * boxes.radius[:, None]).mT @ weight, (weight @ misfit).mT


def image(P: Array, boxes: Boxes, relaxed: Relaxed) -> tuple[Array, Array]:
    """P (G c - q), and a bound on what remainders and rounding add to it."""
    misfit = relaxed.G @ boxes.centre[..., None] - relaxed.q[..., None]
    remainders = np.abs(relaxed.g @ P.mT)
    bound = (np.ones((1, remainders.shape[1])) @ remainders)[:, 0]
    return (P @ misfit)[..., 0], bound + (np.abs(P) @ relaxed.rounding[..., None])[..., 0]


def contracted(boxes: Boxes, relaxed: Relaxed) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes cut by the image of Krawczyk's operator, and whether they may contain a solution."""
    centre, radius = boxes.centre, boxes.radius
    # fmax, fmin and the comparisons below ignore the NaN of a gain that overflowed.
    with np.errstate(invalid="ignore", over="ignore"):
        Y, row = gain(boxes, relaxed)
        misfit, slack = image(row, boxes, relaxed)
        slack += (np.abs(row @ relaxed.G) @ radius[..., None])[..., 0]
        possible = ~(np.abs(misfit) > slack)[:, 0]
        step, slack = image(Y, boxes, relaxed)
        slack += (np.abs(np.eye(Y.shape[1]) - Y @ relaxed.G) @ radius[..., None])[..., 0]
        lower = np.fmax(centre - radius, centre - step - slack)
        upper = np.fmin(centre + radius, centre - step + slack)
    possible &= (lower <= upper).all(1)
    outward = 4 * np.finfo(float).eps * (np.abs(centre) + radius)
    return boxes._replace(
        centre=(lower + upper) / 2, radius=(upper - lower) / 2 + outward
    ), possible


def halved(boxes: Boxes, score: Array) -> Boxes:
    """Both halves of each box, halved in the dimension of the highest score."""
    widest = boxes.radius.max(1, keepdims=True)
    # Without chords to tighten, the widest dimension is halved; very thin ones never are.
    score = np.where(boxes.radius > 1e-3 * widest, score + 1e-300 * boxes.radius / widest, -1)
    step = np.where(np.arange(score.shape[1]) == score.argmax(1)[:, None], boxes.radius / 2, 0)
    radius = boxes.radius - step
    return joined(
        [
            boxes._replace(centre=boxes.centre - step, radius=radius),
            boxes._replace(centre=boxes.centre + step, radius=radius),
        ]
    )
