"""NWB files as laboratories write them: read right, or refused in one sentence with a remedy."""

import datetime
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pyrodyn.data import nwb_series, read, write
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
    assert data["counts"][0, :, 0].values.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1]


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
    times = [2.95, np.nan, 2.05, 4.15, 2.06]
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


def of_intervals() -> Any:
    file = with_trials()
    licks = {"data": np.array([1, -1], np.int8), "timestamps": [2.1, 2.4]}
    file.add_acquisition(pynwb.misc.IntervalSeries(name="licks", **licks))
    return file


def waveforms() -> Any:
    file = new_file()
    for trial in ONE_PER_SECOND:
        file.add_trial(**trial)
    for _ in range(2):
        file.add_unit(waveform_mean=np.zeros((10, 2)))
    return file


def with_invalid_times(*intervals: tuple[float, float]) -> Any:
    file = with_trials()
    for start, stop in intervals:
        file.add_invalid_time_interval(start_time=start, stop_time=stop)
    return file


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
        r"no sample of 'speed' .*lies in a trial \(samples: 1000 to 10000 s; trials: 2 to 11 s\)",
    ),
    "text for samples": (
        series(data=["a", "b"], timestamps=[2.0, 3.0]),
        {"behavior": ["speed"]},
        "the data of time series 'speed' are not numbers",
    ),
    "begin and end of intervals for samples": (
        of_intervals,
        {"behavior": ["licks"]},
        "'licks' is an IntervalSeries, whose samples .* have no mean; make a column of the trials",
    ),
    "a clock that counts from 1970": (
        lambda: with_trials((), [1.7e9 + np.arange(200.0) / 7]),
        {"trials": None},
        r"session would last from 0 to 17000000.* s, .* too long for bins of 0.1 s; give window=",
    ),
    "units without spike times": (
        waveforms,
        {},
        "the file has no spike_times in its units table, so there .*; its time series are none$",
    ),
    "all trials removed": (
        lambda: with_invalid_times((1.0, 20.0)),
        {},
        r"no trial of 5 can be used: 5 whose window lies in the file's invalid_times \(0, 1, 2",
    ),
    "images for samples": (
        series(data=np.zeros((5, 2, 2)), rate=1.0),
        {"behavior": ["speed"]},
        r"time series 'speed' has shape \(5, 2, 2\)",
    ),
    "no conversion": (
        series(data=np.zeros(5), rate=1.0, conversion=0.0),
        {"behavior": ["speed"]},
        r"'speed' has the conversion 0.0 for 1 columns; it must be",
    ),
    "no rate": (
        series(data=np.zeros(5), rate=0.0),
        {"behavior": ["speed"]},
        r"is broken or not an NWB file: .*rate",
    ),
    "samples along the second dim": (
        series(data=np.zeros((2, 1200)), rate=100.0),
        {"behavior": ["speed"]},
        "'speed' has 2 samples of 1200 columns and no timestamps; time must be the first dim",
    ),
    "several numbers per condition": (
        lambda: with_trials([{**t, "target": [1.0, 2.0]} for t in ONE_PER_SECOND], [], ["target"]),
        {"condition": "target"},
        "column 'target' holds several values per trial, not one condition",
    ),
    "several events per trial": (
        lambda: with_trials([{**t, "licks": [1.0, 2.0]} for t in ONE_PER_SECOND], [], ["licks"]),
        {"align_to": "licks", "window": (0.0, 0.5)},
        "column 'licks' does not hold one time in seconds per trial",
    ),
    "no trial with a length": (
        lambda: with_trials([{"start_time": 3.0, "stop_time": t} for t in (3.0, 2.0, np.nan)]),
        {},
        r"no trial of 3 can be used: 3 whose stop_time is missing or does not follow the event",
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
        (
            lambda: with_trials([*ONE_PER_SECOND, {"start_time": 40.0, "stop_time": 41.0}]),
            {},
            r"1 of 6 trials begin after the last spike of any unit \(11.975 s\) .* \(5\); drop",
        ),
        (
            lambda: with_trials([*ONE_PER_SECOND, {"start_time": 2.5, "stop_time": 3.5}]),
            {},
            r"1 of 6 trials begin before the one before has stopped \(trials 0 and 5\)",
        ),
        (
            lambda: with_trials([*ONE_PER_SECOND, {"start_time": 12.0, "stop_time": np.nan}]),
            {},
            r"1 of 6 trials are dropped: 1 whose stop_time is missing .* \(5\)",
        ),
        (
            series(data=np.arange(12.0), timestamps=[*np.arange(6.0), *np.arange(6.0)]),
            {"behavior": ["speed"]},
            r"1 of 12 timestamps of 'speed' are earlier than the one before; the samples are sort",
        ),
        (
            series(data=np.arange(20.0), timestamps=[np.nan, *np.arange(1.0, 10.5, 0.5)]),
            {"behavior": ["speed"]},
            r"1 of 20 timestamps of 'speed' are not finite; their samples are left out",
        ),
        (
            series(data=np.arange(400.0), rate=0.4),
            {"behavior": ["speed"]},
            r"'speed' has samples in 4.0% of the bins, .* check its timestamps or rate",
        ),
        (
            lambda: with_trials(spikes=[[2.05], [*np.linspace(0, 11, 300), 2.06, 2.06, 2.06] * 2]),
            {},
            r"30\d spike times are exactly those of another .* \(units 1\) and are counted twice",
        ),
        (
            lambda: with_trials([{"start_time": 0.0, "stop_time": 1e4}], [np.arange(0, 9e3, 30)]),
            {"bin_width": 100.0},
            r"all 300 spike times are integers; .* these may be in milliseconds or samples",
        ),
        (
            lambda: with_trials([{"start_time": 0.0, "stop_time": 1.0 + i} for i in range(5)]),
            {},
            r"start_time is 0 s in all 5 trials; it must be in seconds from the start of the sess",
        ),
        (
            lambda: with_trials((), [4000 + 0.05 * np.arange(200)]),
            {"trials": None},
            r"begins with 4000 s without a spike, .*give window=\(first, last\), such as from 4000",
        ),
        (
            series(data=np.arange(240.0), rate=20.0),
            {"signal": "speed", "bin_width": 0.02},
            r"'speed' has samples in 40.0% of the bins, and the others are marked as unmeasured",
        ),
    ],
    ids=[
        *("milliseconds beside seconds", "events from the trial's start", "before the session"),
        *("after the recording", "overlapping trials", "no stop", "clock set back"),
        *("time not finite", "period for rate", "spikes twice", "spikes in samples"),
        *("trials that begin together", "a late session", "short bins"),
    ],
)
def test_what_is_in_doubt_warns(
    make: Callable[[], Any], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = saved(tmp_path / "a.nwb", make())
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        read_nwb(path, **{"bin_width": 0.1, **options})
    assert any(re.search(sentence, str(one.message)) for one in issued), issued


def test_data_of_a_series_may_lie_across(tmp_path: Path) -> None:
    times = np.arange(0, 12, 0.05)
    values = np.stack([times, -2 * times], -1)
    path = saved(tmp_path / "a.nwb", series(data=values, timestamps=times)())
    wanted = read_nwb(path, bin_width=0.1, behavior=["speed"])
    broken(path, lambda file: replaced(file["acquisition/speed"], "data", values.T))
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        found = read_nwb(path, bin_width=0.1, behavior=["speed"])
    assert any("has time as its second dim" in str(one.message) for one in issued)
    np.testing.assert_array_equal(found["behavior"], wanted["behavior"])


def test_integer_samples_are_converted_and_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = np.random.default_rng(0).integers(-2000, 2000, (1200, 3)).astype(np.int16)
    make = series(data=raw, rate=100.0, starting_time=0.5, conversion=2e-3, offset=1.5)
    path = saved(tmp_path / "a.nwb", make())
    # Bin k of a trial from 2 s on averages samples 150 + 10 k to 159 + 10 k.
    expected = 1.5 + 2e-3 * raw[150:250].reshape(10, 10, 3).mean(1)
    for size in (nwb_series.CHUNK, 3 * 17):
        monkeypatch.setattr(nwb_series, "CHUNK", size)
        data = read_nwb(path, bin_width=0.1, behavior=["speed"])
        np.testing.assert_allclose(data["behavior"][0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "b", "a", "", "é"],
        [3, 1, 3, 2, 2],
        [True, False, True, True, False],
        [0.5, 1, 1, 2, 2],
    ],
    ids=["text", "integers", "bools", "numbers"],
)
def test_conditions_of_any_type_are_kept(labels: list[Any], tmp_path: Path) -> None:
    trials = [{**t, "kind": label} for t, label in zip(ONE_PER_SECOND, labels, strict=True)]
    path = saved(tmp_path / "a.nwb", with_trials(trials, columns=["kind"]))
    data = read_nwb(path, bin_width=0.1, condition="kind")
    assert data["condition"].values.tolist() == labels
    write(data, tmp_path / "a.nc")
    assert read(tmp_path / "a.nc")["condition"].values.tolist() == labels


