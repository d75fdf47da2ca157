"""Malformed recordings, files and arguments: each is refused with one clear sentence.

A row is a name, what is done with bad input in an empty folder, and the expected sentence.
"""

import datetime
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from pyrodyn.data.catalog import load
from pyrodyn.data.lfads_hdf5 import lfads_recording
from pyrodyn.data.nwb import read_nwb
from pyrodyn.data.readers import read, write
from pyrodyn.data.recording import held_out, recording, select_modality
from pyrodyn.data.schema import validate
from pyrodyn.data.split import folds, split
from pyrodyn.models import LowRankRNN, RnnSAE


def counts(*shape: int) -> np.ndarray:
    return np.ones(shape or (3, 4, 2), int)


def good(**changes: Any) -> xr.Dataset:
    return recording(**{"counts": counts(), "bin_width": 0.01, **changes})


def varying(num_channels: int) -> np.ndarray:
    return 1.0 + np.arange(12.0 * num_channels).reshape(3, 4, num_channels)


def changed(index: tuple[int, ...], value: float) -> np.ndarray:
    array = counts().astype(float)
    array[index] = value
    return array


def named(**coords: Any) -> xr.DataArray:
    return xr.DataArray(counts(), dims=("trial", "time", "neuron"), coords=coords)


def dataset(**variables: Any) -> xr.Dataset:
    """A dataset with even times, to be validated."""
    return xr.Dataset(variables, coords={"time": [0.0, 0.1, 0.2, 0.3]})


def both() -> xr.Dataset:
    return good(signal=varying(5))


COUNTS = (("trial", "time", "neuron"), counts())
SIGNAL = (("trial", "time", "channel"), counts())

