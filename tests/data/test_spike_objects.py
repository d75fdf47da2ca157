"""Objects of pynapple, neo and spikeinterface give the counts of their spike times."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pyrodyn.data import bin_spikes, from_neo, from_pynapple, from_spikeinterface

WIDTH, WINDOW = 0.1, (-0.2, 0.5)
EVENTS = np.array([2.0, 4.5, 7.0])


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Warnings of other packages are not errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def package(name: str) -> Any:
    with imports():
        return pytest.importorskip(name)


def times() -> list[np.ndarray]:
    """Spike times of three units in 10 s, on the clock of 1 kHz."""
    rng = np.random.default_rng(0)
    return [np.unique(rng.integers(0, 10_000, 80)) / 1000 for _ in range(3)]


def by_hand(start: float, num_bins: int, num: int = 3) -> np.ndarray:
    """Counts by exact integer arithmetic, (bins, neurons)."""
    ticks = [np.rint(1000 * t).astype(int) - round(1000 * start) for t in times()[:num]]
    edges = 100 * np.arange(num_bins + 1)
    return np.stack([[((t >= a) & (t < a + 100)).sum() for a in edges[:-1]] for t in ticks], -1)


def around_events() -> np.ndarray:
    return np.stack([by_hand(event - 0.2, 7) for event in EVENTS])


def tsgroup(**options: Any) -> Any:
    nap = package("pynapple")
    support = options.pop("time_support", nap.IntervalSet(0.0, 10.0))
    ts = {key: nap.Ts(t) for key, t in zip((3, 5, 9), times(), strict=True)}
    return nap.TsGroup(ts, time_support=support, **options)


def test_pynapple() -> None:
    nap = package("pynapple")
    group = tsgroup(metadata={"area": ["CA1", "CA3", "CA1"], "depth": [1.0, 2.5, np.nan]})
    whole = from_pynapple(group, bin_width=WIDTH)
    np.testing.assert_array_equal(whole["counts"], by_hand(0.0, 100)[None])
    assert whole["neuron"].values.tolist() == [3, 5, 9] and "valid" not in whole
    assert whole["area"].values.tolist() == ["CA1", "CA3", "CA1"]
    np.testing.assert_array_equal(whole["depth"], [1.0, 2.5, np.nan])
    for events in (EVENTS, nap.Ts(EVENTS), nap.IntervalSet(EVENTS, EVENTS + 1)):
        data = from_pynapple(
            group, bin_width=WIDTH, window=WINDOW, events=events, condition=list("aba")
        )
        np.testing.assert_array_equal(data["counts"], around_events())
        assert data["condition"].values.tolist() == list("aba")
    one = from_pynapple(group[3], bin_width=WIDTH, window=(1.0, 3.0))
    np.testing.assert_array_equal(one["counts"][0], by_hand(1.0, 20, 1))
    assert one["time"].values[0] == 1.0


def test_bins_outside_pynapple_time_support_are_unmeasured() -> None:
    nap = package("pynapple")
    group = tsgroup(time_support=nap.IntervalSet([0.05, 4.0], [3.0, 9.95]))
    data = from_pynapple(group, bin_width=WIDTH)
    assert data.sizes["time"] == 99
    edges = 0.05 + WIDTH * np.arange(100)
    inside = (edges[1:] <= 3.0 + 1e-6) | ((edges[:-1] >= 4.0 - 1e-6) & (edges[1:] <= 9.95 + 1e-6))
    np.testing.assert_array_equal(data["valid"][0], inside)
    data = from_pynapple(group, bin_width=WIDTH, window=WINDOW, events=[3.0, 7.0])
    assert data["valid"].values.tolist() == [[True] * 2 + [False] * 5, [True] * 7]


def neo_trains(start: float = 0.0, stop: float = 10.0, **annotations: Any) -> list[Any]:
    neo = package("neo")
    return [
        neo.SpikeTrain(
            1e3 * t[(t >= start) & (t < stop)],
            units="ms",
            t_start=1e3 * start,
            t_stop=1e3 * stop,
            name=f"unit {i}",
            **{key: values[i] for key, values in annotations.items()},
        )
        for i, t in enumerate(times())
    ]


def test_neo() -> None:
    neo = package("neo")
    segment = neo.Segment()
    trains = neo_trains(quality=["good", "mua", "good"], wave=[np.zeros(2)] * 3)
    segment.spiketrains.extend(trains)
    block = neo.Block()
    block.segments.append(segment)
    with imports():
        events = neo.Event(1e3 * EVENTS, labels=["go"] * 3, units="ms")
    for spikes in (trains, segment.spiketrains, segment, block):
        with pytest.warns(UserWarning, match="properties of units that are left out.*: wave"):
            whole = from_neo(spikes, bin_width=WIDTH)
        np.testing.assert_array_equal(whole["counts"], by_hand(0.0, 100)[None])
        assert whole["neuron"].values.tolist() == ["unit 0", "unit 1", "unit 2"]
        assert whole["quality"].values.tolist() == ["good", "mua", "good"]
    for given in (events, EVENTS):
        data = from_neo(neo_trains(), bin_width=WIDTH, window=WINDOW, events=given)
        np.testing.assert_array_equal(data["counts"], around_events())


def test_segments_of_a_neo_block_are_trials() -> None:
    neo = package("neo")
    block = neo.Block()
    for start, stop in ((0.0, 4.0), (4.0, 10.0)):
        segment = neo.Segment()
        segment.spiketrains.extend(neo_trains(start, stop))
        block.segments.append(segment)
    data = from_neo(block, bin_width=WIDTH)
    np.testing.assert_array_equal(data["counts"][0, :40], by_hand(0.0, 40))
    np.testing.assert_array_equal(data["counts"][1], by_hand(4.0, 60))
    assert data["valid"].sum("time").values.tolist() == [40, 60] and data["time"].values[0] == 0
    block.segments[1].spiketrains[1].name = "another"
    with pytest.raises(ValueError, match="segment 1 has the units unit 0, another, unit 2 where"):
        from_neo(block, bin_width=WIDTH)
    with pytest.raises(ValueError, match="these are 2 segments: give one of them"):
        block.segments[1].spiketrains[1].name = "unit 1"
        from_neo(block, bin_width=WIDTH, window=WINDOW, events=EVENTS)


def sorting(*spans: tuple[float, float]) -> Any:
    core = package("spikeinterface.core")
    units = [
        {
            f"u{i}": np.rint(1000 * (t[(t >= a) & (t < b)] - a)).astype(int)
            for i, t in enumerate(times())
        }
        for a, b in spans
    ]
    with imports():
        return core.NumpySorting.from_unit_dict(units, sampling_frequency=1000.0)


def test_spikeinterface() -> None:
    core = package("spikeinterface.core")
    whole = sorting((0.0, 10.0))
    whole.set_property("quality", np.array(["good", "mua", "good"]))
    last = max(t[-1] for t in times())
    data = from_spikeinterface(whole, bin_width=WIDTH)
    assert data.sizes["time"] == int(last / WIDTH) + 1
    np.testing.assert_array_equal(data["counts"][0], by_hand(0.0, data.sizes["time"]))
    assert int(data["counts"].sum()) == sum(map(len, times()))
    assert data["neuron"].values.tolist() == ["u0", "u1", "u2"]
    assert data["quality"].values.tolist() == ["good", "mua", "good"]
    data = from_spikeinterface(whole, bin_width=WIDTH, window=WINDOW, events=EVENTS)
    np.testing.assert_array_equal(data["counts"], around_events())

    two = from_spikeinterface(sorting((0.0, 4.0), (4.0, 10.0)), bin_width=WIDTH, window=(1.0, 3.0))
    np.testing.assert_array_equal(two["counts"], [by_hand(1.0, 20), by_hand(5.0, 20)])
    traces = np.zeros((12_000, 2), np.float32)
    with imports():
        whole.register_recording(core.NumpyRecording([traces], sampling_frequency=1000.0))
    assert from_spikeinterface(whole, bin_width=WIDTH).sizes["time"] == 120


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (from_pynapple, {"spikes": [np.ones(3)]}, "spikes is a list, not a pynapple.TsGroup or Ts"),
        (from_neo, {"spikes": [np.ones(3)]}, "spikes is a list, not a neo.Block, a neo.Segment"),
        (from_neo, {"spikes": []}, "spikes is a list without spike trains"),
        (from_spikeinterface, {"sorting": {}}, "is a dict, not a spikeinterface sorting"),
    ],
)
def test_other_objects_are_refused(make: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**options, bin_width=WIDTH)


def test_what_does_not_fit_is_refused() -> None:
    nap = package("pynapple")
    samples = nap.TsdFrame(t=np.arange(10.0), d=np.zeros((10, 2)))
    with pytest.raises(ValueError, match=r"TsdFrame, which holds samples; .* recording\(signal="):
        from_pynapple(samples, bin_width=WIDTH)
    with pytest.raises(ValueError, match="events= needs window="):
        from_pynapple(tsgroup(), bin_width=WIDTH, events=EVENTS)
    with pytest.raises(ValueError, match="segment 0 lasts less than two bins of 8 s"):
        from_pynapple(tsgroup(), bin_width=8.0)
    with pytest.warns(UserWarning, match="left out.*: time"):
        from_pynapple(tsgroup(metadata={"time": [1, 2, 3]}), bin_width=WIDTH)
    assert bin_spikes(times(), bin_width=WIDTH, window=(0.0, 10.0)).sizes["neuron"] == 3