def observed_file(trials: Trials) -> Any:
    """Two units of which the second was observed until 4.25 s and from 8 s on."""
    file = new_file()
    for trial in trials:
        file.add_trial(**trial)
    times = 0.025 + 0.05 * np.arange(240)
    file.add_unit(spike_times=times, obs_intervals=[[0.0, 12.0]])
    seen = times[(times < 4.25) | (times >= 8.0)]
    file.add_unit(spike_times=seen, obs_intervals=[[8.0, 12.0], [0.0, 4.25]])
    return file


def test_unobserved_trials_and_bins_are_marked(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nwb", observed_file(ONE_PER_SECOND))
    data = read_nwb(path, bin_width=0.1)
    assert data["valid"].all("time").values.T.tolist() == [
        [True] * 5,
        [True, False, False, True, True],
    ]
    session = read_nwb(path, bin_width=0.1, trials=None)
    assert session.sizes["time"] == 120
    bins = np.arange(120)
    seen = (bins < 42) | (bins >= 80)
    np.testing.assert_array_equal(session["valid"][0], np.stack([bins >= 0, seen], -1))
    assert (session["counts"].values[session["valid"].values] == 2).all()


def test_every_spike_of_a_session_is_in_a_bin(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nwb", with_trials((), [[0.0, 0.2, 1.2], [0.31]]))
    data = read_nwb(path, bin_width=0.1, trials=None)
    assert data.sizes["time"] == 13
    assert data["counts"].sum(("trial", "time")).values.tolist() == [3, 1]


def broken(path: Path, change: Callable[[h5py.File], None]) -> Path:
    """A file after a change that pynwb would not write."""
    with h5py.File(path, "a") as stored:
        change(stored)
    return path


def replaced(group: h5py.Group, name: str, values: Any) -> None:
    attrs = dict(group[name].attrs)
    del group[name]
    group[name] = values
    group[name].attrs.update(attrs)


def test_a_broken_index_of_spikes_is_refused(tmp_path: Path) -> None:
    for index in ([100, 60, 240], [80, 160, 300], [80, 160, 200]):
        times = [0.025 + 0.05 * np.arange(i, 240, 3) for i in range(3)]
        path = saved(tmp_path / "a.nwb", with_trials(spikes=times))
        broken(path, lambda f, index=index: replaced(f["units"], "spike_times_index", index))
        sentence = "spike_times_index of the units table must increase to the .* 240; it is"
        with pytest.raises(ValueError, match=sentence):
            read_nwb(path, bin_width=0.1)


def test_columns_of_other_lengths_are_refused(tmp_path: Path) -> None:
    trials = [{**t, "target": 1.0} for t in ONE_PER_SECOND]
    path = saved(tmp_path / "a.nwb", with_trials(trials, columns=["target"]))
    broken(path, lambda f: replaced(f["intervals/trials"], "target", [1.0, 2.0]))
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r"a\.nwb is broken .*: Columns must be the same length$"),
    ):
        warnings.simplefilter("ignore")
        read_nwb(path, bin_width=0.1)


