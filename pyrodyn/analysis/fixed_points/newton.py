"""Fixed and slow points of any smooth dynamics, by a search from many states at once.

A fixed point is a zero of the residual over one bin, and a slow point a minimum of its size::

    g(z) = step(z, i) - z            maps
    g(z) = T field(z, i)             flows, bins of T seconds
    q(z) = |g(z)|^2 / 2              minimised from every start

by Levenberg-Marquardt steps with exact Jacobians J = dg / dz, in double precision::

    (J' J + mu |g| I) d = -J' g
    rho = (q(z) - q(z + d)) / (q(z) - |g + J d|^2 / 2)       actual over predicted decrease
    z <- z + d if rho > 0;  mu shrinks where rho is near 1 and grows where it is small

Each start has its own mu, which rises faster than it falls: saturating networks have many curved
valleys of q, in which too long a step is rejected. Since the damping is proportional to the norm of
g, convergence to a regular fixed point is quadratic nevertheless; where J is singular, d stays
finite.
Starts that have converged leave the batch. Newton's steps then reduce their residuals to rounding,
as within the tolerance a nearly neutral point is surrounded by others that are none. Starts that
converge to the same point are merged. A
search may miss fixed points: its list is never complete, unlike that of `certified`.

Sources: Sussillo & Barak (2013, Neural Computation 25) for the question and for slow points;
Levenberg (1944), Marquardt (1963); Fan & Yuan (2005, Computing 74) for such damping.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrodyn.analysis.fixed_points.certified import MARGIN
from pyrodyn.models.dynamics import Dynamics

MAX_ITERATIONS = 100
"""Steps per start; most converge within 20."""
DAMPING = 1e-2
"""Initial damping, relative to the largest diagonal entry of J' J."""
STATIONARY = 1e-6
"""At a slow point the norm of J' g is below this fraction of the product of the norms."""
MERGED = 1e-5
"""Fixed points closer than this fraction of the states' size are merged."""
MERGED_SLOW = 1e-3
"""The same for slow points, whose locations are known less exactly."""
NEAR_KINK = 1e-6
"""A point is on a kink if the Jacobian jumps within this fraction of the states' size."""
TINY = torch.finfo(torch.float64).tiny


class Residual(NamedTuple):
    """g and its Jacobian under constant inputs.

    Attributes:
        value: ``(row, state)`` to ``(row, state)``.
        jacobian: ``(row, state)`` to ``(row, state, state)``.
    """

    value: Callable[[Tensor], Tensor]
    jacobian: Callable[[Tensor], Tensor]


class Minima(NamedTuple):
    """Where the minimisations ended.

    Attributes:
        state: the final states.
        is_fixed: the size of g is within the tolerance.
        is_stationary: a minimum of q that is not a fixed point.
        num_iterations: of the start that took the most.
    """

    state: Float[Tensor, "row state"]
    is_fixed: Bool[Tensor, " row"]
    is_stationary: Bool[Tensor, " row"]
    num_iterations: int


def search_fixed_points(
    dynamics: Dynamics,
    starts: Float[Tensor, "row state"],
    inputs: Float[Tensor, " input"],
    *,
    lower: Float[Tensor, " state"],
    upper: Float[Tensor, " state"],
    tolerance: float = 1e-9,
    max_seconds: float | None = None,
) -> xr.Dataset:
    """Fixed and slow points that the search reaches from the given starts.

    Args:
        dynamics: in double precision.
        starts: initial states.
        inputs: constant.
        lower: lower corner of the box in which points count.
        upper: its upper corner.
        tolerance: largest entry of g at a fixed point, relative to 1 + the largest entry of z.
        max_seconds: stop after so much processor time of the calling thread, with what has
            converged by then.

    Returns:
        ``point (fixed_point, latent)``; ``jacobian (fixed_point, latent, by)`` of the step, or for
        flows of the field; ``eigenvalues (fixed_point, mode)`` of it, for maps largest modulus
        first, for flows largest real part first;
        ``stability (fixed_point)``: "stable", "saddle", "unstable" (all modes grow), "marginal"
        (one neither grows nor decays, to 1e-9 per bin) or "kink" (the Jacobian jumps at the point,
        and it and its eigenvalues are NaN); ``residual (fixed_point)``, the largest
        entry of g; ``num_starts (fixed_point)``, how many starts converged to it. The same for slow
        points, along ``slow_point``, as ``slow_state``, ``slow_jacobian``, ``slow_eigenvalues``,
        ``slow_residual`` and ``slow_num_starts``. In the attributes: ``kind``, "map" or "flow";
        ``complete``, always 0; ``num_starts`` in all; ``num_unfinished``, starts that did not
        converge; ``num_outside``, starts that converged outside the box; ``num_iterations``,
        ``tolerance``, ``seconds`` (processor time of the calling thread), ``lower`` and ``upper``.
    """
    start_time = time.thread_time()
    deadline = np.inf if max_seconds is None else start_time + max_seconds
    g = residual_of(dynamics, inputs)
    with torch.no_grad():
        minima = levenberg_marquardt(g, starts, tolerance, deadline)
        minima.state[minima.is_fixed] = polished(minima.state[minima.is_fixed], g)
        is_inside = ((minima.state >= lower) & (minima.state <= upper)).all(-1)
        fixed, fixed_starts = merged(minima.state[minima.is_fixed & is_inside], g, MERGED)
        slow_states = minima.state[minima.is_stationary & is_inside]
        slow, slow_starts = merged(slow_states, g, MERGED_SLOW)
        found = {
            **_described(dynamics, g, fixed, fixed_starts, "fixed_point", ""),
            **_described(dynamics, g, slow, slow_starts, "slow_point", "slow_"),
        }
    has_converged = minima.is_fixed | minima.is_stationary
    return xr.Dataset(
        found,
        attrs={
            "kind": "map" if dynamics.vector_field is None else "flow",
            "complete": 0,
            "num_starts": len(starts),
            "num_unfinished": int((~has_converged).sum()),
            "num_outside": int((has_converged & ~is_inside).sum()),
            "num_iterations": minima.num_iterations,
            "tolerance": tolerance,
            "seconds": time.thread_time() - start_time,
            "lower": lower.numpy(),
            "upper": upper.numpy(),
        },
    )