ARRAYS: dict[str, tuple[Callable[[], object], str]] = {
    "nothing observed": (
        lambda: recording(bin_width=0.1),
        r"give counts= \(spikes per bin\), signal= \(real values\) or both",
    ),
    "trials of the signal differ": (
        lambda: good(signal=counts(2, 4, 5)),
        r"signal has 2 along trial where counts has 3; lengths must agree",
    ),
    "bins of the signal differ": (
        lambda: good(signal=counts(3, 5, 5)),
        r"signal has 5 along time where counts has 4; lengths must agree",
    ),
    "bins of one trial's signal differ": (
        lambda: good(counts=[counts(4, 2), counts(3, 2)], signal=[counts(4, 5), counts(4, 5)]),
        r"signal has 4 bins in trial 1 where counts has 3; lengths must agree",
    ),
    "a flat signal beside counts": (
        lambda: good(signal=counts(3, 4)),
        r"signal has 2 dims; it must have dims \(trial, time, channel\)",
    ),
    "infinite signal beside counts": (
        lambda: good(signal=changed((0, 3, 1), np.inf)),
        r"signal is not finite \(inf\) at trial 0, time 3, channel 1; mark unmeasured",
    ),
    "fractional count beside a signal": (
        lambda: good(counts=changed((2, 0, 1), 0.5), signal=counts(3, 4, 5)),
        r"counts is fractional \(0\.5\) at trial 2, time 0, neuron 1",
    ),
    "mean of another signal": (
        lambda: good(signal=counts(3, 4, 5), signal_mean=counts(3, 4, 2)),
        r"signal_mean has 2 along channel where signal has 5; lengths must agree",
    ),
    "mean of no signal": (
        lambda: good(signal_mean=counts()),
        r"signal_mean= is for a signal in addition to counts; .* give valid= and rates=",
    ),
    "validity of a signal alone": (
        lambda: recording(signal=counts(), bin_width=0.1, signal_valid=np.ones((3, 4), bool)),
        r"signal_valid= is for a signal in addition to counts",
    ),
    "signal_valid as numbers": (
        lambda: good(signal=counts(3, 4, 5), signal_valid=counts(3, 4)),
        r"signal_valid has dtype int64; it must be bool",
    ),
    "neither valid": (
        lambda: good(
            valid=np.arange(3)[:, None, None] != np.full((1, 4, 2), 1),
            signal=counts(3, 4, 5),
            signal_valid=np.arange(3)[:, None] != np.full((1, 4), 1),
        ),
        r"valid marks every bin of trial 1 as unmeasured; drop that trial",
    ),
    "negative bins": (lambda: good(bin_width=-0.1), r"bin_width is -0\.1; .* a positive number"),
    "endless bins": (
        lambda: good(bin_width=np.inf),
        r"bin_width is inf; it is the seconds per bin",
    ),
    "start unknown": (lambda: good(start=np.nan), r"start is nan; .* in seconds"),
    "two dims": (
        lambda: good(counts=counts(3, 4)),
        r"counts has 2 dims; .* \(trial, time, neuron\)",
    ),
    "no trials": (lambda: good(counts=counts(0, 4, 2)), r"counts is empty along trial"),
    "no neurons": (lambda: good(counts=counts(3, 4, 0)), r"counts is empty along neuron"),
    "no trials in a list": (lambda: good(counts=[]), r"counts has 1 dims; it must have dims"),
    "one bin": (lambda: good(counts=counts(3, 1, 2)), r"needs at least two bins; .* has one"),
    "negative count": (
        lambda: good(counts=changed((1, 2, 0), -2)),
        r"counts is negative \(-2\) at trial 1, time 2, neuron 0; counts",
    ),
    "fractional count": (
        lambda: good(counts=changed((2, 0, 1), 0.5)),
        r"counts is fractional \(0\.5\) at trial 2, time 0, neuron 1; .* signal=",
    ),
    "missing count": (
        lambda: good(counts=changed((0, 3, 1), np.nan), valid=np.ones((3, 4), bool)),
        r"counts is not finite \(nan\) at trial 0, time 3, neuron 1; mark unmeasured .* valid=",
    ),
    "endless count": (
        lambda: good(counts=changed((0, 0, 0), np.inf)),
        r"counts is not finite \(inf\)",
    ),
    "huge count": (
        lambda: good(counts=changed((0, 0, 0), 2.0**40)),
        r"counts is beyond 2\*\*31 - 1",
    ),
    "counts as text": (
        lambda: good(counts=np.full((3, 4, 2), "1")),
        r"counts has dtype <U1; it must hold real numbers",
    ),
    "complex signal": (
        lambda: recording(signal=counts() * 1j, bin_width=0.1),
        r"signal has dtype complex128; it must hold real numbers",
    ),
    "huge signal": (
        lambda: recording(signal=changed((1, 1, 1), 1e60), bin_width=0.1),
        r"signal is beyond single precision \(1e\+60\) at trial 1, time 1, channel 1",
    ),
    "neurons differ between trials": (
        lambda: good(counts=[counts(4, 2), counts(5, 2), counts(4, 3)]),
        r"counts: trial 2 has 3 columns where trial 0 has 2",
    ),
    "an empty trial": (
        lambda: good(counts=[counts(4, 2), counts(0, 2)]),
        r"valid marks every bin of trial 1 as unmeasured; drop that trial",
    ),
    "a ragged list": (
        lambda: good(counts=[[1, 2], [1, 2, 3]]),
        r"counts is neither one array nor a list of \(bins, columns\) arrays",
    ),
    "trials differ": (
        lambda: good(inputs=counts(2, 4, 1)),
        r"inputs has 2 along trial where counts has 3; lengths must agree",
    ),
    "bins differ": (
        lambda: good(latents=counts(3, 5, 1)),
        r"latents has 5 along time where counts has 4",
    ),
    "bins of one trial differ": (
        lambda: good(inputs=[counts(4, 1), counts(4, 1), counts(3, 1)]),
        r"inputs has 3 bins in trial 2 where counts has 4; lengths must agree",
    ),
    "rates of other neurons": (
        lambda: good(rates=counts(3, 4, 5)),
        r"rates has 5 along neuron where counts has 2",
    ),
    "negative rates": (
        lambda: good(rates=changed((0, 1, 1), -1)),
        r"rates is negative \(-1\) at trial 0, time 1, neuron 1",
    ),
    "missing input": (
        lambda: good(inputs=changed((0, 1, 0), np.nan)),
        r"inputs is not finite \(nan\) at trial 0, time 1, input 0",
    ),
    "input as text": (
        lambda: good(inputs=np.full((3, 4, 1), "on")),
        r"inputs has dtype <U2; it must hold real numbers",
    ),
    "endless behavior": (
        lambda: good(behavior=changed((2, 1, 0), np.inf)),
        r"behavior is infinite \(inf\) at trial 2, time 1, quantity 0; use NaN where",
    ),
    "behavior as text": (
        lambda: good(behavior=np.full((3, 4, 1), "left")),
        r"behavior has dtype <U4; it must hold real numbers",
    ),
    "too few conditions": (
        lambda: good(condition=["a", "b"]),
        r"condition has 2 along trial where counts has 3",
    ),
    "conditions per bin": (
        lambda: good(condition=counts(3, 4)),
        r"condition has 2 dims; it must have dims \(trial\)",
    ),
    "missing condition": (
        lambda: good(condition=[0.0, np.nan, 1.0]),
        r"condition is missing \(nan\) at trial 1; drop that trial or give it a label",
    ),
    "no condition": (
        lambda: good(condition=np.array(["a", None, "b"], object)),
        r"condition is (None|nan) at position 1; labels are text or numbers",
    ),
    "valid as numbers": (
        lambda: good(valid=counts(3, 4)),
        r"valid has dtype int64; it must be bool",
    ),
    "valid of other shape": (
        lambda: good(valid=np.ones((3, 5), bool)),
        r"valid has 5 along time where counts has 4",
    ),
    "valid per trial": (
        lambda: good(valid=np.ones(3, bool)),
        r"valid has 1 dims; it must have dims \(trial, time\)",
    ),
    "nothing valid": (
        lambda: good(valid=np.arange(3)[:, None] != np.full((1, 4), 1)),
        r"valid marks every bin of trial 1 as unmeasured; drop that trial",
    ),
    "unknown dims by name": (
        lambda: good(counts=xr.DataArray(counts(), dims=("trial", "bin", "neuron"))),
        r"counts has dims \(trial, bin, neuron\); its dims must be named \(trial, time, neuron\)",
    ),
    "a dataset for an array": (
        lambda: good(counts=good()),
        r"counts is an xarray.Dataset; give one of its variables \(counts\)",
    ),
    "spike times for counts": (
        lambda: good(counts=[[[0.1, 0.2], [0.3]], [[], [0.4]]]),
        r"lists of spike times are binned by pyrodyn.data.bin_spikes",
    ),
    "a continuous signal": (
        lambda: recording(signal=counts(40, 2), bin_width=0.1),
        r"signal has 2 dims; .* continuous recording of dims \(time, channel\) is one trial",
    ),
    "times in milliseconds": (
        lambda: good(counts=named(time=10.0 * np.arange(4))),
        r"times of the array are spaced by 10 s where bin_width is 0\.01 s; give times in seconds",
    ),
    "a start beside times": (
        lambda: good(counts=named(time=0.01 * np.arange(4)), start=-1.0),
        r"start is -1 s where the times of the array begin at 0 s",
    ),
    "labels of other neurons": (
        lambda: good(counts=named(neuron=["a", "b"]), rates=named(neuron=["a", "c"])),
        r"rates has other labels along neuron than the arrays before it",
    ),
    "a name twice": (
        lambda: good(names={"neuron": ["a", "a"]}),
        r"neuron label 'a' occurs more than once; give every neuron a label of its own",
    ),
    "names of no dim": (
        lambda: good(names={"unit": [1, 2]}),
        r"names has labels for 'unit'; the dims here are trial, time, neuron",
    ),
    "too few names": (
        lambda: good(names={"neuron": ["a"]}),
        r"names gives 1 labels for the 2 entries of neuron",
    ),
}

