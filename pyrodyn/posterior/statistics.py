"""Statistics of neural data, for predictive checks.

Every function takes observations as an `xarray.DataArray` with the dims ``trial, time`` and
``neuron`` (or ``channel``), in any order, NaN where nothing was measured, and reduces some of these
dims. Other dims, such as ``chain`` and ``draw``, stay as they are. So each serves in three places:

- on data, generated or recorded: ``fano_factor(recording["counts"])``;
- ``for_ppc(tree, statistic=fano_factor)`` and `predictive_p_values`, value by value;
- ``plot_ppc_tstat(tree, t_stat=fano_factor)``, for which a bare array ``(trial, time, neuron)`` is
  reduced to one number, the mean over all that remains.

Counts are per bin, lags and intervals in bins, frequencies in cycles per bin.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

UNITS = ("neuron", "channel")
"""Names of the dim of what was recorded."""


def _statistic(function: Callable[..., xr.DataArray]) -> Callable[..., Any]:
    """Let a statistic take bare arrays, which it reduces to one number."""

    @functools.wraps(function)
    def of(x: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(x, xr.DataArray):
            return function(x, *arguments, **options)
        values = np.asarray(x)
        if values.ndim == 3:
            array = xr.DataArray(values, dims=("trial", "time", "neuron"))
        elif values.ndim == 1 and function.__name__ in FLAT:
            array = xr.DataArray(values, dims="trial")
        else:
            raise ValueError(
                f"{function.__name__} needs an array (trial, time, neuron), not one of shape"
                f" {values.shape}: give ArviZ's plot_ppc_tstat the tree itself, or use"
                f" for_ppc(tree, statistic={function.__name__})"
            )
        return float(function(array, *arguments, **options).mean())

    return of


FLAT = ("mean_rate", "standard_deviation", "fano_factor", "zero_fraction")
"""Statistics that have a meaning for observations without dims."""


@_statistic
def mean_rate(x: xr.DataArray) -> xr.DataArray:
    """Mean over trials and bins, per neuron."""
    return x.mean(_present(x, "trial", "time"))


@_statistic
def standard_deviation(x: xr.DataArray) -> xr.DataArray:
    """Standard deviation over trials and bins, per neuron."""
    return x.std(_present(x, "trial", "time"))


@_statistic
def psth(x: xr.DataArray) -> xr.DataArray:
    """Peristimulus time histogram: the mean over trials, per bin and neuron, and per condition if
    trials have the coordinate ``condition``.
    """
    if "condition" in x.coords:
        return x.groupby("condition").mean("trial")
    return x.mean("trial")


@_statistic
def fano_factor(x: xr.DataArray) -> xr.DataArray:
    """Fano factor across trials, per neuron: the variance over trials of the count in a bin,
    divided by its mean, both averaged over bins. 1 for a Poisson process whose rate is the same in
    every trial; larger for overdispersed counts and for rates that differ between trials.

    Source: Churchland et al., Nature Neuroscience 13:369, 2010 (there per window).
    """
    rest = _present(x, "time")
    mean = x.mean("trial").mean(rest)
    return x.var("trial", ddof=1).mean(rest) / mean.where(mean > 0)


@_statistic
def zero_fraction(x: xr.DataArray) -> xr.DataArray:
    """Fraction of bins without a spike, per neuron."""
    return (x == 0).where(x.notnull()).mean(_present(x, "trial", "time"))


@_statistic
def dispersion(x: xr.DataArray, rates: xr.DataArray) -> xr.DataArray:
    """Pearson's dispersion given the rates, per neuron: the mean of (x - rate)^2 / rate. 1 for
    Poisson counts of these rates.

    Compared draw by draw with its value for predicted counts (`predictive_p_values`) it separates
    overdispersed counts from rates that vary between trials, which raise the Fano factor alike.
    Rates r that differ from the true ones l raise it too, by the mean of (l - r)^2 / r, which is
    small where counts per bin are.

    Source: McCullagh & Nelder, Generalized Linear Models, 1989, section 4.5.

    Args:
        x: counts.
        rates: expected counts, with the dims of ``x``.
    """
    squares = (x - rates) ** 2 / rates.where(rates > 0)
    return squares.mean(_present(x, "trial", "time"))


@_statistic
def autocorrelation(x: xr.DataArray, num_lags: int = 10) -> xr.DataArray:
    """Autocorrelation within trials at lags of 1 to ``num_lags`` bins, per neuron, around the mean
    over trials and bins.
    """
    centred = x - x.mean(("trial", "time"))
    variance = (centred**2).mean(("trial", "time"))
    num_lags = min(num_lags, x.sizes["time"] - 1)
    lagged = [
        (
            centred.isel(time=slice(None, -lag)).drop_vars("time", errors="ignore")
            * centred.isel(time=slice(lag, None)).drop_vars("time", errors="ignore")
        ).mean(("trial", "time"))
        for lag in range(1, num_lags + 1)
    ]
    lags = xr.DataArray(np.arange(1, num_lags + 1), dims="lag", name="lag")
    return xr.concat(lagged, dim=lags, coords="minimal") / variance.where(variance > 0)


@_statistic
def pairwise_correlation(x: xr.DataArray) -> xr.DataArray:
    """Pearson correlation of each pair of neurons over trials and bins, along ``pair``."""
    unit = _unit(x)
    both = ("trial", "time")
    centred = x - x.mean(both)
    scale = (centred**2).mean(both) ** 0.5
    normed = centred / scale.where(scale > 0)
    first, second = np.triu_indices(x.sizes[unit], 1)
    parts = [
        normed.isel({unit: xr.DataArray(of_pair, dims="pair")}).drop_vars(unit, errors="ignore")
        for of_pair in (first, second)
    ]
    found = (parts[0] * parts[1]).mean(both)
    labels = x[unit].values
    return found.assign_coords(first=("pair", labels[first]), second=("pair", labels[second]))


@_statistic
def population_synchrony(x: xr.DataArray) -> xr.DataArray:
    """Variance of the summed population activity over trials and bins, divided by the sum of the
    neurons' variances: 1 for neurons that are independent, their number for identical ones.

    Source: Golomb & Rinzel, Physica D 72:259, 1994 (there normalised by the number of neurons).
    """
    unit, both = _unit(x), ("trial", "time")
    total = x.sum(unit, skipna=False).var(both)
    return total / x.where(x.notnull().all(unit)).var(both).sum(unit)


@_statistic
def mean_interval(x: xr.DataArray) -> xr.DataArray:
    """Mean interval between successive spikes within trials, in bins, per neuron; spikes in the
    same bin have the interval 0. NaN with fewer than one interval.
    """
    return _of_intervals(x, lambda intervals: float(intervals.mean()), 1)


@_statistic
def interval_cv(x: xr.DataArray) -> xr.DataArray:
    """Coefficient of variation of the intervals between spikes, at the resolution of bins, per
    neuron: about 1 for a Poisson process. NaN with fewer than two intervals.

    Source: Softky & Koch, Journal of Neuroscience 13:334, 1993.
    """

    def cv(intervals: NDArray[np.double]) -> float:
        mean = float(intervals.mean())
        return float(intervals.std()) / mean if mean > 0 else np.nan

    return _of_intervals(x, cv, 2)


@_statistic
def burstiness(x: xr.DataArray) -> xr.DataArray:
    """Burstiness (s - m) / (s + m) of the intervals between spikes with mean m and standard
    deviation s, per neuron: -1 for a regular train, 0 for a Poisson process, 1 in the limit of
    bursts.

    Source: Goh & Barabasi, EPL 81:48002, 2008.
    """
    cv = interval_cv(x)
    found: xr.DataArray = (cv - 1) / (cv + 1)
    return found


@_statistic
def power_spectrum(x: xr.DataArray) -> xr.DataArray:
    """Periodogram of each trial around the mean over trials and bins, averaged over trials, per
    neuron and ``frequency`` in cycles per bin. White noise has its variance at every frequency.
    Unmeasured bins count as the mean.
    """
    return _power(_fourier(x)).mean("trial").isel(frequency=slice(1, None))


@_statistic
def coherence(x: xr.DataArray, signal: xr.DataArray) -> xr.DataArray:
    """Squared coherence of each neuron with each channel of a signal over trials, per ``frequency``
    in cycles per bin: ``|S_xy|^2 / (S_xx S_yy)`` with spectra averaged over trials. Independent
    series have about one over the number of trials.

    Args:
        x: counts.
        signal: ``(trial, time, channel)``, of the same trials and bins.
    """
    of_x, of_signal = _fourier(x), _fourier(signal)
    cross = _power((of_x * of_signal.conj()).mean("trial"))
    power = _power(of_x).mean("trial") * _power(of_signal).mean("trial")
    return (cross / power.where(power > 0)).isel(frequency=slice(1, None))


@_statistic
def squared_error(x: xr.DataArray, predicted: xr.DataArray) -> xr.DataArray:
    """Mean squared error over trials and neurons in each bin: for a free run that starts at the
    first bin, the error of predictions so many steps ahead.

    Args:
        x: observations.
        predicted: expected observations, with the dims of ``x``.
    """
    return ((x - predicted) ** 2).mean(("trial", _unit(x)))


def _present(x: xr.DataArray, *dims: str) -> list[str]:
    return [dim for dim in dims if dim in x.dims]


def _unit(x: xr.DataArray) -> str:
    return next(str(dim) for dim in x.dims if dim in UNITS)


def _power(amplitude: xr.DataArray) -> xr.DataArray:
    return amplitude.real**2 + amplitude.imag**2


def _fourier(x: xr.DataArray) -> xr.DataArray:
    centred = (x - x.mean(("trial", "time"))).fillna(0.0)
    num_bins = x.sizes["time"]
    found = xr.apply_ufunc(
        lambda values: np.fft.rfft(values, axis=-1) / np.sqrt(num_bins),
        centred,
        input_core_dims=[["time"]],
        output_core_dims=[["frequency"]],
    )
    return found.assign_coords(frequency=np.fft.rfftfreq(num_bins))


def _of_intervals(
    x: xr.DataArray, summary: Callable[[NDArray[np.double]], float], fewest: int
) -> xr.DataArray:
    def of(counts: NDArray[Any]) -> float:
        spikes = np.nan_to_num(counts).astype(int)
        trial, time = (index.ravel() for index in np.indices(spikes.shape))
        repeats = spikes.ravel()
        trials, times = np.repeat(trial, repeats), np.repeat(time, repeats)
        intervals = np.diff(times)[np.diff(trials) == 0].astype(float)
        return summary(intervals) if len(intervals) >= fewest else np.nan

    return xr.apply_ufunc(of, x, input_core_dims=[["trial", "time"]], vectorize=True)
