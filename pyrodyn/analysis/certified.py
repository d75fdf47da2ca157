"""Every fixed point and short cycle of a piecewise-linear low-rank network, with a certificate.

The noiseless dynamics of a low-rank network with N units and rank R are::

    F(z) = a z + n phi(m z + drive) + offset        z, a, offset: R;  n: R x N;  m: N x R

With a piecewise-linear phi, F is linear in each of the regions that the units' kinks cut out of
latent space, at most one isolated fixed point z = F(z) lies in each, and it solves an R x R system.
There are of the order of N^R regions. Descending on the length of z - F(z) from many starts is
quick, and never knows what it missed; a list that is complete is what a statement such as "this
network holds three memories" or "no other attractor exists" rests on.

Branch and bound supplies it. In a box of latent space most units stay on one piece and are linear;
each other unit is its chord plus a remainder in an interval, so that all z = F(z) of the box obey::

    G z = q + sum_u g_u e_u,  |e_u| <= 1            G = I - a - n S m  (S: slopes and chords)
    z in c - Y (G c - q) +- (|I - Y G| w + sum_u |Y g_u| + |Y| eta)

for centre c, half-widths w, any matrix Y and a bound eta on all rounding (Krawczyk's operator). The
box shrinks to the part that this leaves of it, or vanishes. Y is the Kalman gain of a prior with
covariance diag(w^2) under noise sum_u g_u g_u': the inverse of G where the remainders are small,
and no use of directions that they drown. Where few units are left on a kink, each combination of
their pieces is solved; else the box is halved. Bounded units confine all fixed points to a box.
For others, a lower bound on the residual of the network at infinity over the faces of the unit cube
gives the box. Cycles z_2 = F(z_1), ..., z_1 = F(z_p) are fixed points of a network on
(z_1, ..., z_p).

Rounding is met by a-priori bounds on floating-point sums, not by directed rounding. Points that
coincide within the error of their linear systems count as one.

Sources: Pals, Sagtekin, Pei, Gloeckler & Macke (NeurIPS 2024) for these networks and the question;
Krawczyk (1969, Computing 4) for the contraction. The algorithm is written from these equations.
"""

import time
from itertools import product
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Values = ArrayLike | float

BATCH_ENTRIES = 60_000
"""Boxes x undecided units that are processed at once: their arrays then stay in the cache."""
LEAF_UNITS = 3
"""Boxes with at most so many undecided units are solved piece by piece instead of halved."""
SMALLEST_BOX = 1e-10
"""Half-width, as part of the region's largest coordinate, below which a box is no longer halved."""
SMALLEST_FACE = 1e-5
"""Half-width on the unit cube below which a box that may hold a solution ends the search there."""
LARGEST_ERROR = 1e-6
"""A system is singular if its error, as part of the region's largest coordinate, is above this."""
ENOUGH = 0.25
"""A box whose volume shrank below this part is contracted again before it is halved."""
MARGIN = 1e-9
"""Eigenvalues closer than this to modulus one are called marginal."""


