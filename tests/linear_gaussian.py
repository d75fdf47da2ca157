"""A low-rank network without kinks is a linear-Gaussian state-space model, whose evidence and
posterior are known. Here in two independent ways::

    z_1 ~ N(mu + P W i_1, S_0),  z_t = A z_{t-1} + W' i_{t-1} + e_t,  x_t ~ N(C z_t + d_t, R)

by recursion (Kalman filter, Rauch-Tung-Striebel smoother) and from the joint Gaussian of all bins.
"""

from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pyrodyn.data import Trials, recording
from pyrodyn.data.batch import Batch
from pyrodyn.models import LowRankRNN

NUM_TRIALS, NUM_BINS, NUM_CHANNELS, RANK, NUM_UNITS, NUM_INPUTS = 3, 6, 4, 2, 5, 1

Array = NDArray[np.float64]


class Exact(NamedTuple):
    """The matrices, one trial's d_t and drive per bin; every array a numpy one.

    Attributes:
        A: ``(dim, dim)``.
        pushed: mean of z_1, then what inputs add to z_t, ``(trial, time, dim)``.
        S0, S, C, R: noises and readout.
        d: ``(trial, time, channel)``.
        x: observations.
        scored: which entries count.
    """

    A: Array
    pushed: Array
    S0: Array
    S: Array
    C: Array
    R: Array
    d: Array
    x: Array
    scored: NDArray[np.bool_]


class Smoothed(NamedTuple):
    """Posterior moments of one trial.

    Attributes:
        log_evidence: log p(x).
        increments: log p(x_t | x_<t).
        filtered: E[z_t | x_1:t].
        mean: E[z_t | x].
        covariance: Cov[z_t | x].
        lag_one: Cov[z_t, z_{t-1} | x], for t from the second bin on.
    """

    log_evidence: float
    increments: Array
    filtered: Array
    mean: Array
    covariance: Array
    lag_one: Array


def data(missing: bool = False, seed: int = 0) -> xr.Dataset:
    """Signals with inputs; some samples were lost where ``missing``."""
    rng = np.random.default_rng(seed)
    shape = (NUM_TRIALS, NUM_BINS, NUM_CHANNELS)
    valid = rng.random(shape) > 0.3 if missing else None
    return recording(
        signal=rng.normal(size=shape),
        bin_width=0.01,
        inputs=rng.normal(size=(NUM_TRIALS, NUM_BINS, NUM_INPUTS)),
        **({} if valid is None else {"valid": valid}),
    )


