"""Readers and writers under random input: right, or refused in one sentence.

``PYRODYN_FUZZ=100`` tries that many times as many examples, with another seed in every run.
"""

import datetime
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from pyrodyn.data import recording, validate
from pyrodyn.data.readers import READABLE, WRITABLE, read, write

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as npst  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

TIMES = int(os.environ.get("PYRODYN_FUZZ", "1"))


def fuzzed(examples: int) -> Any:
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )


# Round trips

TEXT = st.text(st.characters(exclude_categories=()), max_size=6)
NAMES = st.one_of(TEXT, st.sampled_from(["units", "scale_factor", "_FillValue", "CLASS", "dtype"]))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXT,
    st.sampled_from([2**70, np.float32(0.1), np.int8(3), np.bool_(True), np.arange(3), "", "\x00"]),
    st.sampled_from([datetime.date(2020, 1, 1), np.datetime64("2020"), 1j, (1, 2), b"a", {1: 2}]),
)
ATTRS = st.dictionaries(
    NAMES, st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))
)
LABELS = st.one_of(
    npst.arrays(st.sampled_from(["f2", "f4", "f8", "i1", "u2", "i8", "?"]), 4),
    npst.arrays(st.sampled_from(["M8[s]", "m8[ms]", "c8"]), 4),
    st.lists(TEXT, min_size=4, max_size=4),
    st.lists(PLAIN, min_size=4, max_size=4).map(lambda values: np.array([*values, None], "O")[:4]),
)


