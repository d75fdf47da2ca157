"""The units table of an NWB file: spike times, observed intervals and probes of the kept units.

Spike times that are probably not as intended (repeated, integers, too coarse for the bins) give a
warning.

Source: the NWB standard (Rübel et al., eLife 2022).
"""

import textwrap
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrodyn.data.nwb_series import find, path_of
from pyrodyn.data.nwb_tables import as_frame, selected, unique
from pyrodyn.data.schema import shortened

MANY_SPIKES = 100
"""Spikes from which on a property of all of them is no chance."""

MANY_REPEATED = 0.01
"""Fraction of spikes at the time of another of their unit above which that is no chance."""

COARSEST = 0.1
"""Fraction of a bin that the resolution of the stored spike times may have."""


class Spikes(NamedTuple):
    """The kept units."""

    times: list[NDArray]
    """Sorted spike times of every unit, in seconds."""
    observed: list[NDArray | None]
    """``(interval, 2)`` observed intervals of every unit; None for the whole session."""
    labels: list[Any]
    """One per unit, unique."""
    groups: list[str] | None
    """Electrode group (probe) of every unit, if the file has it."""

    @property
    def total(self) -> int:
        """Number of spikes."""
        return sum(times.size for times in self.times)

    @property
    def first(self) -> float:
        """Time of the first spike of any unit; infinite if there is none."""
        return float(min((times[0] for times in self.times if times.size), default=np.inf))

    @property
    def last(self) -> float:
        """Time of the last spike of any unit; minus infinity if there is none."""
        return float(max((times[-1] for times in self.times if times.size), default=-np.inf))


def units_table(file: Any, path: str | None) -> Any:
    """The units table: the file's own, or the one of a path; None if there is none."""
    from pynwb.misc import Units

    every = [one for one in file.objects.values() if isinstance(one, Units)]
    if path is not None:
        return find(every, path, "units tables", "units=")
    if file.units is not None:
        return file.units
    if len(every) > 1:
        paths = ", ".join(sorted(map(path_of, every)))
        raise ValueError(f"the file has several units tables; choose one by units= ({paths})")
    return every[0] if every else None


def read_units(
    table: Any, unit_filter: Callable[[pd.DataFrame], Any] | None, bin_width: float
) -> Spikes:
    """Spike times of the units that a filter keeps, checked.

    Args:
        table: the `pynwb.misc.Units`.
        unit_filter: as of `pyrodyn.data.nwb.read_nwb`.
        bin_width: seconds per bin.
    """
    frame = as_frame(table, "units")
    groups = _groups(table, frame)
    if groups is not None and "group_name" not in frame:
        frame = frame.assign(group_name=groups)
    _check_index(table)
    rows = np.flatnonzero(selected(frame, unit_filter, "unit_filter", "units"))
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
    _check_times(table, times, labels, bin_width)
    kept_groups = None if groups is None else [groups[row] for row in rows]
    return Spikes(times, observed, unique(labels, "unit ids"), kept_groups)


def _check_index(table: Any) -> None:
    """Refuse an index of the spike times that is broken, with which units get others' spikes."""
    index = np.asarray(table.spike_times_index.data[:]).astype(np.int64)
    total = len(table.spike_times_index.target.data)
    if (np.diff(index, prepend=0) < 0).any() or index[-1] != total:
        raise ValueError(
            f"spike_times_index of the units table must increase to the number of spike times,"
            f" {total}; it is {shortened(index)}"
        )


def _check_times(table: Any, times: list[NDArray], labels: list[Any], bin_width: float) -> None:
    """Warn of spike times that are repeated, probably not in seconds, or too coarse."""
    repeated = [int((np.diff(spikes) == 0).sum()) for spikes in times]
    faults = []
    every = sum(spikes.size for spikes in times)
    if every > MANY_SPIKES and sum(repeated) > MANY_REPEATED * every:
        units = [label for label, number in zip(labels, repeated, strict=True) if number]
        faults.append(
            f"{sum(repeated)} spike times are exactly those of another spike of the same unit"
            f" (units {shortened(units)}) and are counted twice"
        )
    if every > MANY_SPIKES and all((spikes == np.floor(spikes)).all() for spikes in times):
        faults.append(
            f"all {every} spike times are integers; all times of an NWB file must be in seconds,"
            " and these may be in milliseconds or samples"
        )
    kind = np.dtype(getattr(table.spike_times_index.target.data, "dtype", float))
    latest = max((abs(spikes[[0, -1]]).max() for spikes in times if spikes.size), default=0.0)
    step = float(np.spacing(kind.type(latest))) if kind.kind == "f" else 0.0
    if step > COARSEST * bin_width:
        faults.append(
            f"spike times are stored as {kind.name}, which resolves {step:.2g} s at {latest:g} s;"
            f" spikes may be in the bins beside their own, of {bin_width:g} s"
        )
    for fault in faults:
        warnings.warn(fault, UserWarning, stacklevel=5)


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
