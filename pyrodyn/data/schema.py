"""A recording: trials of one population, as an `xarray.Dataset` with one agreed schema.

Dims ``trial, time`` and ``neuron`` (spike counts) or ``channel`` (a real-valued signal).
Coordinates are in seconds and names. Variables:

==============  ===================================  ==============================================
``counts``      ``(trial, time, neuron)`` int        spikes per bin; or instead of it
``signal``      ``(trial, time, channel)`` float     a field potential, calcium trace, ...
``inputs``      ``(trial, time, input)``             known external inputs (optional)
``behavior``    ``(trial, time, quantity)``          what the animal did, to be decoded (optional)
``condition``   ``(trial,)``                         the trial's experimental condition (optional)
``valid``       ``(trial, time[, neuron])`` bool     false where nothing was measured (optional)
``rates``       as the observed variable             true expected counts per bin (simulations)
``latents``     ``(trial, time, latent)``            true latent state (simulations)
==============  ===================================  ==============================================

Two boolean coordinates mark what an encoder must not see: ``held_out`` on neurons (co-smoothing)
and ``forecast`` on time (the last bins). `recording.held_out` sets them; batches obey them. Any
other coordinate is kept as it is, such as ``split`` on trials.

`validate` is the only door: everything behind it trusts the schema and checks nothing twice.
"""

import warnings

import numpy as np
import xarray as xr
from numpy.typing import NDArray

OBSERVED = {"counts": "neuron", "signal": "channel"}
"""The observed variables and the name of their last dim."""

OPTIONAL = {
    "inputs": ("trial", "time", "input"),
    "behavior": ("trial", "time", "quantity"),
    "condition": ("trial",),
    "latents": ("trial", "time", "latent"),
}
"""Optional variables with their dims (``valid`` and ``rates`` follow the observed variable)."""


def validate(data: xr.Dataset) -> xr.Dataset:
    """Check a dataset against the schema and bring it to canonical form.

    Canonical form: dims in order, ``counts`` int32, ``signal``, ``inputs``, ``behavior``, ``rates``
    and ``latents`` float32, 0 where ``valid`` is false (``behavior`` excepted, whose gaps are NaN),
    times evenly spaced in seconds, ``bin_width`` in attrs, text labels as fixed-width text.

    Raises:
        ValueError: with one sentence naming the variable, the fault and the first index where it
            occurs.
    """
    observed, dims = _check_dims(data)
    unit = dims[-1]
    data = data.copy().transpose(*dims, ...)
    for dim in ("trial", unit):
        if dim not in data.coords:
            data = data.assign_coords({dim: np.arange(data.sizes[dim])})
    width = _bin_width(data)
    data = data.assign_attrs(bin_width=width).assign_coords(time=data["time"].astype(np.float64))
    for label in [*data.coords, *(["condition"] if "condition" in data else [])]:
        if data[label].dtype.kind in "OTS":
            data[label] = data[label].copy(data=_labels(data[label].values, str(label)))
    if "condition" in data and data["condition"].dtype.kind == "f":
        missing = data["condition"].isnull()
        _refuse(data["condition"], missing, "is missing", "drop that trial or give it a label")
    _check_marks(data, unit)

    valid = _valid(data, dims)
    for name in (observed, "inputs", "rates", "latents"):
        if name not in data:
            continue
        _check_numeric(data[name])
        # One unmeasured neuron does not make the trial's inputs and latents unknown in that bin.
        keep = valid if set(valid.dims) <= set(data[name].dims) else valid.any(unit)
        values = data[name].where(keep, 0)
        _refuse(values, ~np.isfinite(values), "is not finite", "mark unmeasured bins in valid=")
        if observed == "counts" and name in ("counts", "rates"):
            _refuse(values, values < 0, "is negative", "counts and their expectations are >= 0")
        if name != "counts":
            data[name] = _as_float32(values)
            continue
        remedy = "give whole spike counts, or real values as signal="
        _refuse(values, values.astype(np.float64) % 1 != 0, "is fractional", remedy)
        _refuse(values, values > np.iinfo(np.int32).max, "is beyond 2**31 - 1", remedy)
        data["counts"] = values.astype(np.int32)
    if "behavior" in data:
        _check_numeric(data["behavior"])
        remedy = "use NaN where it was not measured"
        _refuse(data["behavior"], np.isinf(data["behavior"]), "is infinite", remedy)
        data["behavior"] = _as_float32(data["behavior"])
    if observed == "counts":
        silent = data[unit].values[(data["counts"] == 0).all(("trial", "time")).values]
        if silent.size:
            shown = ", ".join(map(str, silent[:5])) + (", ..." if silent.size > 5 else "")
            message = f"{silent.size} neuron(s) never fire: {shown}"
            warnings.warn(message, UserWarning, stacklevel=3)
    return data


def observed_name(data: xr.Dataset) -> str:
    """Name of the observed variable, ``"counts"`` or ``"signal"``."""
    return "counts" if "counts" in data else "signal"


def unit_dim(data: xr.Dataset) -> str:
    """Name of the observed variable's last dim, ``"neuron"`` or ``"channel"``."""
    return OBSERVED[observed_name(data)]


