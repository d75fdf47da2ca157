"""Branch and bound within a budget: a box that contains all solutions, then all solutions in a box.

Each box is relaxed and contracted. It is then discarded, solved piece by piece if few units are
undecided, contracted again if that shrank it much, or halved. Boxes wait on a stack in batches that
fit in the cache. When the budget is spent, the boxes that remain are counted: a list is complete
only if there are none.
"""

import time
from typing import NamedTuple

import numpy as np

from pyrodyn.analysis.fixed_points.certified.boxes import (
    Boxes,
    contracted,
    gain,
    halved,
    image,
    joined,
    relax,
    whole_boxes,
)
from pyrodyn.analysis.fixed_points.certified.equation import Equation, at_infinity
from pyrodyn.analysis.fixed_points.certified.leaves import SMALLEST_BOX, solved, solved_at_centre
from pyrodyn.analysis.fixed_points.certified.network import Array, PiecewiseLinear

BATCH_ENTRIES = 60_000
"""Boxes x undecided units processed at once, so that their arrays stay in the cache."""
LEAF_UNITS = 3
"""Boxes with at most this many undecided units are solved piece by piece instead of halved."""
SMALLEST_FACE = 1e-5
"""Half-width on the unit cube at which a box that may contain a solution ends the proof."""
ENOUGH = 0.25
"""A box that shrank below this fraction of its volume is contracted again instead of halved."""


class Found(NamedTuple):
    """What a search found.

    Attributes:
        points: ``(solution, dim)``, approximate and not yet merged.
        errors: ``(solution, dim)`` bounds on their errors.
        num_left: boxes that remain undecided.
        volume_left: the fraction of the searched volume in them.
        num_singular: boxes with a continuum of solutions.
    """

    points: Array
    errors: Array
    num_left: int
    volume_left: float
    num_singular: int


class Budget:
    """Number of boxes left to examine, and a deadline in processor time of this thread."""

    def __init__(self, boxes: int, deadline: float) -> None:
        self.boxes = boxes
        self.deadline = deadline

    def spent(self) -> bool:
        """Whether the search has to stop."""
        return self.boxes <= 0 or time.thread_time() > self.deadline


