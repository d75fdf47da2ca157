"""Making a recording from arrays, and hiding parts of it from encoders.

A recording is an `xarray.Dataset` with the schema of `pyrodyn.data.schema`. `recording` takes plain
arrays, or one array per trial where trials differ in length, and lets `validate` say what is wrong
with them; `held_out` marks the neurons and the final bins that an encoder must predict unseen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyrodyn.data.schema import (
    OBSERVED,
    OPTIONAL,
    is_number,
    observed_name,
    unit_dim,
    validate,
    wrong_dims,
)

__all__ = ["held_out", "observed_name", "recording", "unit_dim", "validate"]


def recording(
    counts: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    signal: ArrayLike | Sequence[ArrayLike] | None = None,
    bin_width: float,
    start: float = 0.0,
    inputs: ArrayLike | Sequence[ArrayLike] | None = None,
    behavior: ArrayLike | Sequence[ArrayLike] | None = None,
    condition: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    rates: ArrayLike | Sequence[ArrayLike] | None = None,
    latents: ArrayLike | Sequence[ArrayLike] | None = None,
    names: Mapping[str, Sequence[Any] | NDArray] | None = None,
) -> xr.Dataset:
    """Arrays to a recording.

    Args:
        counts: spikes per bin, ``(trials, bins, neurons)``; or a list with one ``(bins, neurons)``
            array per trial, whose lengths may differ: shorter trials are padded and the padding is
            marked in ``valid``.
        signal: real-valued observations of the same form, given instead of ``counts``.
        bin_width: seconds per bin.
        start: time of the first bin's left edge in seconds, relative to the trials' common event.
        inputs: known inputs, ``(trials, bins, inputs)`` (or a list, as ``counts``).
        behavior: behaviour to decode, ``(trials, bins, quantities)`` (or a list). NaN marks bins
            where it was not measured.
        condition: one label per trial.
        valid: bool, ``(trials, bins)`` or ``(trials, bins, neurons)``; false where nothing was
            measured. Values there are ignored and stored as 0.
        rates: true expected counts per bin (or true mean signal), shaped as the observed array.
        latents: true latent states, ``(trials, bins, latents)``.
        names: coordinate labels per dim, such as ``{"neuron": ["a1", "a2"]}``; default 0, 1, 2, ...

    Returns:
        A validated dataset, see `pyrodyn.data.schema`.

    Raises:
        ValueError: with one sentence naming what is wrong and where.
    """
    if (counts is None) == (signal is None):
        raise ValueError("give exactly one of counts= (spikes per bin) and signal= (real values)")
    if not (is_number(bin_width) and np.isfinite(bin_width) and bin_width > 0):
        raise ValueError(
            f"bin_width is {bin_width!r}; it is the seconds per bin, a positive number"
        )
    if not (is_number(start) and np.isfinite(start)):
        raise ValueError(f"start is {start!r}; it is the first bin's time in seconds, a number")
    observed, given = ("counts", counts) if counts is not None else ("signal", signal)
    dims = ("trial", "time", OBSERVED[observed])
    values, lengths = _padded(given, observed)
    if values.ndim != 3:
        raise ValueError(wrong_dims(observed, values.ndim, dims))
    if lengths is None:
        lengths = np.full(len(values), values.shape[1])
    variables: dict[str, tuple[tuple[str, ...], NDArray]] = {observed: (dims, values)}
    optional = {"inputs": inputs, "behavior": behavior, "latents": latents, "rates": rates}
    for name, array in optional.items():
        if array is None:
            continue
        padded, own = _padded(array, name, fill=np.nan if name == "behavior" else 0.0)
        if own is not None and own.shape == lengths.shape and (own != lengths).any():
            trial = int(np.flatnonzero(own != lengths)[0])
            raise ValueError(
                f"{name} has {own[trial]} bins in trial {trial} where {observed} has"
                f" {lengths[trial]}; lengths must agree"
            )
        variables[name] = (dims if name == "rates" else OPTIONAL[name], padded)
    if condition is not None:
        variables["condition"] = (("trial",), _array(condition, "condition"))

    inside = np.arange(values.shape[1]) < lengths[:, None]
    if valid is not None:
        mask = _array(valid, "valid")
        if mask.dtype == bool and mask.shape[:2] == inside.shape:
            mask = mask & (inside if mask.ndim == 2 else inside[..., None])
        variables["valid"] = (dims[:2] if mask.ndim < 3 else dims, mask)
    elif not inside.all():
        variables["valid"] = (dims[:2], inside)

    sizes: dict[str, int] = {}
    for name, (wanted, array) in variables.items():
        if len(wanted) != array.ndim:
            raise ValueError(wrong_dims(name, array.ndim, wanted))
        for dim, size in zip(wanted, array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"{name} has {size} along {dim} where {observed} has {sizes[dim]};"
                    " lengths must agree"
                )
    coords: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items()}
    coords["time"] = start + bin_width * np.arange(sizes["time"])
    for dim, labels in (names or {}).items():
        if dim not in sizes:
            raise ValueError(f"names has labels for {dim!r}; the dims here are {', '.join(sizes)}")
        if len(labels) != sizes[dim]:
            raise ValueError(
                f"names gives {len(labels)} labels for the {sizes[dim]} entries of {dim}"
            )
        coords[dim] = np.asarray(labels)
    return validate(xr.Dataset(variables, coords=coords, attrs={"bin_width": float(bin_width)}))


def held_out(
    data: xr.Dataset,
    *,
    neurons: float | Sequence[int] | NDArray[np.integer] | None = None,
    forecast_bins: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Mark neurons and final bins that no encoder may see; they stay in the likelihood.

    Args:
        data: a recording.
        neurons: the share of neurons to hold out (a float in (0, 1), drawn with ``seed``) or their
            positions.
        forecast_bins: number of last bins to forecast.
        seed: seeds the draw of neurons.

    Returns:
        The recording with bool coordinates ``held_out`` along neuron | channel and ``forecast``
        along time.

    Raises:
        ValueError: where nothing would be left to see, or a position does not exist.
    """
    unit = unit_dim(data)
    num_units, num_bins = data.sizes[unit], data.sizes["time"]
    mask = np.zeros(num_units, bool)
    if isinstance(neurons, float):
        if not 0 < neurons < 1:
            raise ValueError(
                f"neurons={neurons} holds out a share of the {unit}s; it must lie between 0 and 1"
            )
        count = max(1, round(neurons * num_units))
        mask[np.random.default_rng(seed).permutation(num_units)[:count]] = True
    elif neurons is not None:
        positions = np.asarray(neurons)
        if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
            raise ValueError(
                f"neurons={neurons!r} is neither a share (a float between 0 and 1) nor a list of"
                f" whole-number positions of {unit}s"
            )
        positions = positions.astype(int)
        wrong = positions[(positions < 0) | (positions >= num_units)]
        if wrong.size:
            raise ValueError(
                f"neurons names position {wrong[0]}; this recording has {unit}s 0 to"
                f" {num_units - 1}"
            )
        mask[positions] = True
    if mask.all():
        raise ValueError(
            f"neurons holds out all {num_units} {unit}s; the encoder needs at least one"
        )
    if not 0 <= forecast_bins < num_bins:
        raise ValueError(
            f"forecast_bins={forecast_bins} must leave at least one of the {num_bins} bins to see"
        )
    return data.assign_coords(
        held_out=(unit, mask), forecast=("time", np.arange(num_bins) >= num_bins - forecast_bins)
    )


def _padded(given: Any, name: str, fill: float = 0.0) -> tuple[NDArray, NDArray | None]:
    """An array as it is, or a list of trials' arrays padded with ``fill``, with their lengths."""
    if not (isinstance(given, list | tuple) and given and all(np.ndim(t) == 2 for t in given)):
        return _array(given, name), None
    trials = [np.asarray(trial) for trial in given]
    for i, trial in enumerate(trials):
        if trial.shape[1] != trials[0].shape[1]:
            raise ValueError(
                f"{name}: trial {i} has {trial.shape[1]} columns where trial 0 has"
                f" {trials[0].shape[1]}"
            )
    lengths = np.array([len(trial) for trial in trials])
    dtype = np.result_type(*trials, *([np.float32] if fill else []))
    padded = np.full((len(trials), lengths.max(), trials[0].shape[1]), fill, dtype)
    for i, trial in enumerate(trials):
        padded[i, : len(trial)] = trial
    return padded, lengths


def _array(given: Any, name: str) -> NDArray:
    try:
        return np.asarray(given)
    except ValueError:
        raise ValueError(
            f"{name} is neither one array nor a list of (bins, columns) arrays, one per trial"
        ) from None
