"""The enumeration as a dataset: points, eigenvalues, stability, pieces, and the certificate."""

import time

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyrodyn.analysis.fixed_points.certified.adjoining import adjoining
from pyrodyn.analysis.fixed_points.certified.boxes import inverted
from pyrodyn.analysis.fixed_points.certified.equation import Equation, at_infinity, equation_of
from pyrodyn.analysis.fixed_points.certified.network import Array, PiecewiseLinear, check
from pyrodyn.analysis.fixed_points.certified.refine import Solutions, refined
from pyrodyn.analysis.fixed_points.certified.search import Budget, bounding_box, search

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
            cycle must lie in it); by default a box that provably contains all solutions, if any.
        max_seconds: processor time of the calling thread after which the search stops and returns
            what it has certified; None for no limit.
        max_boxes: number of boxes after which the search stops.
        period: 1 for fixed points, 2 or 3 for cycles that close after exactly so many steps. The
            search is over ``period x latent`` dimensions.

    Returns:
        A dataset. For a period above 1 its dim ``fixed_point`` is ``cycle``; point, region and
        on_kink then have the dim ``phase`` too, the Jacobian is that of the whole cycle, and each
        cycle appears once, rotated so that its first latent starts at its maximum.

        - ``point (fixed_point, latent)``;
        - ``region (fixed_point, neuron)``: piece of each unit, 0 to 2, counted in the direction of
          increasing input; of a unit on a kink, the piece after it;
        - ``on_kink (fixed_point, neuron)``: whether a kink of the unit lies within the bound on the
          error of the point;
        - ``jacobian (fixed_point, latent, by)``, a + n phi' m, and ``eigenvalues
          (fixed_point, mode)`` of it, largest modulus first. NaN where the linear regions that meet
          at a point on kinks have different Jacobians;
        - ``stability (fixed_point)``: "stable" (all eigenvalues inside the unit circle),
          "unstable" (all outside), "marginal" (one on it, to 1e-9) or "saddle". On kinks, the
          verdict that all adjoining regions have in common, each by its own eigenvalues, and "kink"
          if they differ or are too many to enumerate;
        - ``index (fixed_point)``: sign of det(I - jacobian), on kinks the local degree of z - F(z);
          NaN for points of a continuum, which have none;
        - ``continuum (fixed_point)``: whether the point belongs to a continuum of solutions;
        - ``residual (fixed_point)``: largest entry of F(z) - z.

        In the attributes:

        - ``complete``: 1 if it is certified that there is no other solution in latent space;
        - ``num_boxes``, ``num_boxes_left``: boxes examined, and boxes that remain undecided. If
          none remain and ``num_singular`` is 0, nothing else lies in the searched region;
        - ``volume_left``: fraction of the searched region's volume in the boxes that remain;
        - ``num_singular``: boxes in which the linear system is singular to working precision and
          has solutions: a continuum, of which only the points that end it may be listed;
        - ``index_sum``: sum of the indices of all solutions found (of the fixed points of the
          ``period``-th iterate, for cycles). It does not depend on the search: with bounded units
          it must be the product of the signs of 1 - a^period, which is +1 for decays; otherwise a
          solution is missing, and ``complete`` is 0;
        - ``lower``, ``upper``: the searched region; ``seconds``: processor time of the calling
          thread; ``warning``: why the list is not complete, or "".

    Raises:
        ValueError: if the network, the region, the period or a limit is not valid.
    """
    start = time.thread_time()
    check(network, period)
    if max_boxes < 1 or (max_seconds is not None and not max_seconds > 0):
        raise ValueError("max_boxes and max_seconds must be above 0; leave them out for no limit")
    wanted = None if region is None else _corners(region, len(network.a))
    seconds = np.inf if max_seconds is None else max_seconds
    equation = equation_of(network, period)
    ends, distance = at_infinity(equation)
    # At most half of the budget goes to the proof of a bound, so that something is searched.
    first = Budget(max_boxes // 2, start + seconds / 2)
    bound = bounding_box(network, equation, first)
    budget = Budget(max_boxes - max_boxes // 2 + first.boxes, start + seconds)
    if wanted is None and bound is None:
        far = 10 * distance[: len(network.a)] / np.abs(1 - network.a) + 1
        wanted = -far, far
    lower, upper = wanted or bound  # type: ignore[misc]
    contains_all = bound is not None and bool(((lower <= bound[0]) & (bound[1] <= upper)).all())
    size = float(np.maximum(np.abs(lower), np.abs(upper)).max())
    found = search(equation, np.tile(lower, period), np.tile(upper, period), period, budget)
    solutions = refined(equation, found.points, found.errors, size)
    solutions, is_cycle = _rotated(solutions, period)
    result = _described(equation, solutions, period, size)
    # A cycle is a fixed point of the iterate at each of its phases, a shorter one at a single one.
    index_sum = float(result["index"].values @ np.where(is_cycle, period, 1))
    is_certain = contains_all and not found.num_left and not found.num_singular
    far_index = int(np.sign(1 - network.a**period).prod())
    reasons = {
        "not all of latent space is proved to lie outside the region": not contains_all,
        "the search stopped early or met boxes it could not decide": found.num_left > 0,
        "there is a continuum of solutions, which is not listed": found.num_singular > 0,
        f"the indices of the points found sum to {index_sum:g} where bounded units imply"
        f" {far_index}, so that some are missing": is_certain
        and not ends.slopes.any()
        and abs(index_sum - far_index) > 0.5,
    }
    result = result.isel({result["index"].dims[0]: is_cycle})
    result.attrs = {
        "complete": int(not any(reasons.values())),
        "num_boxes": max_boxes - budget.boxes,
        "num_boxes_left": found.num_left,
        "volume_left": found.volume_left,
        "num_singular": found.num_singular,
        "index_sum": index_sum,
        "lower": lower,
        "upper": upper,
        "seconds": time.thread_time() - start,
        "warning": "; ".join(reason for reason, holds in reasons.items() if holds),
    }
    return result


def _rotated(solutions: Solutions, period: int) -> tuple[Solutions, NDArray[np.bool_]]:
    """Each cycle once, at its rotation that starts highest, and which are of no shorter period."""
    num, dim = solutions.points.shape
    if period == 1:
        return solutions, np.ones(num, bool)
    shape = num, period, dim // period
    points, errors = solutions.points.reshape(shape), solutions.errors.reshape(shape)
    apart = np.abs(points[:, 1:] - points[:, :1]) > errors[:, 1:] + errors[:, :1]
    is_cycle = apart.any((1, 2))
    kept: list[int] = []
    for i in range(num):
        turns = [np.roll(points[i], k, axis=0) for k in range(period)]
        reach = errors[kept] + errors[i].max(0)
        if not any((np.abs(points[kept] - t) <= reach).all((1, 2)).any() for t in turns):
            kept.append(i)
    turn = -points[kept, :, 0].argmax(1)

    def rotated[Value: np.generic](fields: NDArray[Value]) -> NDArray[Value]:
        return np.array(
            [np.roll(row, k * (len(row) // period)) for row, k in zip(fields, turn, strict=True)]
        ).reshape(len(kept), fields.shape[1])

    # The last unit is the idle one, which belongs to no phase.
    first, last = (
        np.concatenate([rotated(pieces[kept, :-1]), pieces[kept, -1:]], 1)
        for pieces in solutions[2:]
    )
    rotations = Solutions(
        rotated(solutions.points[kept]), rotated(solutions.errors[kept]), first, last
    )
    return rotations, is_cycle[kept]


def _described(equation: Equation, solutions: Solutions, period: int, size: float) -> xr.Dataset:
    """Jacobian, eigenvalues, stability, index, residual and pieces of every solution."""
    points, _, first, last = solutions
    num, latent_dim = len(points), points.shape[1] // period
    jacobian = np.full((num, latent_dim, latent_dim), np.nan)
    eigenvalues = np.full((num, latent_dim), np.nan, complex)
    stability, index = np.full(num, "kink", "U8"), np.full(num, np.nan)
    continuum = np.zeros(num, bool)
    for row in range(num):
        around = adjoining(equation, points[row], first[row], last[row], size)
        continuum[row] = around.continuum
        if around.degree is not None:
            index[row] = around.degree
        if not len(around.linear):
            continue
        per_region = _return_maps(around.linear, period)
        if np.abs(per_region - per_region[0]).max() <= MARGIN * (1 + np.abs(per_region[0]).max()):
            values = np.linalg.eigvals(per_region[0]).astype(complex)
            jacobian[row] = per_region[0]
            eigenvalues[row] = values[np.argsort(-np.abs(values))]
            stability[row] = _stability(values)
        # The eigenvalues of each map do not suffice: products of maps that have all of theirs
        # inside the unit circle may grow.
        elif (_stretches(per_region, per_region) < 1 - MARGIN).all():
            stability[row] = "stable"
        elif (_stretches(per_region, inverted(per_region)) > 1 + MARGIN).all():
            stability[row] = "unstable"
    name, phases = ("fixed_point", ()) if period == 1 else ("cycle", ("phase",))
    per_phase = (num, *(() if period == 1 else (period,)))
    num_units = (first.shape[1] - 1) // period
    return xr.Dataset(
        {
            "point": ((name, *phases, "latent"), points.reshape(*per_phase, latent_dim)),
            "jacobian": ((name, "latent", "by"), jacobian),
            "eigenvalues": ((name, "mode"), eigenvalues),
            "stability": (name, stability),
            "index": (name, index),
            "continuum": (name, continuum),
            "residual": (name, np.abs(equation.residual(points)).max(1)),
            "region": (
                (name, *phases, "neuron"),
                last[:, :-1].reshape(*per_phase, num_units).astype(np.int8),
            ),
            "on_kink": (
                (name, *phases, "neuron"),
                (last > first)[:, :-1].reshape(*per_phase, num_units),
            ),
        }
    )


def _return_maps(linear: Array, period: int) -> Array:
    """Jacobians ``(region, latent, latent)`` of a whole cycle from those of all phases at once."""
    if period == 1:
        return linear
    latent_dim = linear.shape[-1] // period
    blocks = linear.reshape(len(linear), period, latent_dim, period, latent_dim)
    product = blocks[:, 1, :, 0]
    for phase in range(1, period):
        product = blocks[:, (phase + 1) % period, :, phase] @ product
    return product


def _stability(eigenvalues: NDArray[np.complex128]) -> str:
    """Verdict on the eigenvalues of a map."""
    modulus = np.abs(eigenvalues)
    if (np.abs(modulus - 1) <= MARGIN).any():
        return "marginal"
    if (modulus < 1).all():
        return "stable"
    return "unstable" if (modulus > 1).all() else "saddle"


def _stretches(maps: Array, guess: Array) -> Array:
    """Singular values ``(map, dim)`` of maps with respect to one norm, sqrt(x' P x): the least and
    the largest factor by which they change it; NaN if there is no such norm.

    P solves P - mean_i J_i' P J_i = I with J_i the maps of ``guess``. If all of these shrink a
    common norm, they mostly shrink this one, and with one latent they always do.
    """
    dim = maps.shape[-1]
    pairs = np.einsum("rki,rlj->ijkl", guess, guess).reshape(dim**2, dim**2) / len(guess)
    try:
        P = np.linalg.solve(np.eye(dim**2) - pairs, np.eye(dim).ravel()).reshape(dim, dim)
        root = np.linalg.cholesky((P + P.T) / 2).T
    except np.linalg.LinAlgError:
        return np.full(maps.shape[:2], np.nan)
    return np.linalg.svd(root @ maps @ np.linalg.inv(root), compute_uv=False)


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
