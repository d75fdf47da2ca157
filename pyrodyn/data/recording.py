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
    Block,
    blocks,
    is_number,
    measured,
    observed_name,
    unit_dim,
    validate,
    wrong_dims,
)

__all__ = ["held_out", "observed_name", "recording", "select_modality", "unit_dim", "validate"]


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
    """Arrays to a recording.

    Args:
        counts: spikes per bin, ``(trials, bins, neurons)``; or a list with one ``(bins, neurons)``
            array per trial, whose lengths may differ: shorter trials are padded and the padding is
            marked in ``valid``.
        signal: real-valued observations of the same form, given instead of ``counts`` or, of the
            same trials and bins, beside them.
        bin_width: seconds per bin.
        start: time of the first bin's left edge in seconds, relative to the trials' common event.
        inputs: known inputs, ``(trials, bins, inputs)`` (or a list, as ``counts``).
        behavior: behaviour to decode, ``(trials, bins, quantities)`` (or a list). NaN marks bins
            where it was not measured.
        condition: one label per trial.
        valid: bool, ``(trials, bins)`` or ``(trials, bins, neurons)``; false where nothing was
            measured. Values there are ignored and stored as 0. Along neurons it says nothing
            of a signal beside them.
        rates: true expected counts per bin (or true mean signal), shaped as the observed array.
        latents: true latent states, ``(trials, bins, latents)``.
        signal_valid: for a signal beside counts, bool, ``(trials, bins)`` or ``(trials, bins,
            channels)``; false where no signal was measured.
        signal_mean: for a signal beside counts, its true mean.
        names: coordinate labels per dim, such as ``{"neuron": ["a1", "a2"]}``; default 0, 1, 2, ...

    Returns:
        A validated dataset, see `pyrodyn.data.schema`.

    Raises:
        ValueError: with one sentence naming what is wrong and where.
    """
    if counts is None and signal is None:
        raise ValueError("give counts= (spikes per bin), signal= (real values) or both")
    both = counts is not None and signal is not None
    for name, array in {"signal_valid": signal_valid, "signal_mean": signal_mean}.items():
        if array is not None and not both:
            raise ValueError(
                f"{name}= is for a signal beside counts; of one observed variable give valid= and"
                " rates="
            )
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
    dims_of = {**OPTIONAL, "rates": dims}
    dims_of |= dict.fromkeys(("signal", "signal_mean"), ("trial", "time", "channel"))
    optional = {"signal": signal, "signal_mean": signal_mean} if both else {}
    optional |= {"inputs": inputs, "behavior": behavior, "latents": latents, "rates": rates}
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
        variables[name] = (dims_of[name], padded)
    if condition is not None:
        variables["condition"] = (("trial",), _array(condition, "condition"))

    inside = np.arange(values.shape[1]) < lengths[:, None]
    whole = ("trial", "time")
    for name, array, its_dims in (
        ("valid", valid, dims),
        ("signal_valid", signal_valid, dims_of["signal"]),
    ):
        if array is not None:
            mask = _array(array, name)
            if mask.dtype == bool and mask.shape[:2] == inside.shape:
                mask = mask & (inside if mask.ndim == 2 else inside[..., None])
            variables[name] = (whole if mask.ndim < 3 else its_dims, mask)
    if not inside.all():
        # Padding is said once for all, or where one variable's validity is said, of each.
        variables.setdefault("valid", (whole, inside))
        if both and variables["valid"][1].ndim == 3:
            variables.setdefault("signal_valid", (whole, inside))

    sizes: dict[str, int] = {}
    said_by: dict[str, str] = {}
    for name, (wanted, array) in variables.items():
        if len(wanted) != array.ndim:
            raise ValueError(wrong_dims(name, array.ndim, wanted))
        for dim, size in zip(wanted, array.shape, strict=True):
            said_by.setdefault(dim, name)
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"{name} has {size} along {dim} where {said_by[dim]} has {sizes[dim]};"
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
    channels: float | Sequence[int] | NDArray[np.integer] | None = None,
    forecast_bins: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Mark neurons and final bins that no encoder may see; they stay in the likelihood.

    What an argument does not speak of keeps the marks that it has.

    Args:
        data: a recording.
        neurons: the share of neurons to hold out (a float in (0, 1), drawn with ``seed``) or their
            positions. Where a signal alone was recorded, its channels are meant.
        channels: the same of the channels beside neurons. Of one of the two all may be held out.
        forecast_bins: number of last bins to forecast; 0 for none.
        seed: seeds the draw of neurons.

    Returns:
        The recording with bool coordinates ``held_out`` along neuron | channel (beside neurons
        ``signal_held_out`` along channel) and ``forecast`` along time.

    Raises:
        ValueError: where nothing would be left to see, or a position does not exist.
    """
    observed, num_bins = blocks(data), data.sizes["time"]
    if channels is not None and len(observed) == 1:
        raise ValueError(
            f"channels= is for channels beside neurons; this recording has {observed[0].unit}s"
            " alone, which neurons= marks"
        )
    rngs = np.random.default_rng(seed), np.random.default_rng(seed).spawn(1)[0]
    marks = {
        block.held_out: (
            block.unit,
            data[block.held_out].values
            if wanted is None and block.held_out in data.coords
            else _marked(wanted, name, block, rng),
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
    """One observed variable of a recording, as if the other had not been recorded.

    Args:
        data: a recording of counts and a signal.
        observed: ``"counts"`` or ``"signal"``.

    Returns:
        A recording of that variable, all else as it was.

    Raises:
        ValueError: where it is not observed, or nothing of it was measured in some trial.
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


def _marked(
    wanted: float | Sequence[int] | NDArray[np.integer] | None,
    name: str,
    block: Block,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Which units of a block a share or positions ask for."""
    unit, num_units = block.unit, block.size
    mask = np.zeros(num_units, bool)
    if wanted is None:
        return mask
    if isinstance(wanted, float):
        if not 0 < wanted < 1:
            raise ValueError(
                f"{name}={wanted} holds out a fraction of the {unit}s; it must lie between 0 and 1"
            )
        mask[rng.permutation(num_units)[: max(1, round(wanted * num_units))]] = True
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
