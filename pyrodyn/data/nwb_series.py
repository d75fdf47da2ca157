"""Time series of NWB files: finding one by name or path, and reading its samples.

The value of a sample is ``data * conversion + offset`` in the series' unit (for series with a
factor per channel, ``data * conversion * channel_conversion + offset``); its time is given by
``timestamps``, or by ``starting_time`` and ``rate``.

Source: the NWB standard (Rübel et al., eLife 2022).
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrodyn.data.schema import shortened

GROUPS = ("processing", "acquisition", "stimulus", "presentation", "analysis", "root")
"""Top-level groups of a file, which a path may include."""


CHUNK = 2**22
"""Values read at once: a series may be larger than memory."""


class Series(NamedTuple):
    """One time series, whose samples are read when they are needed."""

    name: str
    """As asked for."""
    data: Any
    """``(sample, column)`` or ``(sample,)``, as stored."""
    times: Callable[[int, int], NDArray]
    """Times of the samples from one position to another, in seconds."""
    factor: NDArray[np.float64]
    """Of the stored values, one or one per column."""
    offset: float
    """Added after multiplication, in ``unit``."""
    is_regular: bool
    """Whether the times follow from a rate."""
    transposed: bool
    """Whether time is the second dim of ``data``."""
    labels: list[str]
    """One per column."""
    channels: list[Any]
    """Ids of the columns' electrodes or regions of interest; their positions, if it has none."""
    unit: str
    """As in the file."""

    @property
    def span(self) -> tuple[float, float]:
        """From the first sample to the end of the last, which lasts one sampling interval.

        Raises:
            ValueError: if there are no samples.
        """
        num = self.num_samples
        ends = [
            (np.nanmin(times), np.nanmax(times))
            for begin in ((0, num - 1) if self.is_regular else range(0, num, CHUNK))
            if np.isfinite(times := self.times(begin, min(num, begin + CHUNK))).any()
        ]
        if not ends:
            raise ValueError(f"time series {self.name!r} has no samples")
        first, last = float(min(ends)[0]), float(max(end for _, end in ends))
        return first, last + (last - first) / max(1, num - 1)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return int(self.data.shape[int(self.transposed)])

    def chunks(self, first: float, last: float) -> Iterator[tuple[NDArray, NDArray]]:
        """Samples from a first to a last time, some at a time: times ``(sample,)``, sorted, and
        values ``(sample, column)`` in ``unit``.
        """
        size = max(1, CHUNK // len(self.labels))
        for begin in range(0, self.num_samples, size):
            end = min(begin + size, self.num_samples)
            times = self.times(begin, end)
            inside = np.flatnonzero((times >= first) & (times <= last))
            if not inside.size:
                continue
            rows = slice(begin + int(inside[0]), begin + int(inside[-1]) + 1)
            stored = self.data[:, rows].T if self.transposed else self.data[rows]
            values = np.asarray(stored, float).reshape(rows.stop - rows.start, -1)
            values = values[inside - inside[0]] * self.factor + self.offset
            order = np.argsort(times[inside], kind="stable")
            yield times[inside][order], values[order]


def path_of(item: Any) -> str:
    """The path of an object of a file, such as ``behavior/Position/SpatialSeries``."""
    names = [item.name]
    while (parent := item.parent) is not None and parent.parent is not None:
        names.append(parent.name)
        item = parent
    return "/".join(reversed(names))


def find(items: list[Any], name: str, kind: str, argument: str) -> Any:
    """The one object of a name, or of a path that ends in the given one.

    Raises:
        ValueError: if there is none or more than one, with the paths of all.
    """
    wanted = [part for part in name.strip("/").split("/") if part]
    while len(wanted) > 1 and wanted[0] in GROUPS:
        wanted = wanted[1:]
    found = [one for one in items if path_of(one).split("/")[-len(wanted) :] == wanted]
    # A name may itself contain what looks like a path; an exact path is not ambiguous.
    exact = [one for one in found if path_of(one) == "/".join(wanted)]
    found = exact if len(exact) == 1 else found
    if len(found) != 1:
        paths = ", ".join(sorted(map(path_of, items))) or "none"
        remedy = f"; choose one by its path in {argument}" if found else ""
        raise ValueError(f"{len(found)} {kind} are named {name!r}{remedy}; there are {paths}")
    return found[0]


def series_paths(file: Any) -> list[str]:
    """The paths of all time series of an opened file."""
    from pynwb import TimeSeries

    return sorted(path_of(one) for one in file.objects.values() if isinstance(one, TimeSeries))


def read_series(file: Any, name: str, argument: str) -> Series:
    """A time series of an opened file.

    Args:
        file: the `pynwb.NWBFile`.
        name: its name, or its path if several series have the same name.
        argument: of the user, by which the series was chosen.

    Raises:
        ValueError: if there is no such series, or its samples have no times or are not numbers.

    Warns:
        UserWarning: for timestamps that are not finite or not in order, and for samples along the
            second dim.
    """
    from pynwb import TimeSeries
    from pynwb.image import IndexSeries
    from pynwb.misc import IntervalSeries

    every = [one for one in file.objects.values() if isinstance(one, TimeSeries)]
    series = find(every, name, "time series", argument)
    if isinstance(series, IndexSeries | IntervalSeries):
        raise ValueError(
            f"time series {name!r} is an {type(series).__name__}, whose samples are positions or"
            " the begin and end of intervals and have no mean; make a column of the trials of it"
        )
    shape = tuple(np.shape(series.data))
    kind = np.dtype(getattr(series.data, "dtype", None) or np.asarray(series.data).dtype).kind
    if kind not in "biuf":
        raise ValueError(f"the data of time series {name!r} are not numbers")
    if len(shape) not in (1, 2):
        raise ValueError(
            f"time series {name!r} has shape {shape}; samples must be numbers or vectors"
        )
    transposed = _transposed(series, shape, name)
    num_columns = 1 if len(shape) == 1 else shape[0 if transposed else 1]
    factor = np.asarray(series.conversion, float)
    per_channel = getattr(series, "channel_conversion", None)
    if per_channel is not None:
        factor = factor * np.asarray(per_channel[:], float)
    if factor.size not in (1, num_columns) or not (np.isfinite(factor) & (factor != 0)).all():
        raise ValueError(
            f"time series {name!r} has the conversion {factor.tolist()} for {num_columns} columns;"
            " it must be one number, or one per column, and not 0"
        )
    labels = [name] if num_columns == 1 else [f"{name}_{i}" for i in range(num_columns)]
    found = Series(
        name=name,
        data=series.data,
        times=_times(series, name),
        factor=factor,
        offset=float(series.offset),
        is_regular=series.timestamps is None,
        transposed=transposed,
        labels=labels,
        channels=_channels(series, num_columns, name),
        unit=str(series.unit),
    )
    if series.timestamps is not None:
        _check_timestamps(found)
    return found


def _transposed(series: Any, shape: tuple[int, ...], name: str) -> bool:
    """Whether time is the second dim of the data; refuses what has another number of times."""
    num_times = None if series.timestamps is None else len(series.timestamps)
    if num_times is not None and num_times != shape[0]:
        if shape[1:] == (num_times,):
            warnings.warn(
                f"time series {name!r} has time as its second dim, where the standard demands the"
                " first; it is read so",
                UserWarning,
                stacklevel=5,
            )
            return True
        raise ValueError(
            f"time series {name!r} has {num_times} timestamps for {shape[0]} samples; they must"
            " agree"
        )
    if num_times is None and len(shape) == 2 and shape[0] < shape[1]:
        raise ValueError(
            f"time series {name!r} has {shape[0]} samples of {shape[1]} columns and no timestamps;"
            " time must be the first dim of its data"
        )
    return False


def _channels(series: Any, num_columns: int, name: str) -> list[Any]:
    """Ids of the rows of the table that the series' columns refer to."""
    region = getattr(series, "electrodes", None)
    region = getattr(series, "rois", None) if region is None else region
    if region is None:
        return list(range(num_columns))
    rows = np.asarray(region.data[:], int)
    ids = np.asarray(region.table.id[:])
    if len(rows) != num_columns or not (rows < len(ids)).all():
        raise ValueError(
            f"time series {name!r} has {num_columns} columns and refers to the rows"
            f" {shortened(rows)} of a table of {len(ids)}; there must be one row per column"
        )
    return list(ids[rows].tolist())


def _times(series: Any, name: str) -> Callable[[int, int], NDArray]:
    """Times in seconds of the samples from one position to another."""
    if series.timestamps is not None:
        stored = series.timestamps
        return lambda begin, end: np.asarray(stored[begin:end], float)
    rate, start = series.rate, series.starting_time
    if rate is None or not (np.isfinite(rate) and rate > 0):
        raise ValueError(
            f"time series {name!r} has no timestamps and the rate {rate}; its samples have no times"
        )
    first = 0.0 if start is None else float(start)
    if not np.isfinite(first):
        raise ValueError(f"time series {name!r} has the starting_time {first}")
    return lambda begin, end: first + np.arange(begin, end) / rate


def _check_timestamps(series: Series) -> None:
    num_unknown = num_back = 0
    last = -np.inf
    for begin in range(0, series.num_samples, CHUNK):
        times = series.times(begin, min(begin + CHUNK, series.num_samples))
        known = times[np.isfinite(times)]
        num_unknown += times.size - known.size
        num_back += int((np.diff(known, prepend=last) < 0).sum())
        last = known[-1] if known.size else last
    for number, fault in (
        (num_unknown, "are not finite; their samples are left out"),
        (num_back, "are earlier than the one before; the samples are sorted by time, which is wrong"
         " if the clock was set back"),
    ):  # fmt: skip
        if number:
            warnings.warn(
                f"{number} of {series.num_samples} timestamps of {series.name!r} {fault}",
                UserWarning,
                stacklevel=5,
            )
