"""The equation that fixed points and cycles solve, and a bound on all rounding in evaluating it::

    z = linear z + sum_i outgoing_i phi_i(incoming_i z) + offset
    |computed - exact| <= epsilon (growth |z| + constant)

For cycles of period p, z contains all p phases and `linear` maps each to the next. At infinity all
kinks are at 0 and only the outermost slopes matter; the distance of the network from this limit is
bounded too, from which follows a bound on all solutions.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from pyrodyn.analysis.fixed_points.certified.network import Array, PiecewiseLinear


class Equation:
    """z = linear z + sum_i outgoing_i phi_i(incoming_i z) + offset, with one idle unit at the end.

    The idle unit pads the lists of undecided units of boxes that have fewer than others.
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
        # Every sum has at most that many products of up to three factors; the factor of four covers
        # the preconditioner and later sums of the results.
        self.epsilon = 4 * (len(self.incoming) + dim + 10) * float(np.finfo(float).eps)
        self.growth = np.eye(dim) + np.abs(linear) + sent.T @ (steep * np.abs(self.incoming))
        self.constant = np.abs(offset) + np.abs(self.intercepts).max(0) @ sent

    def rounding(self, reach: Float[ndarray, "box dim"]) -> Float[ndarray, "box dim"]:
        """Bound on all rounding in evaluating the equation where ``|z| <= reach``."""
        return self.epsilon * (reach @ self.growth.T + self.constant)

    def pieces(
        self, units: Int[ndarray, "..."], low: Float[ndarray, "..."], high: Float[ndarray, "..."]
    ) -> tuple[Int[ndarray, "..."], Int[ndarray, "..."]]:
        """First and last piece of units between low and high."""
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
        """The exact residual z - F(z), without relaxation."""
        y = z @ self.incoming.T
        units = np.broadcast_to(np.arange(y.shape[1]), y.shape)
        slope, intercept = self.line(units, self.pieces(units, y, y)[0])
        phi = slope * y + intercept
        return z - z @ self.linear.T - phi @ self.outgoing - self.offset


def equation_of(network: PiecewiseLinear, period: int) -> Equation:
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
    return Equation(linear, np.tile(network.offset, period), outgoing, incoming, *tables)


def at_infinity(equation: Equation) -> tuple[Equation, Array]:
    """The limit of the network at infinity, with all kinks at 0, and a bound on the
    absolute difference of F from it.
    """
    finite = np.isfinite(equation.breakpoints)
    units = np.arange(finite.shape[1])
    left, right = equation.slopes[0], equation.slopes[finite.sum(0), units]
    beyond = np.where(equation.kinks < 0, left, right) * equation.kinks
    at_zero = equation.intercepts[(equation.breakpoints <= 0).sum(0), units]
    at_ends = equation.intercepts[0], equation.intercepts[finite.sum(0), units]
    apart = np.stack([*np.where(finite, equation.kink_values - beyond, 0), at_zero, *at_ends])
    distance = np.abs(apart).max(0) @ np.abs(equation.outgoing) + np.abs(equation.offset)
    kink = np.where(left == right, np.inf, 0)
    ends = Equation(
        equation.linear,
        np.zeros_like(equation.offset),
        equation.outgoing[:-1],
        equation.incoming[:-1],
        kink[None, :-1],
        np.stack([left, right])[:, :-1],
        np.zeros((2, len(kink) - 1)),
    )
    return ends, distance
