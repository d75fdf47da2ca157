import datetime
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

from pyrodyn.data import readers
from pyrodyn.data.lfads_hdf5 import lfads_recording
from pyrodyn.data.nwb import read_nwb
from pyrodyn.data.readers import WRITABLE, read, write
from pyrodyn.data.recording import held_out, recording
from pyrodyn.data.schema import observed_name

pytestmark = pytest.mark.filterwarnings("ignore:.*never fire")


Make = Callable[[], xr.Dataset]


def full_recording() -> xr.Dataset:
    """A recording that uses all of the schema, with gaps, labels, marks and attributes."""
    rng = np.random.default_rng(0)
    shape = (4, 6, 3)
    behavior = rng.normal(size=(4, 6, 2))
    behavior[0, 1] = np.nan
    valid = rng.random(shape) > 0.2
    data = recording(
        rng.poisson(2.0, shape),
        bin_width=0.1,
        start=-0.3,
        inputs=rng.normal(size=(4, 6, 1)),
        behavior=behavior,
        condition=["a", "bé", "", "a"],
        valid=valid,
        rates=rng.gamma(2.0, size=shape),
        latents=rng.normal(size=(4, 6, 2)),
        names={"neuron": ["n1", "n2", "n30"], "quantity": ["x", "y"], "trial": [7, 3, 5, 4]},
    )
    data = held_out(data, neurons=[2], forecast_bins=2)
    data = data.assign_coords(
        split=("trial", ["train", "train", "valid", "train"]),
        unit=("quantity", ["mm", "mm/s"]),
        session=3,
    )
    data.attrs |= {"name": "é", "empty": "", "number": 3, "share": 0.1, "flag": True, "none": None}
    data.attrs |= {"list": [1, 2.5], "words": ["a"], "nested": {"a": [1, {"b": "c"}]}}
    data["behavior"].attrs = {"units": "mm", "scale": 1e-3}
    data["time"].attrs = {"units": "seconds"}
    return data


def full_signal() -> xr.Dataset:
    rng = np.random.default_rng(1)
    return recording(signal=rng.normal(size=(1, 5, 2)), bin_width=1 / 160)


def full_pair() -> xr.Dataset:
    """Counts and a signal, with gaps, marks and truth of both."""
    rng = np.random.default_rng(2)
    data = recording(
        rng.poisson(2.0, (4, 6, 3)),
        signal=rng.normal(size=(4, 6, 2)),
        bin_width=0.1,
        valid=rng.random((4, 6, 3)) > 0.2,
        signal_valid=rng.random((4, 6, 2)) > 0.2,
        rates=rng.gamma(2.0, size=(4, 6, 3)),
        signal_mean=rng.normal(size=(4, 6, 2)),
        names={"channel": ["c1", "c2"]},
    )
    data["signal"].attrs = {"units": "uV"}
    return held_out(data, neurons=[2], channels=[0], forecast_bins=2)


@pytest.mark.parametrize("make", [full_recording, full_signal, full_pair])
@pytest.mark.parametrize("kind", WRITABLE)
def test_what_is_written_is_read_exactly(tmp_path: Path, kind: str, make: Make) -> None:
    data = make()
    path = tmp_path / f"data{kind}"
    write(data, path)
    back = read(path)
    xr.testing.assert_identical(back, data)
    for name, variable in data.variables.items():
        assert back[name].dtype == variable.dtype, name
    assert {key: type(value) for key, value in back.attrs.items()} == {
        key: type(value) for key, value in data.attrs.items()
    }
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", WRITABLE)
def test_writing_replaces_what_was_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data{kind}"
    write(full_recording(), path)
    write(full_signal(), path)
    xr.testing.assert_identical(read(path), full_signal())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", WRITABLE)