def test_electrodes_that_cannot_be_read_cost_the_probes_alone(tmp_path: Path) -> None:
    file = new_file()
    for trial in ONE_PER_SECOND:
        file.add_trial(**trial)
    device = file.create_device("d")
    for name in ("A", "B"):
        group = file.create_electrode_group(name, "g", "here", device)
        file.add_electrode(group=group, location="here")
    for electrode in (0, 1):
        file.add_unit(spike_times=2.05 + 0.1 * np.arange(3), electrodes=[electrode])
    path = saved(tmp_path / "a.nwb", file)
    assert read_nwb(path, bin_width=0.1)["probe"].values.tolist() == ["A", "B"]
    broken(path, lambda f: replaced(f["units"], "electrodes", [0, 7]))
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        data = read_nwb(path, bin_width=0.1)
    assert any("their probes are not known" in str(one.message) for one in issued)
    assert "probe" not in data and int(data["counts"].sum()) == 6


def test_epochs_may_be_the_trials(tmp_path: Path) -> None:
    file = with_trials(trials=())
    for trial in ONE_PER_SECOND:
        file.add_epoch(trial["start_time"], trial["stop_time"], ["run"])
    path = saved(tmp_path / "a.nwb", file)
    assert read_nwb(path, bin_width=0.1, trials="epochs").sizes["trial"] == 5