def linear_network(recorded: xr.Dataset, seed: int = 0, **options: object) -> LowRankRNN:
    """A network without kinks, in double precision, its weights of order 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"latent_dim": RANK, "num_units": NUM_UNITS, "activation": "identity"}
        model = LowRankRNN.for_recording(recorded, **{**sizes, "noise": "full", **options})
        with torch.no_grad():
            model.raw_noise += 0.3 * torch.randn_like(model.raw_noise)
            model.start_mean += torch.randn_like(model.start_mean)
            if "n" in dict(model.named_parameters()):
                model.n *= 2
            model.observation.use_raw_units()
            scales = torch.tensor([-0.5, 0.0, 0.3, -0.2])
            for part in model.observation.singles():
                its, scales = scales.tensor_split([part.num_neurons])
                part.log_scale.copy_(its)
    return model.double()


def batch_of(recorded: xr.Dataset) -> Batch:
    """All trials, in double precision."""
    batch = Trials(recorded).batch()
    return batch.replace(x=batch.x.double(), seen=batch.seen.double(), inputs=batch.inputs.double())


def copies_of(batch: Batch, copies: int) -> Batch:
    """Every trial many times over: independent runs side by side."""
    return batch.replace(
        **{
            name: getattr(batch, name).repeat(copies, *[1] * (getattr(batch, name).ndim - 1))
            for name in ("x", "seen", "visible", "scored", "inputs", "trial")
        }
    )


@torch.no_grad()
def exact_of(model: LowRankRNN, batch: Batch) -> Exact:
    """The matrices of a network without kinks."""
    S0, S = (noise.matrix.numpy() for noise in model.process_noise())
    v = model.filtered(batch.inputs)
    drive = v @ model.input_weights.mT
    if model.is_full_rank:
        A = torch.diag(model.decay().expand(len(model.recurrent))) + model.recurrent
        pushed, projected = drive, drive
    else:
        A = torch.diag(model.decay().expand(len(model.n))) + model.n @ model.m
        pushed = drive @ model.n.mT
        projected = drive @ torch.linalg.pinv(model.m).mT
    pushed = torch.cat([model.start_mean + projected[:, :1], pushed[:, :-1]], 1)
    emission = model.linear_emission(batch)
    return Exact(
        A.numpy(),
        pushed.numpy(),
        S0,
        S,
        emission.matrix.numpy(),
        np.diag(emission.variance.numpy()),
        emission.offset.expand(batch.x.shape).numpy(),
        batch.x.numpy(),
        batch.scored.numpy(),
    )


def by_recursion(exact: Exact, trial: int) -> Smoothed:
    """Kalman filter and Rauch-Tung-Striebel smoother."""
    A, dim = exact.A, len(exact.A)
    predicted, means, covariances, increments = [], [], [], []
    for t in range(exact.x.shape[1]):
        if t == 0:
            m, P = exact.pushed[trial, 0], exact.S0
        else:
            m = A @ means[-1] + exact.pushed[trial, t]
            P = A @ covariances[-1] @ A.T + exact.S
        predicted.append((m, P))
        keep = exact.scored[trial, t]
        C, R = exact.C[keep], exact.R[np.ix_(keep, keep)]
        residual = (exact.x[trial, t] - exact.d[trial, t])[keep] - C @ m
        V = C @ P @ C.T + R
        increments.append(
            -0.5 * (residual @ np.linalg.solve(V, residual) + np.linalg.slogdet(2 * np.pi * V)[1])
            if keep.any()
            else 0.0
        )
        K = P @ C.T @ np.linalg.inv(V)
        means.append(m + K @ residual)
        covariances.append((np.eye(dim) - K @ C) @ P)
    smooth, spread, lag_one = [means[-1]], [covariances[-1]], []
    for t in range(len(means) - 2, -1, -1):
        m, P = predicted[t + 1]
        G = covariances[t] @ A.T @ np.linalg.inv(P)
        lag_one.append(spread[-1] @ G.T)
        smooth.append(means[t] + G @ (smooth[-1] - m))
        spread.append(covariances[t] + G @ (spread[-1] - P) @ G.T)
    return Smoothed(
        float(np.sum(increments)),
        np.array(increments),
        np.array(means),
        np.array(smooth[::-1]),
        np.array(spread[::-1]),
        np.array(lag_one[::-1]),
    )


def joint_posterior(exact: Exact, trial: int) -> tuple[Array, Array, float]:
    """Mean ``(time * dim,)`` and covariance of a trial's whole path, and the log evidence, from the
    mean and covariance of all latents and all scored observations at once.
    """
    A, dim = exact.A, len(exact.A)
    T = exact.x.shape[1]
    mean = np.zeros((T, dim))
    covariance = np.zeros((T, dim, T, dim))
    for t in range(T):
        mean[t] = exact.pushed[trial, t] + (A @ mean[t - 1] if t else 0)
        own = A @ covariance[t - 1, :, t - 1, :] @ A.T + exact.S if t else exact.S0
        covariance[t, :, t, :] = own
        for s in range(t + 1, T):
            power = np.linalg.matrix_power(A, s - t)
            covariance[s, :, t, :] = power @ own
            covariance[t, :, s, :] = own @ power.T
    Z = covariance.reshape(T * dim, T * dim)
    keep = exact.scored[trial].ravel()
    C = np.kron(np.eye(T), exact.C)[keep]
    R = np.kron(np.eye(T), exact.R)[np.ix_(keep, keep)]
    d, x = exact.d[trial].ravel()[keep], exact.x[trial].ravel()[keep]
    V = C @ Z @ C.T + R
    gain = Z @ C.T @ np.linalg.inv(V)
    posterior_mean = mean.ravel() + gain @ (x - d - C @ mean.ravel())
    evidence = stats.multivariate_normal(C @ mean.ravel() + d, V).logpdf(x)
    return posterior_mean, Z - gain @ C @ Z, float(evidence)


def by_joint_gaussian(exact: Exact, trial: int) -> Smoothed:
    """From `joint_posterior`."""
    T, dim = exact.x.shape[1], len(exact.A)
    mean, covariance, evidence = joint_posterior(exact, trial)
    posterior = covariance.reshape(T, dim, T, dim)
    return Smoothed(
        evidence,
        np.full(T, np.nan),
        np.full((T, dim), np.nan),
        mean.reshape(T, dim),
        np.array([posterior[t, :, t, :] for t in range(T)]),
        np.array([posterior[t, :, t - 1, :] for t in range(1, T)]),
    )


def own_parameters(model: LowRankRNN) -> dict[str, torch.nn.Parameter]:
    """What is learned of the model, without its proposal."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("proposal.")
    }


def log_evidence(model: LowRankRNN, batch: Batch) -> float:
    exact = exact_of(model, batch)
    return sum(by_recursion(exact, trial).log_evidence for trial in range(batch.num_trials))


@torch.no_grad()
def exact_score(model: LowRankRNN, batch: Batch) -> Tensor:
    """Central differences of the Kalman filter's log evidence, summed over trials."""
    score, step = [], 1e-5
    for parameter in own_parameters(model).values():
        for entry in parameter.view(-1).split(1):
            here = entry.clone()
            entry.copy_(here + step)
            ahead = log_evidence(model, batch)
            entry.copy_(here - step)
            score.append((ahead - log_evidence(model, batch)) / (2 * step))
            entry.copy_(here)
    return torch.tensor(score, dtype=torch.double)


def posterior_paths(exact: Exact, trial: int, num_draws: int) -> Array:
    """Exact draws of a trial's path, bin after bin."""
    rng = np.random.default_rng(trial)
    moments = by_recursion(exact, trial)
    covariance, lag_one = moments.covariance, moments.lag_one
    path = [rng.multivariate_normal(moments.mean[0], covariance[0], num_draws)]
    for t in range(1, len(moments.mean)):
        slope = lag_one[t - 1] @ np.linalg.inv(covariance[t - 1])
        left = covariance[t] - slope @ lag_one[t - 1].T
        noise = rng.multivariate_normal(np.zeros(len(left)), left, num_draws)
        path.append(moments.mean[t] + (path[-1] - moments.mean[t - 1]) @ slope.T + noise)
    return np.stack(path, 1)
