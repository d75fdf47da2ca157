"""Conversion of the named recordings' sources.

A source's arrays are read from its ``NAME.npz``, or from the public files (HDF5, NumPy's ``.npy``,
EDF, MATLAB) by the functions ending in ``_arrays``. The other functions make recordings of these
arrays. Nothing is rescaled or dropped except where a docstring states it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.binning import averaged, counted
from pyrodyn.data.lfads_hdf5 import lfads_recording
from pyrodyn.data.recording import recording

Arrays = Mapping[str, NDArray]
"""A source's arrays by name."""

TRACK_BIN_WIDTH = 0.05
"""Seconds per bin of the spike times of the linear track."""

IMAGERY_RUNS = ["S001R06", "S001R10"]
"""Runs of eegmmidb's first subject that ask for imagined movement of fists and feet."""

IMAGERY_CODES = ["T0", "T1", "T2"]
"""That database's annotations, in the order of the codes that `load` gives them."""


def lorenz(arrays: Arrays) -> xr.Dataset:
    """The true rates are in Hz, the bins 10 ms; consecutive trials share an initial condition."""
    of_trials = {key: array for key, array in arrays.items() if not key.startswith("n_")}
    data = lfads_recording(of_trials, bin_width=0.01, truth_unit="hz")
    per_condition = int(arrays["n_trials_per_init_cond"].item())
    return data.assign(condition=("trial", data["trial"].values // per_condition))


def mc_maze(arrays: Arrays) -> xr.Dataset:
    """Time 0 is the first bin: the source does not state the event that trials are aligned to."""
    data = recording(
        arrays["spikes"],
        bin_width=float(arrays["bin_ms"]) / 1000,
        condition=arrays["condition"],
        behavior=np.concatenate([arrays["hand_pos"], arrays["hand_vel"]], axis=-1),
        names={"quantity": ["hand x", "hand y", "hand velocity x", "hand velocity y"]},
    )
    return data.assign_coords(unit=("quantity", ["mm", "mm", "mm/s", "mm/s"]))


def chewie(arrays: Arrays) -> xr.Dataset:
    """The arrays concatenate the trials; the source does not state the units of behaviour."""
    cuts = arrays["offsets"][1:-1]
    kinds = {"pos": "hand", "vel": "hand velocity", "acc": "hand acceleration", "force": "force"}
    behavior = np.concatenate([arrays[key] for key in kinds], axis=-1)
    return recording(
        np.split(arrays["counts"], cuts),
        bin_width=float(arrays["bin_ms"]) / 1000,
        condition=arrays["target"],
        behavior=np.split(behavior, cuts),
        names={"quantity": [f"{kind} {axis}" for kind in kinds.values() for axis in "xy"]},
    )


def hippocampus(arrays: Arrays) -> xr.Dataset:
    """Spike times in bins of 50 ms, as one trial on the source's clock, from the whole second in
    which the recording begins to its last spike; position is that of the video, in pixels.
    """
    spikes, unit = arrays["spike_s"], arrays["unit"]
    start = np.floor(min(spikes.min(), arrays["pos_t"].min()))
    starts = np.array([start])
    lengths = np.array([int((spikes.max() - start) / TRACK_BIN_WIDTH) + 1])
    times = [np.sort(spikes[unit == one]) for one in range(int(unit.max()) + 1)]
    frames = (arrays["pos_t"], np.stack([arrays["x"], arrays["y"]], axis=-1).astype(float))
    data = recording(
        counted(times, starts, lengths, TRACK_BIN_WIDTH),
        bin_width=TRACK_BIN_WIDTH,
        start=float(start),
        behavior=averaged([frames], 2, starts, lengths, TRACK_BIN_WIDTH),
        names={"quantity": ["x", "y"]},
    )
    return data.assign_coords(unit=("quantity", ["pixel", "pixel"]))


def smoothed_eeg(arrays: Arrays) -> xr.Dataset:
    """The continuous standardised signal is one trial."""
    return recording(signal=arrays["eeg"][None], bin_width=1 / float(arrays["fs"]))


def imagery_eeg(arrays: Arrays) -> xr.Dataset:
    """Each run is one continuous trial, in microvolts; ``behavior`` holds the task of each bin.

    The files end with half a second of zeros in all channels, padding of the last record: these
    bins are marked as unmeasured in ``valid``.
    """
    rate = float(arrays["fs"])
    signal = np.stack([arrays[run] * arrays["gain_uV"] for run in IMAGERY_RUNS])
    task = np.full((*signal.shape[:2], 1), np.nan)
    for trial, run in enumerate(IMAGERY_RUNS):
        onset = arrays[f"{run}_event_t"].astype(float)
        begin = np.rint(onset * rate).astype(int)
        end = np.rint((onset + arrays[f"{run}_event_dur"]) * rate).astype(int)
        for first, last, label in zip(begin, end, arrays[f"{run}_event"], strict=True):
            task[trial, first:last] = IMAGERY_CODES.index(label)
    data = recording(
        signal=signal,
        bin_width=1 / rate,
        behavior=task,
        valid=(signal != 0).any(axis=-1),
        names={"trial": IMAGERY_RUNS, "channel": arrays["labels"].tolist(), "quantity": ["task"]},
    )
    data["signal"].attrs["units"] = "uV"
    data["behavior"].attrs["codes"] = "0 rest, 1 imagine both fists, 2 imagine both feet"
    return data


def hdf5_arrays(files: Sequence[Path]) -> Arrays:
    """All arrays of one HDF5 file."""
    with h5py.File(files[0], "r") as file:
        return {key: np.asarray(file[key][()]) for key in file}


def npy_arrays(files: Sequence[Path]) -> Arrays:
    """The smoothed EEG; the papers give its sampling rate, 160 Hz."""
    return {"eeg": np.load(files[0], allow_pickle=False), "fs": np.array(160.0)}


def edf_arrays(files: Sequence[Path]) -> Arrays:
    """One EDF file per imagery run, in physical units (microvolts)."""
    from pyedflib import EdfReader

    arrays: dict[str, NDArray] = {"gain_uV": np.array(1.0)}
    for run, path in zip(IMAGERY_RUNS, files, strict=True):
        with EdfReader(str(path)) as file:
            channels = range(file.signals_in_file)
            arrays[run] = np.stack([file.readSignal(channel) for channel in channels], axis=-1)
            arrays["labels"] = np.array([label.rstrip(".") for label in file.getSignalLabels()])
            arrays["fs"] = np.array(file.getSampleFrequency(0))
            onset, duration, label = file.readAnnotations()
        arrays |= {f"{run}_event_t": onset, f"{run}_event_dur": duration}
        arrays[f"{run}_event"] = np.asarray(label)
    return arrays


def track_arrays(files: Sequence[Path]) -> Arrays:
    """Spike times of every unit of every tetrode in seconds (MATLAB), and the frames of the video.

    The video's file is text that ends with ``<End settings>``, then per frame the clock at 30 kHz
    and two positions.
    """
    from scipy.io import loadmat

    units = list(_unit_times(loadmat(str(files[0]))["spikes"]))
    frames = files[1].read_bytes().partition(b"<End settings>\n")[2]
    kind = np.dtype([("time", "<u4"), *((key, "<u2") for key in ("x", "y", "x2", "y2"))])
    video = np.frombuffer(frames, kind)
    return {
        "spike_s": np.concatenate(units),
        "unit": np.repeat(np.arange(len(units), dtype=np.uint8), [len(one) for one in units]),
        "pos_t": video["time"] / 30_000,
        "x": video["x"].astype(np.uint16),
        "y": video["y"].astype(np.uint16),
    }


def _unit_times(cell: Any) -> Iterator[NDArray[np.float64]]:
    """The field ``time`` of all structs in nested cells, in their order, of those with spikes."""
    if cell.dtype.names:
        times = (np.asarray(one, float).ravel() for one in cell["time"].flat)
        yield from (one for one in times if one.size)
    elif cell.dtype == object:
        for one in cell.flat:
            yield from _unit_times(one)
