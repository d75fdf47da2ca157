"""Leaves of the search: the equation solved on every combination of pieces of few undecided units.

On one piece per unit the equation is a linear system. A solution is accepted if it lies in the box
and solves the unrelaxed equation, both to within the bounds on its error. If a system is singular
to working precision, either it is shown to have no solution in the box, or it may have a continuum
of them, which is reported and not listed.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from pyrodyn.analysis.fixed_points.certified.boxes import Boxes, inverted
from pyrodyn.analysis.fixed_points.certified.equation import Equation
from pyrodyn.analysis.fixed_points.certified.network import Array

SMALLEST_BOX = 1e-10
"""Half-width, relative to the region's largest coordinate, below which boxes are not halved."""
LARGEST_ERROR = 1e-6
"""A system is singular if its error, relative to the region's largest coordinate, is above this."""


def solved(
    equation: Equation, boxes: Boxes, first: NDArray[np.intp], last: NDArray[np.intp], size: float
) -> tuple[Array, Array, NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]:
    """Solve every combination of pieces of the undecided units.

    Returns:
        Isolated solutions, bounds on their errors and the box of each; per box, whether it contains
        a continuum, and whether a singular system leaves this undecided.
    """
    num_pieces, width = len(equation.slopes), int((boxes.undecided >= 0).sum(1).max(initial=0))
    pieces = np.array(list(product(range(num_pieces), repeat=width)), int).reshape(
        num_pieces**width, width
    )
    within = (first[:, None, :width] <= pieces) & (pieces <= last[:, None, :width])
    box, combination = np.nonzero(within.all(-1))
    units, piece = boxes.undecided[box, :width], pieces[combination]
    G, q = _on_pieces(equation, boxes.matrix[box], boxes.constant[box], units, piece)
    centre, radius = boxes.centre[box], boxes.radius[box]
    rounding = equation.rounding(np.abs(centre) + radius)
    misfit = G @ centre[..., None] - q[..., None]
    Y, excluded = inverted(G), np.zeros(len(G), bool)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        defect = np.abs(np.eye(G.shape[1]) - Y @ G).sum(-1).max(-1)
        error = 2 * (np.abs(Y) @ rounding[..., None])[..., 0]
        regular = (defect < 0.5) & (error.max(-1) <= LARGEST_ERROR * size)
        z = centre - (Y @ misfit)[..., 0]
        if not regular.all():
            # In the basis of the singular vectors, a single row shows that there is no solution.
            # Otherwise the solution of least distance to the centre is tested.
            odd = ~regular
            left, values, right = np.linalg.svd(G[odd])
            apart = np.abs(left.mT @ misfit[odd])
            slack = np.abs(left.mT @ G[odd]) @ radius[odd][..., None]
            excluded[odd] = (apart > slack + np.abs(left.mT) @ rounding[odd][..., None]).any((1, 2))
            smallest = rounding[odd].max(-1, keepdims=True) / (LARGEST_ERROR * size)
            inverse = np.where(values > smallest, 1 / values, 0)
            pseudo = right.mT @ (inverse[..., None] * left.mT)
            z[odd] = centre[odd] - (pseudo @ misfit[odd])[..., 0]
            error[odd] = 2 * (np.abs(pseudo) @ rounding[odd][..., None])[..., 0]
    z[regular] += (Y[regular] @ (q - (G @ z[..., None])[..., 0])[regular][..., None])[..., 0]
    slack = 2 * (rounding + error @ equation.growth.T)
    holds = (np.abs(z - centre) <= radius + error).all(-1)
    holds[holds] = (np.abs(equation.residual(z[holds])) <= slack[holds]).all(-1)
    count = len(boxes.centre)
    # A residual that vanishes by chance is no continuum if the system has no solution.
    continuum = np.bincount(box[holds & ~regular & ~excluded], minlength=count) > 0
    unclear = (np.bincount(box[~regular & ~excluded], minlength=count) > 0) & ~continuum
    listed = holds & regular
    return z[listed], error[listed], box[listed], continuum, unclear


def _on_pieces(
    equation: Equation,
    matrix: Array,
    constant: Array,
    units: NDArray[np.intp],
    piece: NDArray[np.intp],
) -> tuple[Array, Array]:
    """Matrix and constant with each of the units, ``(box, unit)``, on the given piece."""
    n, m = equation.outgoing.take(units, 0), equation.incoming.take(units, 0)
    slope, intercept = equation.line(units, piece)
    return (
        matrix - (n * slope[..., None]).mT @ m,
        constant + (intercept[:, None] @ n)[:, 0],
    )


def solved_at_centre(
    equation: Equation, boxes: Boxes, size: float
) -> tuple[Array, Array, NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]:
    """Solve boxes too small to halve, where many kinks meet, on the pieces of their centres.

    A fixed point that lies on the kinks solves the system of each of their pieces.
    """
    units = boxes.undecided
    y = (equation.incoming.take(units, 0) @ boxes.centre[..., None])[..., 0]
    piece = equation.pieces(units, y, y)[0]
    G, q = _on_pieces(equation, boxes.matrix, boxes.constant, units, piece)
    radius = boxes.radius + 1e3 * SMALLEST_BOX * size
    none = np.empty((len(units), 0), np.intp)
    return solved(equation, Boxes(boxes.centre, radius, G, q, none), none, none, size)
