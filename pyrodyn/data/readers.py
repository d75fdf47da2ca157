"""Reading and writing recordings: `read` and `write`.

===================  ==========================================================================
``.npz``             arrays under the names of `recording`'s arguments; never a pickled object
``.nc``, ``.nc4``    the schema as netCDF-4
``.zarr``            the schema as a Zarr group (a folder)
``.h5``, ``.hdf5``   the keys of the LFADS family, see `pyrodyn.data.lfads_hdf5`
``.nwb``             Neurodata Without Borders, see `pyrodyn.data.nwb`
===================  ==========================================================================

The first three hold a whole recording and can be written. In an ``.npz`` a coordinate is stored
under ``coords/DIM/NAME`` (``coords/neuron/neuron`` holds the neurons' labels,
``coords/neuron/held_out`` which are held out) and attributes as JSON text under ``attrs`` and
``attrs/VARIABLE``, so that `read` returns exactly what was written. A hand-made ``.npz`` needs
``counts``, ``signal`` or both, and ``bin_width``. netCDF and Zarr, whose formats do not notice all
damage, hold a digest of the recording, which `read` compares.
"""

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.attributes import DIGEST, attributes_json, digest, from_stored, to_stored
from pyrodyn.data.lfads_hdf5 import lfads_recording
from pyrodyn.data.nwb import read_nwb
from pyrodyn.data.recording import assembled
from pyrodyn.data.schema import OPTIONAL, is_number, validate

WRITABLE = (".npz", ".nc", ".nc4", ".zarr")
"""Suffixes of the formats that hold a whole recording."""

READABLE = (*WRITABLE, ".h5", ".hdf5", ".nwb")
"""Suffixes of the formats that `read` accepts."""

NPZ_KEYS = (
    *("counts", "signal", "bin_width", "start"),
    *OPTIONAL,
    *("valid", "rates", "signal_valid", "signal_mean"),
)
"""Keys of an ``.npz`` other than coordinates and attributes: the arguments of `recording`."""