def is_number(value: object) -> bool:
    """Whether a value is one real number (a bool is not)."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def wrong_dims(name: str, ndim: int, wanted: tuple[str, ...]) -> str:
    """The sentence for an array with the wrong number of dims."""
    return f"{name} has {ndim} dims; it must have dims ({', '.join(wanted)})"


def _labels(values: NDArray, name: str) -> NDArray:
    """Labels that came as bytes or Python objects (files of text do), as text or numbers."""
    given = [x.decode() if isinstance(x, bytes) else x for x in values.ravel().tolist()]
    for i, label in enumerate(given):
        if not isinstance(label, str | int | float) or label != label:
            raise ValueError(f"{name} is {label!r} at position {i}; labels are texts or numbers")
    if any(isinstance(label, str) for label in given):
        given = [str(label) for label in given]
    return np.array(given).reshape(values.shape)


def _check_dims(data: xr.Dataset) -> tuple[str, tuple[str, str, str]]:
    """The observed variable and its dims, once every variable is known and has the right dims."""
    if not isinstance(data, xr.Dataset):
        raise ValueError(
            f"a recording is an xarray.Dataset, not a {type(data).__name__};"
            " pyrodyn.data.recording makes one from arrays"
        )
    present = [name for name in OBSERVED if name in data]
    if len(present) != 1:
        raise ValueError(
            "a recording holds exactly one of counts and signal; this dataset holds"
            f" {' and '.join(present) or 'neither'} (its variables:"
            f" {', '.join(sorted(map(str, data.data_vars))) or 'none'})"
        )
    observed = present[0]
    dims = ("trial", "time", OBSERVED[observed])
    expected: dict[str, tuple[str, ...]] = {observed: dims, "rates": dims, **OPTIONAL}
    for name in map(str, data.data_vars):
        if name not in {*expected, "valid"}:
            raise ValueError(
                f"unknown variable {name!r}; a recording may hold"
                f" {', '.join(sorted({*expected, 'valid'}))}"
            )
        found = tuple(map(str, data[name].dims))
        allowed = (dims[:2], dims) if name == "valid" else (expected[name],)
        if all(set(found) != set(wanted) for wanted in allowed):
            wanted_dims = " or ".join(f"({', '.join(wanted)})" for wanted in allowed)
            raise ValueError(f"{name} has dims ({', '.join(found)}); it must have {wanted_dims}")
    for dim in dims:
        if data.sizes[dim] == 0:
            raise ValueError(f"{observed} is empty along {dim}")
    if data.sizes["time"] < 2:
        raise ValueError("a trial needs at least two bins; this recording has one")
    return observed, dims


def _check_marks(data: xr.Dataset, unit: str) -> None:
    """The coordinates that `held_out` sets, where there are any."""
    for name, dim in (("held_out", unit), ("forecast", "time")):
        if name not in data.coords:
            continue
        mark = data[name]
        if mark.dims != (dim,) or mark.dtype != bool:
            raise ValueError(
                f"coordinate {name} must be bool along {dim}; it is {mark.dtype} along"
                f" {tuple(map(str, mark.dims))}, so set it with held_out(...)"
            )
        if bool(mark.all()):
            raise ValueError(f"coordinate {name} leaves no {dim} for the encoder to see")
    if "forecast" in data.coords and (np.diff(data["forecast"].values.astype(int)) < 0).any():
        raise ValueError("coordinate forecast must mark the last bins of time and no others")


def _valid(data: xr.Dataset, dims: tuple[str, str, str]) -> xr.DataArray:
    """Which entries were measured; everything where ``valid`` is absent."""
    if "valid" not in data:
        return xr.ones_like(data[observed_name(data)], dtype=bool)
    valid = data["valid"]
    if valid.dtype != bool:
        raise ValueError(f"valid has dtype {valid.dtype}; it must be bool")
    empty = ~valid.any([dim for dim in dims[1:] if dim in valid.dims])
    if bool(empty.any()):
        trial = data["trial"].values[int(np.argmax(empty.values))]
        raise ValueError(f"valid marks every bin of trial {trial} as unmeasured; drop that trial")
    return valid


def _bin_width(data: xr.Dataset) -> float:
    """Seconds per bin from attrs, or from the time coordinate (which must be even)."""
    if "time" not in data.coords:
        raise ValueError("time has no coordinate; give bin starts in seconds")
    if data["time"].dtype.kind not in "iuf":
        raise ValueError(f"time has dtype {data['time'].dtype}; give bin starts in seconds")
    steps = np.diff(data["time"].values.astype(float))
    if not (steps > 0).all():
        where = int(np.flatnonzero(~(steps > 0))[0]) + 1
        raise ValueError(f"time must increase; it does not at bin {where}")
    width = data.attrs.get("bin_width", float(steps.mean()))
    if not is_number(width):
        raise ValueError(f"attribute bin_width is {width!r}; it is the seconds per bin, a number")
    if not np.allclose(steps, width, rtol=1e-3, atol=0):
        where = int(np.argmax(np.abs(steps - width))) + 1
        raise ValueError(
            f"bins must be evenly spaced by {width:g} s; the step before bin {where} is"
            f" {steps[where - 1]:g} s"
        )
    return float(width)


def _check_numeric(values: xr.DataArray) -> None:
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{values.name} has dtype {values.dtype}; it must hold real numbers")


def _as_float32(values: xr.DataArray) -> xr.DataArray:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    _refuse(values, np.isinf(single), "is beyond single precision", "rescale it")
    return single


def _refuse(values: xr.DataArray, wrong: xr.DataArray | NDArray, fault: str, remedy: str) -> None:
    """Raise one sentence naming the first entry where ``wrong`` is true."""
    if not bool(wrong.any()):
        return
    index = tuple(int(i) for i in np.argwhere(np.asarray(wrong))[0])
    place = ", ".join(f"{dim} {i}" for dim, i in zip(values.dims, index, strict=True))
    raise ValueError(f"{values.name} {fault} ({values.values[index]:g}) at {place}; {remedy}")
