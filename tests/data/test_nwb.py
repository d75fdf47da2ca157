"""NWB files as laboratories write them: read right, or refused in one sentence with a remedy."""

import datetime
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pyrodyn.data.nwb import read_nwb

pynwb = pytest.importorskip("pynwb")
pytestmark = pytest.mark.filterwarnings("ignore:.*never fire")

Trials = Sequence[dict[str, Any]]

ONE_PER_SECOND = tuple({"start_time": 2.0 * t, "stop_time": 2.0 * t + 1} for t in range(1, 6))
"""Five trials of 1 s, every 2 s."""


def new_file() -> Any:
    return pynwb.NWBFile("s", "i", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))


def saved(path: Path, file: Any) -> Path:
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


def with_trials(
    trials: Trials = ONE_PER_SECOND, spikes: Sequence[Any] = (), columns: Sequence[str] = ()
) -> Any:
    """A file of trials and units; by default one unit that fires every 50 ms from 25 ms on."""
    file = new_file()
    for column in columns:
        file.add_trial_column(column, column)
    for trial in trials:
        file.add_trial(**trial)
    for times in spikes or [0.025 + 0.05 * np.arange(240)]:
        file.add_unit(spike_times=np.asarray(times, float))
    return file


def test_a_condition_missing_in_some_trials_is_left_out_by_a_filter(tmp_path: Path) -> None:
    trials = [{**t, "target": np.nan if i == 3 else float(i)} for i, t in enumerate(ONE_PER_SECOND)]
    path = saved(tmp_path / "a.nwb", with_trials(trials, columns=["target"]))
    with pytest.raises(ValueError, match=r"a\.nwb: condition 'target' is missing in trials 3"):
        read_nwb(path, bin_width=0.1, condition="target")
    data = read_nwb(
        path,
        bin_width=0.1,
        condition="target",
        trial_filter=lambda trials: trials["target"].notna(),
    )
    assert data["trial"].values.tolist() == [0, 1, 2, 4]
    assert data["condition"].values.tolist() == [0, 1, 2, 4]
    assert (data["counts"] == 2).all()
    with pytest.raises(ValueError, match="trial_filter keeps none of the 5 trials"):
        read_nwb(path, bin_width=0.1, trial_filter=lambda trials: trials["target"] > 9)


def test_two_series_of_one_name_are_told_apart_by_path(tmp_path: Path) -> None:
    file, samples = with_trials(), np.arange(1200.0)
    module = file.create_processing_module("behavior", "b")
    for kind, sign in (("Position", 1), ("CompassDirection", -1)):
        one = pynwb.behavior.SpatialSeries(
            name="SpatialSeries",
            data=sign * samples,
            rate=100.0,
            starting_time=0.0,
            reference_frame="room",
            offset=0.5,
        )
        module.add(getattr(pynwb.behavior, kind)(name=kind, spatial_series=one))
    path = saved(tmp_path / "a.nwb", file)
    sentence = (
        "2 time series are named 'SpatialSeries'; choose one by its path in behavior=; there are"
        " behavior/CompassDirection/SpatialSeries, behavior/Position/SpatialSeries"
    )
    with pytest.raises(ValueError, match=sentence):
        read_nwb(path, bin_width=0.1, behavior=["SpatialSeries"])
    names = ["Position/SpatialSeries", "/processing/behavior/CompassDirection/SpatialSeries"]
    data = read_nwb(path, bin_width=0.1, behavior=names)
    assert data["quantity"].values.tolist() == names
    # Bin k of a trial from 2 s on averages samples 200 + 10 k to 209 + 10 k.
    first = 204.5 + 10 * np.arange(10)
    np.testing.assert_allclose(data["behavior"][0], np.stack([first, -first], -1) + 0.5)


@pytest.mark.parametrize("units", ["labelled", "unlabelled"])
def test_units_of_several_probes_keep_apart(tmp_path: Path, units: str) -> None:
    file = new_file()
    for trial in ONE_PER_SECOND:
        file.add_trial(**trial)
    device = file.create_device("d")
    groups = [file.create_electrode_group(g, "g", "here", device) for g in ("imecA", "imecB")]
    for number, (unit, group) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        more = {"electrode_group": groups[group]} if units == "labelled" else {}
        file.add_unit(spike_times=2.05 + 0.1 * np.arange(number + 1), id=unit, **more)
    path = saved(tmp_path / "a.nwb", file)
    if units == "labelled":
        data = read_nwb(path, bin_width=0.1)
        assert data["neuron"].values.tolist() == ["imecA:0", "imecA:1", "imecB:0", "imecB:1"]
        assert data["probe"].values.tolist() == ["imecA", "imecA", "imecB", "imecB"]
        second = read_nwb(
            path, bin_width=0.1, unit_filter=lambda units: units["group_name"] == "imecB"
        )
        assert second["neuron"].values.tolist() == [0, 1]
        assert second["counts"].sum(("trial", "time")).values.tolist() == [3, 4]
    else:
        with pytest.warns(UserWarning, match=r"unit ids repeat in the file; .* ID\.ROW"):
            data = read_nwb(path, bin_width=0.1)
        assert data["neuron"].values.tolist() == ["0.0", "1.1", "0.2", "1.3"]
    assert data["counts"].sum(("trial", "time")).values.tolist() == [1, 2, 3, 4]