def read(
    path: str | PathLike[str],
    *,
    bin_width: float | None = None,
    truth_unit: str | None = None,
    observed: str | None = None,
) -> xr.Dataset:
    """A recording from a file.

    Args:
        path: the file (the folder, for Zarr); its suffix determines the format, see the module's
            docstring.
        bin_width: seconds per bin, for the formats that may not state it: HDF5 of the LFADS
            family, and NWB, whose trials are then binned from ``start_time`` to ``stop_time``
            (`pyrodyn.data.nwb.read_nwb` offers windows, conditions and behaviour).
        truth_unit: for HDF5 of the LFADS family, the unit of its true rates, ``"hz"`` or
            ``"per_bin"``; `pyrodyn.data.lfads_hdf5.lfads_recording` documents how the unit is
            found by default.
        observed: for HDF5 of the LFADS family, ``"counts"`` or ``"signal"``; by default counts if
            all values are integers >= 0.

    Returns:
        A validated recording, see `pyrodyn.data.schema`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the format is unknown, the file is broken, or it holds no valid recording;
            one sentence names the file and the fault.
        ImportError: for NWB if pynwb is not installed.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in READABLE:
        raise ValueError(
            f"{path} is not in a format that pyrodyn reads ({', '.join(READABLE)});"
            " pickles are never opened"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir() and kind in (".nwb", ".zarr") and _is_nwb(path):
        raise ValueError(
            f"{path} is NWB in Zarr; pyrodyn reads NWB in HDF5, which hdmf-zarr exports it to"
        )
    if path.is_dir() != (kind == ".zarr"):
        raise ValueError(_not_of_its_format(path))
    if kind in WRITABLE and bin_width is not None:
        raise ValueError(f"{path} states its own bin width; bin_width= is for HDF5 and NWB files")
    for name, value in {"truth_unit": truth_unit, "observed": observed}.items():
        if value is not None and kind not in (".h5", ".hdf5"):
            raise ValueError(f"{name}= is for HDF5 files of the LFADS family, which {path} is not")
    if kind not in (".npz", ".zarr") and not h5py.is_hdf5(path):
        raise ValueError(
            f"{path} is not an HDF5 file, as {kind} files are; it has another format or is broken"
        )

    if kind == ".nwb":
        if bin_width is None:
            raise ValueError(f"{path} holds spike times; give bin_width= in seconds")
        return read_nwb(path, bin_width=bin_width)
    if kind == ".npz":
        arrays = npz_arrays(path)
        with _naming(path):
            return _recording_from_npz(arrays)
    if kind in (".h5", ".hdf5"):
        with _reading(path):
            file = h5py.File(path, "r")
        with file, _naming(path):
            arrays, units = _hdf5_arrays(file)
            return lfads_recording(
                arrays, bin_width=bin_width, truth_unit=truth_unit, units=units, observed=observed
            )
    if kind == ".zarr":
        _refuse_pickles(path)
    with _reading(path):
        engine: dict[str, Any] = (
            {"engine": "zarr", "consolidated": False} if kind == ".zarr" else {"engine": "h5netcdf"}
        )
        # Values of other programs may be packed or masked.
        with xr.open_dataset(path, decode_times=False, mask_and_scale=False, **engine) as stored:
            packed = DIGEST not in stored.attrs
        with xr.open_dataset(path, decode_times=False, mask_and_scale=packed, **engine) as stored:
            data = _with_attrs(stored.load(), lambda attrs, _: from_stored(attrs))
    with _naming(path):
        written = data.attrs.pop(DIGEST, None)
        data = validate(data)
        if written is not None and written != digest(data):
            raise ValueError(
                "the file is not as pyrodyn wrote it: it is damaged or was edited (without its"
                f" attribute {DIGEST} it is read all the same)"
            )
        return data


def write(data: xr.Dataset, path: str | PathLike[str]) -> None:
    """Write a recording to an ``.npz``, netCDF or Zarr file; `read` returns exactly the same.

    The file is written to a temporary folder next to ``path`` and moved when it is complete, so an
    interrupted write leaves the previous file (and at most a hidden folder next to it, which can be
    deleted).

    Args:
        data: a recording.
        path: the file or folder to write; an existing one is replaced.

    Raises:
        ValueError: for another format, if ``data`` is not a valid recording, or if it has names,
            coordinates or attributes that the format cannot represent.
        FileNotFoundError: if the folder does not exist.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in WRITABLE:
        raise ValueError(f"{path} is not in a format that pyrodyn writes ({', '.join(WRITABLE)})")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")
    if path.exists() and path.is_dir() != (kind == ".zarr"):
        raise ValueError(_not_of_its_format(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were issued when it was created
        data = validate(data)
    for name in [*data.variables, *data.dims]:
        if not str(name) or "/" in str(name):
            raise ValueError(f"the name {name!r} cannot be stored in a file; rename it without '/'")
        if kind != ".npz" and name in data.coords and [str(name)] != str(name).split():
            raise ValueError(
                f"the coordinate {name!r} cannot be stored in a {kind} file, which separates names"
                " by blanks; rename it without blanks"
            )
    for name in (name for name in data.variables if data[name].dtype.kind in "cOmM"):
        if data[name].dtype.kind != "M" or kind != ".npz":
            what = "coordinate" if name in data.coords else "variable"
            raise ValueError(
                f"{what} {name!r} has dtype {data[name].dtype}, which {kind} files cannot"
                " represent; store numbers or text"
            )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        complete = Path(folder) / path.name
        if kind == ".npz":
            arrays = _npz_from_recording(data)
            with _writing(path), complete.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
        elif kind == ".zarr":
            # A lost chunk is read as its fill value, which must be invalid in a recording.
            encoding = {"counts": {"fill_value": -1}} if "counts" in data else None
            stored = _stored(data)
            with _writing(path):
                stored.to_zarr(complete, mode="w", consolidated=False, encoding=encoding)
        else:
            stored = _stored(data)
            with _writing(path):
                stored.to_netcdf(complete, engine="h5netcdf")
        _move(complete, path, Path(folder) / "previous")


def npz_arrays(path: Path) -> dict[str, NDArray]:
    """All arrays of an ``.npz`` file by key; pickled objects are refused.

    Raises:
        ValueError: if the file is broken or holds Python objects.
    """
    # numpy does not close a file that it cannot read.
    with _reading(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _move(complete: Path, path: Path, previous: Path) -> None:
    """Move a complete file or folder to its path; a folder there is moved to ``previous`` first,
    and back if the move fails.
    """
    if not path.is_dir():
        complete.replace(path)
        return
    path.rename(previous)  # a folder cannot be replaced in one step
    try:
        complete.rename(path)
    except OSError:
        previous.rename(path)
        raise


def _not_of_its_format(path: Path) -> str:
    """Error message for a folder where the suffix means a file, or the reverse."""
    found, expected = ("folder", "file") if path.is_dir() else ("file", "folder")
    return f"{path} is a {found}; {path.suffix} is the suffix of a {expected}"


def _refuse_pickles(folder: Path) -> None:
    """Refuse a Zarr group with an array that is stored as a pickle, a codec of Zarr 2."""

    def codecs(metadata: Any) -> Iterator[Any]:
        if isinstance(metadata, dict):
            yield from (metadata.get(key) for key in ("id", "name"))
            metadata = [inner for key, inner in metadata.items() if key != "attributes"]
        if isinstance(metadata, list):
            for inner in metadata:
                yield from codecs(inner)

    for file in folder.rglob("*"):
        if file.name in (".zarray", "zarr.json") and file.is_file():
            with _reading(folder):
                found = list(codecs(json.loads(file.read_bytes())))
            if any("pickle" in str(name).lower() for name in found):
                raise ValueError(f"{folder} holds pickled objects, which are never opened")


def _is_nwb(folder: Path) -> bool:
    """Whether a folder is the Zarr form of an NWB file, by the attributes of its root."""
    files = [folder / name for name in (".zattrs", "zarr.json")]
    return any(file.is_file() and b"nwb_version" in file.read_bytes() for file in files)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise any error of a file library as a ValueError of one sentence."""
    try:
        yield
    except Exception as error:  # each library raises types of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is broken or not a {path.suffix} file: {reason}") from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise any error of a file library but those of the disk as a ValueError of one sentence."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each library raises types of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot hold this recording: {reason}") from None


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Prefix error messages about the contents with the path."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except Warning:
        raise  # where warnings are errors
    except (RuntimeError, OSError, KeyError, TypeError, MemoryError, SystemError) as error:
        # Libraries read some parts of a broken file only when they are asked for.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is broken: {reason}") from None


def _recording_from_npz(arrays: Mapping[str, NDArray]) -> xr.Dataset:
    for key in arrays:
        if key not in NPZ_KEYS and key.split("/")[0] not in ("coords", "attrs"):
            raise ValueError(
                f"unknown key {key!r}; known keys are {', '.join(NPZ_KEYS)}, coords/DIM/NAME"
                " and attrs"
            )
    if "bin_width" not in arrays:
        raise ValueError("key bin_width is missing; it is the seconds per bin")
    arguments: dict[str, Any] = {key: arrays[key] for key in NPZ_KEYS if key in arrays}
    for key in {"bin_width", "start"} & set(arguments):
        value = arguments[key].tolist()
        if not is_number(value):
            raise ValueError(f"{key} is {value!r}; it must be one number, in seconds")
        arguments[key] = float(value)
    coords: dict[str, tuple[tuple[str, ...], NDArray]] = {}
    for key, values in arrays.items():
        if key.startswith("coords/"):
            *dims, name = key.split("/")[1:]
            coords[name] = (tuple(dims), values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `validate` below repeats them
        data = assembled(**arguments)
    for name, (coord_dims, values) in coords.items():
        sizes = tuple(data.sizes.get(dim) for dim in coord_dims)
        if len(sizes) != values.ndim or any(
            size not in (None, length) for size, length in zip(sizes, values.shape, strict=True)
        ):
            raise ValueError(
                f"coordinate {name} has shape {values.shape} along {coord_dims}, whose sizes are"
                f" {sizes}"
            )
    data = data.assign_coords(coords)
    data.attrs.update(_attrs_from_npz(arrays, "attrs"))
    for variable in data.variables:
        data[variable].attrs.update(_attrs_from_npz(arrays, f"attrs/{variable}"))
    return validate(data)


def _attrs_from_npz(arrays: Mapping[str, NDArray], key: str) -> dict[str, Any]:
    if key not in arrays:
        return {}
    try:
        attrs = json.loads(arrays[key].item())
    except (ValueError, TypeError):
        attrs = None
    if not isinstance(attrs, dict):
        raise ValueError(f"key {key} must be the JSON text of an object")
    return attrs


def _npz_from_recording(data: xr.Dataset) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        str(name): variable.values for name, variable in data.data_vars.items()
    }
    arrays |= {
        "/".join(map(str, ("coords", *coord.dims, name))): coord.values
        for name, coord in data.coords.items()
    }
    arrays["bin_width"] = np.float64(data.attrs["bin_width"])
    attrs = {f"attrs/{name}": variable.attrs for name, variable in data.variables.items()}
    attrs["attrs"] = {key: value for key, value in data.attrs.items() if key != "bin_width"}
    texts = {key: attributes_json(value, key) for key, value in attrs.items() if value}
    return arrays | {key: np.array(text) for key, text in texts.items()}


def _stored(data: xr.Dataset) -> xr.Dataset:
    """A recording with its digest, and its attributes as netCDF and Zarr hold them."""
    stored = _with_attrs(data.drop_encoding(), to_stored)
    stored.attrs[DIGEST] = digest(data)
    return stored


def _with_attrs(
    data: xr.Dataset, change: Callable[[Mapping[Any, Any], str], dict[str, Any]]
) -> xr.Dataset:
    """The dataset with a function applied to its attributes and to those of its variables."""
    data = data.copy()
    data.attrs = change(data.attrs, "attribute")
    for name in data.variables:
        data[name].attrs = change(data[name].attrs, f"attribute of {name}")
    return data


def _hdf5_arrays(file: h5py.File) -> tuple[dict[str, h5py.Dataset], dict[str, str]]:
    """The top-level arrays of an open file, and the ``units`` attributes of those that have one."""
    arrays, units = {}, {}
    for key, dataset in file.items():
        if isinstance(dataset, h5py.Dataset):
            arrays[key] = dataset
            if "units" in dataset.attrs:
                units[key] = str(dataset.attrs["units"])
    return arrays, units