def residual_of(dynamics: Dynamics, inputs: Float[Tensor, " input"]) -> Residual:
    """Displacement of a state over one bin (flows: to first order), with its Jacobian."""
    field = dynamics.vector_field

    def value(state: Tensor) -> Tensor:
        constant = inputs.expand(*state.shape[:-1], -1)
        if field is None:
            return dynamics.step(state, constant) - state
        return dynamics.bin_width * field(state, constant)

    def jacobian(state: Tensor) -> Tensor:
        constant = inputs.expand(*state.shape[:-1], -1)
        if field is None:
            return dynamics.jacobian(state, constant) - torch.eye(
                state.shape[-1], dtype=state.dtype
            )
        return dynamics.bin_width * dynamics.field_jacobian(state, constant)

    return Residual(value, jacobian)


def levenberg_marquardt(
    g: Residual,
    starts: Float[Tensor, "row state"],
    tolerance: float,
    deadline: float = np.inf,
) -> Minima:
    """Minimise q from every start, until each has converged or used its iterations.

    Args:
        g: the residual.
        starts: initial states.
        tolerance: see `search_fixed_points`.
        deadline: of `time.thread_time`.
    """
    final = starts.clone()
    is_fixed = torch.zeros(len(starts), dtype=torch.bool)
    is_stationary = is_fixed.clone()

    def is_zero(z: Tensor, value: Tensor) -> Tensor:
        return value.abs().amax(-1) <= tolerance * (1 + z.abs().amax(-1))

    row, z, value = torch.arange(len(starts)), starts, g.value(starts)
    converged = is_zero(z, value)
    J = g.jacobian(z)
    mu = DAMPING * J.square().sum(-2).amax(-1) / _length(value).clamp_min(TINY)
    iteration = 0
    while True:
        gradient = torch.einsum("rij,ri->rj", J, value)
        size = _length(value)
        stationary = ~converged & (_length(gradient) <= STATIONARY * _length(J.flatten(1)) * size)
        diverged = ~(value.isfinite().all(-1) & gradient.isfinite().all(-1))
        final[row], is_fixed[row], is_stationary[row] = (
            z,
            converged & ~diverged,
            stationary & ~diverged,
        )
        active = ~(converged | stationary | diverged)
        if not active.any() or iteration == MAX_ITERATIONS or time.thread_time() > deadline:
            break
        if not active.all():
            row, z, value, J, mu = row[active], z[active], value[active], J[active], mu[active]
            gradient, size = gradient[active], size[active]
        iteration += 1
        step = _damped_step(J, gradient, mu * size)
        tried = z + step
        new_value = g.value(tried)
        predicted = size.square() - (value + torch.einsum("rij,rj->ri", J, step)).square().sum(-1)
        rho = (size.square() - new_value.square().sum(-1)) / predicted.clamp_min(TINY)
        accepted = (rho > 1e-4) & tried.isfinite().all(-1)  # NaN is not above
        mu = torch.where(rho > 0.75, mu / 2, torch.where(rho > 0.25, mu, mu * 4)).clamp_min(TINY)
        z = torch.where(accepted[:, None], tried, z)
        value = torch.where(accepted[:, None], new_value, value)
        converged = is_zero(z, value)
        needs_jacobian = accepted & ~converged
        if needs_jacobian.any():
            J[needs_jacobian] = g.jacobian(z[needs_jacobian])
    return Minima(final, is_fixed, is_stationary, iteration)


def _damped_step(
    J: Float[Tensor, "row out state"],
    gradient: Float[Tensor, "row state"],
    damping: Float[Tensor, " row"],
) -> Float[Tensor, "row state"]:
    """The solution of (J' J + damping I) d = -gradient; 0 where rounding makes it indefinite."""
    normal = J.mT @ J
    # No less than the rounding errors of the product.
    floor = 1e-15 * normal.diagonal(dim1=-2, dim2=-1).amax(-1)
    normal.diagonal(dim1=-2, dim2=-1).add_(torch.maximum(damping, floor)[:, None])
    factor, failed = torch.linalg.cholesky_ex(normal)
    step = torch.cholesky_solve(-gradient[..., None], factor)[..., 0]
    return torch.where((failed == 0)[:, None], step, torch.zeros_like(step))