def test_a_session_without_trials_is_one_trial(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nwb", with_trials(trials=(), spikes=[[0.05, 0.15, 0.95, 1.2]]))
    with pytest.raises(ValueError, match="no trials table; give trials=None"):
        read_nwb(path, bin_width=0.1)
    data = read_nwb(path, bin_width=0.1, trials=None)
    assert data["counts"][0, :, 0].values.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]


def test_another_table_of_intervals_may_be_the_trials(tmp_path: Path) -> None:
    file = with_trials(trials=())
    table = pynwb.epoch.TimeIntervals(name="reaches", description="r")
    for trial in ONE_PER_SECOND:
        table.add_interval(**trial)
    file.add_time_intervals(table)
    path = saved(tmp_path / "a.nwb", file)
    with pytest.raises(ValueError, match=r"choose one of its tables .* by trials= \(reaches\)"):
        read_nwb(path, bin_width=0.1)
    data = read_nwb(path, bin_width=0.1, trials="reaches")
    assert (data["counts"] == 2).all() and data.sizes["trial"] == 5


def test_spike_times_need_not_be_ordered_nor_finite(tmp_path: Path) -> None:
    times = [2.95, np.nan, 2.05, 4.15, 2.05]
    path = saved(tmp_path / "a.nwb", with_trials(spikes=[times]))
    with pytest.warns(UserWarning, match="1 spike times are not finite and are left out"):
        data = read_nwb(path, bin_width=0.1)
    assert data["counts"][0, :, 0].values.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert int(data["counts"].sum()) == 4


def one_late_stop() -> Any:
    trials = [dict(trial) for trial in ONE_PER_SECOND]
    trials[2]["stop_time"] = 400.0
    return with_trials(trials)


def relative_event() -> Any:
    trials = [{**trial, "go": 0.3} for trial in ONE_PER_SECOND]
    return with_trials(trials, columns=["go"])


def series(**arguments: Any) -> Callable[[], Any]:
    def make() -> Any:
        file = with_trials()
        file.add_acquisition(pynwb.TimeSeries(name="speed", unit="m/s", **arguments))
        return file

    return make


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no spike in any trial": (
        lambda: with_trials(spikes=[np.linspace(20e3, 90e3, 50)]),
        {},
        r"none of the 50 spike times \(20000 to 90000 s\) lies in a trial \(2 to 11 s\); .* milli",
    ),
    "no spikes at all": (lambda: with_trials(spikes=[[], []]), {}, "the units have no spikes"),
    "one late stop": (
        one_late_stop,
        {},
        r"trial 2 lasts 394 s where the median trial lasts 1 s, .*window=, or drop it by trial_f",
    ),
    "samples in milliseconds": (
        series(data=np.arange(9.0), timestamps=1e3 * np.arange(1.0, 10)),
        {"behavior": ["speed"]},
        r"no sample of 'speed' lies in a trial \(samples: 1000 to 9000 s; trials: 2 to 11 s\)",
    ),
    "text for samples": (
        series(data=["a", "b"], timestamps=[2.0, 3.0]),
        {"behavior": ["speed"]},
        "the data of time series 'speed' are not numbers",
    ),
    "images for samples": (
        series(data=np.zeros((5, 2, 2)), rate=1.0),
        {"behavior": ["speed"]},
        r"time series 'speed' has shape \(5, 2, 2\)",
    ),
    "a series twice": (
        series(data=np.zeros(5), rate=1.0),
        {"behavior": ["speed", "speed"]},
        "names a time series twice",
    ),
}


@pytest.mark.parametrize(("make", "options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused(
    make: Callable[[], Any], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = saved(tmp_path / "a.nwb", make())
    with pytest.raises(ValueError, match=sentence):
        read_nwb(path, bin_width=0.1, **options)


def test_more_timestamps_than_samples(tmp_path: Path) -> None:
    file = with_trials()
    file.add_acquisition(
        pynwb.TimeSeries(name="speed", unit="m/s", data=np.arange(9.0), timestamps=np.arange(9.0))
    )
    path = saved(tmp_path / "a.nwb", file)
    with h5py.File(path, "a") as stored:  # pynwb does not write such a file
        group = stored["acquisition/speed"]
        attrs = dict(group["timestamps"].attrs)
        del group["timestamps"]
        group["timestamps"] = np.arange(10.0)
        group["timestamps"].attrs.update(attrs)
    warnings.simplefilter("ignore")  # pynwb warns of it, too
    with pytest.raises(ValueError, match="'speed' has 10 timestamps for 9 samples"):
        read_nwb(path, bin_width=0.1, behavior=["speed"])


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (
            lambda: with_trials(spikes=[np.linspace(1000, 12000, 500), [2.05, 2.15]]),
            {},
            r"only 2 of 502 spike times .* lie between the first and the last trial",
        ),
        (
            relative_event,
            {"align_to": "go", "window": (0.0, 0.5)},
            r"go lies outside start_time and stop_time in 5 of 5 trials",
        ),
        (
            lambda: with_trials([{"start_time": 0.2, "stop_time": 1.2}, *ONE_PER_SECOND]),
            {"window": (-0.5, 0.5)},
            r"1 of 6 trials are dropped: 1 whose window begins before the session \(0\)",
        ),
    ],
    ids=["milliseconds beside seconds", "events from the trial's start", "before the session"],
)
def test_what_is_in_doubt_warns(
    make: Callable[[], Any], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.nwb", make())
    with pytest.warns(UserWarning, match=sentence):
        read_nwb(path, bin_width=0.1, **options)