DATASETS: dict[str, tuple[Callable[[], object], str]] = {
    "empty dataset": (
        lambda: validate(xr.Dataset()),
        r"holds counts, a signal or both; .* holds neither \(its variables: none\)",
    ),
    "spikes are not counts": (
        lambda: validate(dataset(spikes=COUNTS)),
        r"holds neither \(its variables: spikes\)",
    ),
    "a signal along neurons": (
        lambda: validate(dataset(counts=COUNTS, signal=COUNTS)),
        r"signal has dims \(trial, time, neuron\); it must have \(trial, time, channel\)",
    ),
    "a signal's mean beside no counts": (
        lambda: validate(dataset(signal=SIGNAL, signal_mean=SIGNAL)),
        r"unknown variable 'signal_mean'; a recording may hold behavior",
    ),
    "both held out": (
        lambda: validate(
            both().assign_coords(
                held_out=("neuron", [True] * 2), signal_held_out=("channel", [True] * 5)
            )
        ),
        r"held_out and signal_held_out leaves no neuron and no channel for the encoder to see",
    ),
    "unknown variable": (
        lambda: validate(dataset(counts=COUNTS, rate=COUNTS)),
        r"unknown variable 'rate'; a recording may hold behavior, condition, counts",
    ),
    "unknown dim": (
        lambda: validate(dataset(counts=(("trial", "time", "unit"), counts()))),
        r"counts has dims \(trial, time, unit\); it must have \(trial, time, neuron\)",
    ),
    "valid along neurons": (
        lambda: validate(dataset(counts=COUNTS, valid=("neuron", [True, True]))),
        r"valid has dims \(neuron\); it must have \(trial, time\) or \(trial, time, neuron\)",
    ),
    "no times": (
        lambda: validate(xr.Dataset({"counts": COUNTS})),
        r"time has no coordinate; give bin starts in seconds",
    ),
    "times run back": (
        lambda: validate(good().assign_coords(time=[0.0, 0.01, 0.005, 0.02])),
        r"time must increase; it does not at bin 2",
    ),
    "missing time": (
        lambda: validate(good().assign_coords(time=[0.0, np.nan, 0.02, 0.03])),
        r"time must increase; it does not at bin 1",
    ),
    "uneven times": (
        lambda: validate(good().assign_coords(time=[0.0, 0.01, 0.02, 0.04])),
        r"evenly spaced by 0\.01 s; the step before bin 3 is 0\.02 s",
    ),
    "calendar times": (
        lambda: validate(good().assign_coords(time=np.arange(4).astype("datetime64[ns]"))),
        r"time has dtype datetime64\[ns\]; give bin starts in seconds",
    ),
    "bin width as text": (
        lambda: validate(good().assign_attrs(bin_width="10 ms")),
        r"attribute bin_width is '10 ms'; it is the seconds per bin, a number",
    ),
    "label of no kind": (
        lambda: validate(good().assign_coords(neuron=np.array(["a", (1, 2)], object))),
        r"neuron is \(1, 2\) at position 1; labels are text or numbers",
    ),
    "held out as numbers": (
        lambda: validate(good().assign_coords(held_out=("neuron", [0, 1]))),
        r"coordinate held_out must be bool along neuron; it is int64 .* held_out\(\.\.\.\)",
    ),
    "everything held out": (
        lambda: validate(good().assign_coords(held_out=("neuron", [True, True]))),
        r"coordinate held_out leaves no neuron for the encoder to see",
    ),
    "forecast in the middle": (
        lambda: validate(good().assign_coords(forecast=("time", [False, True, False, True]))),
        r"coordinate forecast must mark the last bins of time and no others",
    ),
}

