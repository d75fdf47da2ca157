"""Spike times in NWB files, binned around an event of every trial.

Bins are closed on the left, see `pyrodyn.data.binning`. A trial is kept if its event is known and
its whole window was observed (``obs_intervals``) for at least one unit; units that were not
observed throughout a kept trial are marked in ``valid``.

Files that are probably not as intended are refused or warned of in one sentence: spike times in
another unit than seconds, a stop time far beyond the others', series whose timestamps do not match
their samples.

Source: the NWB standard (Rübel et al., eLife 2022); read with pynwb.
"""

import contextlib
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.binning import (
    EDGE,
    averaged,
    bins_in_window,
    check_bin_width,
    counted,
    covered,
)
from pyrodyn.data.nwb_series import Series, find, path_of, read_series
from pyrodyn.data.recording import recording
from pyrodyn.data.schema import shortened

RAGGED = {"spike_times", "obs_intervals", "electrodes", "waveforms"}
"""Columns of the units table with many values per unit, which are not given to ``unit_filter``."""

LONGEST_TRIAL = 20
"""Factor by which the longest trial may exceed the median."""

LEAST_FILLED = 0.1
"""Fraction of the bins of an array of unequal trials that must be measured."""

LEAST_IN_TRIALS = 0.02
"""Fraction of spikes between the first and the last trial below which the times are in doubt."""

MANY_SPIKES = 100
"""Spikes from which on their end is probably that of the recording."""

LEAST_SAMPLED = 0.1
"""Fraction of bins with a sample of behaviour below which its times are in doubt."""


class _Spikes(NamedTuple):
    """The kept units."""

    times: list[NDArray]
    """Sorted spike times of every unit, in seconds."""
    observed: list[NDArray | None]
    """``(interval, 2)`` observed intervals of every unit; None for the whole session."""
    labels: list[Any]
    """One per unit, unique."""
    groups: list[str] | None
    """Electrode group (probe) of every unit, if the file has it."""


