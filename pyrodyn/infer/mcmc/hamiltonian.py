"""Hamiltonian Monte Carlo on many independent posteriors at once, several chains of each.

The position y of a chain moves with a momentum p ~ N(0, I) by leapfrog steps of size e in
coordinates that a root W of the posterior's approximate covariance whitens::

    p <- p + e/2 W' dL(y)/dy
    y <- y + e W p                           repeated `num_leapfrog` times
    p <- p + e/2 W' dL(y)/dy

and is accepted with probability min(1, exp(-dH)), H = p'p / 2 - L(y). An H that is not finite is a
rejection, so that a posterior that diverges harms no other. Step sizes are jittered, so that no
trajectory is periodic.

Warm-up: half of it runs with W = diag(s), s the standard deviations given. Then the curvature of
every posterior, averaged over its chains, sets W for the other half and for the draws::

    J = mean over chains of -d^2 L / dy^2,     W W' = J^-1

by differences of gradients along each coordinate. The average over draws of a posterior is its
Fisher information, positive definite; of the estimate, small and negative eigenvalues are raised to
`LEAST_CURVATURE` in units of s^-2. Each half adapts the step size of every posterior to an
acceptance of `TARGET` by dual averaging.

Sources: Neal 2011; Hoffman & Gelman 2014 (dual averaging, section 3.2).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]
"""L: from positions ``(chain, trial, dim)`` to their log densities ``(chain, trial)``."""

TARGET = 0.8
"""Acceptance that step sizes are adapted to."""

JITTER = 0.3
"""Step sizes are multiplied by uniform draws from 1 - JITTER to 1 + JITTER."""

DIFFERENCE = 0.3
"""Distance of the differences of gradients, in standard deviations."""

LEAST_CURVATURE = 0.05
"""Smallest eigenvalue of the curvature, in units of the given standard deviations."""

MOST_DIMS = 600
"""Dimensions up to which the curvature is estimated: it takes as many gradients."""

DIVERGED = 1000.0
"""Error of H above which a trajectory counts as divergent (Betancourt 2017)."""


class Chains(NamedTuple):
    """Draws of Hamiltonian Monte Carlo, and what it did.

    Attributes:
        positions: y after every trajectory.
        log_density: L(y).
        acceptance: mean acceptance probability after the warm-up.
        divergences: divergent trajectories after the warm-up, of all chains.
        step_size: e.
    """

    positions: Float[Tensor, "chain draw trial dim"]
    log_density: Float[Tensor, "chain draw trial"]
    acceptance: Float[Tensor, " trial"]
    divergences: Float[Tensor, " trial"]
    step_size: Float[Tensor, " trial"]


class Point(NamedTuple):
    """A position with its log density and gradient."""

    y: Float[Tensor, "chain trial dim"]
    log_density: Float[Tensor, "chain trial"]
    gradient: Float[Tensor, "chain trial dim"]


class Trajectory(NamedTuple):
    """The end of a trajectory.

    Attributes:
        point: the next point of every chain: the end, or the start if it is rejected.
        acceptance: min(1, exp(-dH)).
        diverged: whether dH exceeds `DIVERGED` or is not finite.
    """

    point: Point
    acceptance: Float[Tensor, "chain trial"]
    diverged: Bool[Tensor, "chain trial"]


class StepSize(NamedTuple):
    """Dual averaging of log e, from an initial value that it is drawn towards.

    Attributes:
        centre: mu, log(10 e_0).
        log_step: log e of the next iteration.
        log_average: the averaged log e, used after the warm-up.
        error: the averaged difference between target and acceptance.
        iteration: m.
    """

    centre: Float[Tensor, " trial"]
    log_step: Float[Tensor, " trial"]
    log_average: Float[Tensor, " trial"]
    error: Float[Tensor, " trial"]
    iteration: int

    @classmethod
    def starting_at(cls, step: Float[Tensor, " trial"]) -> "StepSize":
        """The state before the first iteration."""
        log_step = step.log()
        return cls(log_step + math.log(10), log_step, log_step, torch.zeros_like(step), 0)

    def updated(self, acceptance: Float[Tensor, " trial"]) -> "StepSize":
        """After an iteration; gamma = 0.05, t_0 = 10 and kappa = 0.75 as in the source."""
        m = self.iteration + 1
        error = self.error + (TARGET - acceptance - self.error) / (m + 10)
        log_step = self.centre - m**0.5 / 0.05 * error
        log_average = self.log_average + m**-0.75 * (log_step - self.log_average)
        return self._replace(log_step=log_step, log_average=log_average, error=error, iteration=m)


def hamiltonian_monte_carlo(
    log_density: LogDensity,
    start: Float[Tensor, "chain trial dim"],
    scale: Float[Tensor, "trial dim"],
    *,
    num_draws: int,
    num_warmup: int,
    num_leapfrog: int,
) -> Chains:
    """Draw from every trial's density.

    Args:
        log_density: L.
        start: of every chain, where L is finite.
        scale: s.
        num_draws: trajectories per chain that are kept.
        num_warmup: trajectories before them.
        num_leapfrog: steps per trajectory.
    """
    dim = start.shape[-1]
    point = evaluate(log_density, start)
    root = torch.diag_embed(scale)
    first = num_warmup // 2 if dim <= MOST_DIMS else num_warmup
    initial = StepSize.starting_at(torch.full_like(scale[:, 0], dim**-0.25))
    step = initial
    for iteration in range(num_warmup):
        if iteration == first:
            root, step = whitening(log_density, point, scale), initial
        moved = trajectory(log_density, point, root, step.log_step.exp(), num_leapfrog)
        point, step = moved.point, step.updated(moved.acceptance.mean(0))
    step_size = step.log_average.exp()
    kept = []
    for _ in range(num_draws):
        moved = trajectory(log_density, point, root, step_size, num_leapfrog)
        point = moved.point
        kept.append(moved)
    return Chains(
        positions=torch.stack([each.point.y for each in kept], 1),
        log_density=torch.stack([each.point.log_density for each in kept], 1),
        acceptance=torch.stack([each.acceptance for each in kept]).mean((0, 1)),
        divergences=torch.stack([each.diverged for each in kept]).sum((0, 1)).to(scale),
        step_size=step_size,
    )


def evaluate(log_density: LogDensity, y: Float[Tensor, "chain trial dim"]) -> Point:
    """L and its gradient."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        value = log_density(y)
        (gradient,) = torch.autograd.grad(value.sum(), y)
    return Point(y.detach(), value.detach(), gradient)


