"""The linear regions that meet at a solution: their Jacobians, its index, and continua.

Inside of a linear region there is one Jacobian J. On kinks, several regions meet, and near the
solution z* they are the cones into which the hyperplanes m_i x = 0 of the units on a kink cut the
directions x = z - z*. Which combinations of pieces exist there follows from the arrangement of
hyperplanes; most of the combinations of many units do not.

The index of an isolated solution is the local degree of z - F(z)::

    index = sum over regions of sign det(I - J),  regions with (I - J)^-1 y in their cone

for any generic y; with one region it is sign det(I - J). The indices of all fixed points of a
bounded network sum to +1 (F maps a large box into itself). A solution belongs to a continuum if a
region's I - J is singular with a null vector in the closure of its cone.

Sources: Zaslavsky (1975) for arrangements; Milnor (1965, Topology from the Differentiable
Viewpoint) for indices.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from pyrodyn.analysis.fixed_points.certified.boxes import inverted
from pyrodyn.analysis.fixed_points.certified.equation import Equation
from pyrodyn.analysis.fixed_points.certified.network import Array
from pyrodyn.analysis.fixed_points.certified.refine import error_bound, systems

MAX_CONES = 20_000
"""Regions at one solution are enumerated if a bound on their number is no larger than this."""
PARALLEL = 1e-9
"""Normals whose sine is below this are parallel."""


class Adjoining(NamedTuple):
    """The linear regions that meet at a solution.

    Attributes:
        linear: ``(region, dim, dim)`` Jacobian of F on each; empty if there are too many regions.
        degree: local degree of z - F(z); None for a solution of a continuum, which has none, and
            if there are too many regions.
        continuum: whether the solution is one of a continuum.
    """

    linear: Array
    degree: int | None
    continuum: bool


def adjoining(
    equation: Equation,
    point: Array,
    first: NDArray[np.intp],
    last: NDArray[np.intp],
    size: float,
) -> Adjoining:
    """The regions around a solution whose units may be on pieces first to last.

    Args:
        equation: what is solved.
        point: ``(dim,)`` the solution.
        first: ``(unit,)`` first piece of each unit within the error.
        last: ``(unit,)`` last piece.
        size: largest coordinate of the searched region.
    """
    dim = len(point)
    on_kink = np.nonzero(last > first)[0]
    normals = equation.incoming[on_kink]
    if float(len(on_kink)) ** (dim - 1) > MAX_CONES:
        return Adjoining(np.empty((0, dim, dim)), None, False)
    sides = cones(normals)
    pieces = np.tile(first, (len(sides), 1))
    pieces[:, on_kink] = np.where(sides > 0, last[on_kink], first[on_kink])
    G, _ = systems(equation, pieces)
    inverse = inverted(G)
    regular = error_bound(equation, G, inverse, np.tile(point, (len(G), 1)), size)[1]
    continuum = any(
        _holds_null_vector(G[region], sides[region, :, None] * normals)
        for region in np.nonzero(~regular)[0]
    )
    if continuum:
        return Adjoining(np.eye(dim) - G, None, True)
    # Directions that a singular region reaches are not generic: it counts for nothing.
    generic = np.random.default_rng(0).standard_normal(dim)
    reached = inverse @ generic
    inside = regular & (sides * (reached @ normals.T) > 0).all(1)
    degree = int(np.sign(np.linalg.det(G[inside])).sum())
    return Adjoining(np.eye(dim) - G, degree, False)


def cones(normals: Array) -> NDArray[np.int8]:
    """Sides ``(cone, hyperplane)``, -1 or 1, of the cones between hyperplanes through the origin.

    Every cone has a facet on one of the hyperplanes, and the facets on a hyperplane are the cones
    that the others cut out of it.

    Args:
        normals: ``(hyperplane, dim)``, none of them zero.
    """
    count = len(normals)
    if not count:
        return np.ones((1, 0), np.int8)
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    found, done = [], np.zeros(count, bool)
    for plane, normal in enumerate(normals):
        if done[plane]:
            continue
        # An orthonormal basis of the hyperplane: all but the first column of a reflection.
        within = normals @ np.linalg.qr(normal[:, None], mode="complete")[0][:, 1:]
        parallel = np.linalg.norm(within, axis=1) < PARALLEL
        done |= parallel
        facets = cones(within[~parallel])
        for side in (1, -1):
            sides = np.empty((len(facets), count), np.int8)
            sides[:, ~parallel] = facets
            sides[:, parallel] = side * np.sign(normals[parallel] @ normal)
            found.append(sides)
    return np.unique(np.concatenate(found), axis=0)


def _holds_null_vector(G: Array, inward: Array) -> bool:
    """Whether a singular G has a null vector x with ``inward x >= 0``: in the closure of a cone."""
    if not len(inward):
        return True
    _, values, right = np.linalg.svd(G)
    null = right[values <= max(PARALLEL * values[0], values[-1])]
    inward = inward / np.linalg.norm(inward, axis=1, keepdims=True)
    for axis in np.concatenate([np.eye(len(null)), -np.eye(len(null))]):
        # Scaled to largest entry 1, any such vector attains 1 along one of the axes.
        best = linprog(
            -axis, A_ub=-inward @ null.T, b_ub=np.full(len(inward), PARALLEL), bounds=(-1, 1)
        )
        if best.success and -best.fun > 0.5:
            return True
    return False
