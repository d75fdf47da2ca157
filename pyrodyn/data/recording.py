"""Recordings from arrays, and held-out data.

A recording is an `xarray.Dataset` with the schema of `pyrodyn.data.schema`. `recording` takes
arrays, or one array per trial if trials differ in length, and lets `validate` check them.
`held_out` marks the neurons, channels and final bins that an encoder must predict unseen.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyrodyn.data.named_arrays import Coords, plain
from pyrodyn.data.schema import (
    OBSERVED,
    OPTIONAL,
    SESSIONS,
    Block,
    blocks,
    is_number,
    measured,
    observed_name,
    slices,
    unit_dim,
    validate,
    wrong_dims,
)

__all__ = ["held_out", "observed_name", "recording", "select_modality", "unit_dim", "validate"]

PER_BIN = ("trial", "time")


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
    signal_valid: ArrayLike | None = None,
    signal_mean: ArrayLike | Sequence[ArrayLike] | None = None,
    names: Mapping[str, Sequence[Any] | NDArray] | None = None,
) -> xr.Dataset:
    """A recording from arrays.

    The dims of an array are those given below, in this order. The dims of an `xarray.DataArray` are
    known by their names (``trial``, ``time``, ``neuron``, ``channel``, ...) and may be in any
    order; its coordinates are kept.

    Args:
        counts: spikes per bin, ``(trials, bins, neurons)``; or a list with one ``(bins, neurons)``
            array per trial, whose lengths may differ: shorter trials are padded and the padding is
            marked in ``valid``.
        signal: real-valued observations of the same form, given instead of ``counts`` or, for the
            same trials and bins, in addition to them.
        bin_width: seconds per bin.
        start: time of the first bin's left edge in seconds, relative to the trials' common event.
        inputs: known inputs, ``(trials, bins, inputs)`` (or a list, as ``counts``).
        behavior: behaviour to decode, ``(trials, bins, quantities)`` (or a list). NaN marks bins
            in which it was not measured.
        condition: one label per trial.
        valid: bool, ``(trials, bins)`` or ``(trials, bins, neurons)``; false where nothing was
            measured. Values there are ignored and stored as 0. With the dim ``neuron`` it does not
            apply to a signal. If it is not given, NaN in the observations marks unmeasured entries
            (with a warning).
        rates: true expected counts per bin (or true mean signal), shaped as the observed array.
        latents: true latent states, ``(trials, bins, latents)``.
        signal_valid: for a signal in addition to counts, bool, ``(trials, bins)`` or ``(trials,
            bins, channels)``; false where no signal was measured.
        signal_mean: for a signal in addition to counts, its true mean.
        names: labels per dim, such as ``{"neuron": ["a1", "a2"]}``; default 0, 1, 2, ...

    Returns:
        A validated dataset, see `pyrodyn.data.schema`.

    Raises:
        ValueError: one sentence naming what is wrong and where.

    Warns:
        UserWarning: for what is valid but probably a mistake: bins longer than seconds, mean counts
            that no neurons reach, silent neurons, constant channels, repeated trial labels, NaN.
    """
    arguments = locals()
    data = assembled(**arguments)
    # A recording does not change with the arrays that it was made of.
    given = [value for value in arguments.values() if isinstance(value, np.ndarray | xr.DataArray)]
    for name, variable in data.variables.items():
        if any(np.may_share_memory(variable.values, np.asarray(array)) for array in given):
            data[name] = data[name].copy(deep=True)
    return data


def assembled(
    *,
    counts: ArrayLike | Sequence[ArrayLike] | None = None,
    signal: ArrayLike | Sequence[ArrayLike] | None = None,
    bin_width: float,
    start: float = 0.0,
    condition: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    signal_valid: ArrayLike | None = None,
    names: Mapping[str, Sequence[Any] | NDArray] | None = None,
    **others: ArrayLike | Sequence[ArrayLike] | None,
) -> xr.Dataset:
    """The recording of `recording`'s arguments, which may share its memory."""
    if counts is None and signal is None:
        raise ValueError("give counts= (spikes per bin), signal= (real values) or both")
    both = counts is not None and signal is not None
    signal_mean = others.pop("signal_mean", None)
    for name, array in {"signal_valid": signal_valid, "signal_mean": signal_mean}.items():
        if array is not None and not both:
            raise ValueError(
                f"{name}= is for a signal in addition to counts; for one observed variable give"
                " valid= and rates="
            )
    if not (is_number(bin_width) and np.isfinite(bin_width) and bin_width > 0):
        raise ValueError(
            f"bin_width is {bin_width!r}; it is the seconds per bin, a positive number"
        )
    if not (is_number(start) and np.isfinite(start)):
        raise ValueError(f"start is {start!r}; it is the first bin's time in seconds, a number")
    observed, given = ("counts", counts) if counts is not None else ("signal", signal)
    dims = (*PER_BIN, OBSERVED[observed])
    coords: Coords = {}
    values, lengths = _padded(plain(given, observed, [dims], coords), observed)
    if values.ndim != 3:
        raise ValueError(_wrong_observed(observed, values.ndim, dims))
    if lengths is None:
        lengths = np.full(len(values), values.shape[1])
    variables: dict[str, tuple[tuple[str, ...], NDArray]] = {observed: (dims, values)}
    dims_of = {**OPTIONAL, "rates": dims}
    dims_of |= dict.fromkeys(("signal", "signal_mean"), (*PER_BIN, "channel"))
    optional = {"signal": signal, "signal_mean": signal_mean} if both else {}
    optional |= others
    for name, array in optional.items():
        if array is None:
            continue
        array = plain(array, name, [dims_of[name]], coords)
        padded, own = _padded(array, name, fill=np.nan if name == "behavior" else 0.0)
        if own is not None and own.shape == lengths.shape and (own != lengths).any():
            trial = int(np.flatnonzero(own != lengths)[0])
            raise ValueError(
                f"{name} has {own[trial]} bins in trial {trial} where {observed} has"
                f" {lengths[trial]}; lengths must agree"
            )
        variables[name] = (dims_of[name], padded)
    if condition is not None:
        labels = plain(condition, "condition", [("trial",)], coords)
        variables["condition"] = (("trial",), _array(labels, "condition"))

    inside = np.arange(values.shape[1]) < lengths[:, None]
    masks: dict[str, tuple[Any, tuple[str, ...]]] = {"valid": (valid, dims)}
    if both:
        masks["signal_valid"] = (signal_valid, dims_of["signal"])
    for name, (array, its_dims) in masks.items():
        if array is not None:
            mask = _array(plain(array, name, [PER_BIN, its_dims], coords), name)
            if mask.dtype == bool and mask.shape[:2] == inside.shape:
                mask = mask & (inside if mask.ndim == 2 else inside[..., None])
            variables[name] = (PER_BIN if mask.ndim < 3 else its_dims, mask)
    for name, key in {observed: "valid", **({"signal": "signal_valid"} if both else {})}.items():
        if key not in variables:
            present = _not_nan(name, variables[name][1])
            if present is not None and present.shape[:2] == inside.shape:
                variables[key] = (variables[name][0], present & inside[..., None])
    if not inside.all():
        # One mask covers the padding of both variables, unless `valid` is about the counts alone.
        variables.setdefault("valid", (PER_BIN, inside))
        if both and variables["valid"][1].ndim == 3:
            variables.setdefault("signal_valid", (PER_BIN, inside))

    sizes: dict[str, int] = {}
    size_from: dict[str, str] = {}
    for name, (wanted, array) in variables.items():
        if len(wanted) != array.ndim:
            raise ValueError(wrong_dims(name, array.ndim, wanted))
        for dim, size in zip(wanted, array.shape, strict=True):
            size_from.setdefault(dim, name)
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"{name} has {size} along {dim} where {size_from[dim]} has {sizes[dim]};"
                    " lengths must agree"
                )
    labels_of: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items()}
    labels_of["time"] = _times(sizes["time"], bin_width, start, coords)
    labels_of |= {name: coord.variable for name, coord in coords.items()}
    for dim, labels in (names or {}).items():
        if dim not in sizes:
            raise ValueError(f"names has labels for {dim!r}; the dims here are {', '.join(sizes)}")
        if len(labels) != sizes[dim]:
            raise ValueError(
                f"names gives {len(labels)} labels for the {sizes[dim]} entries of {dim}"
            )
        labels_of[dim] = np.asarray(labels)
    attrs = {"counts": counts, "signal": signal} | optional
    named = {name: given.attrs for name, given in attrs.items() if isinstance(given, xr.DataArray)}
    return validate(
        xr.Dataset(
            {name: (*variable, named.get(name, {})) for name, variable in variables.items()},
            coords=labels_of,
            attrs={"bin_width": float(bin_width)},
        )
    )


