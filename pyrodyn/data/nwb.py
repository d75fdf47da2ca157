"""Spike times in NWB files, binned around an event of every trial.

A spike at time s belongs to bin k of a trial whose first bin begins at a when::

    k = floor((s - a) / bin_width),

that is, bins are closed on the left. In floating point a spike that lies on an edge may come out
a hair to its left; a spike within a millionth of a bin below an edge therefore counts as on it.
That is far finer than the clock of any recording system.

A trial is kept where its event is known and its whole window was observed (``obs_intervals``) for
at least one unit; units that were not observed throughout a kept trial are marked in ``valid``.

Source: the NWB standard (Rübel et al., eLife 2022); read with pynwb.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.recording import recording

EDGE = 1e-6
"""Share of a bin by which a time may miss an edge and still count as on it."""

RAGGED = {"spike_times", "obs_intervals", "electrodes", "waveforms"}
"""Columns of the units table with many values per unit, which a filter on units does not need."""


def read_nwb(
    path: str | PathLike[str],
    *,
    bin_width: float,
    align_to: str = "start_time",
    window: tuple[float, float] | None = None,
    condition: str | None = None,
    behavior: Sequence[str] = (),
    unit_filter: Callable[[pd.DataFrame], Any] | None = None,
) -> xr.Dataset:
    """Spike counts per trial from an NWB file.

    Args:
        path: the ``.nwb`` file.
        bin_width: seconds per bin.
        align_to: column of the trials table with the time of the event that becomes time 0.
        window: first and last edge of the bins in seconds relative to the event, such as
            ``(-0.25, 0.45)``, an integer number of bins. Without it every trial is binned from the
            event to its ``stop_time``, so trials may differ in length.
        condition: column of the trials table that becomes ``condition``.
        behavior: names of time series to average in the same bins; a bin without a sample is NaN.
            Columns of a series are named ``NAME_0``, ``NAME_1``, ...; the coordinate ``unit`` says
            their units.
        unit_filter: from the units table to a bool per unit, true for those to keep, such as
            ``lambda units: units["quality"] == "good"``.

    Returns:
        A validated recording; trials and neurons are labelled with their ids in the file.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is broken, lacks what is asked for, or no trial is left.
        ImportError: where pynwb is not installed.
    """
    path = Path(path)
    if not (np.isfinite(bin_width) and bin_width > 0):
        raise ValueError(
            f"bin_width is {bin_width!r}; it is the seconds per bin, a positive number"
        )
    if window is not None:
        span = (window[1] - window[0]) / bin_width
        if not (span > 0.5 and abs(span - round(span)) < EDGE):
            raise ValueError(
                f"window {tuple(window)} must run from its first to its last edge in an integer"
                f" number of bins of {bin_width:g} s"
            )
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    with _opened(path) as file:
        trials = _table(file.trials, "trials", path)
        units = _table(file.units, "units", path)
        wanted = {"align_to": align_to, "condition": condition}
        for argument, column in (wanted | ({} if window else {"window": "stop_time"})).items():
            if column is not None and column not in trials:
                raise ValueError(
                    f"{path}: {argument} needs the column {column!r}, which the trials table has"
                    f" not; its columns are {', '.join(map(str, trials.columns))}"
                )
        if "spike_times" not in file.units.colnames:
            raise ValueError(f"{path}: the units table has no spike_times")
        kept_units = _kept_units(units, unit_filter, path)
        spikes = [np.sort(file.units.get_unit_spike_times(int(i))) for i in kept_units]
        observed: list[NDArray | None] = [None] * len(kept_units)
        if "obs_intervals" in file.units.colnames:
            observed = [np.asarray(file.units.get_unit_obs_intervals(int(i))) for i in kept_units]
        series = [_time_series(file, name, path) for name in behavior]

    starts, lengths = _windows(trials, align_to, window, bin_width, path)
    known = np.isfinite(starts) & (lengths > 0)
    stops = starts + lengths * bin_width
    slack = EDGE * bin_width
    covered = np.stack([_covered(starts, stops, spans, slack) for spans in observed], axis=1)
    kept = known & covered.any(axis=1)
    if not kept.any():
        raise ValueError(
            f"{path}: no trial has a known {align_to} and a window inside the observed intervals"
        )
    if not kept.all():
        labels = trials.index[~kept]
        shown = ", ".join(map(str, labels[:5])) + (", ..." if len(labels) > 5 else "")
        warnings.warn(
            f"{path}: {len(labels)} of {len(trials)} trials are dropped, whose {align_to} is"
            f" missing or whose window was not observed: {shown}",
            UserWarning,
            stacklevel=2,
        )
    starts, lengths, covered = starts[kept], lengths[kept], covered[kept]
    num_trials, num_bins = len(starts), int(lengths.max())
    counts = np.zeros((num_trials, num_bins, len(spikes)), np.int32)
    for neuron, times in enumerate(spikes):
        _, trial, time = _in_bins(times, starts, lengths, bin_width)
        np.add.at(counts[:, :, neuron], (trial, time), 1)
    inside = np.arange(num_bins) < lengths[:, None]
    valid = inside if covered.all() else inside[..., None] & covered[:, None, :]
    columns = [_averaged(one, starts, lengths, num_bins, bin_width) for one in series]
    names: dict[str, Any] = {
        "trial": trials.index[kept].to_numpy(),
        "neuron": units.index[kept_units].to_numpy(),
    }
    if series:
        names["quantity"] = [label for one in series for label in one.labels]
    data = recording(
        counts,
        bin_width=bin_width,
        start=0.0 if window is None else float(window[0]),
        condition=None if condition is None else trials[condition].to_numpy()[kept],
        behavior=np.concatenate(columns, axis=-1) if series else None,
        valid=None if valid.all() else valid,
        names=names,
    )
    if series:
        data = data.assign_coords(
            unit=("quantity", [one.unit for one in series for _ in one.labels])
        )
    return data


class _Series(NamedTuple):
    """One behavioural time series, sorted in time."""

    times: NDArray
    """``(sample,)``, in seconds."""
    values: NDArray
    """``(sample, column)``, in ``unit``."""
    labels: list[str]
    """One per column."""
    unit: str
    """As the file writes it."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        from pynwb import NWBHDF5IO
    except ImportError:
        raise ImportError(
            f"reading {path} needs pynwb, which is not installed: pip install 'pyrodyn[nwb]'"
        ) from None
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(NWBHDF5IO(str(path), mode="r")).read()
        except Exception as error:  # pynwb, hdmf and h5py each raise their own on a broken file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} is broken or no NWB file: {reason}") from None
        yield file