def test_a_series_behind_a_broken_link_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nwb", series(data=np.zeros(1200), rate=100.0)())

    def link(file: h5py.File) -> None:
        del file["acquisition/speed"]
        file["acquisition/speed"] = h5py.ExternalLink("gone.nwb", "/acquisition/speed")

    broken(path, link)
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="0 time series are named 'speed'; there are none"),
    ):
        warnings.simplefilter("ignore")
        read_nwb(path, bin_width=0.1, behavior=["speed"])


def test_nwb_in_zarr_is_named(tmp_path: Path) -> None:
    for name in ("a.nwb", "a.nwb.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".zattrs").write_text('{"nwb_version": "2.7.0"}')
        (tmp_path / name / ".zgroup").write_text('{"zarr_format": 2}')
        with pytest.raises(ValueError, match=r"is NWB in Zarr; pyrodyn reads NWB in HDF5"):
            read(tmp_path / name, bin_width=0.1 if name == "a.nwb" else None)


def test_invalid_times_are_unmeasured(tmp_path: Path) -> None:
    # Bins 2 to 5 of the trial from 4 s on, and the whole trial from 8 s on.
    path = saved(tmp_path / "a.nwb", with_invalid_times((4.21, 4.6), (7.0, 9.0)))
    with pytest.warns(UserWarning, match=r"1 of 5 trials are dropped: 1 whose .*invalid_times \(3"):
        data = read_nwb(path, bin_width=0.1)
    expected = np.ones((4, 10), bool)
    expected[1, 2:6] = False
    np.testing.assert_array_equal(data["valid"], expected)
    session = read_nwb(path, bin_width=0.1, trials=None)
    unmeasured = np.flatnonzero(~session["valid"][0].values)
    assert unmeasured.tolist() == [*range(42, 46), *range(70, 90)]


def imaging() -> Any:
    """Fluorescence of the regions of interest 0, 20 and 30 at 20 Hz: sample number plus 1000 i."""
    file = new_file()
    for trial in ONE_PER_SECOND:
        file.add_trial(**trial)
    device = file.create_device("microscope")
    channel = pynwb.ophys.OpticalChannel(name="c", description="c", emission_lambda=500.0)
    about = {"description": "p", "indicator": "GCaMP", "location": "V1", "excitation_lambda": 600.0}
    plane = file.create_imaging_plane(name="p", optical_channel=channel, device=device, **about)
    module = file.create_processing_module("ophys", "o")
    found = pynwb.ophys.ImageSegmentation()
    module.add(found)
    regions = found.create_plane_segmentation(name="r", description="r", imaging_plane=plane)
    for region in range(4):
        regions.add_roi(image_mask=np.ones((2, 2)), id=10 * region)
    rows = regions.create_roi_table_region(region=[0, 2, 3], description="kept")
    samples = np.arange(240.0)[:, None] + 1000 * np.arange(3)
    samples[42:44, 1] = np.nan
    samples[46, 2] = np.nan
    traces = pynwb.ophys.DfOverF()
    module.add(traces)
    traces.create_roi_response_series(
        name="RoiResponseSeries", data=samples, rois=rows, unit="n.a.", rate=20.0
    )
    return file


def test_fluorescence_is_a_signal(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nwb", imaging())
    sentence = (
        "no units table, so there are no spike times to bin; its time series are"
        " ophys/DfOverF/RoiResponseSeries; choose the one to model by signal="
    )
    with pytest.raises(ValueError, match=sentence):
        read_nwb(path, bin_width=0.1)
    data = read_nwb(path, bin_width=0.1, signal="DfOverF/RoiResponseSeries")
    assert "counts" not in data and data["channel"].values.tolist() == [0, 20, 30]
    # Bin k of a trial from s on averages samples 20 s + 2 k and the next.
    first = 20 * data["trial"].values[:, None] * 2 + 40 + 2 * np.arange(10) + 0.5
    expected = first[..., None] + 1000 * np.arange(3)
    expected[0, 3, 2] += 0.5  # of its two samples one is not known
    known = np.ones((5, 10, 3), bool)
    known[0, 1, 1] = False
    np.testing.assert_array_equal(data["valid"], known)
    np.testing.assert_allclose(data["signal"].values[known], expected[known])
    session = read_nwb(path, bin_width=0.1, signal="RoiResponseSeries", trials=None)
    assert session.sizes == {"trial": 1, "time": 120, "channel": 3}
    assert int((~session["valid"]).sum()) == 1


def test_a_field_potential_beside_spikes(tmp_path: Path) -> None:
    file = with_trials()
    device = file.create_device("d")
    group = file.create_electrode_group("A", "g", "here", device)
    for electrode in (100, 101, 102):
        file.add_electrode(group=group, location="CA1", id=electrode)
    raw = np.random.default_rng(0).integers(-2000, 2000, (1000, 2)).astype(np.int16)
    potential = pynwb.ecephys.ElectricalSeries(
        name="lfp",
        data=raw,
        electrodes=file.create_electrode_table_region([0, 2], "kept"),
        rate=100.0,
        conversion=1e-6,
        channel_conversion=[1.0, 2.0],
    )
    file.add_acquisition(potential)
    path = saved(tmp_path / "a.nwb", file)
    data = read_nwb(path, bin_width=0.1, signal="lfp")
    assert data["channel"].values.tolist() == [100, 102]
    assert data["signal"].attrs["units"] == "volts"
    assert (data["counts"] == 2).all()
    # The samples end at 10 s, with the last trial's first bin.
    blocks = 1e-6 * np.array([1.0, 2.0]) * raw.reshape(100, 10, 2).mean(1)
    for trial in range(4):
        begin = 20 * (trial + 1)
        np.testing.assert_allclose(data["signal"][trial], blocks[begin : begin + 10], rtol=1e-5)
    assert not data["signal_valid"][4].any() and data["signal_valid"][:4].all()
    with pytest.raises(ValueError, match=r"0 time series are named 'eeg'; there are lfp"):
        read_nwb(path, bin_width=0.1, signal="eeg")
    broken(path, lambda f: replaced(f["acquisition/lfp"], "electrodes", [1]))
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="'lfp' has 2 columns and refers to the rows 1 of a table"),
    ):
        warnings.simplefilter("ignore")
        read_nwb(path, bin_width=0.1, signal="lfp")


