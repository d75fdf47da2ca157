"""What spikes of `lorenz_lfads_truth` tell to one who knows the system and the readout: a bound on
what a fitted model can infer.

The recording's latents are Lorenz' system, each z-scored, and log rates are affine in them. Both
follow from the truth itself: the field, quadratic in the latents, from their differences in time,
the readout by least squares. Paths are weighed by Poisson likelihoods, whose constants they share.
"""

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_STARTS = 60_000
"""Paths that are weighed."""

START_SPREAD = 0.03
"""Standard deviation of first states around the true latents of any trial and bin."""

SEVENTH_ORDER = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
"""Weights of central differences over so many bins."""


def known_rates(recording: xr.Dataset, is_asked: NDArray[np.bool_], seed: int) -> Array:
    """Mean rates of the trials asked for, given the spikes of the neurons not held out."""
    z = recording["latents"].values.astype(float)
    log_rates = np.log(recording["rates"].values.astype(float))
    readout = np.linalg.lstsq(_with_one(z), log_rates.reshape(-1, log_rates.shape[-1]))[0]
    rng = np.random.default_rng(seed)
    starts = rng.choice(z.reshape(-1, 3), NUM_STARTS)
    paths = _paths(z, starts + START_SPREAD * rng.normal(size=starts.shape))
    log_rates = torch.from_numpy((_with_one(paths) @ readout).astype(np.float32))
    log_rates = log_rates.reshape(NUM_STARTS, -1, len(recording["neuron"]))
    is_seen = torch.from_numpy(~recording["held_out"].values)
    counts = torch.from_numpy(recording["counts"].values[is_asked].astype(np.float32))
    seen = log_rates[..., is_seen]
    fit = counts[..., is_seen].flatten(1) @ seen.flatten(1).T - seen.exp().sum((1, 2))
    return np.asarray((fit.softmax(-1) @ log_rates.exp().flatten(1)).reshape(counts.shape))


def _with_one(z: Array) -> Array:
    flat = z.reshape(-1, 3)
    return np.concatenate([flat, np.ones((len(flat), 1))], -1)


def _monomials(z: Array) -> Array:
    """1, z_i and z_i z_j."""
    pairs = (z[:, :, None] * z[:, None])[:, *np.triu_indices(3)]
    return np.concatenate([np.ones((len(z), 1)), z, pairs], -1)


def _paths(z: Array, starts: Array) -> Array:
    """Paths ``(start, time, 3)`` of the system that latents obey, one RK4 step per bin."""
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
