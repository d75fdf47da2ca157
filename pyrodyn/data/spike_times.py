"""Spike times to recordings.

Spike times come per trial, relative to an event of that trial, or continuously, together with the
times of the events that trials are aligned to. Bins are closed on the left, see
`pyrodyn.data.binning`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyrodyn.data.binning import bins_in_window, check_bin_width, counted
from pyrodyn.data.recording import recording
from pyrodyn.data.schema import shortened

COLUMNS = ("trial", "neuron", "time")
"""Columns of a table of spikes; ``trial`` is left out of continuous spike times."""


def bin_spikes(
    spikes: Any,
    *,
    bin_width: float,
    window: tuple[float, float],
    events: ArrayLike | None = None,
    neurons: Sequence[Any] | None = None,
    trials: Sequence[Any] | None = None,
    **arrays: Any,
) -> xr.Dataset:
    """A recording from spike times.

    Args:
        spikes: one of

            * a list with one list per trial of one array of spike times per neuron,
            * a list of one array of spike times per neuron (continuous),
            * a dict from neurons to arrays (continuous), or to lists of one array per trial,
            * a `pandas.DataFrame` with the columns ``trial``, ``neuron`` and ``time``, one row per
              spike; without ``trial`` its times are continuous.

            Times are in seconds: of trials, relative to the trial's event.
        bin_width: seconds per bin.
        window: first and last edge of the bins in seconds relative to the event, an integer number
            of bins.
        events: times of the events of continuous spike times, in seconds, one per trial. Without it
            continuous spike times are one trial, whose window is ``window``.
        neurons: labels of all neurons of a table, which otherwise are those that fire.
        trials: labels of all trials of a table, which otherwise are those with a spike.
        arrays: further arguments of `recording`, such as ``condition``, with one entry per trial.

    Returns:
        A validated recording.

    Raises:
        ValueError: if the times have another form, or no spike lies in a window.
    """
    check_bin_width(bin_width)
    num_bins = bins_in_window(window, bin_width)
    names = {key: list(v) for key, v in {"neuron": neurons, "trial": trials}.items() if v}
    if isinstance(spikes, pd.DataFrame):
        spikes, names = _from_table(spikes, names)
    elif isinstance(spikes, Mapping):
        names["neuron"] = list(spikes)
        spikes = list(spikes.values())
        if spikes and not _is_times(spikes[0]):  # one list of trials per neuron
            if len({len(of_neuron) for of_neuron in spikes}) > 1:
                raise ValueError("spikes gives the neurons different numbers of trials")
            spikes = [list(of_trial) for of_trial in zip(*spikes, strict=True)]
    if not isinstance(spikes, Sequence | np.ndarray) or not len(spikes):
        raise ValueError(
            f"spikes is {type(spikes).__name__}; give a list of trials of arrays per neuron, a list"
            f" or dict of arrays per neuron, or a table with the columns {', '.join(COLUMNS)}"
        )
    if _is_times(spikes[0]):
        starts = np.zeros(1) if events is None else np.asarray(events, float).ravel()
        if not np.isfinite(starts).all():
            raise ValueError(
                f"events has {(~np.isfinite(starts)).sum()} times that are not finite; leave these"
                " trials out"
            )
        times = [_sorted(one, f"neuron {i}") for i, one in enumerate(spikes)]
        counts = counted(times, starts + window[0], np.full(len(starts), num_bins), bin_width)
    else:
        if events is not None:
            raise ValueError(
                "events= is for continuous spike times; those given are per trial, relative to"
                " each trial's event"
            )
        counts, times = _per_trial(list(spikes), window, num_bins, bin_width)
    total = sum(one.size for one in times)
    if total and not counts.any():
        first, last = (edge(t) for edge, t in ((min, _ends(times, 0)), (max, _ends(times, -1))))
        raise ValueError(
            f"none of the {total} spike times ({first:g} to {last:g} s) lies in a window; times,"
            " events and window must all be in seconds"
        )
    return recording(
        counts, bin_width=bin_width, start=float(window[0]), names=names or None, **arrays
    )


def _per_trial(
    spikes: Sequence[Any], window: tuple[float, float], num_bins: int, bin_width: float
) -> tuple[NDArray, list[NDArray]]:
    """Counts of trials that each have spike times of their own, and all these times."""
    num_neurons = len(spikes[0])
    start, length = np.array([float(window[0])]), np.array([num_bins])
    counts, every = [], []
    for trial, of_trial in enumerate(spikes):
        if len(of_trial) != num_neurons:
            raise ValueError(
                f"trial {trial} has {len(of_trial)} neurons where trial 0 has {num_neurons}"
            )
        times = [_sorted(one, f"trial {trial}, neuron {i}") for i, one in enumerate(of_trial)]
        counts.append(counted(times, start, length, bin_width)[0])
        every.extend(times)
    return np.stack(counts), every


def _from_table(
    table: pd.DataFrame, names: dict[str, list[Any]]
) -> tuple[list[Any], dict[str, list[Any]]]:
    """Spike times per neuron, or per trial and neuron, and the labels of both."""
    missing = [column for column in COLUMNS[1:] if column not in table]
    if missing:
        raise ValueError(
            f"the table of spikes lacks the column {missing[0]!r}; it needs {', '.join(COLUMNS)}"
        )
    labels = {}
    for key in ("trial", "neuron"):
        if key not in table:
            continue
        found = sorted(table[key].unique().tolist())
        labels[key] = names.get(key, found)
        unknown = [label for label in found if label not in set(labels[key])]
        if unknown:
            raise ValueError(f"{key}s= lacks {shortened(unknown)}, which the table of spikes has")
        if key not in names and all(isinstance(label, int) for label in found):
            gaps = sorted(set(range(found[0], found[-1])) - set(found))
            if gaps:
                warnings.warn(
                    f"the table has no spike of {key} {shortened(gaps)}; give {key}s= to keep them",
                    UserWarning,
                    stacklevel=3,
                )
    if "trial" not in labels:
        groups = dict(iter(table.groupby("neuron")["time"]))
        return [_of(groups, neuron) for neuron in labels["neuron"]], labels
    groups = dict(iter(table.groupby(["trial", "neuron"])["time"]))
    of_trials = [
        [_of(groups, (trial, neuron)) for neuron in labels["neuron"]] for trial in labels["trial"]
    ]
    return of_trials, labels


def _of(groups: Mapping[Any, pd.Series], key: Any) -> NDArray:
    return groups[key].to_numpy(float) if key in groups else np.zeros(0)


def _is_times(given: Any) -> bool:
    """Whether something is one array of times (which may be empty)."""
    if isinstance(given, np.ndarray):
        return given.ndim == 1 and given.dtype != object
    return isinstance(given, Sequence) and len(given) > 0 and all(np.ndim(t) == 0 for t in given)


def _sorted(times: Any, where: str) -> NDArray:
    array = np.sort(np.asarray(times, float).ravel())
    if not np.isfinite(array).all():
        raise ValueError(f"spike times of {where} are not all finite")
    return array


def _ends(times: Sequence[NDArray], position: int) -> list[float]:
    return [float(one[position]) for one in times if one.size]