@st.composite
def recordings(draw: st.DrawFn) -> xr.Dataset:
    """Valid recordings with any labels, attributes and coordinates."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (4, 3, 2)
    arrays: dict[str, Any] = {}
    kind = draw(st.sampled_from(["counts", "signal", "both"]))
    if kind != "signal":
        arrays["counts"] = rng.poisson(2.0, shape)
    if kind != "counts":
        arrays["signal"] = rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30)
    if draw(st.booleans()):
        arrays["valid"] = rng.random(shape[: draw(st.sampled_from([2, 3]))]) < 0.8
    if draw(st.booleans()):
        arrays["behavior"] = np.where(rng.random(shape) < 0.2, np.nan, rng.normal(size=shape))
    if draw(st.booleans()):
        arrays["condition"] = draw(LABELS)
    width = draw(st.floats(1e-6, 10))
    data = recording(**arrays, bin_width=width, start=draw(st.floats(-1e3, 1e3)))
    for name in draw(st.lists(NAMES, max_size=2)):
        if name not in ("trial", "time", *data.variables):
            data = data.assign_coords({name: ("trial", draw(LABELS))})
    data.attrs |= draw(ATTRS)
    variable = draw(st.sampled_from(sorted(map(str, data.variables))))
    data[variable].attrs |= draw(ATTRS)
    return validate(data)


def same(one: Any, other: Any) -> bool:
    """Whether attributes are equal with their types; an array is its list."""
    one, other = (x.tolist() if isinstance(x, np.ndarray | np.generic) else x for x in (one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def assert_same(found: xr.Dataset, data: xr.Dataset) -> None:
    xr.testing.assert_equal(found, data)
    assert list(map(str, found.dims)) and same(found.attrs, data.attrs)
    for name, variable in data.variables.items():
        assert found[name].dtype == variable.dtype and found[name].dims == variable.dims
        assert same(found[name].attrs, variable.attrs), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize(("kind", "examples"), [(".npz", 30), (".nc", 20), (".zarr", 12)])
@pytest.mark.slow
def test_what_is_written_comes_back_or_is_refused(folder: Path, kind: str, examples: int) -> None:
    @fuzzed(examples)
    @given(data=st.data())
    def attempt(data: Any) -> None:
        try:
            written = data.draw(recordings())
        except ValueError:
            return  # no valid recording
        path = folder / f"trip{kind}"
        try:
            write(written, path)
        except ValueError as error:
            assert "\n" not in str(error)
            return
        assert_same(read(path), written)

    attempt()


# Damaged files


def lfads_file(path: Path) -> Path:
    counts = np.random.default_rng(0).poisson(1.0, (4, 6, 3))
    with h5py.File(path, "w") as file:
        file["train_data"], file["valid_data"] = counts[:3], counts[3:]
        file["train_truth"], file["valid_truth"] = counts[:3] + 0.1, counts[3:] + 0.1
        file["dt"] = 0.01
    return path


def nwb_file(path: Path) -> Path:
    pynwb = pytest.importorskip("pynwb")
    file = pynwb.NWBFile("s", "i", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
    for start in (1.0, 2.0):
        file.add_trial(start_time=start, stop_time=start + 0.5)
    for unit in range(2):
        file.add_unit(spike_times=1.0 + 0.07 * (unit + 1) * np.arange(20))
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file, cache_spec=False)
    return path


@pytest.fixture(scope="module")
def good(folder: Path) -> dict[str, tuple[Path, xr.Dataset]]:
    """A file of each format, and what is read of it."""
    rng = np.random.default_rng(0)
    data = recording(
        1 + rng.poisson(1.0, (4, 6, 3)),
        bin_width=0.1,
        condition=["a", "b", "a", "é"],
        behavior=rng.normal(size=(4, 6, 1)),
        names={"neuron": ["n1", "n2", "n3"]},
    )
    data.attrs |= {"name": "x", "list": [1, None]}
    files = {kind: folder / f"good{kind}" for kind in WRITABLE if kind != ".nc4"}
    for path in files.values():
        write(data, path)
    files[".h5"] = lfads_file(folder / "good.h5")
    files[".nwb"] = nwb_file(folder / "good.nwb")
    widths = {".nwb": 0.1}
    return {kind: (path, read(path, bin_width=widths.get(kind))) for kind, path in files.items()}


def damaged(path: Path, copy: Path, data: Any) -> Path:
    """A copy that is cut off or has some bits flipped, in one of its files for a folder."""
    if path.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        target = data.draw(st.sampled_from(sorted(p for p in copy.rglob("*") if p.is_file())))
    else:
        shutil.copy(path, copy)
        target = copy
    contents = bytearray(target.read_bytes())
    size = len(contents)
    if data.draw(st.booleans()):
        contents = contents[: data.draw(st.integers(0, size - 1))]
    else:
        for position in data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8)):
            contents[position] ^= 1 << data.draw(st.integers(0, 7))
    target.write_bytes(contents)
    return copy


EXAMPLES = {".npz": 40, ".nc": 30, ".zarr": 15, ".h5": 40, ".nwb": 6}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_damaged_file_is_refused(
    folder: Path, good: dict[str, tuple[Path, xr.Dataset]], kind: str
) -> None:
    path, expected = good[kind]

    @fuzzed(EXAMPLES[kind])
    @given(data=st.data())
    def attempt(data: Any) -> None:
        copy = damaged(path, folder / f"damaged{kind}", data)
        try:
            found = read(copy, bin_width=0.1 if kind == ".nwb" else None)
        except ValueError as error:
            assert str(copy) in str(error) and "\n" not in str(error)
            return
        if kind in WRITABLE:
            xr.testing.assert_identical(found, expected)
        else:
            validate(found)  # these formats have no checksums

    attempt()


@pytest.mark.parametrize("kind", [kind for kind in READABLE if kind != ".zarr"])
@fuzzed(10)
@given(contents=st.binary(max_size=200), head=st.sampled_from([b"", b"PK\x03\x04", b"\x89HDF\r\n"]))
def test_bytes_that_are_no_recording_are_refused(
    folder: Path, kind: str, contents: bytes, head: bytes
) -> None:
    path = folder / f"noise{kind}"
    path.write_bytes(head + contents)
    with pytest.raises(ValueError, match="noise"):
        read(path, bin_width=0.1 if kind in (".h5", ".hdf5", ".nwb") else None)


# Arrays


ANY = npst.arrays(
    st.one_of(npst.scalar_dtypes(), st.just(np.dtype("O"))),
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
)


@fuzzed(60)
@given(
    observed=st.sampled_from(["counts", "signal"]),
    arrays=st.fixed_dictionaries(
        {"observed": ANY},
        optional={"valid": ANY, "inputs": ANY, "behavior": ANY, "condition": ANY, "rates": ANY},
    ),
    width=st.floats(),
)
def test_any_arrays_make_a_valid_recording_or_one_sentence(
    observed: str, arrays: dict[str, np.ndarray], width: float
) -> None:
    given_values = arrays.pop("observed")
    try:
        data = recording(**{observed: given_values}, bin_width=width, **arrays)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    xr.testing.assert_identical(validate(data), data)
    assert data[observed].shape == given_values.shape


# Nothing is executed


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_no_file_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = np.array([[[Bomb(mark)] * 2] * 2] * 2, dtype=object)
    np.savez(tmp_path / "a.npz", counts=bomb, bin_width=0.1)
    np.save(tmp_path / "b.npy", bomb, allow_pickle=True)
    shutil.move(tmp_path / "b.npy", tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(pickle.dumps(Bomb(mark)))
    # An array of the second Zarr format whose chunk is a pickle, as numcodecs would open it.
    array = tmp_path / "d.zarr" / "counts"
    array.mkdir(parents=True)
    (tmp_path / "d.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    about = {"zarr_format": 2, "shape": [2, 2, 2], "chunks": [2, 2, 2], "dtype": "|O", "order": "C"}
    about |= {"compressor": None, "fill_value": None, "filters": [{"id": "pickle", "protocol": 5}]}
    (array / ".zarray").write_text(json.dumps(about))
    (array / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["trial", "time", "neuron"]}')
    (array / "0.0.0").write_bytes(pickle.dumps(bomb))
    for name in ("a.npz", "b.npz", "c.npz", "d.zarr"):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=name):
            warnings.simplefilter("ignore")
            read(tmp_path / name)
    assert not mark.exists()
