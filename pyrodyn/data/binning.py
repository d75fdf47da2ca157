"""Bins of event times: the arithmetic that all readers of spike times share.

A time s belongs to bin k of a trial whose first bin begins at a if::

    k = floor((s - a) / bin_width),

that is, bins are closed on the left. In floating point a time on an edge may lie slightly to its
left; a time within a millionth of a bin below an edge is therefore assigned to the bin that begins
there. This is far finer than the clock of any recording system.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

EDGE = 1e-6
"""Fraction of a bin by which a time may lie below an edge and still be assigned to it."""

LARGEST = 16 * 2**30
"""Bytes above which an array of counts was probably not intended."""


def check_bin_width(bin_width: float) -> None:
    """Raise an error unless the bin width is a positive number."""
    if not (np.isfinite(bin_width) and bin_width > 0):
        raise ValueError(
            f"bin_width is {bin_width!r}; it is the seconds per bin, a positive number"
        )


def bins_in_window(window: tuple[float, float], bin_width: float) -> int:
    """Number of bins of a window ``(first edge, last edge)`` in seconds.

    Raises:
        ValueError: if it is not an integer.
    """
    span = (window[1] - window[0]) / bin_width
    if not (np.isfinite(span) and span > 0.5 and abs(span - round(span)) < EDGE * max(1, span)):
        raise ValueError(
            f"window {tuple(window)} must run from its first to its last edge in an integer number"
            f" of bins of {bin_width:g} s"
        )
    return round(span)


def in_bins(
    times: NDArray, starts: NDArray, lengths: NDArray, bin_width: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Which times fall in which bin of which trial.

    Args:
        times: sorted times, ``(event,)``, in seconds.
        starts: left edge of every trial's first bin, ``(trial,)``.
        lengths: number of bins of every trial, ``(trial,)``.
        bin_width: seconds per bin.

    Returns:
        Positions in ``times``, trials and bins, ``(found,)`` each. A time that lies in the windows
        of several trials is found in each.
    """
    first = np.searchsorted(times, starts - EDGE * bin_width)
    last = np.searchsorted(times, starts + lengths * bin_width)
    found = last - first
    trial = np.repeat(np.arange(len(starts)), found)
    position = np.arange(found.sum()) + np.repeat(first - (np.cumsum(found) - found), found)
    time = np.floor((times[position] - starts[trial]) / bin_width + EDGE).astype(int)
    inside = (time >= 0) & (time < lengths[trial])
    return position[inside], trial[inside], time[inside]


def counted(
    times: Sequence[NDArray], starts: NDArray, lengths: NDArray, bin_width: float
) -> NDArray[np.int32]:
    """Spikes per bin, ``(trial, time, neuron)``, from each neuron's sorted spike times.

    Raises:
        ValueError: if the array would be larger than `LARGEST`.
    """
    shape = (len(starts), int(lengths.max()), len(times))
    size = 4 * float(np.prod(shape, dtype=float))
    if size > LARGEST:
        raise ValueError(
            f"{shape[0]} trials x {shape[1]} bins x {shape[2]} neurons would take"
            f" {size / 2**30:.0f} GiB; use wider bins or shorter windows"
        )
    counts = np.zeros(shape, np.int32)
    for neuron, spikes in enumerate(times):
        _, trial, time = in_bins(spikes, starts, lengths, bin_width)
        np.add.at(counts[:, :, neuron], (trial, time), 1)
    return counts


def covered(starts: NDArray, stops: NDArray, spans: NDArray | None, slack: float) -> NDArray:
    """Which windows lie inside one observed interval, where touching intervals are joined.

    Args:
        starts: begin of every window, in seconds.
        stops: its end.
        spans: observed intervals, ``(interval, 2)``; None if everything was observed.
        slack: seconds by which a window may exceed its interval.
    """
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


def averaged(
    chunks: Iterable[tuple[NDArray, NDArray]],
    num_columns: int,
    starts: NDArray,
    lengths: NDArray,
    bin_width: float,
) -> NDArray[np.float64]:
    """Mean of the known samples in every bin, ``(trial, time, column)``; NaN where there is none.

    Args:
        chunks: samples, some at a time: sorted times in seconds, ``(sample,)``, and values,
            ``(sample, column)``, NaN where a sample is not known.
        num_columns: number of columns of the values.
        starts: as in `in_bins`.
        lengths: as in `in_bins`.
        bin_width: seconds per bin.
    """
    shape = (len(starts), int(lengths.max()), num_columns)
    total, number = np.zeros(shape), np.zeros(shape, np.int32)
    for times, values in chunks:
        position, trial, time = in_bins(times, starts, lengths, bin_width)
        found = values[position]
        known = ~np.isnan(found)
        np.add.at(total, (trial, time), np.where(known, found, 0.0))
        np.add.at(number, (trial, time), known)
    total[number == 0] = np.nan
    return np.divide(total, number, out=total, where=number > 0)