ARGUMENTS: dict[str, tuple[Callable[[], object], str]] = {
    "share above one": (lambda: held_out(good(), neurons=1.5), r"neurons=1\.5 .* between 0 and 1"),
    "position beyond": (
        lambda: held_out(good(), neurons=[0, 2]),
        r"neurons names position 2; this recording has neurons 0 to 1",
    ),
    "a mask for positions": (
        lambda: held_out(good(), neurons=[True, False]),
        r"neither a fraction \(a float between 0 and 1\) nor a list of integer positions",
    ),
    "all neurons": (
        lambda: held_out(good(), neurons=[0, 1]),
        r"holds out all 2 neurons; the encoder needs at least one",
    ),
    "all neurons and channels": (
        lambda: held_out(both(), neurons=[0, 1], channels=[0, 1, 2, 3, 4]),
        r"holds out all 2 neurons and 5 channels; the encoder needs at least one",
    ),
    "channels beside none": (
        lambda: held_out(good(), channels=[0]),
        r"channels= is for recordings of neurons and channels; this one has neurons alone",
    ),
    "channels beyond": (
        lambda: held_out(both(), channels=[5]),
        r"channels names position 5; this recording has channels 0 to 4",
    ),
    "alone what is not there": (
        lambda: select_modality(good(), "signal"),
        r"observed='signal'; this recording holds counts$",
    ),
    "all bins forecast": (
        lambda: held_out(good(), forecast_bins=4),
        r"forecast_bins=4 must leave at least one of the 4 bins to see",
    ),
    "fractions above one": (
        lambda: split(good(), (0.8, 0.3)),
        r"fractions=\(0\.8, 0\.3\) must be positive and sum to 1",
    ),
    "a negative fraction": (lambda: split(good(), (1.2, -0.2)), r"must be positive and sum to 1"),
    "one fraction": (
        lambda: split(good(), (1.0,)),
        r"fractions=\(1\.0,\) must be a sequence of two",
    ),
    "an empty part": (
        lambda: split(good(), (0.9, 0.1)),
        r"part 1 of 2 would be empty with 3 trial\(s\); use fewer parts or larger fractions",
    ),
    "one model for counts and a signal": (
        lambda: RnnSAE.for_recording(both(), observation="gaussian"),
        r"'gaussian' names one model, but the recording holds counts and signal; name both, such",
    ),
    "two models for counts": (
        lambda: RnnSAE.for_recording(good(), observation={"counts": "poisson", "signal": "gamma"}),
        r"names models of two variables, but the recording holds counts alone; give one name",
    ),
    "no model of the signal": (
        lambda: RnnSAE.for_recording(both(), observation={"counts": "poisson"}),
        r"observation=\{'counts': 'poisson'\} names no model of signal; name one for each",
    ),
    "a model of nothing recorded": (
        lambda: RnnSAE.for_recording(both(), observation={"counts": "poisson", "lfp": "gamma"}),
        r"observation names 'lfp', which no recording holds; it may hold counts and signal",
    ),
    "an unknown model of the signal": (
        lambda: RnnSAE.for_recording(both(), observation={"counts": "poisson", "signal": "normal"}),
        r"observation='normal' is unknown; it is one of poisson, .*gaussian",
    ),
    "a model without a size": (
        lambda: RnnSAE(7, observation={"counts": "poisson", "signal": "gaussian"}),
        r"observation of counts is 'poisson'; it must be a name and a number of neurons",
    ),
    "sizes that do not add up": (
        lambda: RnnSAE(8, observation={"counts": ["poisson", 2], "signal": ["gaussian", 5]}),
        r"specifies 2 neurons and 5 channels, 7 in total, but num_neurons=8",
    ),
    "a signal outside the support": (
        lambda: RnnSAE.for_recording(
            good(signal=-varying(5)), observation={"counts": "poisson", "signal": "gamma"}
        ),
        r"signal: Gamma observations are real numbers > 0, but neuron 0 is -\d+ at trial 0, bin 0",
    ),
    "both for a model of counts": (
        lambda: RnnSAE.for_recording(good()).check(both()),
        r"holds counts and signal; this model was made for one of them, .*_modality selects",
    ),
    "counts for a model of both": (
        lambda: RnnSAE.for_recording(both()).check(good()),
        r"holds counts; this model was made for counts and a signal",
    ),
    "other channels": (
        lambda: RnnSAE.for_recording(both()).check(good(signal=varying(6))),
        r"has 6 channels; this model was made for 5",
    ),
    "an optimal proposal for spikes": (
        lambda: LowRankRNN.for_recording(
            both(), proposal="optimal", observation={"counts": "poisson", "signal": "gamma"}
        ),
        r"the optimal proposal needs a gaussian observation",
    ),
    "a softplus of no log mean": (
        lambda: LowRankRNN.for_recording(
            both(), link="softplus", observation={"counts": "bernoulli", "signal": "gaussian"}
        ),
        r"link='softplus' is for observations with a log mean",
    ),
    "one fold": (lambda: folds(good(), 1), r"num_folds=1 must be an integer of at least 2"),
    "seed below 0": (lambda: split(good(), (0.5, 0.5), seed=-1), r"seed=-1 must be an integer"),
    "more folds than trials": (
        lambda: folds(good(), 4),
        r"part 3 of 4 would be empty with 3 trial",
    ),
    "no such recording": (
        lambda: load("mc_maze"),
        r"no recording is named 'mc_maze'; there are lorenz_lfads_truth, mc_maze_large_9cond",
    ),
}