def test_an_interrupted_write_leaves_the_last_good_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"data{kind}"
    write(full_recording(), path)

    def interrupted(whole: Path, *_: Path) -> None:
        assert whole.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(readers, "_move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(full_signal(), path)
    xr.testing.assert_identical(read(path), full_recording())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_moved_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.zarr"
    write(full_recording(), path)
    rename = Path.rename

    def full_disk(self: Path, target: Path) -> Path:
        if self.name == path.name and self != path:
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write(full_signal(), path)
    xr.testing.assert_identical(read(path), full_recording())


def test_a_hand_made_npz_needs_counts_and_bin_width(tmp_path: Path) -> None:
    counts = np.random.default_rng(2).poisson(1.0, (2, 4, 3))
    np.savez(tmp_path / "a.npz", counts=counts, bin_width=1, start=-2.0, condition=["u", "v"])
    data = read(tmp_path / "a.npz")
    expected = recording(counts, bin_width=1.0, start=-2.0, condition=["u", "v"])
    xr.testing.assert_identical(data, expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: full_recording().drop_vars("valid"), r"counts is negative \(-1\) at trial 0"),
        (full_signal, r"signal is not finite \(nan\) at trial 0"),
    ],
    ids=["counts", "signal"],
)
def test_a_lost_zarr_chunk_is_no_silence(tmp_path: Path, make: Make, sentence: str) -> None:
    path = tmp_path / "a.zarr"
    data = make()
    write(data, path)
    observed = path / observed_name(data) / "c"
    next(file for file in observed.rglob("*") if file.is_file()).unlink()
    with pytest.raises(ValueError, match=r"a\.zarr: " + sentence):
        read(path)


# HDF5 of the LFADS family


