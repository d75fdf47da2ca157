"""The HDF5 files of the LFADS family, as recordings.

LFADS and its kin pass data around as one HDF5 file with an array per part (``train``, ``valid``)
and role. Two generations of keys are in use, and both are read:

==========================================  =====================================================
``{part}_data``                             counts ``(trial, time, neuron)``, first generation
``{part}_encod_data``                       counts that the encoder sees
``{part}_recon_data``                       counts that the model predicts: the same block, followed
                                            by held-out neurons and by bins to forecast
``{part}_ext_input``                        known inputs ``(trial, time, input)``
``{part}_truth``                            true rates, in simulations
``{part}_latents`` or ``{part}_lowd``       true latent states, in simulations
``{part}_inds``                             each trial's number in the experiment
``dt``, ``bin_width`` (s) or ``bin_ms``     the width of a bin, where the file says it
==========================================  =====================================================

Other keys are left alone. The parts are joined, train before valid, and kept apart by the
coordinate ``split`` on trials. The order of neurons and bins says what is held out: what ``recon``
has beyond ``encod`` becomes the coordinates ``held_out`` and ``forecast``.

Sources: the public descriptions of LFADS (Pandarinath et al., Nat Methods 2018) and lfads-torch
(Sedler & Pandarinath, arXiv 2309.01230).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.recording import held_out, recording
from pyrodyn.data.schema import is_number

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
    arrays: Mapping[str, NDArray],
    *,
    bin_width: float | None = None,
    truth_unit: str | None = None,
    units: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """The arrays of one LFADS file to a recording.

    Args:
        arrays: the file's arrays by key, see the module's docstring. NaN in the data marks entries
            that were not measured.
        bin_width: seconds per bin, where the file does not say it.
        truth_unit: unit of the true rates, ``"hz"`` or ``"per_bin"``. Without it the file's
            ``units`` attribute decides, and without that the data do: their mean must be within a
            factor 1.5 of the mean true rate in just one of the two units.
        units: ``units`` attributes of the file's arrays, by key.

    Returns:
        A validated recording with the coordinate ``split`` ("train" | "valid") on trials, true
        rates as expected counts per bin, and ``held_out`` and ``forecast`` where the file has them.

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
    encod = _joined(arrays, parts, "_encod_data")
    recon = _joined(arrays, parts, "_recon_data")
    observed = recon if recon is not None else encod
    if observed is None:
        observed = _joined(arrays, parts, "_data")
    assert observed is not None  # `parts` has at least one of the three
    measured = ~np.isnan(observed)
    truth = _joined(arrays, parts, "_truth")
    if truth is not None and _truth_unit(truth, observed, width, truth_unit, units or {}) == "hz":
        truth = truth * width
    latents = _joined(arrays, parts, "_latents")
    data = recording(
        observed,
        bin_width=width,
        inputs=_joined(arrays, parts, "_ext_input"),
        rates=truth,
        latents=latents if latents is not None else _joined(arrays, parts, "_lowd"),
        valid=None if measured.all() else measured,
    )
    part_of_trial = np.concatenate([[part] * _num_trials(arrays, part) for part in parts])
    data = data.assign_coords(split=("trial", part_of_trial))
    inds = _joined(arrays, parts, "_inds")
    if inds is not None:
        if inds.shape != part_of_trial.shape or len(set(inds.tolist())) != inds.size:
            raise ValueError("train_inds and valid_inds must number every trial once")
        data = data.assign_coords(trial=inds)
    if encod is None or recon is None or encod.shape == recon.shape:
        return data
    _check_leading_block(encod, recon)
    return held_out(
        data,
        neurons=np.arange(encod.shape[2], recon.shape[2]),
        forecast_bins=recon.shape[1] - encod.shape[1],
    )


_DATA = ("_recon_data", "_encod_data", "_data")


def _num_trials(arrays: Mapping[str, NDArray], part: str) -> int:
    return len(next(arrays[f"{part}{key}"] for key in _DATA if f"{part}{key}" in arrays))


def _joined(arrays: Mapping[str, NDArray], parts: list[str], role: str) -> NDArray | None:
    """One role's arrays of all parts, joined along trials; None where no part has it."""
    keys = [f"{part}{role}" for part in parts]
    present = [key for key in keys if key in arrays]
    if not present:
        return None
    for key in keys:
        if key not in arrays:
            raise ValueError(f"{key} is missing where {present[0]} is given; give both or neither")
        if arrays[key].dtype.kind not in "biuf":
            raise ValueError(f"{key} has dtype {arrays[key].dtype}; it must hold real numbers")
        ndim = 1 if role == "_inds" else 3
        if arrays[key].ndim != ndim:
            raise ValueError(f"{key} has {arrays[key].ndim} dims; it must have {ndim}")
        if arrays[key].shape[1:] != arrays[keys[0]].shape[1:]:
            raise ValueError(
                f"{key} has bins and columns {arrays[key].shape[1:]} where {keys[0]} has"
                f" {arrays[keys[0]].shape[1:]}"
            )
    return np.concatenate([arrays[key] for key in keys])


def _bin_width(arrays: Mapping[str, NDArray], given: float | None) -> float:
    """Seconds per bin, from the file or the caller, who must agree."""
    stated = [(key, arrays[key]) for key in WIDTHS if key in arrays]
    if not stated:
        if given is None:
            raise ValueError("the file does not say how wide a bin is; say bin_width= in seconds")
        return given
    key, value = stated[0]
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
        unit: found > 0 and 1 / 1.5 < expected * scale / found < 1.5
        for unit, scale in (("per_bin", 1.0), ("hz", width))
    }
    if fits["hz"] == fits["per_bin"]:
        raise ValueError(
            f"the unit of the true rates (mean {expected:g}) does not follow from the data (mean"
            f' {found:g} per bin of {width:g} s); say truth_unit="hz" or "per_bin"'
        )
    return "hz" if fits["hz"] else "per_bin"


def _check_leading_block(encod: NDArray, recon: NDArray) -> None:
    """What the encoder sees must be the first bins and neurons of what the model predicts."""
    if len(encod) != len(recon) or (np.array(encod.shape) > recon.shape).any():
        raise ValueError(
            f"encod_data has shape {encod.shape}, which is no leading block of recon_data's"
            f" {recon.shape}"
        )
    block = recon[:, : encod.shape[1], : encod.shape[2]]
    differs = (block != encod) & ~(np.isnan(block) & np.isnan(encod))
    if differs.any():
        trial, time, neuron = map(int, np.argwhere(differs)[0])
        raise ValueError(
            "encod_data must be the leading block of recon_data; they differ at trial"
            f" {trial}, time {time}, neuron {neuron}"
        )