def _times(num_bins: int, bin_width: float, start: float, coords: Coords) -> NDArray | xr.Variable:
    """The time coordinate, from ``bin_width`` and ``start`` or from the arrays' own times."""
    own_start, own = coords.pop("start", None), coords.pop("time", None)
    if own is not None:
        steps = np.diff(own.values)
        wrong = ~np.isclose(steps, bin_width, rtol=1e-3, atol=0)
        if wrong.any():
            raise ValueError(
                f"the times of the array are spaced by {steps[wrong][0]:g} s where bin_width is"
                f" {bin_width:g} s; give times in seconds or drop the coordinate time"
            )
        own_start = own[0]
    if own_start is not None and start != 0.0 and not np.isclose(start, own_start):
        raise ValueError(
            f"start is {start:g} s where the times of the array begin at {float(own_start):g} s"
        )
    if own is not None:
        return own.variable
    return (start if own_start is None else float(own_start)) + bin_width * np.arange(num_bins)


def _not_nan(name: str, values: NDArray) -> NDArray[np.bool_] | None:
    """Where observations are not NaN, with a warning; None if none is."""
    if values.dtype.kind != "f":
        return None
    if not any(np.isnan(values[part]).any() for part in slices(values.shape)):
        return None
    missing = np.isnan(values)
    warnings.warn(
        f"{name} is NaN in {np.count_nonzero(missing)} of its {missing.size} entries, which are"
        " taken as unmeasured; if that is intended, pass valid=~np.isnan(...)",
        UserWarning,
        stacklevel=3,
    )
    return ~missing


