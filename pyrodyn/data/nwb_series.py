"""Time series of NWB files: finding one by name or path, and reading its samples.

The value of a sample is ``data * conversion + offset`` in the series' unit (for series with a
factor per channel, ``data * conversion * channel_conversion + offset``); its time is given by
``timestamps``, or by ``starting_time`` and ``rate``.

Source: the NWB standard (Rübel et al., eLife 2022).
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

GROUPS = ("processing", "acquisition", "stimulus", "presentation", "analysis", "root")
"""Top-level groups of a file, which a path may include."""


class Series(NamedTuple):
    """One time series, sorted in time."""

    times: NDArray
    """``(sample,)``, in seconds."""
    values: NDArray
    """``(sample, column)``, in ``unit``."""
    labels: list[str]
    """One per column."""
    unit: str
    """As in the file."""


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


def read_series(file: Any, name: str) -> Series:
    """A time series of an opened file.

    Args:
        file: the `pynwb.NWBFile`.
        name: its name, or its path if several series have the same name.

    Raises:
        ValueError: if there is no such series, or its samples have no times or are not numbers.
    """
    from pynwb import TimeSeries

    every = [one for one in file.objects.values() if isinstance(one, TimeSeries)]
    series = find(every, name, "time series", "behavior=")
    try:
        values = np.asarray(series.data[:], float)
    except (TypeError, ValueError):
        raise ValueError(f"the data of time series {name!r} are not numbers") from None
    if values.ndim not in (1, 2):
        raise ValueError(
            f"time series {name!r} has shape {values.shape}; samples must be numbers or vectors"
        )
    values = values.reshape(len(values), -1)
    factor = np.asarray(series.conversion, float)
    per_channel = getattr(series, "channel_conversion", None)
    if per_channel is not None:
        factor = factor * np.asarray(per_channel[:], float)
    values = values * factor + series.offset
    times = _times(series, values, name)
    known = np.isfinite(times)
    if not known.all():
        warnings.warn(
            f"{(~known).sum()} of {known.size} timestamps of {name!r} are not finite; their samples"
            " are left out",
            UserWarning,
            stacklevel=4,
        )
        times, values = times[known], values[known]
    order = np.argsort(times, kind="stable")
    width = values.shape[1]
    labels = [name] if width == 1 else [f"{name}_{column}" for column in range(width)]
    return Series(times[order], values[order], labels, str(series.unit))


def _times(series: Any, values: NDArray, name: str) -> NDArray:
    """Times of the samples in seconds."""
    if series.timestamps is not None:
        times = np.asarray(series.timestamps[:], float)
        if times.shape != (len(values),):
            raise ValueError(
                f"time series {name!r} has {times.size} timestamps for {len(values)} samples; they"
                " must agree"
            )
        return times
    rate, start = series.rate, series.starting_time
    if rate is None or not (np.isfinite(rate) and rate > 0):
        raise ValueError(
            f"time series {name!r} has no timestamps and the rate {rate}; its samples have no times"
        )
    if len(values) < values.shape[1]:
        warnings.warn(
            f"time series {name!r} has {len(values)} samples of {values.shape[1]} columns; if time"
            " is its second dim, the file is not as the standard demands",
            UserWarning,
            stacklevel=5,
        )
    return (0.0 if start is None else float(start)) + np.arange(len(values)) / rate