def read_nwb(
    path: str | PathLike[str],
    *,
    bin_width: float,
    align_to: str = "start_time",
    window: tuple[float, float] | None = None,
    condition: str | None = None,
    behavior: Sequence[str] = (),
    trials: str | None = "trials",
    units: str | None = None,
    trial_filter: Callable[[pd.DataFrame], Any] | None = None,
    unit_filter: Callable[[pd.DataFrame], Any] | None = None,
) -> xr.Dataset:
    """Spike counts per trial from an NWB file.

    Args:
        path: the ``.nwb`` file.
        bin_width: seconds per bin.
        align_to: column of the trials table with the time of the event that becomes time 0.
        window: first and last edge of the bins in seconds relative to the event, such as
            ``(-0.25, 0.45)``, an integer number of bins. By default every trial is binned from the
            event to its ``stop_time``, so trials may differ in length.
        condition: column of the trials table that becomes ``condition``.
        behavior: names of time series to average in the same bins, or their paths, such as
            ``"Position/SpatialSeries"``, if several have the same name; a bin without a sample is
            NaN. Columns of a series are named ``NAME_0``, ``NAME_1``, ...; the coordinate ``unit``
            holds their units.
        trials: name of the table of intervals that are the trials; None for a continuous recording:
            one trial from the start of the session to the last spike.
        units: path of the units table, if it is not the file's own.
        trial_filter: from the trials table to a bool per trial, true for those to keep, such as
            ``lambda trials: trials["target"].notna()``.
        unit_filter: from the units table to a bool per unit, true for those to keep, such as
            ``lambda units: units["quality"] == "good"``. The column ``group_name`` holds the
            electrode group (probe) of every unit.

    Returns:
        A validated recording; trials and neurons are labelled with their ids in the file, and the
        coordinate ``probe`` holds the electrode groups of the neurons, if there are several.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is broken or lacks what is asked for, or no trial remains.
        ImportError: if pynwb is not installed.
    """
    path = Path(path)
    check_bin_width(bin_width)
    if window is not None:
        bins_in_window(window, bin_width)
    if isinstance(behavior, str):
        behavior = (behavior,)
    if len(set(behavior)) < len(behavior):
        raise ValueError(f"behavior={list(behavior)} names a time series twice")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    with _opened(path) as file:
        spikes = _read_units(_units_table(file, units), unit_filter)
        if trials is None:
            table = _whole_session(spikes, bin_width)
        else:
            table = _frame(_trials_table(file, trials), "trials")
        table = table[_selected(table, trial_filter, "trial_filter", "trials")]
        columns = {"align_to": align_to, "condition": condition}
        for argument, column in (columns | ({} if window else {"window": "stop_time"})).items():
            if column is not None and list(table.columns).count(column) > 1:
                raise ValueError(f"the trials table has several columns {column!r}")
            if column is not None and column not in table:
                raise ValueError(
                    f"{argument} needs the column {column!r}, which the trials table lacks; its"
                    f" columns are {', '.join(map(str, table.columns))}"
                )
        series = [read_series(file, name) for name in behavior]
        starts, lengths = _windows(table, align_to, window, bin_width)
        if trials is None:
            observed = _observed_bins(spikes, starts[0], lengths[0], bin_width)
        else:
            kept, observed = _kept_trials(table, align_to, spikes, starts, lengths, bin_width)
            table, starts, lengths = table[kept], starts[kept], lengths[kept]
            _check_trials(table, spikes, starts, lengths, bin_width)
        conditions = None if condition is None else _conditions(table, condition)
        counts = counted(spikes.times, starts, lengths, bin_width)
        _check_spikes(spikes, counts, starts, lengths, bin_width)
        values = [_behavior(one, starts, lengths, bin_width) for one in series]

        inside = np.arange(counts.shape[1]) < lengths[:, None]
        valid = inside if observed.all() else inside[..., None] & observed
        names: dict[str, Any] = {
            "trial": np.asarray(_unique(table.index.tolist(), "trial ids")),
            "neuron": np.asarray(spikes.labels),
        }
        if series:
            names["quantity"] = [label for one in series for label in one.labels]
        data = recording(
            counts,
            bin_width=bin_width,
            start=0.0 if window is None else float(window[0]),
            condition=conditions,
            behavior=np.concatenate(values, axis=-1) if series else None,
            valid=None if valid.all() else valid,
            names=names,
        )
    if series:
        data = data.assign_coords(
            unit=("quantity", [one.unit for one in series for _ in one.labels])
        )
    if spikes.groups is not None and len(set(spikes.groups)) > 1:
        data = data.assign_coords(probe=("neuron", spikes.groups))
    return data


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An opened file; whatever goes wrong with it becomes one sentence that names the file."""
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
            # pynwb prints the whole object before what is wrong with it.
            reason = str(error).rpartition("due to:")[2].rstrip("')")
            reason = textwrap.shorten(reason, 300) or type(error).__name__
            raise ValueError(f"{path} is broken or not an NWB file: {reason}") from None
        try:
            yield file
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        except Warning:
            raise  # where warnings are errors
        except Exception as error:
            reason = textwrap.shorten(str(error), 300)
            raise ValueError(
                f"{path} could not be read: {type(error).__name__}: {reason}"
            ) from error


def _trials_table(file: Any, name: str) -> Any:
    """The table of intervals of a name."""
    from pynwb.epoch import TimeIntervals

    if name == "trials" and file.trials is not None:
        return file.trials
    every = [one for one in file.objects.values() if isinstance(one, TimeIntervals)]
    if name != "trials":
        return find(every, name, "tables of intervals", "trials=")
    others = ", ".join(sorted(map(path_of, every)))
    remedy = f"choose one of its tables of intervals by trials= ({others}), or" if every else "give"
    raise ValueError(
        f"the file has no trials table; {remedy} trials=None to read the session as one trial"
    )


def _units_table(file: Any, path: str | None) -> Any:
    """The units table: the file's own, or the one of a path."""
    from pynwb.misc import Units

    every = [one for one in file.objects.values() if isinstance(one, Units)]
    if path is not None:
        table = find(every, path, "units tables", "units=")
    elif file.units is not None:
        table = file.units
    elif len(every) == 1:
        table = every[0]
    elif every:
        paths = ", ".join(sorted(map(path_of, every)))
        raise ValueError(f"the file has several units tables; choose one by units= ({paths})")
    else:
        from pynwb import TimeSeries

        series = [one for one in file.objects.values() if isinstance(one, TimeSeries)]
        raise ValueError(
            "the file has no units table, so there are no spike times to bin; its time series are"
            f" {', '.join(sorted(map(path_of, series))) or 'none'}"
        )
    if "spike_times" not in table.colnames:
        raise ValueError("the units table has no spike_times")
    return table


def _frame(table: Any, name: str) -> pd.DataFrame:
    if len(table) == 0:
        raise ValueError(f"the {name} table is empty")
    return table.to_dataframe(exclude=RAGGED & set(table.colnames))