def trajectory(
    log_density: LogDensity,
    point: Point,
    root: Float[Tensor, "trial dim dim"],
    step: Float[Tensor, " trial"],
    num_leapfrog: int,
) -> Trajectory:
    """One trajectory of every chain from a new momentum, accepted or not."""
    momentum = torch.randn_like(point.y)
    jitter = 1 + JITTER * (2 * torch.rand_like(point.log_density) - 1)
    e = (step * jitter)[..., None]
    end, p = point, momentum + e / 2 * whitened(point.gradient, root.mT)
    for _ in range(num_leapfrog - 1):
        end = evaluate(log_density, end.y + e * whitened(p, root))
        p = p + e * whitened(end.gradient, root.mT)
    end = evaluate(log_density, end.y + e * whitened(p, root))
    p = p + e / 2 * whitened(end.gradient, root.mT)

    kinetic = 0.5 * (p.square().sum(-1) - momentum.square().sum(-1))
    error = (kinetic - end.log_density + point.log_density).nan_to_num(nan=torch.inf)
    acceptance = (-error).clamp_max(0).exp()
    accepted = torch.rand_like(acceptance) < acceptance
    chosen = Point(
        torch.where(accepted[..., None], end.y, point.y),
        torch.where(accepted, end.log_density, point.log_density),
        torch.where(accepted[..., None], end.gradient, point.gradient),
    )
    return Trajectory(chosen, acceptance, error > DIVERGED)


def whitened(
    vectors: Float[Tensor, "chain trial dim"], root: Float[Tensor, "trial dim dim"]
) -> Float[Tensor, "chain trial dim"]:
    """The matrix of each trial applied to the vectors of all its chains."""
    return torch.bmm(root, vectors.permute(1, 2, 0)).permute(2, 0, 1)


def whitening(
    log_density: LogDensity, point: Point, scale: Float[Tensor, "trial dim"]
) -> Float[Tensor, "trial dim dim"]:
    """W of every trial, from the curvature at the positions of its chains."""
    sides = torch.ones_like(point.log_density)
    sides[1::2] = -1  # so that odd terms of L cancel between chains
    rows = []
    for d in range(scale.shape[1]):
        y = point.y.clone()
        y[..., d] += DIFFERENCE * sides * scale[:, d]
        change = evaluate(log_density, y).gradient - point.gradient
        curvature = -(sides / DIFFERENCE)[..., None] * change * scale
        rows.append(curvature.nan_to_num(0.0, 0.0, 0.0).mean(0))
    J = torch.stack(rows, -2).double()
    values, vectors = torch.linalg.eigh(0.5 * (J + J.mT))
    root = vectors * values.clamp_min(LEAST_CURVATURE).rsqrt()[..., None, :]
    return scale[..., None] * root.to(scale)
