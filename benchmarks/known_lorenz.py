"""The posterior mean rates of `lorenz_lfads_truth` under the true system and readout: an upper
limit on what a fitted model can infer.

The recording's latents are the states of Lorenz' system, each z-scored, and the log rates are
affine in them. Both maps are estimated from the truth: the vector field, quadratic in the latents,
from their differences in time, the readout by least squares. Trajectories from a common pool are
weighted by the Poisson likelihood of each trial.
"""

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_STARTS = 60_000
"""Trajectories in the pool."""

INITIAL_SD = 0.03
"""Standard deviation of initial states around the true latents of any trial and bin."""

SEVENTH_ORDER = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
"""Weights of central differences, by their distance in bins."""


def known_rates(recording: xr.Dataset, is_chosen: NDArray[np.bool_], seed: int) -> Array:
    """Posterior mean rates of the chosen trials, given the spikes of the neurons not held out."""
    z = recording["latents"].values.astype(float)
    log_rates = np.log(recording["rates"].values.astype(float))
    readout = np.linalg.lstsq(_with_one(z), log_rates.reshape(-1, log_rates.shape[-1]))[0]
    rng = np.random.default_rng(seed)
    starts = rng.choice(z.reshape(-1, 3), NUM_STARTS)
    trajectories = _trajectories(z, starts + INITIAL_SD * rng.normal(size=starts.shape))
    log_rates = torch.from_numpy((_with_one(trajectories) @ readout).astype(np.float32))
    log_rates = log_rates.reshape(NUM_STARTS, -1, len(recording["neuron"]))
    is_seen = torch.from_numpy(~recording["held_out"].values)
    counts = torch.from_numpy(recording["counts"].values[is_chosen].astype(np.float32))
    seen = log_rates[..., is_seen]
    log_weights = counts[..., is_seen].flatten(1) @ seen.flatten(1).T - seen.exp().sum((1, 2))
    return np.asarray((log_weights.softmax(-1) @ log_rates.exp().flatten(1)).reshape(counts.shape))


def _with_one(z: Array) -> Array:
    flat = z.reshape(-1, 3)
    return np.concatenate([flat, np.ones((len(flat), 1))], -1)


def _monomials(z: Array) -> Array:
    """1, z_i and z_i z_j."""
    pairs = (z[:, :, None] * z[:, None])[:, *np.triu_indices(3)]
    return np.concatenate([np.ones((len(z), 1)), z, pairs], -1)


def _trajectories(z: Array, starts: Array) -> Array:
    """Trajectories ``(start, time, 3)`` of the estimated vector field, one RK4 step per bin."""
    num_bins, reach = z.shape[1], max(SEVENTH_ORDER)
    slope = sum(
        weight * (z[:, reach + n : num_bins - reach + n] - z[:, reach - n : num_bins - reach - n])
        for n, weight in SEVENTH_ORDER.items()
    )
    middle = z[:, reach:-reach].reshape(-1, 3)
    field = np.linalg.lstsq(_monomials(middle), np.reshape(slope, (-1, 3)))[0]
    path = [starts]
    for _ in range(num_bins - 1):
        here = path[-1]
        k1 = _monomials(here) @ field
        k2 = _monomials(here + k1 / 2) @ field
        k3 = _monomials(here + k2 / 2) @ field
        k4 = _monomials(here + k3) @ field
        path.append(here + (k1 + 2 * k2 + 2 * k3 + k4) / 6)
    return np.stack(path, 1)