def _read_units(table: Any, unit_filter: Callable[[pd.DataFrame], Any] | None) -> _Spikes:
    frame = _frame(table, "units")
    groups = _groups(table, frame)
    if groups is not None and "group_name" not in frame:
        frame = frame.assign(group_name=groups)
    _check_index(table)
    rows = np.flatnonzero(_selected(frame, unit_filter, "unit_filter", "units"))
    times, num_unknown = [], 0
    for row in rows:
        spikes = np.asarray(table.get_unit_spike_times(int(row)), float)
        num_unknown += int((~np.isfinite(spikes)).sum())
        times.append(np.sort(spikes[np.isfinite(spikes)]))
    if num_unknown:
        warnings.warn(
            f"{num_unknown} spike times are not finite and are left out", UserWarning, stacklevel=4
        )
    observed: list[NDArray | None] = [None] * len(rows)
    if "obs_intervals" in table.colnames:
        observed = [np.asarray(table.get_unit_obs_intervals(int(row)), float) for row in rows]
        for row, spans in zip(rows, observed, strict=True):
            if spans is not None and spans.size and not (spans[:, 1] >= spans[:, 0]).all():
                raise ValueError(
                    f"the obs_intervals of unit {frame.index[row]} do not run from start to stop"
                )
    labels = [frame.index[row] for row in rows]
    if groups is not None and len(set(labels)) < len(labels):
        labels = [f"{groups[row]}:{frame.index[row]}" for row in rows]
    kept_groups = None if groups is None else [groups[row] for row in rows]
    return _Spikes(times, observed, _unique(labels, "unit ids"), kept_groups)


def _check_index(table: Any) -> None:
    """Refuse an index of the spike times that is broken, with which units get others' spikes."""
    index = np.asarray(table.spike_times_index.data[:]).astype(np.int64)
    total = len(table.spike_times_index.target.data)
    if (np.diff(index, prepend=0) < 0).any() or index[-1] != total:
        raise ValueError(
            f"spike_times_index of the units table must increase to the number of spike times,"
            f" {total}; it is {shortened(index)}"
        )


def _groups(table: Any, frame: pd.DataFrame) -> list[str] | None:
    """Name of every unit's electrode group, from its own column or that of its electrodes."""
    if "electrode_group" in frame:
        return [str(getattr(group, "name", group)) for group in frame["electrode_group"]]
    if "electrodes" not in table.colnames:
        return None
    try:
        electrodes = table["electrodes"].target.table
        if "group_name" not in electrodes.colnames:
            return None
        names = np.asarray(electrodes["group_name"][:])
        rows = [np.asarray(table["electrodes"].get(i, index=True), int) for i in range(len(table))]
        if any(row.size and not 0 <= row.min() <= row.max() < len(names) for row in rows):
            raise IndexError(f"there are {len(names)} electrodes")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        warnings.warn(
            f"the electrodes of the units cannot be read, so that their probes are not known:"
            f" {textwrap.shorten(str(error), 200)}",
            UserWarning,
            stacklevel=4,
        )
        return None
    return ["+".join(sorted({str(name) for name in names[row]})) or "none" for row in rows]


def _unique(labels: list[Any], what: str) -> list[Any]:
    """Labels, or if some repeat, labels with the row number appended."""
    if len(set(labels)) == len(labels):
        return labels
    warnings.warn(
        f"{what} repeat in the file; they are labelled ID.ROW instead", UserWarning, stacklevel=4
    )
    return [f"{label}.{row}" for row, label in enumerate(labels)]


def _selected(
    frame: pd.DataFrame, keep: Callable[[pd.DataFrame], Any] | None, argument: str, name: str
) -> NDArray[np.bool_]:
    """Mask of the rows that a filter keeps."""
    if keep is None:
        return np.ones(len(frame), bool)
    try:
        mask = np.asarray(keep(frame))
    except KeyError as error:
        raise ValueError(
            f"{argument} asks for the column {error}, which the {name} table lacks; its columns"
            f" are {', '.join(map(str, frame.columns))}"
        ) from None
    if mask.dtype != bool or mask.shape != (len(frame),):
        raise ValueError(f"{argument} must give one bool for each of the {len(frame)} {name}")
    if not mask.any():
        raise ValueError(f"{argument} keeps none of the {len(frame)} {name}")
    return mask


