"""Recordings from HDF5 files of the LFADS family.

LFADS and its relatives exchange data as one HDF5 file with an array per part (``train``, ``valid``)
and role. Two generations of keys are in use, and both are read:

==========================================  =====================================================
``{part}_data``                             counts ``(trial, time, neuron)``, first generation
``{part}_encod_data``                       counts that the encoder sees
``{part}_recon_data``                       counts that the model predicts: the same block, followed
                                            by held-out neurons and by bins to forecast
``{part}_ext_input``                        known inputs ``(trial, time, input)``
``{part}_truth``                            true rates, in simulations
``{part}_latents`` or ``{part}_lowd``       true latent states, in simulations
``{part}_behavior``                         behaviour ``(trial, time, quantity)``
``{part}_inds``                             number of every trial in the experiment
``conversion_factor``                       true rates divided by it are expected counts per bin
``dt``, ``bin_width`` (s) or ``bin_ms``     the width of a bin, if the file states it
==========================================  =====================================================

Other keys are not read, with a warning that names them. The parts are joined, train before valid,
and marked by the coordinate ``split`` on trials. The neurons and bins that ``recon`` has beyond
``encod`` are marked by the coordinates ``held_out`` and ``forecast``. Arrays of real values (LFP,
calcium, EMG) are read as a signal.

Sources: the public descriptions of LFADS (Pandarinath et al., Nat Methods 2018) and lfads-torch
(Sedler & Pandarinath, arXiv 2309.01230).
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from pyrodyn.data.recording import assembled, held_out
from pyrodyn.data.schema import is_number, slices

type Array = NDArray[Any] | h5py.Dataset

PARTS = ("train", "valid")
"""Parts of a file, in the order in which their trials are joined."""

WIDTHS = {"bin_width": 1.0, "dt": 1.0, "bin_ms": 1e-3}
"""Keys that may hold the width of a bin, with their unit in seconds."""

TRUTH_UNITS = {
    "hz": "hz",
    "1/s": "hz",
    "spikes/s": "hz",
    "per_bin": "per_bin",
    "counts": "per_bin",
    "spikes/bin": "per_bin",
}
"""Units of true rates as files and callers write them."""


def lfads_recording(
    arrays: Mapping[str, Array],
    *,
    bin_width: float | None = None,
    truth_unit: str | None = None,
    units: Mapping[str, str] | None = None,
    observed: str | None = None,
) -> xr.Dataset:
    """A recording from the arrays of an LFADS file.

    Args:
        arrays: the file's arrays by key, see the module's docstring. NaN in the data marks entries
            that were not measured.
        bin_width: seconds per bin, if the file does not state it.
        truth_unit: unit of the true rates, ``"hz"`` or ``"per_bin"``. By default the rates are
            divided by ``conversion_factor`` if their mean is then within a factor 1.5 of the mean
            count; otherwise the unit is that of the file's ``units`` attribute; without one it is
            the only unit in which the means agree within that factor.
        units: ``units`` attributes of the file's arrays, by key.
        observed: ``"counts"`` or ``"signal"``; by default counts if all values are integers >= 0,
            otherwise a signal (with a warning).

    Returns:
        A validated recording with the coordinate ``split`` ("train" | "valid") on trials, true
        rates as expected counts per bin, and ``held_out`` and ``forecast`` if recon has neurons or
        bins beyond encod.

    Raises:
        ValueError: with one sentence naming the key and the fault.
    """
    parts = [part for part in PARTS if any(f"{part}{key}" in arrays for key in _DATA)]
    if not parts:
        raise ValueError(
            "there is no train_data, train_encod_data or train_recon_data (or the same of valid);"
            f" the keys are {', '.join(sorted(arrays)) or 'none'}"
        )
    width = _bin_width(arrays, bin_width)
    role = next(key for key in _DATA if any(f"{part}{key}" in arrays for part in parts))
    found = _look_through(arrays, parts, role)
    kind = _observed(found, observed)
    values = _joined(arrays, parts, role, found.dtype(kind))
    assert values is not None  # `role` is that of a key
    measured = ~np.isnan(values) if found.has_nan else None
    both = role == "_recon_data"
    encod = _joined(arrays, parts, "_encod_data", values.dtype) if both else None
    truth = _joined(arrays, parts, "_truth")
    if truth is not None and kind == "counts":
        factor = arrays.get("conversion_factor")
        factor = None if factor is None else np.asarray(factor[()])
        truth = _per_bin(truth, values, width, truth_unit, units or {}, factor)
    latents = _joined(arrays, parts, "_latents")
    _warn_of_unread(arrays, parts)
    data = assembled(
        counts=values if kind == "counts" else None,
        signal=values if kind == "signal" else None,
        bin_width=width,
        inputs=_joined(arrays, parts, "_ext_input"),
        behavior=_joined(arrays, parts, "_behavior"),
        rates=truth,
        latents=latents if latents is not None else _joined(arrays, parts, "_lowd"),
        valid=measured,
    )
    part_of_trial = np.concatenate([[part] * _num_trials(arrays, part) for part in parts])
    data = data.assign_coords(split=("trial", part_of_trial))
    inds = _joined(arrays, parts, "_inds")
    if inds is not None:
        if inds.shape != part_of_trial.shape or len(set(inds.tolist())) != inds.size:
            raise ValueError("train_inds and valid_inds must number every trial once")
        data = data.assign_coords(trial=inds)
    if encod is None or encod.shape == values.shape:
        return data
    _check_leading_block(encod, values)
    return held_out(
        data,
        neurons=np.arange(encod.shape[2], values.shape[2]),
        forecast_bins=values.shape[1] - encod.shape[1],
    )


_DATA = ("_recon_data", "_encod_data", "_data")

_ROLES = (*_DATA, "_truth", "_latents", "_lowd", "_ext_input", "_behavior", "_inds")


class _Contents(NamedTuple):
    """What the observations hold, so that they can be read in the type of the recording."""

    has_nan: bool
    are_counts: bool
    """Whether all but NaN are integers >= 0."""
    largest: float
    """Largest absolute value."""

    def dtype(self, kind: str) -> type | None:
        """The type to read ``"counts"`` or a ``"signal"`` in; None for that of the file, if it is
        needed to say what is wrong with the values.
        """
        if kind == "counts":
            fits = self.are_counts and self.largest <= np.iinfo(np.int32).max
            return np.int32 if fits and not self.has_nan else None
        return np.float32 if self.largest <= np.finfo(np.float32).max else None


def _look_through(arrays: Mapping[str, Array], parts: list[str], role: str) -> _Contents:
    """Look at all observations, some at a time."""
    has_nan, are_counts, largest = False, True, 0.0
    for key in (f"{part}{role}" for part in parts):
        _check_array(arrays, key, parts, role)
        for place in slices(arrays[key].shape):
            part = np.asarray(arrays[key][place])
            has_nan |= bool(np.isnan(part).any())
            are_counts &= bool((((part >= 0) & (part % 1 == 0)) | np.isnan(part)).all())
            largest = max(largest, float(np.nanmax(np.abs(part), initial=0.0)))
    return _Contents(has_nan, are_counts, largest)


def _observed(found: _Contents, given: str | None) -> str:
    """Whether the observations are ``"counts"`` or a ``"signal"``."""
    if given is not None:
        if given not in ("counts", "signal"):
            raise ValueError(f"observed={given!r} must be 'counts' or 'signal'")
        return given
    if found.are_counts:
        return "counts"
    warnings.warn(
        "the data are not spike counts (negative or fractional values) and are read as a signal;"
        " give observed='signal' to confirm",
        UserWarning,
        stacklevel=4,
    )
    return "signal"


def _warn_of_unread(arrays: Mapping[str, Array], parts: list[str]) -> None:
    known = {f"{part}{role}" for part in parts for role in _ROLES}
    known |= {*WIDTHS, "conversion_factor"}
    unread = sorted(set(arrays) - known)
    if unread:
        warnings.warn(f"keys that are not read: {', '.join(unread)}", UserWarning, stacklevel=4)


def _per_bin(
    truth: NDArray,
    counts: NDArray,
    width: float,
    given: str | None,
    units: Mapping[str, str],
    factor: NDArray | None,
) -> NDArray:
    """True rates as expected counts per bin; a warning if their mean is far from that of counts."""
    converted = truth if factor is None else truth / float(factor.item())
    found = float(np.nanmean(counts))
    if given is None and factor is not None and _agree(float(np.nanmean(converted)), found):
        return converted
    is_hz = _truth_unit(truth, counts, width, given, units) == "hz"
    rates = truth * width if is_hz else truth
    expected = float(np.nanmean(rates))
    if found > 0 and not _agree(expected, found):
        warnings.warn(
            f"the true rates have mean {expected:g} per bin where the counts have {found:g}; check"
            " truth_unit and bin_width",
            UserWarning,
            stacklevel=4,
        )
    return rates


def _agree(expected: float, found: float) -> bool:
    """Whether the means of rates and counts are equal up to a factor 1.5."""
    return found > 0 and 1 / 1.5 < expected / found < 1.5


def _num_trials(arrays: Mapping[str, Array], part: str) -> int:
    return len(next(arrays[f"{part}{key}"] for key in _DATA if f"{part}{key}" in arrays))


def _check_array(arrays: Mapping[str, Array], key: str, parts: list[str], role: str) -> None:
    """Refuse an array of a role that some part lacks or that does not fit those of the others."""
    present = [f"{part}{role}" for part in parts if f"{part}{role}" in arrays]
    if key not in arrays:
        raise ValueError(f"{key} is missing but {present[0]} is given; give both or neither")
    if arrays[key].dtype.kind not in "biuf":
        raise ValueError(f"{key} has dtype {arrays[key].dtype}; it must hold real numbers")
    ndim = 1 if role == "_inds" else 3
    if arrays[key].ndim != ndim:
        raise ValueError(f"{key} has {arrays[key].ndim} dims; it must have {ndim}")
    if arrays[key].shape[1:] != arrays[present[0]].shape[1:]:
        raise ValueError(
            f"{key} has bins and columns {arrays[key].shape[1:]} where {present[0]} has"
            f" {arrays[present[0]].shape[1:]}"
        )


def _joined(
    arrays: Mapping[str, Array], parts: list[str], role: str, dtype: DTypeLike | None = None
) -> NDArray | None:
    """The arrays of one role, joined over parts along trials; None if no part has it."""
    keys = [f"{part}{role}" for part in parts]
    if not any(key in arrays for key in keys):
        return None
    for key in keys:
        _check_array(arrays, key, parts, role)
    lengths = [len(arrays[key]) for key in keys]
    if dtype is None:
        dtype = np.result_type(*(arrays[key].dtype for key in keys))
    joined = np.empty((sum(lengths), *arrays[keys[0]].shape[1:]), dtype)
    for key, end, length in zip(keys, np.cumsum(lengths), lengths, strict=True):
        own = joined[end - length : end]
        source = arrays[key]
        if isinstance(source, h5py.Dataset) and source.dtype.kind != "b" and own.size:
            source.read_direct(own)  # without an array of its own
        else:
            own[...] = source[()]
    return joined


def _bin_width(arrays: Mapping[str, Array], given: float | None) -> float:
    """Seconds per bin from the file and the argument, which must agree if both are given."""
    stated = [(key, arrays[key]) for key in WIDTHS if key in arrays]
    if not stated:
        if given is None:
            raise ValueError(
                "the file does not state the width of a bin; give bin_width= in seconds"
            )
        return given
    key, value = stated[0]
    value = np.asarray(value[()])
    number: Any = value.item() if value.size == 1 else value
    if not is_number(number):
        raise ValueError(f"{key} is {number!r}; it must be one number")
    width = float(number) * WIDTHS[key]
    if given is not None and not np.isclose(given, width, rtol=1e-6, atol=0):
        raise ValueError(f"bin_width={given} disagrees with {key} in the file, {width:g} s")
    return width


def _truth_unit(
    truth: NDArray,
    observed: NDArray,
    width: float,
    given: str | None,
    units: Mapping[str, str],
) -> str:
    """Whether true rates are in ``"hz"`` or ``"per_bin"``."""
    stated = given or next(
        (units[f"{part}_truth"] for part in PARTS if f"{part}_truth" in units), None
    )
    if stated is not None:
        if stated.lower() not in TRUTH_UNITS:
            raise ValueError(
                f"the unit of the true rates is {stated!r}; known units are"
                f" {', '.join(TRUTH_UNITS)}"
            )
        return TRUTH_UNITS[stated.lower()]
    expected, found = float(np.nanmean(truth)), float(np.nanmean(observed))
    fits = {
        unit: _agree(expected * scale, found) for unit, scale in (("per_bin", 1.0), ("hz", width))
    }
    if fits["hz"] == fits["per_bin"]:
        raise ValueError(
            f"the unit of the true rates (mean {expected:g}) does not follow from the data (mean"
            f' {found:g} per bin of {width:g} s); give truth_unit="hz" or "per_bin"'
        )
    return "hz" if fits["hz"] else "per_bin"


def _check_leading_block(encod: NDArray, recon: NDArray) -> None:
    """What the encoder sees must be the first bins and neurons of what the model predicts."""
    if len(encod) != len(recon) or (np.array(encod.shape) > recon.shape).any():
        raise ValueError(
            f"encod_data has shape {encod.shape}, which is not a leading block of recon_data"
            f" of shape {recon.shape}"
        )
    block = recon[:, : encod.shape[1], : encod.shape[2]]
    differs = (block != encod) & ~(np.isnan(block) & np.isnan(encod))
    if differs.any():
        trial, time, neuron = map(int, np.argwhere(differs)[0])
        raise ValueError(
            "encod_data must be the leading block of recon_data; they differ at trial"
            f" {trial}, time {time}, neuron {neuron}"
        )