def lfads(**arrays: object) -> object:
    given = {key: np.asarray(array) for key, array in arrays.items()}
    return lfads_recording(given, bin_width=0.01)


LFADS: dict[str, tuple[Callable[[], object], str]] = {
    "no lfads keys": (
        lambda: lfads(spikes=counts()),
        r"no train_data, train_encod_data or train_recon_data .*; the keys are spikes",
    ),
    "no bin width": (
        lambda: lfads_recording({"train_data": counts()}),
        r"does not state the width of a bin; give bin_width= in seconds",
    ),
    "two bin widths": (
        lambda: lfads(train_data=counts(), dt=0.02),
        r"bin_width=0\.01 disagrees with dt in the file, 0\.02 s",
    ),
    "encod is no leading block": (
        lambda: lfads(train_encod_data=counts(3, 4, 1) + 1, train_recon_data=counts()),
        r"must be the leading block of recon_data; they differ at trial 0, time 0, neuron 0",
    ),
    "encod is larger": (
        lambda: lfads(train_encod_data=counts(3, 5, 2), train_recon_data=counts()),
        r"shape \(3, 5, 2\), which is not a leading block of recon_data of shape \(3, 4, 2\)",
    ),
    "valid has other neurons": (
        lambda: lfads(train_data=counts(), valid_data=counts(1, 4, 3)),
        r"valid_data has bins and columns \(4, 3\) where train_data has \(4, 2\)",
    ),
    "truth of one part": (
        lambda: lfads(train_data=counts(), valid_data=counts(), train_truth=counts()),
        r"valid_truth is missing but train_truth is given; give both or neither",
    ),
    "numbered twice": (
        lambda: lfads(train_data=counts(), train_inds=[0, 1, 1]),
        r"train_inds and valid_inds must number every trial once",
    ),
    "flat data": (lambda: lfads(train_data=counts(3, 4)), r"train_data has 2 dims; it must have 3"),
    "true rates in no unit": (
        lambda: lfads(train_data=counts(), train_truth=counts() * 7),
        r'does not follow from the data .*; give truth_unit="hz" or "per_bin"',
    ),
    "unknown unit": (
        lambda: lfads_recording(
            {"train_data": counts(), "train_truth": counts()}, bin_width=0.1, truth_unit="kHz"
        ),
        r"the unit of the true rates is 'kHz'; known units are hz",
    ),
}


