"""NWB files: spike times and series of samples, binned around an event of every trial.

Bins are closed on the left, see `pyrodyn.data.binning`. A trial is kept if its event is known and
its whole window was observed (``obs_intervals``) for at least one unit; units that were not
observed throughout a kept trial are marked in ``valid``, and so are bins in the file's
``invalid_times``. Behaviour and a signal (fluorescence, a field potential) are the means of a
series' known samples in every bin.

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
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.binning import EDGE, averaged, bins_in_window, check_bin_width, counted
from pyrodyn.data.nwb_series import Series, read_series, series_paths
from pyrodyn.data.nwb_tables import as_frame, selected, unique
from pyrodyn.data.nwb_trials import (
    check_trials,
    conditions,
    invalid_bins,
    kept_trials,
    observed_bins,
    trials_table,
    whole_session,
    windows,
)
from pyrodyn.data.nwb_units import Spikes, read_units, units_table
from pyrodyn.data.recording import recording

LEAST_IN_TRIALS = 0.02
"""Fraction of spikes between the first and the last trial below which the times are in doubt."""

LEAST_SAMPLED = 0.1
"""Fraction of bins with a sample of behaviour below which its times are in doubt."""

LEAST_SIGNAL = 0.75
"""Fraction of bins with a sample of the signal below which its times or the bins are in doubt."""


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
    signal: str | None = None,
    trial_filter: Callable[[pd.DataFrame], Any] | None = None,
    unit_filter: Callable[[pd.DataFrame], Any] | None = None,
) -> xr.Dataset:
    """Spike counts per trial from an NWB file, or a signal, or both.

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
            one trial from the start of the session to the last spike (or sample of the signal).
        units: path of the units table, if it is not the file's own.
        signal: name or path of the time series that becomes the ``signal``, such as
            ``"DfOverF/RoiResponseSeries"`` or ``"LFP/ElectricalSeries"``, averaged in the same
            bins; bins without a known sample are marked as unmeasured. If the file has spike times,
            the recording holds both, see `pyrodyn.data.select_modality`.
        trial_filter: from the trials table to a bool per trial, true for those to keep, such as
            ``lambda trials: trials["target"].notna()``.
        unit_filter: from the units table to a bool per unit, true for those to keep, such as
            ``lambda units: units["quality"] == "good"``. The column ``group_name`` holds the
            electrode group (probe) of every unit.

    Returns:
        A validated recording; trials and neurons are labelled with their ids in the file, channels
        with those of their electrodes or regions of interest. The coordinate ``probe`` holds the
        electrode groups of the neurons, if there are several.

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
        spikes = _spikes(file, units, unit_filter, bin_width, needed=signal is None)
        potential = None if signal is None else read_series(file, signal, "signal=")
        if trials is None:
            table = whole_session(spikes, potential, bin_width, window)
        else:
            table = as_frame(trials_table(file, trials), "trials")
        table = table[selected(table, trial_filter, "trial_filter", "trials")]
        columns = {"align_to": align_to, "condition": condition}
        for argument, column in (columns | ({} if window else {"window": "stop_time"})).items():
            if column is not None and list(table.columns).count(column) > 1:
                raise ValueError(f"the trials table has several columns {column!r}")
            if column is not None and column not in table:
                raise ValueError(
                    f"{argument} needs the column {column!r}, which the trials table lacks; its"
                    f" columns are {', '.join(map(str, table.columns))}"
                )
        series = [read_series(file, name, "behavior=") for name in behavior]
        starts, lengths = windows(table, align_to, window, bin_width)
        invalid = invalid_bins(file, starts, lengths, bin_width)
        spans = [] if spikes is None else list(spikes.observed)
        opening = np.inf if spikes is None else spikes.first
        if potential is not None:
            spans, opening = [*spans, np.array([potential.span])], min(opening, potential.span[0])
        if trials is None:
            observed = observed_bins(spans, starts[0], lengths[0], bin_width)
        else:
            kept, observed = kept_trials(
                table, align_to, spans, opening, invalid, starts, lengths, bin_width
            )
            table, starts, lengths = table[kept], starts[kept], lengths[kept]
            invalid = invalid[kept, : int(lengths.max())]
            check_trials(table, spikes, starts, lengths, bin_width)
        inside = (np.arange(invalid.shape[1]) < lengths[:, None]) & ~invalid
        names: dict[str, Any] = {
            "trial": np.asarray(unique(table.index.tolist(), "trial ids")),
        }
        observations: dict[str, Any] = {}
        if spikes is not None:
            observations["counts"] = counted(spikes.times, starts, lengths, bin_width)
            _check_spikes(spikes, observations["counts"], starts, lengths, bin_width)
            names["neuron"] = np.asarray(spikes.labels)
            # Of the observed spans the last is that of the signal.
            seen = observed[..., : len(spikes.labels)]
            valid = inside if seen.all() else inside[..., None] & seen
            observations["valid"] = None if valid.all() else valid
        if potential is not None:
            means = _means(potential, starts, lengths, bin_width, is_signal=True)
            known = inside[..., None] & ~np.isnan(means)
            observations["signal"] = np.where(known, means, 0.0).astype(np.float32)
            key = "valid" if spikes is None else "signal_valid"
            observations[key] = None if known.all() else known
            names["channel"] = np.asarray(unique(potential.channels, "ids of channels"))
        values = [_means(one, starts, lengths, bin_width) for one in series]
        if series:
            names["quantity"] = [label for one in series for label in one.labels]
        data = recording(
            **observations,
            bin_width=bin_width,
            start=0.0 if window is None else float(window[0]),
            condition=None if condition is None else conditions(table, condition),
            behavior=np.concatenate(values, axis=-1) if series else None,
            names=names,
        )
    if series:
        data = data.assign_coords(
            unit=("quantity", [one.unit for one in series for _ in one.labels])
        )
    if potential is not None:
        data["signal"].attrs["units"] = potential.unit
    if spikes is not None and spikes.groups is not None and len(set(spikes.groups)) > 1:
        data = data.assign_coords(probe=("neuron", spikes.groups))
    return data


