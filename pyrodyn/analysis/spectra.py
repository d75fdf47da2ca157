"""Second-order statistics of a signal: power spectrum, timescales, dimension::

    power spectrum        P(f)                    Welch's average over segments
    timescale             first tau with C(tau) = C(0) / e,  C the autocovariance
    participation ratio   (sum_i l_i)^2 / sum_i l_i^2,  l the eigenvalues of the covariance

Sources: Welch (1967) for the spectrum; Murray et al. (Nat Neurosci 2014) for timescales of neural
activity from its autocorrelation (they fit an exponential; the crossing of 1/e assumes none); Gao
et al. (bioRxiv 214262, 2017) for the participation ratio as a dimension.
"""

import math

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.fft import next_fast_len
from scipy.signal import welch

from pyrodyn.analysis.scores.rates import Array

SEGMENT_BINS = 256


def power_spectrum(x: ArrayLike, bin_width: float) -> xr.DataArray:
    """One-sided power spectral density by Welch's method, averaged over trials.

    Segments of 256 bins (fewer in shorter trials), half overlapping, without their means, under a
    Hann window.

    Args:
        x: ``(trial, time, dim)`` or ``(time, dim)``.
        bin_width: seconds per bin.

    Returns:
        ``(frequency, dim)`` in squared units of x per Hz, with ``frequency`` in Hz.

    Raises:
        ValueError: for x that is not finite or not of these dims, or a bin width not above 0.
    """
    trials = _trials(x)
    _check_bin_width(bin_width)
    segment = min(SEGMENT_BINS, trials.shape[1])
    frequency, power = welch(trials, 1 / bin_width, nperseg=segment, axis=1)
    return xr.DataArray(
        power.mean(0),
        dims=("frequency", "dim"),
        coords={"frequency": ("frequency", frequency, {"units": "Hz"})},
        name="power",
    )


def timescales(x: ArrayLike, bin_width: float) -> Array:
    """Seconds until the autocorrelation of each dim falls below 1/e.

    The autocovariance is about the mean over all trials and bins, each lag averaged over the pairs
    of bins that exist; the crossing is interpolated linearly between lags. exp(-t / tau) gives tau.

    Args:
        x: ``(trial, time, dim)`` or ``(time, dim)``.
        bin_width: seconds per bin.

    Returns:
        ``(dim,)`` in seconds; NaN for a constant dim and if the autocorrelation stays above 1/e.

    Raises:
        ValueError: for x that is not finite or not of these dims, or a bin width not above 0.
    """
    trials = _trials(x)
    _check_bin_width(bin_width)
    num_bins, dim = trials.shape[1:]
    centred = trials - trials.mean((0, 1))
    # Zero-padded to twice the length, since the Fourier transform is periodic.
    length = next_fast_len(2 * num_bins, real=True)
    power = (np.abs(np.fft.rfft(centred, length, axis=1)) ** 2).mean(0)
    pairs = np.arange(num_bins, 0, -1)[:, None]
    covariance = np.fft.irfft(power, length, axis=0)[:num_bins] / pairs
    taus = np.full(dim, np.nan)
    for i in np.flatnonzero(np.ptp(trials, axis=(0, 1)) > 0):
        correlation = covariance[:, i] / covariance[0, i]
        below = np.flatnonzero(correlation < 1 / math.e)
        if below.size:
            after = below[0]
            high, low = correlation[after - 1], correlation[after]
            taus[i] = bin_width * (after - 1 + (high - 1 / math.e) / (high - low))
    return taus


def participation_ratio(x: ArrayLike) -> float:
    """Effective number of dimensions of x, between 1 and dim.

    Args:
        x: ``(trial, time, dim)`` or ``(time, dim)``; the covariance is over all trials and bins.

    Returns:
        dim if the variance is equal in all directions, 1 if all variance is along one.

    Raises:
        ValueError: for x that is not finite, not of these dims, or constant.
    """
    trials = _trials(x)
    rows = trials.reshape(-1, trials.shape[-1])
    if not np.ptp(rows, axis=0).any():
        raise ValueError("x is constant and has no dimension; give a signal that varies")
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred
    # Sums of eigenvalues and of their squares, without an eigendecomposition.
    return float(np.trace(covariance) ** 2 / np.square(covariance).sum())


def _trials(x: ArrayLike) -> Array:
    """As ``(trial, time, dim)``."""
    array = np.asarray(x, float)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"x has shape {array.shape}; it must be (trial, time, dim) or (time, dim), none of"
            " them 0"
        )
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"x is {array[index]} at {index}; all entries must be finite")
    return array if array.ndim == 3 else array[None]


def _check_bin_width(bin_width: float) -> None:
    if not 0 < bin_width < math.inf:
        raise ValueError(f"bin_width={bin_width} must be a positive number of seconds")
