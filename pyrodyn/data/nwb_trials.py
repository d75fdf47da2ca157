"""The trials of an NWB file: their windows, which of them are kept, and their conditions.

Source: the NWB standard (Rübel et al., eLife 2022).
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrodyn.data.binning import EDGE, LARGEST, bins_in_window, covered
from pyrodyn.data.nwb_series import Series, find, path_of
from pyrodyn.data.nwb_tables import as_frame
from pyrodyn.data.nwb_units import MANY_SPIKES, Spikes
from pyrodyn.data.schema import shortened

LONGEST_TRIAL = 20
"""Factor by which the longest trial may exceed the median."""

LEAST_FILLED = 0.1
"""Fraction of the bins of an array of unequal trials that must be measured."""


def trials_table(file: Any, name: str) -> Any:
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


def whole_session(
    spikes: Spikes | None, signal: Series | None, bin_width: float, window: Any
) -> pd.DataFrame:
    """A trials table of one trial: from the start of the session to the last spike or sample.

    Without spikes it begins with the first sample of the signal.
    """
    begin = [] if spikes is None else [0.0, spikes.first]
    end = [] if spikes is None else [spikes.last]
    if signal is not None:
        first, last = signal.span
        begin, end = [*begin, first], [*end, last - bin_width]
    if not np.isfinite(max(end)):
        raise ValueError("the units have no spikes, so the session has no known end")
    if spikes is not None and window is None:
        _check_opening(spikes, signal, bin_width)
    # The last bin holds the last spike.
    stop = min(begin) + bin_width * (np.floor((max(end) - min(begin)) / bin_width + EDGE) + 1)
    return pd.DataFrame({"start_time": [min(begin)], "stop_time": [stop]})


def _check_opening(spikes: Spikes, signal: Series | None, bin_width: float) -> None:
    """Refuse or warn of a session that begins long before its first spike."""
    first = spikes.first if signal is None else min(spikes.first, signal.span[0])
    remedy = f"give window=(first, last), such as from {np.floor(first):g} s, or check the times"
    if 4 * len(spikes.times) * (spikes.last / bin_width) > LARGEST:
        raise ValueError(
            f"the session would last from 0 to {spikes.last:.10g} s, its first spike being at"
            f" {first:.10g} s, which is too long for bins of {bin_width:g} s; {remedy}"
        )
    if first > 0.5 * spikes.last:
        warnings.warn(
            f"the session begins with {first:g} s without a spike, before spikes from {first:g} to"
            f" {spikes.last:g} s; if it was not recorded before, {remedy}",
            UserWarning,
            stacklevel=4,
        )


def windows(
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


def kept_trials(
    trials: pd.DataFrame,
    align_to: str,
    observed_spans: Sequence[NDArray | None],
    opening: float,
    invalid: NDArray[np.bool_],
    starts: NDArray,
    lengths: NDArray,
    bin_width: float,
) -> tuple[NDArray, NDArray]:
    """Which trials are kept, and which units were observed in those, ``(trial, 1, unit)``.

    Args:
        trials: the table.
        align_to: its column of events.
        observed_spans: observed intervals of every unit (and of the signal); None for all.
        opening: when the session begins, at the latest.
        invalid: the bins that `invalid_bins` gives.
        starts: as in `pyrodyn.data.binning.in_bins`.
        lengths: as there.
        bin_width: seconds per bin.
    """
    known = np.isfinite(starts)
    long_enough = lengths > 0
    slack = EDGE * bin_width
    in_session = starts >= min(0.0, opening) - slack
    stops = starts + lengths * bin_width
    observed = np.stack([covered(starts, stops, spans, slack) for spans in observed_spans], axis=1)
    inside = np.arange(invalid.shape[1]) < lengths[:, None]
    removed = long_enough & (invalid | ~inside).all(axis=1)
    reasons = (
        (~known, f"whose {align_to} is missing"),
        (known & ~long_enough, "whose stop_time is missing or does not follow the event"),
        (known & long_enough & ~in_session, "whose window begins before the session"),
        (
            known & long_enough & in_session & ~observed.any(axis=1),
            "whose window was not observed",
        ),
        (
            known & long_enough & in_session & observed.any(axis=1) & removed,
            "whose window lies in the file's invalid_times",
        ),
    )
    kept = known & long_enough & in_session & observed.any(axis=1) & ~removed
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


def observed_bins(
    observed_spans: Sequence[NDArray | None], start: float, num_bins: np.integer, bin_width: float
) -> NDArray[np.bool_]:
    """Which bins of a continuous session were observed for which unit, ``(1, bin, unit)``."""
    edges = start + bin_width * np.arange(num_bins + 1)
    observed = [covered(edges[:-1], edges[1:], spans, EDGE * bin_width) for spans in observed_spans]
    return np.stack(observed, axis=-1)[None]


def invalid_bins(
    file: Any, starts: NDArray, lengths: NDArray, bin_width: float
) -> NDArray[np.bool_]:
    """Bins that overlap an interval of the file's ``invalid_times``, ``(trial, time)``."""
    bins = np.arange(int(lengths.max()))
    found = np.zeros((len(starts), len(bins)), bool)
    if file.invalid_times is None:
        return found
    intervals = as_frame(file.invalid_times, "invalid_times")
    begins, ends = _times(intervals, "start_time"), _times(intervals, "stop_time")
    for begin, end in zip(begins, ends, strict=True):
        first = np.floor((begin - starts) / bin_width + EDGE)
        last = np.ceil((end - starts) / bin_width - EDGE)
        found |= (bins >= first[:, None]) & (bins < last[:, None])
    return found


def check_trials(
    trials: pd.DataFrame, spikes: Spikes | None, starts: NDArray, lengths: NDArray, bin_width: float
) -> None:
    """Warn of trials that overlap and of those after the last spike."""
    if {"start_time", "stop_time"} <= set(trials.columns):
        begin, end = _times(trials, "start_time"), _times(trials, "stop_time")
        order = np.argsort(begin, kind="stable")
        same = len(begin) > 1 and bool((begin == begin[0]).all())
        if same:
            warnings.warn(
                f"start_time is {begin[0]:g} s in all {len(trials)} trials; it must be in seconds"
                " from the start of the session, not of the trial",
                UserWarning,
                stacklevel=3,
            )
        overlap = np.flatnonzero(begin[order][1:] < end[order][:-1] - bin_width)
        if overlap.size and not same:
            pair = trials.index[order[overlap[0] : overlap[0] + 2]].tolist()
            warnings.warn(
                f"{overlap.size} of {len(trials)} trials begin before the one before has stopped"
                f" (trials {pair[0]} and {pair[1]}), so that some spikes are in two trials",
                UserWarning,
                stacklevel=3,
            )
    if spikes is None or spikes.total <= MANY_SPIKES:
        return
    last = spikes.last
    after = starts > last
    if after.any() and not after.all():
        warnings.warn(
            f"{after.sum()} of {len(trials)} trials begin after the last spike of any unit"
            f" ({last:g} s) and may not have been recorded ({shortened(trials.index[after])}); drop"
            f" them by trial_filter=lambda trials: trials['start_time'] < {last:g}",
            UserWarning,
            stacklevel=3,
        )


def conditions(trials: pd.DataFrame, column: str) -> NDArray:
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
