"""A linear dynamical system fitted by expectation maximisation, as a baseline::

    z_1 ~ N(mu, S),  z_t = A z_{t-1} + e_t,  e_t ~ N(0, Q)
    x_t = C z_t + d + n_t,  n_t ~ N(0, R),  R diagonal

The E step is the smoother of `pyrodyn.infer.kalman`, in double precision.

Source: Ghahramani & Hinton (1996), "Parameter estimation for linear dynamical systems".
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyrodyn.analysis.scores.rates import Array, Mask
from pyrodyn.distributions.gaussian import Covariance
from pyrodyn.infer.kalman.kalman_filter import kalman_recursion
from pyrodyn.infer.kalman.kalman_smoother import smoothed_moments
from pyrodyn.models.linear_gaussian import LinearGaussian

FIRST_DECAY = 0.9
"""Decay per bin of all latents before the first iteration."""

SMALLEST_VARIANCE = 1e-6
"""Fraction of an observed variable's variance below which its noise does not fall."""


class LinearSystem(NamedTuple):
    """Parameters.

    Attributes:
        A: ``(latent, latent)``.
        Q: ``(latent, latent)``.
        mu: ``(latent,)``.
        S: ``(latent, latent)``.
        C: ``(observed, latent)``.
        d: ``(observed,)``.
        R: ``(observed,)``, the diagonal.
    """

    A: Array
    Q: Array
    mu: Array
    S: Array
    C: Array
    d: Array
    R: Array


class SmoothedStates(NamedTuple):
    """Posterior moments given all bins of a trial.

    Attributes:
        mean: ``(trial, time, latent)``.
        pattern: ``(trial,)``; trials of one pattern have the same measured bins.
        covariance: ``(pattern, time, latent, latent)``.
        lag_one: Cov[z_{t+1}, z_t], ``(pattern, time - 1, latent, latent)``.
        log_evidence: log p(x) of all trials together.
    """

    mean: Array
    pattern: NDArray[np.intp]
    covariance: Array
    lag_one: Array
    log_evidence: float


def fit_linear_dynamics(
    x: Array, measured: Mask, dim: int, num_iterations: int = 30
) -> LinearSystem:
    """Maximise the likelihood by EM, from the principal components.

    Args:
        x: ``(trial, time, observed)``.
        measured: bool, ``(trial, time)``; bins that are false are missing.
        dim: number of latents, at most that of observed variables.
        num_iterations: of EM.

    Returns:
        The parameters.
    """
    system = _first(x, measured, dim)
    for _ in range(num_iterations):
        system = _maximised(x, measured, smoothed_states(system, x, measured))
    return system


def smoothed_states(system: LinearSystem, x: Array, measured: Mask) -> SmoothedStates:
    """Posterior moments of the latents.

    Args:
        system: the parameters.
        x: ``(trial, time, observed)``.
        measured: bool, ``(trial, time)``; the values of bins that are false are not read.
    """
    A, Q, mu, S, C, d, R = (torch.from_numpy(each) for each in system)
    b = mu.new_zeros(1, x.shape[1], len(mu))
    b[0, 0] = mu
    first, later = (Covariance.of_factor(torch.linalg.cholesky(each)) for each in (S, Q))
    weight = torch.from_numpy(measured)[..., None].expand(x.shape).double()
    found = kalman_recursion(
        LinearGaussian(A, b, first, later, C, d, R), torch.from_numpy(x), weight
    )
    mean, covariance, lag_one = (each.numpy() for each in smoothed_moments(found))
    evidence = float(found.log_evidence.sum())
    return SmoothedStates(mean, found.pattern.numpy(), covariance, lag_one, evidence)


def _first(x: Array, measured: Mask, dim: int) -> LinearSystem:
    """Latents of unit variance whose loadings are the principal components."""
    rows = x[measured]
    d, variance = rows.mean(0), rows.var(0) + SMALLEST_VARIANCE
    values, axes = np.linalg.eigh(np.cov(rows.T, bias=True).reshape(len(d), len(d)))
    C = axes[:, ::-1][:, :dim] * np.sqrt(np.maximum(values[::-1][:dim], SMALLEST_VARIANCE))
    R = np.maximum(variance - np.square(C).sum(1), 0.1 * variance)
    one = np.eye(dim)
    return LinearSystem(FIRST_DECAY * one, (1 - FIRST_DECAY**2) * one, np.zeros(dim), one, C, d, R)


def _maximised(x: Array, measured: Mask, states: SmoothedStates) -> LinearSystem:
    """The parameters of greatest expected log likelihood."""
    mean, pattern, covariance, lag_one, _ = states
    dim, num_trials = mean.shape[-1], len(mean)
    num_steps = num_trials * lag_one.shape[1]
    trials = np.bincount(pattern).astype(float)

    def total(per_pattern: Array, left: Array, right: Array) -> Array:
        """E[sum over trials and bins of a b'], from Cov[a, b] and the means."""
        between = np.einsum("p,ptij->ij", trials, per_pattern)
        return between + np.einsum("nti,ntj->ij", left, right, optimize=True)

    before = total(covariance[:, :-1], mean[:, :-1], mean[:, :-1])
    after = total(covariance[:, 1:], mean[:, 1:], mean[:, 1:])
    across = total(lag_one, mean[:, 1:], mean[:, :-1])
    A = np.linalg.solve(before, across.T).T
    Q = _symmetric((after - A @ across.T) / num_steps)
    mu = mean[:, 0].mean(0)
    first = total(covariance[:, :1], mean[:, :1], mean[:, :1]) / num_trials
    S = _symmetric(first - np.outer(mu, mu))

    rows, latents = x[measured], mean[measured]
    extended = np.concatenate([latents, np.ones((len(latents), 1))], 1)
    gram = extended.T @ extended
    weights = np.zeros(covariance.shape[:2])
    np.add.at(weights, pattern, measured)
    gram[:dim, :dim] += np.einsum("pt,ptij->ij", weights, covariance)
    loading = np.linalg.solve(gram, extended.T @ rows).T
    R = np.square(rows).mean(0) - (loading * (rows.T @ extended)).sum(1) / len(rows)
    R = np.maximum(R, SMALLEST_VARIANCE * (rows.var(0) + SMALLEST_VARIANCE))
    return LinearSystem(A, Q, mu, S, loading[:, :dim], loading[:, dim], R)


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2 + SMALLEST_VARIANCE * np.eye(len(matrix))