def polished(states: Float[Tensor, "row state"], g: Residual) -> Float[Tensor, "row state"]:
    """States after Newton's steps, each taken if it halves the size of g."""
    if not len(states):
        return states
    value = g.value(states)
    for _ in range(MAX_ITERATIONS):
        # A singular J has no step.
        step, failed = torch.linalg.solve_ex(g.jacobian(states), value)
        tried = states - step
        new_value = g.value(tried)
        better = (failed == 0) & (_length(new_value) < _length(value) / 2)
        if not better.any():
            break
        states = torch.where(better[:, None], tried, states)
        value = torch.where(better[:, None], new_value, value)
    return states


def merged(
    states: Float[Tensor, "row state"], g: Residual, radius: float
) -> tuple[Float[Tensor, "point state"], Int[Tensor, " point"]]:
    """The state of least residual of each group of coinciding states, and the groups' sizes."""
    if not len(states):
        return states, torch.zeros(0, dtype=torch.int64)
    remaining = states[_length(g.value(states)).argsort(stable=True)]
    points, sizes = [], []
    while len(remaining):
        near = radius * (1 + remaining[0].abs().amax())
        is_same = (remaining - remaining[0]).abs().amax(-1) <= near
        points.append(remaining[0])
        sizes.append(int(is_same.sum()))
        remaining = remaining[~is_same]
    found, counts = torch.stack(points), torch.tensor(sizes)
    order = torch.from_numpy(np.lexsort(found.numpy().T[::-1]))
    return found[order], counts[order]


def _described(
    dynamics: Dynamics,
    g: Residual,
    points: Float[Tensor, "point state"],
    num_starts: Int[Tensor, " point"],
    name: str,
    prefix: str,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Eigenvalues, stability and residual of each point, as variables of a dataset."""
    dim = dynamics.state_dim
    jacobian, value = torch.zeros(0, dim, dim, dtype=points.dtype), torch.zeros_like(points)
    on_kink = np.zeros(len(points), bool)
    if len(points):
        value = g.value(points)
        jacobian, jumps = jacobian_at(g, points)
        on_kink = jumps.numpy()
    is_map = dynamics.vector_field is None
    if is_map:
        jacobian = jacobian + torch.eye(dim, dtype=points.dtype)
        eigenvalues = torch.linalg.eigvals(jacobian).numpy()
        growth = np.abs(eigenvalues) - 1
    else:
        jacobian = jacobian / dynamics.bin_width
        eigenvalues = torch.linalg.eigvals(jacobian).numpy()
        growth = eigenvalues.real * dynamics.bin_width
    order = np.argsort(-growth, axis=1, kind="stable")
    stability = np.select(
        [on_kink, (np.abs(growth) <= MARGIN).any(1), (growth < 0).all(1), (growth > 0).all(1)],
        ["kink", "marginal", "stable", "unstable"],
        "saddle",
    )
    eigenvalues = np.take_along_axis(eigenvalues, order, 1)
    jacobian[on_kink], eigenvalues[on_kink] = torch.nan, np.nan
    described: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        f"{prefix}{'state' if prefix else 'point'}": ((name, "latent"), points.numpy()),
        f"{prefix}jacobian": ((name, "latent", "by"), jacobian.numpy()),
        f"{prefix}eigenvalues": ((name, "mode"), eigenvalues),
        f"{prefix}residual": ((name,), value.abs().amax(-1).numpy()),
        f"{prefix}num_starts": ((name,), num_starts.numpy()),
    }
    if not prefix:
        described["stability"] = ((name,), stability)
    return described


def jacobian_at(
    g: Residual, points: Float[Tensor, "point state"]
) -> tuple[Float[Tensor, "point state state"], Bool[Tensor, " point"]]:
    """The Jacobian at points, and whether each is on a kink: along a generic direction, the
    difference between both sides does not shrink with the distance. Where it is only the value at
    the point itself that differs, as where kinks of several units cancel, the sides' is taken.
    """
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(points.shape[1]))
    shift = NEAR_KINK * (1 + points.abs().amax(-1, keepdim=True)) * direction
    here, across, aside = g.jacobian(points), [], []
    for part in (shift, shift / 10):
        one, other = g.jacobian(points + part), g.jacobian(points - part)
        sides = (one + other) / 2
        across.append((one - other).abs().amax((-2, -1)))
        aside.append((here - sides).abs().amax((-2, -1)))
    rounding = 1e-9 * (1 + here.abs().amax((-2, -1)))
    on_kink, is_alone = ((near > far / 2) & (near > rounding) for far, near in (across, aside))
    return torch.where((is_alone & ~on_kink)[:, None, None], sides, here), on_kink


def _length(vectors: Float[Tensor, "row entry"]) -> Float[Tensor, " row"]:
    return torch.linalg.vector_norm(vectors, dim=-1)