def _spikes(
    file: Any,
    units: str | None,
    unit_filter: Callable[[pd.DataFrame], Any] | None,
    bin_width: float,
    needed: bool,
) -> Spikes | None:
    """The spikes of a file; None if it has none and a signal is read in their place."""
    table = units_table(file, units)
    if table is not None and "spike_times" in table.colnames:
        return read_units(table, unit_filter, bin_width)
    for argument, value in {"units": units, "unit_filter": unit_filter}.items():
        if value is not None:
            raise ValueError(
                f"{argument}= is for a units table with spike_times, and there is none"
            )
    if not needed:
        return None
    found = "units table" if table is None else "spike_times in its units table"
    paths = series_paths(file)
    remedy = "; choose the one to model by signal=" if paths else ""
    raise ValueError(
        f"the file has no {found}, so there are no spike times to bin; its time series are"
        f" {', '.join(paths) or 'none'}{remedy}"
    )


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
            if "can't open directory" in reason or "filter" in reason:
                reason += "; if its data are compressed by a filter of its own, import hdf5plugin"
            raise ValueError(
                f"{path} could not be read: {type(error).__name__}: {reason}"
            ) from error


def _check_spikes(
    spikes: Spikes, counts: NDArray, starts: NDArray, lengths: NDArray, bin_width: float
) -> None:
    """Refuse windows without a single spike; warn if nearly all spikes lie outside the trials."""
    total = spikes.total
    first, last = starts.min(), (starts + lengths * bin_width).max()
    if not total:
        raise ValueError("the units have no spikes")
    between = sum(
        int(np.searchsorted(times, last) - np.searchsorted(times, first)) for times in spikes.times
    )
    spike_range = f"{spikes.first:g} to {spikes.last:g} s"
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


def _means(
    series: Series,
    starts: NDArray,
    lengths: NDArray,
    bin_width: float,
    is_signal: bool = False,
) -> NDArray:
    """A series' means in the bins of the trials, ``(trial, time, column)``."""
    first, last = starts.min(), (starts + lengths * bin_width).max()
    chunks = series.chunks(first - EDGE * bin_width, last)
    means = averaged(chunks, len(series.labels), starts, lengths, bin_width)
    inside = np.arange(means.shape[1]) < lengths[:, None]
    filled = (~np.isnan(means).all(axis=-1))[inside].mean()
    if filled == 0:
        shown = f"{series.span[0]:g} to {series.span[1]:g} s" if series.num_samples else "none"
        raise ValueError(
            f"no sample of {series.name!r} with a value lies in a trial (samples: {shown}; trials:"
            f" {first:g} to {last:g} s)"
        )
    if filled < (LEAST_SIGNAL if is_signal else LEAST_SAMPLED):
        warnings.warn(
            f"{series.name!r} has samples in {filled:.1%} of the bins, and the others are"
            f" {'marked as unmeasured' if is_signal else 'NaN'}; check its timestamps or rate, or"
            " use wider bins",
            UserWarning,
            stacklevel=3,
        )
    return means