class Stack:
    """Boxes to examine, in batches that fit in the cache."""

    def __init__(self, boxes: Boxes) -> None:
        self.batches = [boxes]

    def __len__(self) -> int:
        return sum(len(boxes.centre) for boxes in self.batches)

    def volume(self, unit: Array) -> float:
        """Volume of all boxes, that of a box with the given half-widths being 1."""
        # A latent without inputs has no width.
        relative = (
            np.divide(boxes.radius, unit, out=np.ones_like(boxes.radius), where=unit > 0)
            for boxes in self.batches
        )
        return float(sum(sides.prod(1).sum() for sides in relative))

    def push(self, boxes: Boxes) -> None:
        """Add boxes, grouped by their numbers of undecided units, largest first."""
        units = (boxes.undecided >= 0).sum(1)
        while len(units):
            few = units < units.max() / 2
            self.batches.append(
                boxes.at(~few)._replace(undecided=boxes.undecided[~few, : units.max()])
            )
            boxes, units = boxes.at(few), units[few]

    def pop(self, most: int) -> Boxes:
        """At most that many boxes off the top, with lists no longer than that of the first."""
        widest = self.batches[-1].undecided.shape[1] + 1
        room = min(most, max(1, BATCH_ENTRIES // widest))
        taken: list[Boxes] = []
        while self.batches and room > 0 and self.batches[-1].undecided.shape[1] < widest:
            boxes = self.batches.pop()
            if len(boxes.centre) > room:
                self.batches.append(boxes.at(slice(room, None)))
                boxes = boxes.at(slice(0, room))
            taken.append(boxes)
            room -= len(boxes.centre)
        return joined(taken)


def bounding_box(
    network: PiecewiseLinear, equation: Equation, budget: Budget
) -> tuple[Array, Array] | None:
    """Corners of a box that provably contains all fixed points or cycles, if any."""
    ends, distance = at_infinity(equation)
    if not ends.slopes.any():
        # Then phi is bounded by its values at the kinks and on its constant first piece.
        flat = network.intercepts[:, :1].T
        values = equation.kink_values[:, : flat.size]
        values = np.where(np.isfinite(equation.breakpoints[:, : flat.size]), values, flat)
        values = np.concatenate([values, flat]).T
        sent = network.n[..., None] * values
        slack = 1e-9 * np.abs(sent).max(-1).sum(-1)
        ends_of_push = np.stack(
            [
                sent.min(-1).sum(-1) + network.offset - slack,
                sent.max(-1).sum(-1) + network.offset + slack,
            ]
        )
        # z_p = a^p z_0 + sum_k a^k push_(p-k), and a cycle returns to z_0.
        period = len(equation.offset) // len(network.a)
        powers = network.a ** np.arange(period)[:, None] / (1 - network.a**period)
        reached = powers[:, None] * ends_of_push
        return reached.min(1).sum(0), reached.max(1).sum(0)
    weight = np.maximum(distance, 0.1 * distance.max()) if distance.any() else distance + 1
    smallest = _smallest_on_cube(ends, weight, budget)
    if smallest is None:
        return None
    size = np.full(len(network.a), 1 / smallest if distance.any() else 0.0)
    return -size, size


def _smallest_on_cube(equation: Equation, weight: Array, budget: Budget) -> float | None:
    """Lower bound on max_r |z - F(z)|_r / weight_r over |z|_inf = 1, or None if it may be 0.

    The bound is at least half of the true minimum: boxes are halved until their bound is above half
    of the smallest value at the centre of any box.
    """
    dim = len(weight)
    centre = np.concatenate([np.eye(dim), -np.eye(dim)])
    boxes = whole_boxes(equation, centre, 1.0 - np.abs(centre))
    stack, bound, smallest = Stack(boxes), np.inf, np.inf
    while len(stack):
        if budget.spent():
            return None
        boxes = stack.pop(budget.boxes)
        budget.boxes -= len(boxes.centre)
        boxes, relaxed = relax(equation, boxes)
        with np.errstate(invalid="ignore", over="ignore"):
            P = np.concatenate(
                [gain(boxes, relaxed)[1], np.tile(np.eye(dim), (len(boxes.centre), 1, 1))], 1
            )
            misfit, slack = image(P, boxes, relaxed)
            slack += (np.abs(P @ relaxed.G) @ boxes.radius[..., None])[..., 0]
            proved = np.fmax.reduce((np.abs(misfit) - slack) / (np.abs(P) @ weight), axis=1)
        smallest = min(smallest, (np.abs(equation.residual(boxes.centre)) / weight).max(1).min())
        enough = proved >= smallest / 2
        bound = min(bound, proved[enough].min(initial=np.inf))
        if (boxes.radius[~enough].max(1) < SMALLEST_FACE).any() or smallest == 0:
            return None
        stack.push(halved(boxes.at(~enough), relaxed.score[~enough]))
    return float(bound)


def search(equation: Equation, lower: Array, upper: Array, period: int, budget: Budget) -> Found:
    """All solutions of the equation in a box."""
    radius = (upper - lower) / 2
    size = float(np.maximum(np.abs(lower), np.abs(upper)).max())
    stack = Stack(whole_boxes(equation, (lower + upper)[None] / 2, radius[None]))
    points, errors = [np.empty((0, len(lower)))], [np.empty((0, len(lower)))]
    num_singular = num_undecided = 0
    latent_dim = len(lower) // period
    while len(stack) and not budget.spent():
        boxes = stack.pop(budget.boxes)
        budget.boxes -= len(boxes.centre)
        boxes, relaxed = relax(equation, boxes)
        before = boxes.radius
        boxes, possible = contracted(boxes, relaxed)
        starts, reach = boxes.centre[:, ::latent_dim], boxes.radius[:, ::latent_dim]
        # One rotation of each cycle is enough: that which starts highest in the first latent.
        possible &= (starts[:, :1] + reach[:, :1] >= starts - reach).all(1)
        few = (boxes.undecided >= 0).sum(1) <= LEAF_UNITS
        tiny = (boxes.radius <= SMALLEST_BOX * size).all(1)
        open_ = possible & ~few & ~tiny
        leaf = possible & few
        if leaf.any():
            z, error, _, singular, unclear = solved(
                equation, boxes.at(leaf), relaxed.first[leaf], relaxed.last[leaf], size
            )
            points.append(z)
            errors.append(error)
            num_singular += int((singular | unclear & tiny[leaf]).sum())
            open_[leaf] = unclear & ~tiny[leaf]
        knot = possible & tiny & ~few
        if knot.any():
            z, error, box, singular, unclear = solved_at_centre(equation, boxes.at(knot), size)
            points.append(z)
            errors.append(error)
            settled = singular | unclear
            num_singular += int(settled.sum())
            settled[box] = True
            num_undecided += int((~settled).sum())
        # A latent without inputs has no width.
        left = np.divide(boxes.radius, before, out=np.ones_like(before), where=before > 0)
        shrunk = left.prod(1) < ENOUGH
        stack.push(boxes.at(open_ & shrunk))
        cut = open_ & ~shrunk
        stack.push(halved(boxes.at(cut), relaxed.score[cut]))
    return Found(
        np.concatenate(points),
        np.concatenate(errors),
        len(stack) + num_undecided,
        stack.volume(radius),
        num_singular,
    )
