"""The Rauch-Tung-Striebel smoother, and exact draws of latent trajectories::

    p(z_t | z_{t+1}, x_{1:t}) = N(m_t + G_t (z_{t+1} - p_{t+1}), V_t)
    V_t = (F_t^-1 + A' Q^-1 A)^-1,    G_t = V_t A' Q^-1

    E[z_t | x] = m_t + G_t (E[z_{t+1} | x] - p_{t+1})
    Cov[z_t | x] = V_t + G_t Cov[z_{t+1} | x] G_t'
    Cov[z_{t+1}, z_t | x] = Cov[z_{t+1} | x] G_t'

m, p and F are those of the `kalman_filter`. z_{t+1} is an observation of z_t: V_t follows from F_t
by the same update, a sum of positive terms, and a root of it serves the draws (forward filtering,
backward sampling).

Sources: Rauch, Tung & Striebel (1965); Frühwirth-Schnatter (1994).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.kalman.kalman_filter import (
    Recursion,
    by_pattern,
    conditioned,
    exact_recursion,
)
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.state_space import StateSpaceModel


class BackwardKernels(NamedTuple):
    """p(z_t | z_{t+1}, x_{1:t}) of all bins but the last.

    Attributes:
        gains: G_t.
        roots: of V_t.
    """

    gains: Float[Tensor, "pattern time dim dim"]
    roots: Float[Tensor, "pattern time dim dim"]


def backward_kernels(found: Recursion) -> BackwardKernels:
    """From the forward recursion."""
    A, precision = found.system.A, found.system.noise.precision
    roots, _ = conditioned(found.roots[:, :-1], A.mT @ precision @ A)
    return BackwardKernels(roots @ roots.mT @ A.mT @ precision, roots)


class Moments(NamedTuple):
    """Posterior moments given all bins, in double precision.

    Attributes:
        means: E[z_t | x].
        covariances: Cov[z_t | x], per pattern.
        lag_one: Cov[z_{t+1}, z_t | x], per pattern.
    """

    means: Float[Tensor, "trial time dim"]
    covariances: Float[Tensor, "pattern time dim dim"]
    lag_one: Float[Tensor, "pattern time_less_one dim dim"]


def smoothed_moments(found: Recursion) -> Moments:
    """From the forward recursion."""
    gains, roots = (each.unbind(1) for each in backward_kernels(found))
    predicted, filtered = found.predicted.unbind(1), found.means.unbind(1)
    mean, root = filtered[-1], found.roots[:, -1]
    covariance = root @ root.mT
    means, covariances, lag_one = [mean], [covariance], []
    for t in range(len(gains) - 1, -1, -1):
        mean = filtered[t] + by_pattern(gains[t], mean - predicted[t + 1], found.pattern)
        lag_one.append(covariance @ gains[t].mT)
        covariance = roots[t] @ roots[t].mT + gains[t] @ lag_one[-1]
        means.append(mean)
        covariances.append(covariance)
    dim = covariance.shape[-1]
    return Moments(
        torch.stack(means[::-1], 1),
        torch.stack(covariances[::-1], 1),
        torch.stack(lag_one[::-1], 1)
        if lag_one
        else covariance.new_empty(len(covariance), 0, dim, dim),
    )


class SmootherResult(NamedTuple):
    """The result of a Kalman smoother over a batch.

    Attributes:
        means: E[z_t | x_{1:T}].
        covariances: Cov[z_t | x_{1:T}].
        lag_one_covariances: Cov[z_{t+1}, z_t | x_{1:T}].
        log_evidence: log p(x), in double precision.
    """

    means: Float[Tensor, "trial time dim"]
    covariances: Float[Tensor, "trial time dim dim"]
    lag_one_covariances: Float[Tensor, "trial time_less_one dim dim"]
    log_evidence: Float[Tensor, " trial"]


def kalman_smoother(model: StateSpaceModel | Fit[StateSpaceModel], batch: Batch) -> SmootherResult:
    """Posterior moments of the latents of all trials of a batch given all bins, exactly.

    Gradients flow to the parameters of the model, unless it is called under ``torch.no_grad``.

    Args:
        model: a linear-Gaussian model (see `StateSpaceModel.linear_gaussian`), or its `Fit`.
        batch: its trials; entries that are not scored are missing.

    Raises:
        ValueError: for a model that is not linear and Gaussian, and a batch that does not fit it.
        ArithmeticError: where the evidence is not finite, naming trial and bin.
    """
    found = exact_recursion(model, batch)
    moments = smoothed_moments(found)
    return SmootherResult(
        moments.means.to(batch.seen),
        found.of_trials(moments.covariances).to(batch.seen),
        found.of_trials(moments.lag_one).to(batch.seen),
        found.log_evidence.sum(1),
    )


class ExactPaths(NamedTuple):
    """Draws of whole latent trajectories.

    Attributes:
        paths: z.
        log_evidence: log p(x), in double precision.
    """

    paths: Float[Tensor, "draw trial time dim"]
    log_evidence: Float[Tensor, " trial"]


@torch.no_grad()
def exact_paths(model: LatentDynamics | Fit[Any], batch: Batch, num_draws: int = 100) -> ExactPaths:
    """Independent draws of latent trajectories from p(z_{1:T} | x_{1:T}).

    Args:
        model: a linear-Gaussian model (see `StateSpaceModel.linear_gaussian`), or its `Fit`.
        batch: its trials; entries that are not scored are missing.
        num_draws: trajectories per trial.

    Raises:
        ValueError: for a model that is not linear and Gaussian, and a batch that does not fit it.
        ArithmeticError: where the evidence is not finite, naming trial and bin.
    """
    check_integer(1, num_draws=num_draws)
    found = exact_recursion(model, batch)
    gains, roots = backward_kernels(found)
    noise = torch.randn(num_draws, *found.means.shape).to(found.means)
    roots = torch.cat([roots, found.roots[:, -1:]], 1)
    last = found.means.shape[1] - 1
    path: list[Tensor] = []
    for t in range(last, -1, -1):
        mean = found.means[:, t]
        if t < last:
            shift = path[-1] - found.predicted[:, t + 1]
            mean = mean + by_pattern(gains[:, t], shift, found.pattern)
        path.append(mean + by_pattern(roots[:, t], noise[:, :, t], found.pattern))
    return ExactPaths(torch.stack(path[::-1], 2).to(batch.seen), found.log_evidence.sum(1))