def _whole_session(spikes: _Spikes, bin_width: float) -> pd.DataFrame:
    """A trials table of one trial: from the start of the session to the last spike."""
    last = [times[-1] for times in spikes.times if times.size]
    if not last:
        raise ValueError("the units have no spikes, so the session has no known end")
    first = min(0.0, *(times[0] for times in spikes.times if times.size))
    # The last bin holds the last spike.
    stop = first + bin_width * (np.floor((max(last) - first) / bin_width + EDGE) + 1)
    return pd.DataFrame({"start_time": [first], "stop_time": [stop]})


def _windows(
    trials: pd.DataFrame,
    align_to: str,
    window: tuple[float, float] | None,
    bin_width: float,
) -> tuple[NDArray, NDArray]:
    """The first bin's left edge and the number of bins of every trial."""
    events = _times(trials, align_to)
    if {"start_time", "stop_time"} <= set(trials.columns) and align_to != "start_time":
        begin, end = _times(trials, "start_time"), _times(trials, "stop_time")
        known = np.isfinite(events) & np.isfinite(begin) & np.isfinite(end)
        outside = known & ((events < begin - bin_width) | (events > end + bin_width))
        if outside.sum() > 0.5 * known.sum():
            warnings.warn(
                f"{align_to} lies outside start_time and stop_time in {outside.sum()} of"
                f" {known.sum()} trials; it must be in seconds from the start of the session, as"
                " they are",
                UserWarning,
                stacklevel=3,
            )
    if window is not None:
        return events + window[0], np.full(len(events), bins_in_window(window, bin_width))
    spans = np.nan_to_num(_times(trials, "stop_time") - events, nan=-1.0, posinf=-1.0)
    bins = np.floor(np.clip(spans, -1.0, None) / bin_width + EDGE)
    positive = bins[bins > 0]
    if positive.size:
        longest, median = int(np.argmax(bins)), float(np.median(positive))
        filled = positive.sum() / (positive.size * positive.max())
        if positive.max() > LONGEST_TRIAL * median or filled < LEAST_FILLED:
            raise ValueError(
                f"trial {trials.index[longest]} lasts {spans[longest]:g} s where the median trial"
                f" lasts {median * bin_width:g} s, and all would be padded to its length; give"
                " window=, or drop it by trial_filter=lambda trials: trials.index !="
                f" {trials.index[longest]}"
            )
    return events, bins.astype(int)


def _times(trials: pd.DataFrame, column: str) -> NDArray:
    """A column of times in seconds."""
    values = trials[column]
    try:
        if values.dtype == bool:
            raise TypeError
        return values.to_numpy(float)
    except (TypeError, ValueError):
        raise ValueError(f"column {column!r} does not hold one time in seconds per trial") from None


def _kept_trials(
    trials: pd.DataFrame,
    align_to: str,
    spikes: _Spikes,
    starts: NDArray,
    lengths: NDArray,
    bin_width: float,
) -> tuple[NDArray, NDArray]:
    """Which trials are kept, and which units were observed in those, ``(trial, 1, unit)``."""
    known = np.isfinite(starts)
    long_enough = lengths > 0
    # The session begins at time 0 unless there are spikes before.
    opening = min([0.0, *(times[0] for times in spikes.times if times.size)])
    slack = EDGE * bin_width
    in_session = starts >= opening - slack
    stops = starts + lengths * bin_width
    observed = np.stack([covered(starts, stops, spans, slack) for spans in spikes.observed], axis=1)
    reasons = (
        (~known, f"whose {align_to} is missing"),
        (known & ~long_enough, "whose stop_time is missing or does not follow the event"),
        (known & long_enough & ~in_session, "whose window begins before the session"),
        (
            known & long_enough & in_session & ~observed.any(axis=1),
            "whose window was not observed",
        ),
    )
    kept = known & long_enough & in_session & observed.any(axis=1)
    dropped = [
        f"{int(mask.sum())} {reason} ({shortened(trials.index[mask])})"
        for mask, reason in reasons
        if mask.any()
    ]
    if not kept.any():
        raise ValueError(f"no trial of {len(trials)} can be used: {'; '.join(dropped)}")
    if dropped:
        warnings.warn(
            f"{int((~kept).sum())} of {len(trials)} trials are dropped: {'; '.join(dropped)}",
            UserWarning,
            stacklevel=3,
        )
    return kept, observed[kept][:, None, :]


def _observed_bins(
    spikes: _Spikes, start: float, num_bins: np.integer, bin_width: float
) -> NDArray[np.bool_]:
    """Which bins of a continuous session were observed for which unit, ``(1, bin, unit)``."""
    edges = start + bin_width * np.arange(num_bins + 1)
    observed = [
        covered(edges[:-1], edges[1:], spans, EDGE * bin_width) for spans in spikes.observed
    ]
    return np.stack(observed, axis=-1)[None]


