"""Trial averages: smoothed spikes, condition averages (PSTHs), and scores of rates against them::

    smooth     x~_t = sum_s k(t - s) v_s x_s / sum_s k(t - s) v_s,  k Gaussian, v = 1 where measured
    PSTH       average of x~ over the trials of one condition
    PSTH R2    of condition-averaged rates against the PSTH, over conditions and bins

Smoothed spikes are baseline features, and PSTHs baseline rates, for any latent variable model. The
score follows Pei et al. (2021), "Neural Latents Benchmark '21" (arXiv 2109.04463): a kernel of
70 ms, R2 averaged over neurons.
"""

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d

from pyrodyn.analysis.scores.rates import (
    Array,
    Mask,
    RateR2,
    aligned,
    check_entries,
    counts_of,
    entry_mask,
    rate_r2,
)


def smooth(values: ArrayLike, bin_width: float, sd: float, valid: ArrayLike | None = None) -> Array:
    """Gaussian smoothing along time within trials, normalised by the kernel's measured weight.

    Values near edges and gaps are therefore not biased towards zero.

    Args:
        values: ``(trial, time, neuron)``, such as spike counts.
        bin_width: seconds per bin.
        sd: standard deviation of the kernel in seconds; truncated at four of them.
        valid: bool, ``(trial, time)`` or the values' shape; false where nothing was measured.

    Returns:
        Smoothed values of the same shape and unit; 0 if nothing was measured within the kernel.

    Raises:
        ValueError: if ``sd`` is not positive or shapes differ.
    """
    if not sd > 0:
        raise ValueError(f"sd is {sd}; the kernel needs a positive width in seconds")
    measured, _, keep = aligned("values", values, "values", values, valid)

    def blur(signal: Array) -> Array:
        blurred: Array = gaussian_filter1d(
            signal, sd / bin_width, axis=1, mode="constant", truncate=4.0
        )
        return blurred

    weight = blur(keep.astype(float))
    total = blur(np.where(keep, measured, 0.0))
    smoothed: Array = np.divide(total, weight, out=np.zeros_like(weight), where=weight > 0)
    return smoothed


def condition_psth(train: xr.Dataset, test: xr.Dataset, *, smoothing: float = 0.05) -> xr.DataArray:
    """Predict test trials by the average training trial of their condition: a baseline.

    The average includes one more trial at the neuron's mean rate (a gamma prior with the weight of
    one trial), since a spike at a rate of zero has no likelihood.

    Args:
        train: a recording of counts with ``condition``.
        test: the trials to predict, with the same neurons and bins.
        smoothing: standard deviation of the Gaussian kernel on the training spikes, in seconds.

    Returns:
        ``(trial, time, neuron)`` expected counts per bin for the test trials.

    Raises:
        ValueError: if a recording has no condition, or a test condition has no training trial.
    """
    labels, averages = condition_averages(train, smoothing=smoothing)
    wanted = conditions_of(test)
    missing = np.setdiff1d(wanted, labels)
    if missing.size:
        raise ValueError(f"condition {missing[0]} of the test trials has no training trial")
    rates = averages[np.searchsorted(labels, wanted)]
    return counts_of(test).copy(data=rates).rename("rates")


def condition_averages(train: xr.Dataset, *, smoothing: float = 0.05) -> tuple[NDArray, Array]:
    """The averages that `condition_psth` predicts.

    Args:
        train: a recording of counts with ``condition``.
        smoothing: as in `condition_psth`.

    Returns:
        The conditions, sorted, and ``(condition, time, neuron)`` expected counts per bin.
    """
    known = conditions_of(train)
    counts, mask = counts_of(train).values, entry_mask(train).values
    smoothed = np.where(mask, smooth(counts, train.attrs["bin_width"], smoothing, mask), 0.0)
    mean = np.where(mask, counts, 0).sum((0, 1)) / np.maximum(mask.sum((0, 1)), 1)
    labels = np.unique(known)
    averages = np.empty((len(labels), *counts.shape[1:]))
    for average, label in zip(averages, labels, strict=True):
        trials = known == label
        average[:] = (smoothed[trials].sum(0) + mean) / (mask[trials].sum(0) + 1)
    return labels, averages


def psth_r2(
    rates: ArrayLike,
    recording: xr.Dataset,
    *,
    smoothing: float = 0.07,
    reference: xr.Dataset | None = None,
) -> RateR2:
    """R2 of condition-averaged rates against the condition-averaged, smoothed spikes (the PSTH).

    Args:
        rates: expected counts per bin, shaped as the recording's counts.
        recording: the trials that the rates belong to, with ``condition``.
        smoothing: standard deviation of the Gaussian kernel on the spikes, in seconds.
        reference: the trials of which the PSTH is computed, with the same neurons and bins, such as
            all trials if the rates are those of test trials. By default the recording itself.

    Returns:
        R2 over the shared conditions' bins: per neuron, its mean (the benchmark's score), pooled.

    Raises:
        ValueError: if a recording has no condition or the two share none, or a rate is not finite.
    """
    reference = recording if reference is None else reference
    labels, known = conditions_of(recording), conditions_of(reference)
    shared = np.intersect1d(labels, known)
    if not shared.size:
        raise ValueError("recording and reference share no condition")
    model, _, mask = aligned("rates", rates, "counts", counts_of(recording), entry_mask(recording))
    check_entries("rates", model, mask & ~np.isfinite(model), "finite")
    measured = entry_mask(reference).values
    spikes = smooth(counts_of(reference), reference.attrs["bin_width"], smoothing, measured)
    modelled = condition_means(model, mask, labels, shared)
    observed = condition_means(spikes, measured, known, shared)
    return rate_r2(modelled, observed, ~np.isnan(modelled) & ~np.isnan(observed))


def conditions_of(recording: xr.Dataset) -> NDArray:
    """The condition of every trial; ValueError if the recording has none."""
    if "condition" not in recording:
        raise ValueError("this recording has no condition; trial averages need one label per trial")
    return recording["condition"].values


def condition_means(values: Array, mask: Mask, labels: NDArray, wanted: NDArray) -> Array:
    """Average over each condition's measured trials, (condition, time, neuron); NaN if none."""
    means = np.full((len(wanted), *values.shape[1:]), np.nan)
    for mean, label in zip(means, wanted, strict=True):
        trials = labels == label
        count = mask[trials].sum(0)
        total = np.where(mask, values, 0.0)[trials].sum(0)
        np.divide(total, count, out=mean, where=count > 0)
    return means
