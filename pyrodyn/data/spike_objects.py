"""Spike trains of other packages: pynapple, neo and spikeinterface.

The objects are known by their attributes; none of these packages is imported. Each function bins
the object's spike times as `bin_spikes` does and keeps what the object has beside them: labels of
the units, their properties (as coordinates on neuron), and when they were recorded.

Without ``events`` every part of an object (a segment of a neo Block or of a sorting) is one trial
from its first to its last full bin; `pyrodyn.data.segment` cuts continuous ones into many.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.binning import EDGE, check_bin_width, counted, covered
from pyrodyn.data.recording import recording
from pyrodyn.data.schema import shortened, validate
from pyrodyn.data.spike_times import bin_spikes

Window = tuple[float, float]


class _Part(NamedTuple):
    """A stretch of time in which all units were recorded together."""

    times: list[NDArray]
    """Spike times of every unit, in seconds."""
    start: float
    stop: float
    spans: NDArray | None = None
    """``(interval, 2)``: intervals within, between which nothing was recorded."""


def from_pynapple(
    spikes: Any,
    *,
    bin_width: float,
    window: Window | None = None,
    events: Any = None,
    **arrays: Any,
) -> xr.Dataset:
    """A recording from a `pynapple.TsGroup` or, for one unit, a `pynapple.Ts`.

    Bins outside its time support are marked as unmeasured in ``valid``.

    Args:
        spikes: the units; their metadata become coordinates on neuron.
        bin_width: seconds per bin.
        window: first and last edge of the bins in seconds relative to the events; without events
            on the object's own clock, by default from the first to the last time of its time
            support.
        events: event of every trial: times in seconds, a Ts, or an IntervalSet, whose starts are
            the events.
        arrays: further arguments of `recording`, such as ``condition``.

    Returns:
        A validated recording.

    Raises:
        ValueError: for another object, and as `bin_spikes`.
    """
    with _only("a pynapple.TsGroup or Ts", spikes):
        is_group = isinstance(spikes, Mapping)
        group = spikes if is_group else {0: spikes}
        labels = [int(label) for label in group]
        times = [np.asarray(group[label].t, float) for label in labels]
        spans = np.asarray(spikes.time_support.values, float)
        table = spikes.metadata if is_group else {}
    if not is_group and hasattr(spikes, "values"):  # a Tsd or TsdFrame
        raise ValueError(
            f"spikes is a {type(spikes).__name__}, which holds samples; give its values as"
            " recording(signal=...)"
        )
    properties = {name: list(table[name]) for name in table if name != "rate"}
    part = _Part(times, float(spans.min()), float(spans.max()), spans)
    found = getattr(events, "t", getattr(events, "start", events))
    return _binned([part], labels, properties, bin_width, window, found, arrays)


def from_neo(
    spikes: Any,
    *,
    bin_width: float,
    window: Window | None = None,
    events: Any = None,
    **arrays: Any,
) -> xr.Dataset:
    """A recording from neo's SpikeTrains.

    Args:
        spikes: a `neo.Block`, each of whose Segments is a trial with the same units in the same
            order, a `neo.Segment`, or a list of `neo.SpikeTrain`. Annotations that every unit has
            become coordinates on neuron.
        bin_width: seconds per bin.
        window: first and last edge of the bins in seconds relative to the events; without events
            on the object's own clock, by default from ``t_start`` to ``t_stop``. Trials of a Block
            may then differ in length, and their times count from their starts.
        events: event of every trial: times in seconds, a `neo.Event`, or a `neo.Epoch`, whose
            starts are the events. Not for a Block of several Segments.
        arrays: further arguments of `recording`, such as ``condition``.

    Returns:
        A validated recording, its neurons labelled by the names of the trains if these are unique.

    Raises:
        ValueError: for another object, Segments with different units, and as `bin_spikes`.
    """
    with _only("a neo.Block, a neo.Segment or a list of neo.SpikeTrain", spikes):
        segments = spikes.segments if hasattr(spikes, "segments") else [spikes]
        trains = [list(getattr(segment, "spiketrains", segment)) for segment in segments]
        if not trains or not all(trains):
            raise ValueError(f"spikes is a {type(spikes).__name__} without spike trains")
        parts = [
            _Part(
                [np.asarray(train.rescale("s").magnitude, float) for train in of_segment],
                max(float(train.t_start.rescale("s").magnitude) for train in of_segment),
                min(float(train.t_stop.rescale("s").magnitude) for train in of_segment),
            )
            for of_segment in trains
        ]
        names = [[train.name for train in of_segment] for of_segment in trains]
        annotations = [dict(train.annotations) for train in trains[0]]
    for trial, own in enumerate(names):
        if own != names[0] and (len(own) != len(names[0]) or any(own)):
            raise ValueError(
                f"segment {trial} has the units {shortened(own)} where segment 0 has"
                f" {shortened(names[0])}; every segment must have the same in the same order"
            )
    common = [key for key in annotations[0] if all(key in one for one in annotations)]
    properties = {key: [one[key] for one in annotations] for key in common}
    labels = names[0] if all(names[0]) and len(set(names[0])) == len(names[0]) else None
    if hasattr(events, "rescale"):
        events = events.rescale("s").magnitude
    return _binned(parts, labels, properties, bin_width, window, events, arrays)


def from_spikeinterface(
    sorting: Any,
    *,
    bin_width: float,
    window: Window | None = None,
    events: Any = None,
    **arrays: Any,
) -> xr.Dataset:
    """A recording from a sorting of spikeinterface.

    Args:
        sorting: the sorting (a ``BaseSorting``), each of whose segments is a trial. Its properties
            become coordinates on neuron.
        bin_width: seconds per bin.
        window: first and last edge of the bins in seconds relative to the events; without events
            on the sorting's own clock, by default from its start to the end of its registered
            recording, or to the bin of its last spike without one. Trials of several segments may
            then differ in length, and their times count from their starts.
        events: times of the events in seconds, one per trial. Not for several segments.
        arrays: further arguments of `recording`, such as ``condition``.

    Returns:
        A validated recording.

    Raises:
        ValueError: for another object, and as `bin_spikes`.
    """
    check_bin_width(bin_width)
    parts = []
    with _only("a spikeinterface sorting", sorting):
        labels = np.asarray(sorting.unit_ids).tolist()
        for number in range(sorting.get_num_segments()):
            times = [
                np.asarray(
                    sorting.get_unit_spike_train(unit, segment_index=number, return_times=True),
                    float,
                )
                for unit in sorting.unit_ids
            ]
            start = float(sorting.get_start_time(segment_index=number))
            last = float(sorting.get_end_time(segment_index=number))
            stop = last + 1 / float(sorting.sampling_frequency)
            if not sorting.has_recording():
                stop = start + (np.floor((last - start) / bin_width + EDGE) + 1) * bin_width
            parts.append(_Part(times, start, stop))
        properties = {
            key: np.asarray(sorting.get_property(key)).tolist()
            for key in sorting.get_property_keys()
        }
    return _binned(parts, labels, properties, bin_width, window, events, arrays)


@contextlib.contextmanager
def _only(wanted: str, given: Any) -> Iterator[None]:
    """Raise one sentence for an object that lacks what is read of it."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        raise ValueError(f"spikes is a {type(given).__name__}, not {wanted} ({error})") from None