def test_a_bin_averages_the_samples_that_are_known(tmp_path: Path) -> None:
    samples = np.where(np.arange(1200) % 7 == 0, np.nan, np.arange(1200.0))
    samples[210:220] = np.nan
    path = saved(tmp_path / "a.nwb", series(data=samples, rate=100.0)())
    found = read_nwb(path, bin_width=0.1, behavior=["speed"])["behavior"][0, :, 0]
    assert np.isnan(found[1])
    rest = np.array([np.nanmean(samples[200 + 10 * k : 210 + 10 * k]) for k in range(2, 10)])
    np.testing.assert_allclose(found[2:], rest)


def test_spike_times_of_single_precision(tmp_path: Path) -> None:
    """About two days after the start of the clock they are 16 ms apart."""
    file = with_trials(
        [{"start_time": 2e5 + t, "stop_time": 2e5 + t + 1} for t in range(0, 8, 2)],
        [np.linspace(2e5, 200_008, 60)],
    )
    path = saved(tmp_path / "a.nwb", file)
    read_nwb(path, bin_width=0.1)
    times = np.linspace(2e5, 200_008, 60).astype(np.float32)
    broken(path, lambda f: replaced(f["units"], "spike_times", times))
    with pytest.warns(UserWarning, match=r"float32, which resolves 0.016 s at 200008 s; .* of 0.1"):
        read_nwb(path, bin_width=0.1)
    read_nwb(path, bin_width=0.5)
