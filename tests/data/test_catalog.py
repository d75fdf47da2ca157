import functools
import hashlib
import http.server
import importlib.util
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pooch
import pytest
import xarray as xr

from pyrodyn.data.catalog import CATALOG, Source, arrays_digest, catalog, load
from pyrodyn.data.sources import IMAGERY_RUNS

pytestmark = pytest.mark.filterwarnings("ignore:.*never fire")

DATA = os.environ.get("PYRODYN_DATA")


def stored(name: str) -> dict[str, np.ndarray]:
    """The arrays of a recording's file, or a skipped test."""
    path = Path(DATA or "") / name / f"{name}.npz"
    if not DATA or not path.exists():
        pytest.skip(f"{name} is not in PYRODYN_DATA ({DATA or 'not set'})")
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user's, and no PYRODYN_DATA."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda name: folder)
    monkeypatch.delenv("PYRODYN_DATA", raising=False)
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


Publish = Callable[..., None]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publish]:
    """A local server, and a function that makes files on it the sources of a recording."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def published(name: str, files: dict[str, bytes], sha256: str | None = None) -> None:
            sources = []
            for file, contents in files.items():
                (folder / file).write_bytes(contents)
                digest = sha256 or hashlib.sha256(contents).hexdigest()
                sources.append(Source(f"http://127.0.0.1:{server.server_port}/{file}", digest))
            entry = CATALOG[name]._replace(sources=tuple(sources))
            monkeypatch.setitem(CATALOG, name, entry)

        yield published
        server.shutdown()
        thread.join()


def small_lorenz() -> dict[str, np.ndarray]:
    """Two initial conditions with three trials each, in the form of the public file."""
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.gamma(4.0, 25.0, (2, 20, 4)), 3, axis=0)
    counts, latents = rng.poisson(truth * 0.01), np.repeat(rng.normal(size=(2, 20, 3)), 3, 0)
    train, valid = np.array([0, 2, 3, 5]), np.array([1, 4])
    arrays = {"n_trials_per_init_cond": np.array([3]), "n_init_conds": np.array([2])}
    for part, trials in (("train", train), ("valid", valid)):
        arrays |= {
            f"{part}_inds": trials,
            f"{part}_data": counts[trials].astype(np.uint8),
            f"{part}_truth": truth[trials].astype(np.float32),
            f"{part}_lowd": latents[trials].astype(np.float32),
        }
    return arrays


def as_hdf5(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return buffer.getvalue()


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def check_lorenz(data: xr.Dataset, arrays: dict[str, np.ndarray]) -> None:
    def joined(role: str) -> np.ndarray:
        return np.concatenate([arrays[f"train_{role}"], arrays[f"valid_{role}"]])

    np.testing.assert_array_equal(data["counts"], joined("data"))
    np.testing.assert_allclose(data["rates"], joined("truth") * 0.01, rtol=1e-6)
    np.testing.assert_array_equal(data["latents"], joined("lowd"))
    np.testing.assert_array_equal(data["trial"], joined("inds"))
    num_train = len(arrays["train_inds"])
    assert data["split"].values.tolist()[num_train - 1 : num_train + 1] == ["train", "valid"]
    assert data.attrs["bin_width"] == 0.01
    for _, same in data.groupby("condition"):
        assert same.sizes["trial"] == arrays["n_trials_per_init_cond"][0]
        assert (same["rates"] == same["rates"][0]).all()


# From the public source


def test_download_is_converted_and_kept(cache: Path, publish: Publish) -> None:
    arrays = small_lorenz()
    publish("lorenz_lfads_truth", {"lfads_lorenz.h5": as_hdf5(arrays)})
    data = load("lorenz_lfads_truth")
    check_lorenz(data, arrays)
    assert data.attrs["licence"] == "MIT"
    assert [file.name for file in cache.iterdir()] == ["lorenz_lfads_truth.npz"]


def test_what_was_kept_needs_no_source(cache: Path, publish: Publish) -> None:
    publish("lorenz_lfads_truth", {"lfads_lorenz.h5": as_hdf5(small_lorenz())})
    data = load("lorenz_lfads_truth")
    publish("lorenz_lfads_truth", {"lfads_lorenz.h5": b"changed"})
    xr.testing.assert_identical(load("lorenz_lfads_truth"), data)


def test_other_contents_are_refused_and_not_kept(cache: Path, publish: Publish) -> None:
    publish("lorenz_lfads_truth", {"lfads_lorenz.h5": as_hdf5(small_lorenz())}, sha256="0" * 64)
    message = r"lfads_lorenz\.h5 does not have the contents pinned for lorenz_lfads_truth \(SHA-256"
    with pytest.raises(ValueError, match=message):
        load("lorenz_lfads_truth")
    assert list(cache.iterdir()) == []


def test_a_source_that_is_gone_is_one_sentence(
    cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("eeg_durstewitz_smoothed", {"EEG_train.npy": b"x"})
    entry = CATALOG["eeg_durstewitz_smoothed"]
    gone = entry.sources[0]._replace(url=entry.sources[0].url.replace("train", "missing"))
    monkeypatch.setitem(CATALOG, entry.name, entry._replace(sources=(gone,)))
    with pytest.raises(ConnectionError, match=r"could not be downloaded from .*404.*PYRODYN_DATA"):
        load("eeg_durstewitz_smoothed")
    assert list(cache.iterdir()) == []


def test_smoothed_eeg_from_npy(cache: Path, publish: Publish) -> None:
    eeg = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    publish("eeg_durstewitz_smoothed", {"EEG_train.npy": as_npy(eeg)})
    data = load("eeg_durstewitz_smoothed")
    np.testing.assert_array_equal(data["signal"].values, eeg[None])
    assert data.attrs["bin_width"] == 1 / 160


def edf(path: Path, signal: np.ndarray, events: list[tuple[float, float, str]]) -> bytes:
    """An EDF file of whole microvolts at 160 Hz."""
    pyedflib = pytest.importorskip("pyedflib")
    headers = [
        {
            "label": label,
            "dimension": "uV",
            "sample_frequency": 160,
            "physical_min": -8092,
            "physical_max": 8092,
            "digital_min": -8092,
            "digital_max": 8092,
        }
        for label in ("Fc5.", "Fcz.")
    ]
    writer = pyedflib.EdfWriter(str(path), 2, file_type=pyedflib.FILETYPE_EDFPLUS)
    writer.setSignalHeaders(headers)
    writer.writeSamples([np.ascontiguousarray(one, float) for one in signal.T])
    for onset, duration, label in events:
        writer.writeAnnotation(onset, duration, label)
    writer.close()
    return path.read_bytes()


def test_imagery_eeg_from_edf(cache: Path, publish: Publish, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    signal = rng.integers(1, 100, (2, 480, 2)) * rng.choice([-1, 1], (2, 480, 2))
    signal[:, 400:] = 0
    events = [(0.0, 1.5, "T0"), (1.5, 1.0, "T2")]
    files = {
        f"{run}.edf": edf(tmp_path / f"{run}.edf", one, events)
        for run, one in zip(IMAGERY_RUNS, signal, strict=True)
    }
    publish("eegmmidb_s001_imagery", files)
    data = load("eegmmidb_s001_imagery")
    np.testing.assert_allclose(data["signal"], signal, atol=1e-3)
    assert data["channel"].values.tolist() == ["Fc5", "Fcz"]
    assert data["trial"].values.tolist() == IMAGERY_RUNS
    task = np.full(480, np.nan)
    task[:240], task[240:400] = 0, 2
    np.testing.assert_array_equal(data["behavior"][..., 0], np.stack([task, task]))
    np.testing.assert_array_equal(data["valid"], np.tile(np.arange(480) < 400, (2, 1)))


def test_a_missing_package_is_named_before_any_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs pyedflib.*pip install 'pyrodyn\[edf\]'"):
        load("eegmmidb_s001_imagery")
    assert not cache.exists()


def mat(units: list[list[np.ndarray]]) -> bytes:
    """Structs of spike times in cells per tetrode, as MatClust writes them."""
    from scipy.io import savemat

    tetrodes = np.empty((1, len(units)), object)
    for i, times in enumerate(units):
        structs = [{"time": one[:, None], "timerange": [0, 1], "meanrate": 1.0} for one in times]
        tetrodes[0, i] = np.empty((1, len(structs)), object)
        tetrodes[0, i][0] = structs
    buffer = io.BytesIO()
    savemat(buffer, {"spikes": tetrodes})
    return buffer.getvalue()


def video(times: np.ndarray, x: np.ndarray, y: np.ndarray) -> bytes:
    frames = np.zeros(len(times), "<u4,<u2,<u2,<u2,<u2")
    frames["f0"], frames["f1"], frames["f2"] = np.rint(30_000 * times), x, y
    return b"<Start settings>\nclockrate: 30000\n<End settings>\n" + frames.tobytes()


def small_track() -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
    """Three units of two tetrodes, with an empty struct and an empty tetrode; and their files."""
    units = [np.array([2.01, 2.06, 2.94]), np.array([2.13]), np.array([2.5, 2.51])]
    times = 2 + np.arange(60) / 60
    arrays = {
        "spike_s": np.concatenate(units),
        "unit": np.array([0, 0, 0, 1, 2, 2], np.uint8),
        "pos_t": np.rint(30_000 * times) / 30_000,
        "x": np.arange(60, dtype=np.uint16),
        "y": 400 - np.arange(60, dtype=np.uint16),
    }
    tetrodes = [[units[0], np.zeros(0), units[1]], [], [units[2]]]
    position = video(times, arrays["x"], arrays["y"])
    return arrays, {"spikes.mat": mat(tetrodes), "trajectory.videoPositionTracking": position}


def test_the_linear_track_from_matlab_and_video(
    cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, files = small_track()
    name = "hippocampus_linear_track"
    publish(name, files)
    sources = tuple(source._replace(sha256=None) for source in CATALOG[name].sources)
    entry = CATALOG[name]._replace(sources=sources, arrays_sha256=arrays_digest(arrays))
    monkeypatch.setitem(CATALOG, name, entry)
    data = load(name)
    assert dict(data["counts"].sizes) == {"trial": 1, "time": 19, "neuron": 3}
    assert np.argwhere(data["counts"][0].values).tolist() == [
        [0, 0], [1, 0], [2, 1], [10, 2], [18, 0]
    ]  # fmt: skip
    assert data["counts"][0, 10, 2] == 2
    # Three frames per bin.
    np.testing.assert_allclose(data["behavior"][0, :, 0], 1 + 3 * np.arange(19))
    np.testing.assert_allclose(data["behavior"][0, :, 1], 399 - 3 * np.arange(19))
    assert (cache / f"{name}.npz").exists()


@pytest.mark.parametrize(
    ("file", "contents", "sentence"),
    [
        ("trajectory.videoPositionTracking", video(*np.ones((3, 4))), "SHA-256 of their arrays"),
        ("spikes.mat", b"a web page", "cannot be converted to hippocampus_linear_track .*kept"),
    ],
)
def test_sources_without_a_hash_are_pinned_by_their_arrays(
    file: str,
    contents: bytes,
    sentence: str,
    cache: Path,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "hippocampus_linear_track"
    arrays, files = small_track()
    publish(name, files | {file: contents})
    sources = tuple(source._replace(sha256=None) for source in CATALOG[name].sources)
    entry = CATALOG[name]._replace(sources=sources, arrays_sha256=arrays_digest(arrays))
    monkeypatch.setitem(CATALOG, name, entry)
    with pytest.raises(ValueError, match=sentence):
        load(name)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "dandiset"),
    [
        ("mc_maze_large_9cond", "000138"),
        ("chewie_m1_co_1003", "000688"),
        ("chewie_m1_co_1219", "000688"),
    ],
)
def test_pickles_are_not_opened_but_their_archive_is_named(
    cache: Path, name: str, dandiset: str
) -> None:
    message = rf"{name} is not in PYRODYN_DATA \(not set\).*`dandi download DANDI:{dandiset}`"
    with pytest.raises(FileNotFoundError, match=message):
        load(name)


def test_sources_are_pinned_by_commit_or_release_and_hash() -> None:
    public = [(entry, source) for entry in CATALOG.values() for source in entry.sources]
    assert len(public) == 6
    for entry, source in public:
        pinned = source.sha256 or entry.arrays_sha256
        assert len(pinned) == 64
        assert int(pinned, 16) > 0
        assert source.url.startswith("https://")
        assert any(len(part) == 40 or part == "1.0.0" for part in source.url.split("/"))


# Where a recording lies


def test_pyrodyn_data_comes_first(
    cache: Path, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = small_lorenz()
    publish("lorenz_lfads_truth", {"lfads_lorenz.h5": b"not asked for"})
    folder = tmp_path / "data" / "lorenz_lfads_truth"
    folder.mkdir(parents=True)
    np.savez(folder / "lorenz_lfads_truth.npz", allow_pickle=False, **arrays)
    monkeypatch.setenv("PYRODYN_DATA", str(folder.parent))
    check_lorenz(load("lorenz_lfads_truth"), arrays)
    assert not cache.exists()


def test_catalog_says_what_is_here(
    cache: Path, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {row.entry.name: row.path for row in catalog()} == dict.fromkeys(CATALOG)
    publish("eeg_durstewitz_smoothed", {"EEG_train.npy": as_npy(np.eye(5, 2, dtype=np.float32))})
    load("eeg_durstewitz_smoothed")
    given = tmp_path / "data" / "mc_maze_large_9cond" / "mc_maze_large_9cond.npz"
    given.parent.mkdir(parents=True)
    given.touch()
    monkeypatch.setenv("PYRODYN_DATA", str(tmp_path / "data"))
    assert {row.entry.name: row.path for row in catalog() if row.path} == {
        "eeg_durstewitz_smoothed": cache / "eeg_durstewitz_smoothed.npz",
        "mc_maze_large_9cond": given,
    }


# The recordings themselves


def test_lorenz() -> None:
    arrays = stored("lorenz_lfads_truth")
    data = load("lorenz_lfads_truth")
    check_lorenz(data, arrays)
    assert data["counts"].shape == (800, 100, 60)
    # Poisson counts of 800 x 100 x 60 entries around their true expectation.
    excess = float(data["counts"].sum() - data["rates"].sum())
    assert abs(excess) / float(data["rates"].sum()) ** 0.5 < 4


def test_mc_maze() -> None:
    arrays = stored("mc_maze_large_9cond")
    data = load("mc_maze_large_9cond")
    np.testing.assert_array_equal(data["counts"], arrays["spikes"])
    np.testing.assert_array_equal(data["condition"], arrays["condition"])
    np.testing.assert_array_equal(data["behavior"][..., :2], arrays["hand_pos"])
    np.testing.assert_array_equal(data["behavior"][..., 2:], arrays["hand_vel"])
    assert data["unit"].values.tolist() == ["mm", "mm", "mm/s", "mm/s"]
    assert data.attrs["bin_width"] == 0.005
    # The units hold together: the slope of position is velocity.
    slope = np.gradient(arrays["hand_pos"], 0.005, axis=1)[:, 2:-2]
    np.testing.assert_allclose(slope, arrays["hand_vel"][:, 2:-2], atol=40)


@pytest.mark.parametrize(
    ("name", "bin_width"), [("chewie_m1_co_1003", 0.05), ("chewie_m1_co_1219", 0.1)]
)
def test_chewie(name: str, bin_width: float) -> None:
    arrays = stored(name)
    data = load(name)
    offsets = arrays["offsets"]
    lengths = data["valid"].sum("time").values
    np.testing.assert_array_equal(lengths, np.diff(offsets))
    np.testing.assert_array_equal(data["condition"], arrays["target"])
    for trial in (0, 80, len(lengths) - 1):
        here, inside = slice(offsets[trial], offsets[trial + 1]), slice(0, lengths[trial])
        np.testing.assert_array_equal(data["counts"][trial, inside], arrays["counts"][here])
        for first, key in zip((0, 2, 4, 6), ("pos", "vel", "acc", "force"), strict=True):
            moved = data["behavior"][trial, inside, first : first + 2]
            np.testing.assert_array_equal(moved, arrays[key][here])
    assert data["counts"].values.sum() == arrays["counts"].sum()
    assert data.attrs["bin_width"] == pytest.approx(bin_width)


def test_linear_track() -> None:
    name = "hippocampus_linear_track"
    arrays = stored(name)
    assert arrays_digest(arrays) == CATALOG[name].arrays_sha256
    data = load(name)
    np.testing.assert_array_equal(data["counts"].sum("time")[0], np.bincount(arrays["unit"]))
    # The clock of the spikes is 0.1 ms, so that some lie on an edge.
    unit, time = 15, data["time"].values - 1e-6
    expected, _ = np.histogram(arrays["spike_s"][arrays["unit"] == unit], [*time, time[-1] + 0.05])
    np.testing.assert_array_equal(data["counts"][0, :, unit], expected)
    position, bin_ = data["behavior"][0].values, 1000
    here = (arrays["pos_t"] >= time[bin_]) & (arrays["pos_t"] < time[bin_] + 0.05)
    np.testing.assert_allclose(position[bin_], [arrays["x"][here].mean(), arrays["y"][here].mean()])
    # Two gaps of the video.
    assert np.isnan(position).sum() == 4


def test_smoothed_eeg() -> None:
    arrays = stored("eeg_durstewitz_smoothed")
    data = load("eeg_durstewitz_smoothed")
    np.testing.assert_array_equal(data["signal"], arrays["eeg"][None])
    assert data.attrs["bin_width"] == 1 / 160


def test_imagery_eeg() -> None:
    arrays = stored("eegmmidb_s001_imagery")
    data = load("eegmmidb_s001_imagery")
    for trial, run in enumerate(IMAGERY_RUNS):
        np.testing.assert_array_equal(data["signal"][trial], arrays[run])
        codes = data["behavior"][trial, :, 0].values
        bins = (arrays[f"{run}_event_t"] * 160 + 0.5).astype(int)
        expected = [int(label[1]) for label in arrays[f"{run}_event"]]
        assert codes[bins].tolist() == expected
        # An event lasts until the next one begins; nothing is annotated after the last.
        assert codes[bins[1:] - 1].tolist() == expected[:-1]
        assert np.isnan(codes).sum() == 80
        assert (~data["valid"][trial]).sum() == 80
    assert data["channel"].values[0] == "Fc5"