def write_hdf5(path: Path, **arrays: object) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def test_first_generation_keys(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    truth_hz = rng.gamma(4.0, 5.0, (5, 20, 4))
    counts, latents = rng.poisson(truth_hz * 0.05), rng.normal(size=(5, 20, 3))
    path = write_hdf5(
        tmp_path / "a.h5",
        train_data=counts[:3],
        valid_data=counts[3:],
        train_truth=truth_hz[:3],
        valid_truth=truth_hz[3:],
        train_lowd=latents[:3],
        valid_lowd=latents[3:],
        train_inds=[4, 0, 2],
        valid_inds=[1, 3],
        dt=0.05,
        conversion_factor=1.0,
    )
    data = read(path)
    np.testing.assert_array_equal(data["counts"], counts)
    np.testing.assert_allclose(data["rates"], truth_hz * 0.05, rtol=1e-6)
    np.testing.assert_array_equal(data["latents"], latents.astype(np.float32))
    assert data["split"].values.tolist() == ["train"] * 3 + ["valid"] * 2
    assert data["trial"].values.tolist() == [4, 0, 2, 1, 3]
    assert data.attrs["bin_width"] == 0.05
    assert "held_out" not in data.coords


def test_what_recon_has_beyond_encod_is_held_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    recon, inputs = rng.poisson(1.0, (6, 10, 5)), rng.normal(size=(6, 10, 2))
    path = write_hdf5(
        tmp_path / "a.hdf5",
        train_encod_data=recon[:4, :8, :3],
        train_recon_data=recon[:4],
        valid_encod_data=recon[4:, :8, :3],
        valid_recon_data=recon[4:],
        train_ext_input=inputs[:4],
        valid_ext_input=inputs[4:],
        bin_ms=20,
    )
    data = read(path)
    np.testing.assert_array_equal(data["counts"], recon)
    np.testing.assert_array_equal(data["inputs"], inputs.astype(np.float32))
    assert data["held_out"].values.tolist() == [False] * 3 + [True] * 2
    assert data["forecast"].values.tolist() == [False] * 8 + [True] * 2
    np.testing.assert_allclose(np.diff(data["time"]), 0.02)


def test_encod_alone_and_equal_blocks_hold_nothing_out() -> None:
    counts = np.random.default_rng(5).poisson(1.0, (3, 5, 2))
    alone = lfads_recording({"train_encod_data": counts}, bin_width=0.01)
    equal = lfads_recording(
        {"train_encod_data": counts, "train_recon_data": counts}, bin_width=0.01
    )
    xr.testing.assert_identical(alone, equal)
    assert not {"held_out", "forecast"} & set(alone.coords)


def test_nan_is_what_was_not_measured() -> None:
    counts = np.random.default_rng(6).poisson(1.0, (3, 5, 2)).astype(float)
    counts[1, 2:, 0] = np.nan
    data = lfads_recording(
        {"valid_encod_data": counts[:, :4], "valid_recon_data": counts}, bin_width=0.01
    )
    np.testing.assert_array_equal(data["valid"], ~np.isnan(counts))
    np.testing.assert_array_equal(data["counts"], np.nan_to_num(counts))


@pytest.mark.filterwarnings("ignore:the true rates have mean")
@pytest.mark.parametrize(
    ("unit", "options", "scale"),
    [
        (None, {}, 0.01),
        (None, {"truth_unit": "hz"}, 0.01),
        (None, {"truth_unit": "per_bin"}, 1.0),
        ("Hz", {}, 0.01),
        ("spikes/bin", {}, 1.0),
        ("spikes/bin", {"truth_unit": "hz"}, 0.01),
    ],
    ids=[
        "data decide",
        "argument hz",
        "argument per bin",
        "file hz",
        "file per bin",
        "caller wins",
    ],
)
def test_units_of_true_rates(
    tmp_path: Path, unit: str | None, options: dict[str, str], scale: float
) -> None:
    rng = np.random.default_rng(7)
    truth = rng.gamma(4.0, 5.0, (4, 50, 4))
    path = write_hdf5(tmp_path / "a.h5", train_data=rng.poisson(truth * 0.01), train_truth=truth)
    if unit is not None:
        with h5py.File(path, "a") as file:
            file["train_truth"].attrs["units"] = unit
    data = read(path, bin_width=0.01, **options)
    np.testing.assert_allclose(data["rates"], truth * scale, rtol=1e-6)


def test_true_rates_per_bin_are_recognised() -> None:
    rng = np.random.default_rng(8)
    truth = rng.gamma(4.0, 0.1, (4, 50, 4))
    arrays = {"train_data": rng.poisson(truth), "train_truth": truth}
    data = lfads_recording(arrays, bin_width=0.01)
    np.testing.assert_allclose(data["rates"], truth, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:the true rates have mean")
def test_a_conversion_factor_makes_true_rates_counts_per_bin(tmp_path: Path) -> None:
    """As the simulator of the first LFADS writes them: rates relative to a maximum."""
    rng = np.random.default_rng(10)
    truth = rng.uniform(0, 1, (8, 50, 20))
    counts = rng.poisson(truth * 0.3)
    arrays = {"train_data": counts, "train_truth": truth, "dt": 0.01, "conversion_factor": 1 / 0.3}
    path = write_hdf5(tmp_path / "a.h5", **arrays)
    np.testing.assert_allclose(read(path)["rates"], truth * 0.3, rtol=1e-6)
    np.testing.assert_allclose(read(path, truth_unit="per_bin")["rates"], truth, rtol=1e-6)


def test_a_unit_that_cannot_be_warns(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    truth = rng.gamma(4.0, 5.0, (4, 50, 4))
    path = write_hdf5(
        tmp_path / "a.h5", train_data=rng.poisson(truth * 0.01), train_truth=truth, dt=0.01
    )
    with pytest.warns(
        UserWarning, match=r"true rates have mean [12]\d\.\d* per bin where .* 0\.[12]"
    ):
        read(path, truth_unit="per_bin")


def test_an_lfads_file_of_a_signal(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    events = rng.gamma(2.0, 0.2, (6, 30, 5)) * (rng.random((6, 30, 5)) < 0.4)
    path = write_hdf5(
        tmp_path / "a.h5",
        train_encod_data=events[..., :4],
        train_recon_data=events,
        train_behavior=events[..., :2],
        bin_ms=33,
    )
    with pytest.warns(UserWarning, match="not spike counts .* are read as a signal"):
        data = read(path)
    np.testing.assert_array_equal(data["signal"], events.astype(np.float32))
    np.testing.assert_array_equal(data["behavior"], events[..., :2].astype(np.float32))
    assert data["held_out"].values.tolist() == [False] * 4 + [True]
    xr.testing.assert_identical(read(path, observed="signal"), data)
    with pytest.raises(ValueError, match="observed='lfp' must be 'counts' or 'signal'"):
        read(path, observed="lfp")


def test_keys_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", train_data=np.ones((3, 5, 2)), dt=0.1, alpha=1, emg=[2])
    with pytest.warns(UserWarning, match="keys that are not read: alpha, emg"):
        read(path)


# What files cannot hold


@pytest.mark.parametrize("kind", WRITABLE)
def test_coordinates_with_a_dim_of_their_own_come_back(tmp_path: Path, kind: str) -> None:
    data = full_recording().assign_coords(place=(("neuron", "axis"), np.arange(6.0).reshape(3, 2)))
    write(data, tmp_path / f"a{kind}")
    xr.testing.assert_identical(read(tmp_path / f"a{kind}"), data)


@pytest.mark.parametrize("kind", WRITABLE)
def test_labels_of_a_dim_that_no_variable_has_come_back(tmp_path: Path, kind: str) -> None:
    data = full_recording().drop_vars("behavior")
    assert "quantity" in data.coords
    write(data, tmp_path / f"recording{kind}")
    xr.testing.assert_identical(read(tmp_path / f"recording{kind}"), data)


@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("a/b", [1, 2, 3], r"the name 'a/b' cannot be stored in a file; rename it"),
        ("phase", [1j, 2j, 3j], r"coordinate 'phase' has dtype complex128"),
        ("lag", np.arange(3).astype("timedelta64[s]"), r"coordinate 'lag' has dtype timedelta64"),
    ],
)
def test_what_would_not_come_back_is_refused(
    tmp_path: Path, kind: str, name: str, values: object, sentence: str
) -> None:
    data = full_recording().assign_coords({name: ("neuron", values)})
    with pytest.raises(ValueError, match=sentence):
        write(data, tmp_path / f"a{kind}")
    assert not list(tmp_path.iterdir())


# NWB


SPIKES = {
    # Trials start at 1.0, 2.0, NaN, 5.0 and stop 0.3, 0.5, -, 0.2 s later; bins are 0.1 s.
    11: [0.95, 1.0, 1.05, 1.1, 1.3, 2.05, 2.15, 2.19, 2.45, 5.05],
    12: [1.2, 1.25, 2.0, 2.0, 2.3, 5.0, 5.1],
    13: [1.299999],
}


def write_nwb(path: Path, observed: dict[int, list[list[float]]] | None = None) -> Path:
    pynwb = pytest.importorskip("pynwb")
    file = pynwb.NWBFile(
        session_description="test",
        identifier="test",
        session_start_time=datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    )
    file.add_unit_column("quality", "of sorting")
    for unit, times in SPIKES.items():
        quality = "good" if unit < 13 else "poor"
        spans = {} if observed is None else {"obs_intervals": observed[unit]}
        file.add_unit(spike_times=times, quality=quality, id=unit, **spans)
    file.add_trial_column("go", "time of the go cue")
    file.add_trial_column("target", "where to")
    trials = [(1.0, 1.3, 1.1, "left"), (2.0, 2.5, 2.2, "right"), (4.0, 4.5, np.nan, "left")]
    for start, stop, go, target in [*trials, (5.0, 5.2, 5.1, "right")]:
        file.add_trial(start_time=start, stop_time=stop, go=go, target=target)
    # Samples every 50 ms from 0 to 6 s; in bin k of 0.1 s the two samples average to a half more.
    samples = np.arange(121.0)
    hand = pynwb.TimeSeries(
        name="hand",
        data=np.stack([samples, -samples], axis=1),
        unit="mm",
        rate=20.0,
        starting_time=0.0,
    )
    slow = pynwb.TimeSeries(
        name="eye", data=[1.0, 2.0], unit="volts", timestamps=[1.15, 2.05], conversion=10.0
    )
    module = file.create_processing_module("behavior", "what it did")
    module.add(hand)
    file.add_acquisition(slow)
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


def test_nwb_whole_trials_of_unequal_length(tmp_path: Path) -> None:
    data = read(write_nwb(tmp_path / "a.nwb"), bin_width=0.1)
    # Spikes on an edge belong to the bin that begins there, though (1.1 - 1.0) / 0.1 is above 1
    # and (2.3 - 2.0) / 0.1 below 3 in floating point.
    expected = np.zeros((4, 5, 3), int)
    expected[0, :3, 0] = [2, 1, 0]
    expected[0, :3, 1] = [0, 0, 2]
    expected[0, :3, 2] = [0, 0, 1]
    expected[1, :, 0] = [1, 2, 0, 0, 1]
    expected[1, :, 1] = [2, 0, 0, 1, 0]
    expected[3, :2, 0] = [1, 0]
    expected[3, :2, 1] = [1, 1]
    np.testing.assert_array_equal(data["counts"], expected)
    np.testing.assert_array_equal(data["valid"].sum("time"), [3, 5, 5, 2])
    assert data["neuron"].values.tolist() == [11, 12, 13]
    assert data["trial"].values.tolist() == [0, 1, 2, 3]


def test_nwb_window_around_an_event_with_condition_and_behavior(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "a.nwb")
    with pytest.warns(
        UserWarning, match=r"1 of 4 trials are dropped: 1 whose go is missing \(2\)$"
    ):
        data = read_nwb(
            path,
            bin_width=0.1,
            align_to="go",
            window=(-0.2, 0.1),
            condition="target",
            behavior=["hand", "eye"],
            unit_filter=lambda units: units["quality"] == "good",
        )
    expected = np.zeros((3, 3, 2), int)
    expected[0, :, 0] = [1, 2, 1]  # from 0.9, 1.0 and 1.1
    expected[1, :, 0] = [1, 2, 0]  # from 2.0, 2.1 and 2.2
    expected[1, :, 1] = [2, 0, 0]
    expected[2, :, 0] = [0, 1, 0]  # from 4.9, 5.0 and 5.1
    expected[2, :, 1] = [0, 1, 1]
    np.testing.assert_array_equal(data["counts"], expected)
    np.testing.assert_allclose(data["time"], [-0.2, -0.1, 0.0], atol=1e-12)
    assert data["trial"].values.tolist() == [0, 1, 3]
    assert data["neuron"].values.tolist() == [11, 12]
    assert data["condition"].values.tolist() == ["left", "right", "right"]
    assert data["quantity"].values.tolist() == ["hand_0", "hand_1", "eye"]
    assert data["unit"].values.tolist() == ["mm", "mm", "volts"]
    hand = np.array([[18.5, 20.5, 22.5], [40.5, 42.5, 44.5], [98.5, 100.5, 102.5]])
    np.testing.assert_array_equal(data["behavior"][..., 0], hand)
    np.testing.assert_array_equal(data["behavior"][..., 1], -hand)
    eye = np.full((3, 3), np.nan)
    eye[0, 2], eye[1, 0] = 10.0, 20.0
    np.testing.assert_array_equal(data["behavior"][..., 2], eye)
    assert "valid" not in data


def test_nwb_needs_pynwb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nwb(tmp_path / "a.nwb")
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(ImportError, match=r"a\.nwb needs pynwb.*pip install 'pyrodyn\[nwb\]'$"):
        read(path, bin_width=0.1)


def test_nwb_unobserved_windows(tmp_path: Path) -> None:
    # The first trial is observed by nobody; the second by unit 11 in two spans that touch, and not
    # to its end by unit 12; the last one by all.
    observed = {
        11: [[1.05, 1.5], [2.2, 2.5], [2.0, 2.2], [4.0, 6.0]],
        12: [[2.0, 2.45], [4.0, 6.0]],
        13: [[1.9, 6.0]],
    }
    path = write_nwb(tmp_path / "a.nwb", observed)
    with pytest.warns(UserWarning, match=r"1 of 4 trials are dropped: 1 .* not observed \(0\)$"):
        data = read_nwb(path, bin_width=0.1, window=(0.0, 0.5))
    assert data["trial"].values.tolist() == [1, 2, 3]
    assert data["counts"][0, :, 0].values.tolist() == [1, 2, 0, 0, 1]
    assert (data["counts"][0, :, 1] == 0).all()
    valid = np.ones((3, 5, 3), bool)
    valid[0, :, 1] = False
    np.testing.assert_array_equal(data["valid"], valid)


@pytest.mark.parametrize("bin_width", [0.001, 0.005, 0.01, 0.02, 0.1])
def test_spikes_on_edges_fall_in_the_bin_that_begins_there(
    tmp_path: Path, bin_width: float
) -> None:
    pynwb = pytest.importorskip("pynwb")
    starts = np.round(np.random.default_rng(9).uniform(0, 5e3, 40), 3)
    num_bins = 10
    file = pynwb.NWBFile(
        session_description="test",
        identifier="edges",
        session_start_time=datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    )
    edges = starts[:, None] + bin_width * np.arange(num_bins)
    file.add_unit(spike_times=np.sort(np.round(edges, 3).ravel()))
    for start in starts:
        file.add_trial(start_time=start, stop_time=start + 1)
    with pynwb.NWBHDF5IO(str(tmp_path / "a.nwb"), "w") as io:
        io.write(file)
    data = read_nwb(tmp_path / "a.nwb", bin_width=bin_width, window=(0.0, num_bins * bin_width))
    separate = np.abs(starts[:, None] - starts) > 1
    alone = separate.sum(1) == len(starts) - 1
    assert alone.sum() > 30
    assert (data["counts"].values[alone] == 1).all()


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(recording(np.ones((2, 3, 1), int), bin_width=0.1, condition=["a", "b"]), path)
    stored = zarr.open_group(path, mode="r+")["condition"]
    stored[:] = np.frombuffer(b"\xff" * 2 * stored.dtype.itemsize, stored.dtype)
    with pytest.raises(ValueError, match=r"a\.zarr"):
        read(path)