class PiecewiseLinear(NamedTuple):
    """A low-rank network z' = a z + n phi(m z) + offset; unit i has phi_i(y) = slope y + intercept.

    Attributes:
        a: ``(latent,)`` decay, in [0, 1).
        n: ``(latent, neuron)`` output weights.
        m: ``(neuron, latent)`` input weights.
        offset: ``(latent,)`` constant added at every step.
        breakpoints: ``(neuron, 2)`` kinks in ascending order; infinity where there are fewer.
        slopes: ``(neuron, 3)`` of the pieces before, between and after the kinks.
        intercepts: ``(neuron, 3)`` of the same pieces, which must meet at the kinks.
    """

    a: Array
    n: Array
    m: Array
    offset: Array
    breakpoints: Array
    slopes: Array
    intercepts: Array

    @classmethod
    def relu(
        cls, a: Values, n: Values, m: Values, threshold: Values, drive: Values = 0.0
    ) -> "PiecewiseLinear":
        """phi(y) = max(y - threshold, 0) at y = m z + drive.

        Args:
            a: ``(latent,)`` or one number for all.
            n: ``(latent, neuron)``.
            m: ``(neuron, latent)``.
            threshold: ``(neuron,)`` or one number for all.
            drive: ``(neuron,)`` or one number for all, the constant input.

        Returns:
            The network.

        Raises:
            ValueError: if shapes do not fit each other.
        """
        return cls.leaky_relu(a, n, m, threshold, drive, leak=0.0)

    @classmethod
    def leaky_relu(
        cls,
        a: Values,
        n: Values,
        m: Values,
        threshold: Values,
        drive: Values = 0.0,
        *,
        leak: Values,
    ) -> "PiecewiseLinear":
        """phi(y) = max(y - threshold, 0) + leak min(y - threshold, 0); the rest as in `relu`."""
        kink = np.asarray(threshold, float) - np.asarray(drive, float)
        left = np.asarray(leak, float)
        return cls._of(a, n, m, (kink, np.inf), (left, 1.0, 1.0), (-left * kink, -kink, -kink))

    @classmethod
    def clipped_relu(
        cls, a: Values, n: Values, m: Values, threshold: Values, drive: Values = 0.0
    ) -> "PiecewiseLinear":
        """phi(y) = max(y + threshold, 0) - max(y, 0), between 0 and threshold, of either sign."""
        h, shift = np.asarray(threshold, float), np.asarray(drive, float)
        kinks = np.minimum(-h, 0) - shift, np.maximum(-h, 0) - shift
        middle = np.where(h > 0, h + shift, np.where(h < 0, -shift, 0))
        return cls._of(a, n, m, kinks, (0.0, np.sign(h), 0.0), (0.0, middle, h))

    @classmethod
    def hard_tanh(
        cls, a: Values, n: Values, m: Values, threshold: Values, drive: Values = 0.0
    ) -> "PiecewiseLinear":
        """phi(y) = y - threshold held within -1 and 1; arguments as in `relu`."""
        centre = np.asarray(threshold, float) - np.asarray(drive, float)
        return cls._of(a, n, m, (centre - 1, centre + 1), (0.0, 1.0, 0.0), (-1.0, -centre, 1.0))

    @classmethod
    def _of(
        cls,
        a: Values,
        n: Values,
        m: Values,
        *pieces: tuple[Values, ...],
    ) -> "PiecewiseLinear":
        n, m = np.asarray(n, float), np.asarray(m, float)
        if n.ndim != 2 or m.shape != n.shape[::-1]:
            raise ValueError(
                f"n is {n.shape} and m {m.shape}; give n as (latent, neuron), m as (neuron, latent)"
            )
        try:
            per_unit = [
                np.stack([np.broadcast_to(np.asarray(v, float), m.shape[:1]) for v in piece], -1)
                for piece in pieces
            ]
            decay = np.broadcast_to(np.asarray(a, float), n.shape[:1]).copy()
        except ValueError:
            raise ValueError(
                f"a must hold one or {len(n)} numbers, threshold, drive and leak one or {len(m)}; "
                "give one per latent and one per neuron"
            ) from None
        return cls(decay, n, m, np.zeros(len(n)), *per_unit)


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
        ``point (fixed_point, latent)``, ``eigenvalues (fixed_point, mode)`` of the Jacobian
        a + n phi' m, largest modulus first, ``stability (fixed_point)`` ("stable" if all are inside
        the unit circle, "unstable" if all outside, else "saddle"; "marginal" if one is on it),
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
    _check(network, period)
    if max_boxes < 1 or (max_seconds is not None and not max_seconds > 0):
        raise ValueError("max_boxes and max_seconds must be above 0; leave them out for no limit")
    wanted = None if region is None else _corners(region, len(network.a))
    seconds = np.inf if max_seconds is None else max_seconds
    equation = _equation(network, period)
    # No more than half goes to the proof of a bound, so that something is searched.
    first = _Budget(max_boxes // 2, start + seconds / 2)
    bound = _bound(network, equation, first)
    budget = _Budget(max_boxes - max_boxes // 2 + first.boxes, start + seconds)
    if wanted is None and bound is None:
        size = 10 * _at_infinity(equation)[1][: len(network.a)] / (1 - network.a) + 1
        wanted = -size, size
    lower, upper = wanted or bound  # type: ignore[misc]
    holds_all = bound is not None and bool(((lower <= bound[0]) & (bound[1] <= upper)).all())
    found = _search(equation, np.tile(lower, period), np.tile(upper, period), period, budget)
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


class _Equation:
    """z = linear z + sum_i outgoing_i phi_i(incoming_i z) + offset, with one idle unit at the end.

    The idle unit fills the lists of undecided units of boxes that have fewer than others.
    """

    def __init__(
        self,
        linear: Float[ndarray, "dim dim"],
        offset: Float[ndarray, " dim"],
        outgoing: Float[ndarray, "unit dim"],
        incoming: Float[ndarray, "unit dim"],
        breakpoints: Float[ndarray, "kink unit"],
        slopes: Float[ndarray, "piece unit"],
        intercepts: Float[ndarray, "piece unit"],
    ) -> None:
        dim, after = len(offset), ((0, 0), (0, 1))
        self.linear, self.offset = linear, offset
        self.outgoing, self.incoming = np.pad(outgoing, after[::-1]), np.pad(incoming, after[::-1])
        self.slopes, self.intercepts = np.pad(slopes, after), np.pad(intercepts, after)
        self.breakpoints = np.pad(breakpoints, after, constant_values=np.inf)
        self.kinks = np.where(np.isfinite(self.breakpoints), self.breakpoints, 0)
        self.kink_values = self.slopes[:-1] * self.kinks + self.intercepts[:-1]
        sent, steep = np.abs(self.outgoing), np.abs(self.slopes).max(0)[:, None]
        self.strength = sent.sum(1)
        # Every sum has at most so many products of up to three factors; what the preconditioner
        # and later sums of the results add is within the factor of four.
        self.epsilon = 4 * (len(self.incoming) + dim + 10) * float(np.finfo(float).eps)
        self.growth = np.eye(dim) + np.abs(linear) + sent.T @ (steep * np.abs(self.incoming))
        self.constant = np.abs(offset) + np.abs(self.intercepts).max(0) @ sent

    def rounding(self, reach: Float[ndarray, "box dim"]) -> Float[ndarray, "box dim"]:
        """Bound on all rounding in evaluating the equation where |z| <= reach."""
        return self.epsilon * (reach @ self.growth.T + self.constant)

    def pieces(
        self, units: Int[ndarray, "..."], low: Float[ndarray, "..."], high: Float[ndarray, "..."]
    ) -> tuple[Int[ndarray, "..."], Int[ndarray, "..."]]:
        """First and last piece that units meet between low and high."""
        first, last = np.zeros(units.shape, np.intp), np.zeros(units.shape, np.intp)
        for breakpoints in self.breakpoints:
            kink = breakpoints.take(units)
            first += low >= kink
            last += high > kink
        return first, last

    def line(
        self, units: Int[ndarray, "..."], piece: Int[ndarray, "..."]
    ) -> tuple[Float[ndarray, "..."], Float[ndarray, "..."]]:
        """Slope and intercept of units on a piece each."""
        entry = units + piece * self.slopes.shape[1]
        return self.slopes.take(entry), self.intercepts.take(entry)

    def residual(self, z: Float[ndarray, "point dim"]) -> Float[ndarray, "point dim"]:
        """What F leaves of z: z - F(z), nothing relaxed."""
        y = z @ self.incoming.T
        units = np.broadcast_to(np.arange(y.shape[1]), y.shape)
        slope, intercept = self.line(units, self.pieces(units, y, y)[0])
        phi = slope * y + intercept
        return z - z @ self.linear.T - phi @ self.outgoing - self.offset


class _Boxes(NamedTuple):
    """Boxes centre +- radius; in each, matrix z = constant + what the undecided units send."""

    centre: Array
    radius: Array
    matrix: Array
    constant: Array
    undecided: NDArray[np.intp]

    def at(self, index: NDArray[np.bool_] | slice) -> "_Boxes":
        """Some of the boxes."""
        return _Boxes(*(np.asarray(field[index]) for field in self))  # type: ignore[arg-type]


class _Relaxed(NamedTuple):
    """G z = q + sum_u g_u e_u with |e_u| <= 1, up to rounding; first and last piece per unit."""

    G: Array
    q: Array
    g: Array
    rounding: Array
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    score: Array


class _Found(NamedTuple):
    """Solutions, bounds on their errors, undecided boxes and boxes with a continuum."""

    points: Array
    errors: Array
    num_left: int
    num_singular: int


class _Budget:
    """How many boxes may still be examined, and until when."""

    def __init__(self, boxes: int, deadline: float) -> None:
        self.boxes = boxes
        self.deadline = deadline

    def spent(self) -> bool:
        return self.boxes <= 0 or time.monotonic() > self.deadline


class _Stack:
    """Boxes still to examine, handed out in batches that fit in the cache."""

    def __init__(self, boxes: _Boxes) -> None:
        self.batches = [boxes]

    def __len__(self) -> int:
        return sum(len(boxes.centre) for boxes in self.batches)

    def push(self, boxes: _Boxes) -> None:
        """Add boxes, grouped by how many units they have undecided, most first."""
        units = (boxes.undecided >= 0).sum(1)
        while len(units):
            few = units < units.max() / 2
            self.batches.append(
                boxes.at(~few)._replace(undecided=boxes.undecided[~few, : units.max()])
            )
            boxes, units = boxes.at(few), units[few]

    def pop(self, most: int) -> _Boxes:
        """At most so many boxes off the top, with lists no longer than that of the first."""
        widest = self.batches[-1].undecided.shape[1] + 1
        room = min(most, max(1, BATCH_ENTRIES // widest))
        taken: list[_Boxes] = []
        while self.batches and room > 0 and self.batches[-1].undecided.shape[1] < widest:
            boxes = self.batches.pop()
            if len(boxes.centre) > room:
                self.batches.append(boxes.at(slice(room, None)))
                boxes = boxes.at(slice(0, room))
            taken.append(boxes)
            room -= len(boxes.centre)
        return _joined(taken)


def _joined(parts: list[_Boxes]) -> _Boxes:
    """One batch out of several, their lists of undecided units filled up with the idle one."""
    width = max(part.undecided.shape[1] for part in parts)
    filled = [
        np.pad(part.undecided, ((0, 0), (0, width - part.undecided.shape[1])), constant_values=-1)
        for part in parts
    ]
    first = [np.concatenate(fields) for fields in zip(*(part[:4] for part in parts), strict=True)]
    return _Boxes(first[0], first[1], first[2], first[3], np.concatenate(filled))


def _equation(network: PiecewiseLinear, period: int) -> _Equation:
    """The fixed-point equation of F on (z_1, ..., z_period), each the image of the one before."""
    shift = np.roll(np.eye(period), 1, axis=0)
    outgoing = np.kron(shift.T, network.n.T)
    incoming = np.kron(np.eye(period), network.m)
    linear = np.kron(shift, np.diag(network.a))
    num_kinks = 2 if np.isfinite(network.breakpoints[:, 1]).any() else 1
    tables = (
        np.tile(table.T[: num_kinks + more], (1, period))
        for table, more in ((network.breakpoints, 0), (network.slopes, 1), (network.intercepts, 1))
    )
    return _Equation(linear, np.tile(network.offset, period), outgoing, incoming, *tables)


def _bound(
    network: PiecewiseLinear, equation: _Equation, budget: _Budget
) -> tuple[Array, Array] | None:
    """Corners of a box of latent space that holds all fixed points or cycles, if one is proved."""
    ends, distance = _at_infinity(equation)
    if not ends.slopes.any():
        # Then phi stays within its values at the kinks and on its constant first piece.
        flat = network.intercepts[:, :1].T
        values = equation.kink_values[:, : flat.size]
        values = np.where(np.isfinite(equation.breakpoints[:, : flat.size]), values, flat)
        values = np.concatenate([values, flat]).T
        sent = network.n[..., None] * values
        slack = 1e-9 * np.abs(sent).max(-1).sum(-1)
        lower = (sent.min(-1).sum(-1) + network.offset - slack) / (1 - network.a)
        upper = (sent.max(-1).sum(-1) + network.offset + slack) / (1 - network.a)
        return lower, upper
    weight = np.maximum(distance, 0.1 * distance.max()) if distance.any() else distance + 1
    smallest = _smallest_on_cube(ends, weight, budget)
    if smallest is None:
        return None
    size = np.full(len(network.a), 1 / smallest if distance.any() else 0.0)
    return -size, size


def _at_infinity(equation: _Equation) -> tuple[_Equation, Array]:
    """The network as seen from far away, its kinks all at 0, and how far F is from it at most."""
    finite = np.isfinite(equation.breakpoints)
    units = np.arange(finite.shape[1])
    left, right = equation.slopes[0], equation.slopes[finite.sum(0), units]
    beyond = np.where(equation.kinks < 0, left, right) * equation.kinks
    at_zero = equation.intercepts[(equation.breakpoints <= 0).sum(0), units]
    at_ends = equation.intercepts[0], equation.intercepts[finite.sum(0), units]
    apart = np.stack([*np.where(finite, equation.kink_values - beyond, 0), at_zero, *at_ends])
    distance = np.abs(apart).max(0) @ np.abs(equation.outgoing) + np.abs(equation.offset)
    kink = np.where(left == right, np.inf, 0)
    ends = _Equation(
        equation.linear,
        np.zeros_like(equation.offset),
        equation.outgoing[:-1],
        equation.incoming[:-1],
        kink[None, :-1],
        np.stack([left, right])[:, :-1],
        np.zeros((2, len(kink) - 1)),
    )
    return ends, distance


def _smallest_on_cube(equation: _Equation, weight: Array, budget: _Budget) -> float | None:
    """Lower bound on max_r |z - F(z)|_r / weight_r over |z|_inf = 1, or None if it may be 0.

    At most half the true minimum is given away: boxes are halved until their bound is above half of
    the smallest value met at a centre.
    """
    dim = len(weight)
    centre = np.concatenate([np.eye(dim), -np.eye(dim)])
    boxes = _root(equation, centre, 1.0 - np.abs(centre))
    stack, bound, met = _Stack(boxes), np.inf, np.inf
    while len(stack):
        if budget.spent():
            return None
        boxes = stack.pop(budget.boxes)
        budget.boxes -= len(boxes.centre)
        boxes, relaxed = _relax(equation, boxes)
        with np.errstate(invalid="ignore", over="ignore"):
            P = np.concatenate(
                [_gain(boxes, relaxed)[1], np.tile(np.eye(dim), (len(boxes.centre), 1, 1))], 1
            )
            misfit, slack = _image(P, boxes, relaxed)
            slack += (np.abs(P @ relaxed.G) @ boxes.radius[..., None])[..., 0]
            proved = np.fmax.reduce((np.abs(misfit) - slack) / (np.abs(P) @ weight), axis=1)
        met = min(met, (np.abs(equation.residual(boxes.centre)) / weight).max(1).min())
        enough = proved >= met / 2
        bound = min(bound, proved[enough].min(initial=np.inf))
        if (boxes.radius[~enough].max(1) < SMALLEST_FACE).any() or met == 0:
            return None
        stack.push(_halved(boxes.at(~enough), relaxed.score[~enough]))
    return float(bound)


def _search(
    equation: _Equation, lower: Array, upper: Array, period: int, budget: _Budget
) -> _Found:
    """All solutions of the equation in a box."""
    radius = (upper - lower) / 2
    size = float(np.maximum(np.abs(lower), np.abs(upper)).max())
    stack = _Stack(_root(equation, (lower + upper)[None] / 2, radius[None]))
    points, errors = [np.empty((0, len(lower)))], [np.empty((0, len(lower)))]
    num_singular = num_undecided = 0
    latent_dim = len(lower) // period
    while len(stack) and not budget.spent():
        boxes = stack.pop(budget.boxes)
        budget.boxes -= len(boxes.centre)
        boxes, relaxed = _relax(equation, boxes)
        before = boxes.radius
        boxes, possible = _contracted(boxes, relaxed)
        starts, reach = boxes.centre[:, ::latent_dim], boxes.radius[:, ::latent_dim]
        # Of the rotations of a cycle one is enough: that which starts highest in the first latent.
        possible &= (starts[:, :1] + reach[:, :1] >= starts - reach).all(1)
        few = (boxes.undecided >= 0).sum(1) <= LEAF_UNITS
        tiny = (boxes.radius <= SMALLEST_BOX * size).all(1)
        open_ = possible & ~few & ~tiny
        leaf = possible & few
        if leaf.any():
            z, error, _, singular, unclear = _solved(
                equation, boxes.at(leaf), relaxed.first[leaf], relaxed.last[leaf], size
            )
            points.append(z)
            errors.append(error)
            num_singular += int((singular | unclear & tiny[leaf]).sum())
            open_[leaf] = unclear & ~tiny[leaf]
        knot = possible & tiny & ~few
        if knot.any():
            z, error, box, singular, unclear = _solved_at_centre(equation, boxes.at(knot), size)
            points.append(z)
            errors.append(error)
            settled = singular | unclear
            num_singular += int(settled.sum())
            settled[box] = True
            num_undecided += int((~settled).sum())
        shrunk = (boxes.radius / np.maximum(before, 1e-300)).prod(1) < ENOUGH
        stack.push(boxes.at(open_ & shrunk))
        cut = open_ & ~shrunk
        stack.push(_halved(boxes.at(cut), relaxed.score[cut]))
    return _Found(
        np.concatenate(points), np.concatenate(errors), len(stack) + num_undecided, num_singular
    )


def _root(equation: _Equation, centre: Array, radius: Array) -> _Boxes:
    """Boxes in which every unit is undecided."""
    count, dim = centre.shape
    units = np.tile(np.arange(len(equation.incoming) - 1), (count, 1))
    matrix = np.tile(np.eye(dim) - equation.linear, (count, 1, 1))
    return _Boxes(centre, radius, matrix, np.tile(equation.offset, (count, 1)), units)


def _relax(equation: _Equation, boxes: _Boxes) -> tuple[_Boxes, _Relaxed]:
    """Decide the units that no longer meet a kink, and bound the others by chords."""
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
    # The remainder phi - chord is piecewise linear: its extremes are at the ends and the kinks.
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
    relaxed = _Relaxed(
        matrix - (n * chord[..., None]).mT @ m,
        middle_of_gap,
        n * half_gap[..., None],
        equation.rounding(reach),
        first,
        last,
        (loose[:, None] @ np.abs(m))[:, 0] * radius,
    )
    return _Boxes(centre, radius, matrix, constant, units), relaxed


def _inverse(matrix: Array) -> Array:
    """Inverses, or pseudo-inverses of the whole stack where one has none."""
    try:
        return np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return np.linalg.pinv(matrix)


def _gain(boxes: _Boxes, relaxed: _Relaxed) -> tuple[Array, Array]:
    """Kalman gain of z ~ (c, diag(w^2)) seen through G z = q + g e, and the row that best tells
    the misfit at c from what the box allows. Any values would be sound; these cut most.
    """
    seen = relaxed.G * boxes.radius[:, None]
    covariance = seen @ seen.mT + relaxed.g.mT @ relaxed.g
    ridge = 1e-14 * np.trace(covariance, axis1=1, axis2=2)
    weight = _inverse(covariance + ridge[:, None, None] * np.eye(seen.shape[1]))
    misfit = relaxed.G @ boxes.centre[..., None] - relaxed.q[..., None]
    return (seen * boxes.radius[:, None]).mT @ weight, (weight @ misfit).mT


def _image(P: Array, boxes: _Boxes, relaxed: _Relaxed) -> tuple[Array, Array]:
    """P (G c - q), and the most that remainders and rounding can add to it."""
    misfit = relaxed.G @ boxes.centre[..., None] - relaxed.q[..., None]
    pulled = np.abs(relaxed.g @ P.mT)
    spread = (np.ones((1, pulled.shape[1])) @ pulled)[:, 0]
    return (P @ misfit)[..., 0], spread + (np.abs(P) @ relaxed.rounding[..., None])[..., 0]


def _contracted(boxes: _Boxes, relaxed: _Relaxed) -> tuple[_Boxes, NDArray[np.bool_]]:
    """Boxes cut to what Krawczyk's operator leaves, and whether they may hold a solution."""
    centre, radius = boxes.centre, boxes.radius
    # fmax, fmin and the comparisons below pass over the NaN of a gain that overflowed.
    with np.errstate(invalid="ignore", over="ignore"):
        Y, row = _gain(boxes, relaxed)
        misfit, slack = _image(row, boxes, relaxed)
        slack += (np.abs(row @ relaxed.G) @ radius[..., None])[..., 0]
        possible = ~(np.abs(misfit) > slack)[:, 0]
        step, slack = _image(Y, boxes, relaxed)
        slack += (np.abs(np.eye(Y.shape[1]) - Y @ relaxed.G) @ radius[..., None])[..., 0]
        lower = np.fmax(centre - radius, centre - step - slack)
        upper = np.fmin(centre + radius, centre - step + slack)
    possible &= (lower <= upper).all(1)
    outward = 4 * np.finfo(float).eps * (np.abs(centre) + radius)
    return boxes._replace(
        centre=(lower + upper) / 2, radius=(upper - lower) / 2 + outward
    ), possible


def _halved(boxes: _Boxes, score: Array) -> _Boxes:
    """Both halves of each box, cut across the dimension of the highest score."""
    widest = boxes.radius.max(1, keepdims=True)
    # Without chords to tighten the widest is as good as any; slivers help nobody.
    score = np.where(boxes.radius > 1e-3 * widest, score + 1e-300 * boxes.radius / widest, -1)
    step = np.where(np.arange(score.shape[1]) == score.argmax(1)[:, None], boxes.radius / 2, 0)
    radius = boxes.radius - step
    return _joined(
        [
            boxes._replace(centre=boxes.centre - step, radius=radius),
            boxes._replace(centre=boxes.centre + step, radius=radius),
        ]
    )


def _solved(
    equation: _Equation, boxes: _Boxes, first: NDArray[np.intp], last: NDArray[np.intp], size: float
) -> tuple[Array, Array, NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]:
    """Solve every combination of pieces of the undecided units.

    Returns:
        Isolated solutions, bounds on their errors and the box of each; per box, whether it holds a
        continuum, and whether a singular system leaves it unclear if it does.
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
    Y, excluded = _inverse(G), np.zeros(len(G), bool)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        defect = np.abs(np.eye(G.shape[1]) - Y @ G).sum(-1).max(-1)
        error = 2 * (np.abs(Y) @ rounding[..., None])[..., 0]
        regular = (defect < 0.5) & (error.max(-1) <= LARGEST_ERROR * size)
        z = centre - (Y @ misfit)[..., 0]
        if not regular.all():
            # In the axes of the singular values a system without solution shows in one row. What
            # has one is tested at the solution next to the centre.
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
    continuum = np.bincount(box[holds & ~regular], minlength=count) > 0
    unclear = (np.bincount(box[~regular & ~excluded], minlength=count) > 0) & ~continuum
    listed = holds & regular
    return z[listed], error[listed], box[listed], continuum, unclear


def _on_pieces(
    equation: _Equation,
    matrix: Array,
    constant: Array,
    units: NDArray[np.intp],
    piece: NDArray[np.intp],
) -> tuple[Array, Array]:
    """Matrix and constant with units, ``(box, unit)``, put on a piece each."""
    n, m = equation.outgoing.take(units, 0), equation.incoming.take(units, 0)
    slope, intercept = equation.line(units, piece)
    return (
        matrix - (n * slope[..., None]).mT @ m,
        constant + (intercept[:, None] @ n)[:, 0],
    )


def _solved_at_centre(
    equation: _Equation, boxes: _Boxes, size: float
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
    return _solved(equation, _Boxes(boxes.centre, radius, G, q, none), none, none, size)


def _rotated(found: _Found, period: int) -> tuple[Array, Array]:
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


def _check(network: PiecewiseLinear, period: int) -> None:
    """Refuse a network that is not one."""
    if period not in (1, 2, 3):
        raise ValueError(f"period is {period}; choose 1 (fixed points), 2 or 3")
    n = np.asarray(network.n)
    latent_dim, num_neurons = n.shape if n.ndim == 2 else (0, 0)
    if latent_dim == 0 or num_neurons == 0:
        raise ValueError(f"n has shape {n.shape}; give (latent, neuron), at least one of each")
    shapes = {
        "a": (latent_dim,),
        "m": (num_neurons, latent_dim),
        "offset": (latent_dim,),
        "breakpoints": (num_neurons, 2),
        "slopes": (num_neurons, 3),
        "intercepts": (num_neurons, 3),
    }
    for name, shape in shapes.items():
        if np.shape(getattr(network, name)) != shape:
            raise ValueError(
                f"{name} has shape {np.shape(getattr(network, name))} where n of shape {n.shape} "
                f"calls for {shape}; reshape it"
            )
    for name in ("n", *shapes):
        values = getattr(network, name)
        allowed = np.isfinite(values) | ((name == "breakpoints") & (values == np.inf))
        if not allowed.all():
            raise ValueError(f"{name} holds NaN or infinity; replace it by finite numbers")
    if not ((network.a >= 0) & (network.a < 1)).all():
        raise ValueError("a must lie in [0, 1) in every latent; divide by what it exceeds")
    kinks = network.breakpoints
    if (kinks[:, 0] > kinks[:, 1]).any():
        raise ValueError("breakpoints must ascend; sort them, with their slopes and intercepts")
    position = np.where(np.isfinite(kinks), kinks, 0)
    jump = np.diff(network.slopes) * position + np.diff(network.intercepts)
    if (np.isfinite(kinks) & (np.abs(jump) > 1e-9 * (1 + np.abs(position)))).any():
        raise ValueError("the pieces of phi must meet at its breakpoints; correct the intercepts")