def _binned(
    parts: Sequence[_Part],
    labels: list[Any] | None,
    properties: Mapping[Any, list[Any]],
    bin_width: float,
    window: Window | None,
    events: Any,
    arrays: Mapping[str, Any],
) -> xr.Dataset:
    """The recording of one part around events, or with every part as a trial."""
    check_bin_width(bin_width)
    labels = list(range(len(parts[0].times))) if labels is None else labels
    if events is not None:
        if len(parts) > 1:
            raise ValueError(
                f"events= is for one continuous part; these are {len(parts)} segments: give one of"
                " them"
            )
        if window is None:
            raise ValueError("events= needs window=, the first and last edge of the bins")
        times = dict(zip(labels, parts[0].times, strict=True))
        data = bin_spikes(times, bin_width=bin_width, window=window, events=events, **arrays)
        starts = np.asarray(events, float).ravel() + window[0]
        data = _marked(data, [parts[0].spans] * len(starts), starts)
    else:
        bounds = [window or (part.start, part.stop) for part in parts]
        lengths = [int(np.floor((stop - start) / bin_width + EDGE)) for start, stop in bounds]
        if min(lengths) < 2:
            raise ValueError(
                f"segment {int(np.argmin(lengths))} lasts less than two bins of {bin_width:g} s"
            )
        starts = np.array([start for start, _ in bounds])
        counts = [
            counted(list(map(np.sort, part.times)), start[None], np.array([bins]), bin_width)[0]
            for part, start, bins in zip(parts, starts, lengths, strict=True)
        ]
        data = recording(
            counts,
            bin_width=bin_width,
            start=float(starts[0]) if window or len(parts) == 1 else 0.0,
            **{"names": {"neuron": labels}, **arrays},
        )
        data = _marked(data, [part.spans for part in parts], starts)
    return data.assign_coords(dict(_coordinates(data, properties)))


def _marked(data: xr.Dataset, spans: list[NDArray | None], starts: NDArray) -> xr.Dataset:
    """Mark the bins that lie outside the recorded intervals of their trial."""
    width, num_bins = data.attrs["bin_width"], data.sizes["time"]
    edges = starts[:, None] + width * np.arange(num_bins + 1)
    inside = np.stack(
        [
            covered(edge[:-1], edge[1:], own, EDGE * width)
            for edge, own in zip(edges, spans, strict=True)
        ]
    )
    if inside.all():
        return data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were issued when it was created
        inside_trials = xr.DataArray(inside, dims=("trial", "time"))
        return validate(data.assign(valid=data.get("valid", True) & inside_trials))


def _coordinates(
    data: xr.Dataset, properties: Mapping[Any, list[Any]]
) -> Iterator[tuple[str, tuple[str, list[Any]]]]:
    """Properties of the units as coordinates; a warning for those that cannot be."""
    unfit = []
    for name, values in properties.items():
        label = str(name)
        own = [value.item() if isinstance(value, np.generic) else value for value in values]
        kinds = {type(value) for value in own}
        plain = kinds <= {bool} or kinds <= {int, float} or kinds <= {str}
        if plain and label not in data.variables and label not in data.dims and "/" not in label:
            yield label, ("neuron", own)
        else:
            unfit.append(label)
    if unfit:
        warnings.warn(
            f"properties of units that are left out, since they are neither numbers nor texts or"
            f" their names are taken: {shortened(unfit)}",
            UserWarning,
            stacklevel=5,
        )