def _wrong_observed(name: str, ndim: int, dims: tuple[str, ...]) -> str:
    """Error message for observations with the wrong number of dims."""
    message = wrong_dims(name, ndim, dims)
    if ndim != 2:
        return message
    return (
        f"{message}: a continuous recording of dims (time, {dims[-1]}) is one trial, {name}[None],"
        " which pyrodyn.data.segment cuts into many"
    )


def held_out(
    data: xr.Dataset,
    *,
    neurons: float | Sequence[int] | NDArray[np.integer] | None = None,
    channels: float | Sequence[int] | NDArray[np.integer] | None = None,
    forecast_bins: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Mark neurons and final bins that no encoder may see; they stay in the likelihood.

    An argument that is not given leaves the marks of the recording unchanged.

    Args:
        data: a recording.
        neurons: the fraction of neurons to hold out (a float in (0, 1), drawn with ``seed``; of
            several sessions, of each) or their positions. For a recording of a signal alone, its
            channels.
        channels: the same for the channels of a recording of both. Either all neurons or all
            channels may be held out.
        forecast_bins: number of last bins to forecast; 0 for none.
        seed: seeds the draw of neurons.

    Returns:
        The recording with bool coordinates ``held_out`` along neuron | channel (in a recording of
        both, ``signal_held_out`` along channel) and ``forecast`` along time.

    Raises:
        ValueError: if nothing would remain visible, or a position does not exist.
    """
    observed, num_bins = blocks(data), data.sizes["time"]
    if channels is not None and len(observed) == 1:
        raise ValueError(
            f"channels= is for recordings of neurons and channels; this one has"
            f" {observed[0].unit}s alone, which neurons= marks"
        )
    rngs = np.random.default_rng(seed), np.random.default_rng(seed).spawn(1)[0]
    marks = {
        block.held_out: (
            block.unit,
            data[block.held_out].values
            if wanted is None and block.held_out in data.coords
            else _marked(wanted, name, _by_session(data, block.unit), block, rng),
        )
        for block, wanted, name, rng in zip(
            observed, (neurons, channels), ("neurons", "channels"), rngs, strict=False
        )
    }
    if all(mask.all() for _, mask in marks.values()):
        every = " and ".join(f"{block.size} {block.unit}s" for block in observed)
        raise ValueError(f"neurons holds out all {every}; the encoder needs at least one")
    if forecast_bins is None:
        marked = "forecast" in data.coords
        forecast_bins = int(data["forecast"].sum()) if marked else 0
    if not 0 <= forecast_bins < num_bins:
        raise ValueError(
            f"forecast_bins={forecast_bins} must leave at least one of the {num_bins} bins to see"
        )
    forecast = np.arange(num_bins) >= num_bins - forecast_bins
    return data.assign_coords({**marks, "forecast": ("time", forecast)})


def select_modality(data: xr.Dataset, observed: str) -> xr.Dataset:
    """The recording of one observed variable, without the other.

    Args:
        data: a recording of counts and a signal.
        observed: ``"counts"`` or ``"signal"``.

    Returns:
        A recording of that variable, otherwise unchanged.

    Raises:
        ValueError: if it is not observed, or was not measured at all in some trial.
    """
    recorded = {block.observed: block for block in blocks(data)}
    if observed not in recorded:
        raise ValueError(f"observed={observed!r}; this recording holds {' and '.join(recorded)}")
    own = recorded.pop(observed)
    valid = measured(data, own).values
    for other in recorded.values():
        data = data.drop_dims(other.unit)
    names = {own.rates: "rates", own.held_out: "held_out"}
    data = data.drop_vars(own.valid, errors="ignore").rename(
        {old: new for old, new in names.items() if old in data}
    )
    return validate(data if valid.all() else data.assign(valid=(own.dims, valid)))


def _by_session(data: xr.Dataset, unit: str) -> list[NDArray[np.int_]]:
    """Positions of the units of each session; of a recording of one, of all."""
    if SESSIONS[unit] not in data.coords:
        return [np.arange(data.sizes[unit])]
    names = data[SESSIONS[unit]].values
    return [np.flatnonzero(names == name) for name in np.unique(names)]


def _marked(
    wanted: float | Sequence[int] | NDArray[np.integer] | None,
    name: str,
    groups: list[NDArray[np.int_]],
    block: Block,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Mask of the units that a fraction of each group, or positions select."""
    unit, num_units = block.unit, block.size
    mask = np.zeros(num_units, bool)
    if wanted is None:
        return mask
    if isinstance(wanted, float):
        if not 0 < wanted < 1:
            raise ValueError(
                f"{name}={wanted} holds out a fraction of the {unit}s; it must lie between 0 and 1"
            )
        for group in groups:
            mask[rng.permutation(group)[: max(1, round(wanted * len(group)))]] = True
        return mask
    positions = np.asarray(wanted)
    if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}={wanted!r} is neither a fraction (a float between 0 and 1) nor a list of"
            f" integer positions of {unit}s"
        )
    positions = positions.astype(int)
    wrong = positions[(positions < 0) | (positions >= num_units)]
    if wrong.size:
        raise ValueError(
            f"{name} names position {wrong[0]}; this recording has {unit}s 0 to {num_units - 1}"
        )
    mask[positions] = True
    return mask


def _padded(given: Any, name: str, fill: float = 0.0) -> tuple[NDArray, NDArray | None]:
    """An array unchanged, or a list of trials' arrays padded with ``fill`` and their lengths."""
    if not (isinstance(given, list | tuple) and given and all(_ndim(t) == 2 for t in given)):
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


def _ndim(given: Any) -> int:
    """Number of dims; 0 for nested lists of unequal lengths."""
    try:
        return np.ndim(given)
    except ValueError:
        return 0


def _array(given: Any, name: str) -> NDArray:
    try:
        return np.asarray(given)
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(
            f"{name} is neither one array nor a list of (bins, columns) arrays, one per trial;"
            " lists of spike times are binned by pyrodyn.data.bin_spikes"
        ) from None