def _check_trials(
    trials: pd.DataFrame, spikes: _Spikes, starts: NDArray, lengths: NDArray, bin_width: float
) -> None:
    """Warn of trials that overlap and of those after the last spike."""
    if {"start_time", "stop_time"} <= set(trials.columns):
        begin, end = _times(trials, "start_time"), _times(trials, "stop_time")
        order = np.argsort(begin, kind="stable")
        overlap = np.flatnonzero(begin[order][1:] < end[order][:-1] - bin_width)
        if overlap.size:
            pair = trials.index[order[overlap[0] : overlap[0] + 2]].tolist()
            warnings.warn(
                f"{overlap.size} of {len(trials)} trials begin before the one before has stopped"
                f" (trials {pair[0]} and {pair[1]}), so that some spikes are in two trials",
                UserWarning,
                stacklevel=3,
            )
    last = max((times[-1] for times in spikes.times if times.size), default=np.inf)
    after = starts > last
    if after.any() and not after.all() and sum(t.size for t in spikes.times) > MANY_SPIKES:
        warnings.warn(
            f"{after.sum()} of {len(trials)} trials begin after the last spike of any unit"
            f" ({last:g} s) and may not have been recorded ({shortened(trials.index[after])}); drop"
            f" them by trial_filter=lambda trials: trials['start_time'] < {last:g}",
            UserWarning,
            stacklevel=3,
        )


def _conditions(trials: pd.DataFrame, column: str) -> NDArray:
    """One label per trial."""
    values = trials[column]
    missing = values.isna().to_numpy(bool)
    if missing.any():
        raise ValueError(
            f"condition {column!r} is missing in trials {shortened(trials.index[missing])}; drop"
            f" them by trial_filter=lambda trials: trials[{column!r}].notna()"
        )
    if any(isinstance(value, list | tuple | np.ndarray) for value in values):
        raise ValueError(f"column {column!r} holds several values per trial, not one condition")
    return values.to_numpy()


def _check_spikes(
    spikes: _Spikes, counts: NDArray, starts: NDArray, lengths: NDArray, bin_width: float
) -> None:
    """Refuse windows without a single spike; warn if nearly all spikes lie outside the trials."""
    total = sum(times.size for times in spikes.times)
    first, last = starts.min(), (starts + lengths * bin_width).max()
    if not total:
        raise ValueError("the units have no spikes")
    between = sum(
        int(np.searchsorted(times, last) - np.searchsorted(times, first)) for times in spikes.times
    )
    spike_range = (
        f"{min(times[0] for times in spikes.times if times.size):g} to"
        f" {max(times[-1] for times in spikes.times if times.size):g} s"
    )
    remedy = "all times of an NWB file must be in seconds; some may be in milliseconds or samples"
    if not counts.any():
        raise ValueError(
            f"none of the {total} spike times ({spike_range}) lies in a trial ({first:g} to"
            f" {last:g} s); {remedy}"
        )
    if between < LEAST_IN_TRIALS * total:
        warnings.warn(
            f"only {between} of {total} spike times ({spike_range}) lie between the first and the"
            f" last trial ({first:g} to {last:g} s); {remedy}",
            UserWarning,
            stacklevel=3,
        )


def _behavior(series: Series, starts: NDArray, lengths: NDArray, bin_width: float) -> NDArray:
    """A series' means in the bins of the trials."""
    first, last = starts.min(), (starts + lengths * bin_width).max()
    chunks = series.chunks(first - EDGE * bin_width, last)
    means = averaged(chunks, len(series.labels), starts, lengths, bin_width)
    inside = np.arange(means.shape[1]) < lengths[:, None]
    filled = (~np.isnan(means).all(axis=-1))[inside].mean()
    if filled == 0:
        shown, last_sample = "none", series.num_samples - 1
        if series.num_samples:
            ends = (series.times(0, 1)[0], series.times(last_sample, last_sample + 1)[0])
            shown = f"{ends[0]:g} to {ends[1]:g} s"
        raise ValueError(
            f"no sample of {series.name!r} with a value lies in a trial (samples: {shown}; trials:"
            f" {first:g} to {last:g} s)"
        )
    if filled < LEAST_SAMPLED:
        warnings.warn(
            f"{series.name!r} has samples in {filled:.1%} of the bins, and the others are NaN;"
            " check its timestamps or rate, or use wider bins",
            UserWarning,
            stacklevel=3,
        )
    return means