def _table(table: Any, name: str, path: Path) -> pd.DataFrame:
    if table is None or len(table) == 0:
        raise ValueError(f"{path} has no {name} table, so there is nothing to bin")
    return table.to_dataframe(exclude=RAGGED & set(table.colnames))


def _kept_units(
    units: pd.DataFrame, unit_filter: Callable[[pd.DataFrame], Any] | None, path: Path
) -> NDArray:
    """Row numbers of the units to keep."""
    if unit_filter is None:
        return np.arange(len(units))
    try:
        mask = np.asarray(unit_filter(units))
    except KeyError as error:
        raise ValueError(
            f"{path}: unit_filter asks for the column {error}, which the units table has not; its"
            f" columns are {', '.join(map(str, units.columns))}"
        ) from None
    if mask.dtype != bool or mask.shape != (len(units),):
        raise ValueError(f"unit_filter must give one bool for each of the {len(units)} units")
    if not mask.any():
        raise ValueError(f"{path}: unit_filter keeps none of the {len(units)} units")
    return np.flatnonzero(mask)


def _time_series(file: Any, name: str, path: Path) -> _Series:
    from pynwb import TimeSeries

    every = [one for one in file.objects.values() if isinstance(one, TimeSeries)]
    found = [one for one in every if one.name == name]
    if len(found) != 1:
        raise ValueError(
            f"{path} has {len(found)} time series named {name!r}; its time series are"
            f" {', '.join(sorted(one.name for one in every)) or 'none'}"
        )
    series = found[0]
    values = np.asarray(series.data[:], float) * series.conversion + series.offset
    if series.timestamps is not None:
        times = np.asarray(series.timestamps[:], float)
    else:
        times = series.starting_time + np.arange(len(values)) / series.rate
    order = np.argsort(times, kind="stable")
    values = values.reshape(len(values), -1)
    width = values.shape[1]
    labels = [name] if width == 1 else [f"{name}_{column}" for column in range(width)]
    return _Series(times[order], values[order], labels, str(series.unit))


def _windows(
    trials: pd.DataFrame,
    align_to: str,
    window: tuple[float, float] | None,
    bin_width: float,
    path: Path,
) -> tuple[NDArray, NDArray]:
    """The first bin's left edge and the number of bins of every trial."""
    try:
        events = trials[align_to].to_numpy(float)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: column {align_to!r} does not hold times in seconds") from None
    if window is not None:
        num_bins = round((window[1] - window[0]) / bin_width)
        return events + window[0], np.full(len(events), num_bins)
    spans = np.nan_to_num(trials["stop_time"].to_numpy(float) - events, nan=-1.0)
    return events, np.floor(spans / bin_width + EDGE).astype(int)


def _covered(starts: NDArray, stops: NDArray, spans: NDArray | None, slack: float) -> NDArray:
    """Which windows lie inside one observed span, where spans that touch are one."""
    if spans is None:
        return np.ones(len(starts), bool)
    if len(spans) == 0:
        return np.zeros(len(starts), bool)
    spans = spans[np.argsort(spans[:, 0])]
    reached = np.maximum.accumulate(spans[:, 1])
    opens = np.concatenate([[True], spans[1:, 0] > reached[:-1] + slack])
    first = spans[opens, 0]
    last = reached[np.concatenate([opens[1:], [True]])]
    span = np.searchsorted(first, starts + slack, side="right") - 1
    return (span >= 0) & (stops <= last[span] + slack)


def _in_bins(
    times: NDArray, starts: NDArray, lengths: NDArray, bin_width: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Which sorted times fall in which bin of which trial: positions, trials and bins, aligned."""
    first = np.searchsorted(times, starts - EDGE * bin_width)
    last = np.searchsorted(times, starts + lengths * bin_width)
    found = last - first
    trial = np.repeat(np.arange(len(starts)), found)
    position = np.arange(found.sum()) + np.repeat(first - (np.cumsum(found) - found), found)
    time = np.floor((times[position] - starts[trial]) / bin_width + EDGE).astype(int)
    inside = (time >= 0) & (time < lengths[trial])
    return position[inside], trial[inside], time[inside]


def _averaged(
    series: _Series, starts: NDArray, lengths: NDArray, num_bins: int, bin_width: float
) -> NDArray:
    """A series' mean in every bin, ``(trial, time, column)``; NaN where a bin has no sample."""
    position, trial, time = _in_bins(series.times, starts, lengths, bin_width)
    shape = (len(starts), num_bins)
    total = np.zeros((*shape, series.values.shape[1]))
    number = np.zeros((*shape, 1))
    np.add.at(total, (trial, time), series.values[position])
    np.add.at(number, (trial, time), 1)
    return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