def saved(path: Path, contents: bytes) -> Path:
    path.write_bytes(contents)
    return path


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def npy(path: Path, array: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.save(file, array)
    return path


def truncated(path: Path, share: float = 0.5) -> Path:
    write(good(), path)
    contents = path.read_bytes()
    return saved(path, contents[: int(share * len(contents))])


def hdf5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def corrupted_zarr(path: Path) -> Path:
    write(good(counts=np.random.default_rng(0).poisson(3.0, (9, 9, 9)) + 1), path)
    next(file for file in (path / "counts" / "c").rglob("*") if file.is_file()).write_bytes(b"?")
    return path


def nwb(
    path: Path,
    trials: Sequence[tuple[float, float]] = ((0.0, 1.0),),
    units: Sequence[list[float]] = ([0.5],),
) -> Path:
    pynwb = pytest.importorskip("pynwb")
    moment = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    file = pynwb.NWBFile(session_description="test", identifier="a", session_start_time=moment)
    if trials:
        file.add_trial_column("kind", "of trial")
    for start, stop in trials:
        file.add_trial(start_time=start, stop_time=stop, kind="easy")
    for times in units:
        file.add_unit(spike_times=times)
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (
        lambda at: read(saved(at / "a.pkl", pickle.dumps([1]))),
        r"a\.pkl is not in a format that pyrodyn reads \(\.npz, .*\); pickles are never opened",
    ),
    "matlab": (lambda at: read(saved(at / "a.mat", b"MATLAB")), r"a\.mat is not in a format"),
    "torch": (lambda at: read(saved(at / "a.pt", b"PK")), r"a\.pt is not in a format"),
    "no suffix": (lambda at: read(saved(at / "a", b"")), r"a is not in a format"),
    "folder for a file": (
        lambda at: read(folder(at / "a.npz")),
        r"a\.npz is a folder; \.npz is the suffix of a file",
    ),
    "file for a folder": (lambda at: read(saved(at / "a.zarr", b"")), r"a\.zarr is a file"),
    "empty npz": (
        lambda at: read(saved(at / "a.npz", b"")),
        r"a\.npz is broken or not a \.npz file: ",
    ),
    "pickle named npz": (
        lambda at: read(saved(at / "a.npz", pickle.dumps({"counts": 1}))),
        r"a\.npz is broken or not a \.npz file: .*pickle",
    ),
    "objects in an npz": (
        lambda at: read(npz(at / "a.npz", counts=np.array([{}], object), bin_width=0.1)),
        r"a\.npz is broken or not a \.npz file: Object arrays cannot be loaded",
    ),
    "npy named npz": (
        lambda at: read(npy(at / "a.npz", counts())),
        r"a\.npz is broken or not a \.npz file",
    ),
    "truncated npz": (
        lambda at: read(truncated(at / "a.npz")),
        r"a\.npz is broken or not a \.npz file",
    ),
    "unknown key": (
        lambda at: read(npz(at / "a.npz", spikes=counts(), bin_width=0.1)),
        r"a\.npz: unknown key 'spikes'; known keys are counts, signal, bin_width, start, inputs",
    ),
    "npz without bin width": (
        lambda at: read(npz(at / "a.npz", counts=counts())),
        r"a\.npz: key bin_width is missing; it is the seconds per bin",
    ),
    "npz with many bin widths": (
        lambda at: read(npz(at / "a.npz", counts=counts(), bin_width=[0.1, 0.2])),
        r"a\.npz: bin_width is \[0\.1, 0\.2\]; it must be one number, in seconds",
    ),
    "npz with a bad count": (
        lambda at: read(npz(at / "a.npz", counts=-counts(), bin_width=0.1)),
        r"a\.npz: counts is negative \(-1\) at trial 0, time 0, neuron 0",
    ),
    "npz with a bad mark": (
        lambda at: read(
            npz(
                at / "a.npz",
                **{"counts": counts(), "bin_width": 0.1, "coords/neuron/held_out": [True]},
            )
        ),
        r"a\.npz: coordinate held_out has shape \(1,\) along \('neuron',\), whose sizes are \(2,\)",
    ),
    "npz with bad attributes": (
        lambda at: read(npz(at / "a.npz", counts=counts(), bin_width=0.1, attrs="{")),
        r"a\.npz: key attrs must be the JSON text of an object",
    ),
    "text named nc": (
        lambda at: read(saved(at / "a.nc", b"hello")),
        r"a\.nc is not an HDF5 file, as \.nc files are; it has another format or is broken",
    ),
    "old netCDF": (
        lambda at: read(saved(at / "a.nc", b"CDF\x01" + bytes(60))),
        r"a\.nc is not an HDF5",
    ),
    "truncated nc": (
        lambda at: read(truncated(at / "a.nc")),
        r"a\.nc is broken or not a \.nc file: ",
    ),
    "another nc": (
        lambda at: (
            xr.Dataset({"t2m": ("x", [1.0])}).to_netcdf(at / "a.nc", engine="h5netcdf")
            or read(at / "a.nc")
        ),
        r"a\.nc: a recording holds counts, .* neither \(its variables: t2m\)",
    ),
    "empty zarr": (
        lambda at: read(folder(at / "a.zarr")),
        r"a\.zarr is broken or not a \.zarr file",
    ),
    "corrupted zarr": (
        lambda at: read(corrupted_zarr(at / "a.zarr")),
        r"a\.zarr is broken or not a \.zarr file",
    ),
    "text named h5": (lambda at: read(saved(at / "a.h5", b"{}")), r"a\.h5 is not an HDF5 file"),
    "h5 without bin width": (
        lambda at: read(hdf5(at / "a.h5", train_data=counts())),
        r"a\.h5: the file does not state the width of a bin; give bin_width= in seconds",
    ),
    "h5 with groups": (
        lambda at: read(hdf5(at / "a.h5", **{"session/train_data": counts()}), bin_width=0.1),
        r"a\.h5: there is no train_data.*; the keys are none",
    ),
    "truncated h5": (
        lambda at: read(
            saved(
                at / "a.h5",
                hdf5(at / "b.h5", train_data=np.ones((99, 9, 9))).read_bytes()[:9000],
            ),
            bin_width=0.1,
        ),
        r"a\.h5 is broken or not a \.h5 file: .*truncated",
    ),
    "bin width of an npz": (
        lambda at: read(npz(at / "a.npz", counts=counts(), bin_width=0.1), bin_width=0.2),
        r"a\.npz states its own bin width; bin_width= is for HDF5 and NWB files",
    ),
    "truth unit of an npz": (
        lambda at: read(npz(at / "a.npz", counts=counts(), bin_width=0.1), truth_unit="hz"),
        r"truth_unit= is for HDF5 files of the LFADS family, which .*a\.npz is not",
    ),
    "nwb without bin width": (
        lambda at: read(hdf5(at / "a.nwb", x=[1])),
        r"a\.nwb holds spike times; give bin_width= in seconds",
    ),
    "h5 named nwb": (
        lambda at: read(hdf5(at / "a.nwb", x=[1]), bin_width=0.1),
        r"a\.nwb is broken or not an NWB file: ",
    ),
    "window of no whole bins": (
        lambda at: read_nwb(at / "a.nwb", bin_width=0.3, window=(0.0, 0.7)),
        r"window \(0\.0, 0\.7\) must run .* in an integer number of bins of 0\.3 s",
    ),
    "window run back": (
        lambda at: read_nwb(at / "a.nwb", bin_width=0.1, window=(0.5, 0.0)),
        r"window \(0\.5, 0\.0\) must run from its first to its last edge",
    ),
    "nwb without trials": (
        lambda at: read(nwb(at / "a.nwb", trials=()), bin_width=0.1),
        r"a\.nwb: the file has no trials table; give trials=None to read the session as one trial",
    ),
    "nwb without units": (
        lambda at: read(nwb(at / "a.nwb", units=()), bin_width=0.1),
        r"a\.nwb: the file has no units table, .*; its time series are none$",
    ),
    "no such event": (
        lambda at: read_nwb(nwb(at / "a.nwb"), bin_width=0.1, align_to="go"),
        r"align_to needs the column 'go', .* lacks; its columns are start_time, stop_time, kind",
    ),
    "event that is no time": (
        lambda at: read_nwb(nwb(at / "a.nwb"), bin_width=0.1, align_to="kind"),
        r"a\.nwb: column 'kind' does not hold one time in seconds per trial",
    ),
    "no such condition": (
        lambda at: read_nwb(nwb(at / "a.nwb"), bin_width=0.1, condition="target"),
        r"condition needs the column 'target', which the trials table lacks",
    ),
    "no such behavior": (
        lambda at: read_nwb(nwb(at / "a.nwb"), bin_width=0.1, behavior=["hand"]),
        r"a\.nwb: 0 time series are named 'hand'; there are none",
    ),
    "no such column of units": (
        lambda at: read_nwb(
            nwb(at / "a.nwb"), bin_width=0.1, unit_filter=lambda units: units["quality"] == "good"
        ),
        r"unit_filter asks for the column 'quality', which the units table lacks",
    ),
    "no unit kept": (
        lambda at: read_nwb(
            nwb(at / "a.nwb"), bin_width=0.1, unit_filter=lambda units: units.index > 5
        ),
        r"a\.nwb: unit_filter keeps none of the 1 units",
    ),
    "no trial kept": (
        lambda at: read_nwb(nwb(at / "a.nwb", trials=[(1.0, np.nan)]), bin_width=0.1),
        r"no trial of 1 can be used: 1 whose stop_time is missing or does not follow .* \(0\)",
    ),
    "write a pickle": (
        lambda at: write(good(), at / "a.pkl"),
        r"a\.pkl is not in a format that pyrodyn writes",
    ),
    "write over a folder": (lambda at: write(good(), folder(at / "a.nc")), r"a\.nc is a folder"),
    "write what is no recording": (
        lambda at: write(xr.Dataset(), at / "a.npz"),
        r"a recording holds counts, a signal or both",
    ),
    "write attributes that are no JSON": (
        lambda at: write(good().assign_attrs(made_by=object()), at / "a.nc"),
        r"attribute made_by is <object object .*>, which JSON cannot represent; attributes may be",
    ),
    "write an attribute whose name is no line of text": (
        lambda at: write(good().assign_attrs({"a\nb": object()}), at / "a.npz"),
        r"'attrs a\\nb' is <object",
    ),
    "write blanks in the name of a coordinate": (
        lambda at: write(good().assign_coords({"brain area": ("trial", [1] * 3)}), at / "a.nc"),
        r"coordinate 'brain area' cannot be stored in a \.nc file, .*; rename it without blanks",
    ),
}


def _row(name: str, act: Callable[..., object], sentence: str) -> Any:
    return pytest.param(act, sentence, id=name)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        _row(name, lambda _, make=make: make(), sentence)
        for table in (ARRAYS, DATASETS, ARGUMENTS, LFADS)
        for name, (make, sentence) in table.items()
    ]
    + [_row(name, act, sentence) for name, (act, sentence) in FILES.items()],
)
def test_bad_input_is_refused_with_one_sentence(
    act: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        act(tmp_path)
    message = str(refusal.value)
    assert "\n" not in message
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize("kind", [".npz", ".nc", ".zarr", ".h5", ".nwb"])
def test_a_missing_file_is_said_to_be_missing(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"a\{kind} does not exist$"):
        read(tmp_path / f"a{kind}")


def test_a_missing_folder_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist; create it"):
        write(good(), tmp_path / "nowhere" / "a.npz")


@pytest.mark.parametrize("kind", [".npz", ".nc"])
def test_no_file_that_was_cut_short_reads_as_another_recording(tmp_path: Path, kind: str) -> None:
    data = good(counts=np.random.default_rng(0).poisson(2.0, (5, 20, 4)) + 1)
    whole = tmp_path / f"whole{kind}"
    write(data, whole)
    contents = whole.read_bytes()
    refused = 0
    for length in np.linspace(0, len(contents) - 1, 40).astype(int):
        path = saved(tmp_path / f"cut{kind}", contents[:length])
        try:
            xr.testing.assert_identical(read(path), data)
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    assert refused >= 39
