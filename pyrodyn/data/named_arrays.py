"""Arguments with named dims: `xarray.DataArray` to plain arrays and coordinates.

An argument of `recording` may be an array, whose dims are known by their order, or a
`xarray.DataArray`, whose dims are known by their names. The latter is transposed to the schema's
order, and its coordinates become coordinates of the recording. If two arguments label the same dim,
the second is brought to the order of the first.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Coords = dict[str, xr.DataArray]
"""Coordinates collected so far, by name."""

UNNAMED = re.compile(r"dim_\d+")
"""Names that xarray gives to dims without a name."""


def plain(given: Any, name: str, allowed: Sequence[tuple[str, ...]], coords: Coords) -> Any:
    """An argument as a plain array, its named dims in the schema's order.

    Args:
        given: the argument: an array, a `xarray.DataArray`, or a list of either, one per trial.
        name: the argument's name, for messages.
        allowed: the dims that it may have, in order.
        coords: coordinates of the arguments before; those of this one are added.

    Returns:
        An array or list of arrays; anything but `xarray.DataArray` is returned as it is, except
        that masked entries of a `numpy.ma.MaskedArray` become NaN.

    Raises:
        ValueError: for other dims, or labels that disagree with those of the arguments before.
    """
    if isinstance(given, xr.Dataset):
        raise ValueError(
            f"{name} is an xarray.Dataset; give one of its variables"
            f" ({', '.join(map(str, given.data_vars)) or 'it has none'}), or validate the dataset"
            " with pyrodyn.data.validate"
        )
    if isinstance(given, list | tuple) and any(isinstance(one, xr.DataArray) for one in given):
        per_trial = [dims[1:] for dims in allowed]
        return [_trial(one, i, name, per_trial, coords) for i, one in enumerate(given)]
    if isinstance(given, list | tuple) and any(np.ma.isMaskedArray(one) for one in given):
        return [_filled(one) for one in given]
    if np.ma.isMaskedArray(given):
        return _filled(given)
    if not isinstance(given, xr.DataArray) or all(UNNAMED.fullmatch(str(d)) for d in given.dims):
        return given
    return _ordered(given, name, allowed, coords)


def _filled(given: Any) -> Any:
    """An array with NaN at masked entries."""
    return np.ma.filled(given.astype(float), np.nan) if np.ma.isMaskedArray(given) else given


def _trial(
    given: Any, trial: int, name: str, allowed: Sequence[tuple[str, ...]], coords: Coords
) -> NDArray:
    """The array of one trial; times of all trials must begin alike."""
    if not isinstance(given, xr.DataArray):
        return np.asarray(given)
    if "time" in given.coords and given.sizes.get("time"):
        start = _seconds(given["time"], name).values[0]
        first = coords.setdefault("start", xr.DataArray(start))
        if not np.isclose(start, first, rtol=0, atol=1e-9):
            raise ValueError(
                f"{name}: trial {trial} begins at {start:g} s where trial 0 begins at"
                f" {float(first):g} s; align the trials to a common event"
            )
    for label, coord in given.coords.items():
        if label != "time" and ("time" in coord.dims or not coord.dims):
            raise ValueError(
                f"{name}: trial {trial} has the coordinate {label!r}, which a list of trials"
                " cannot keep; drop it, or concatenate the trials to one array"
            )
    return _ordered(given.drop_vars("time", errors="ignore"), f"{name}[{trial}]", allowed, coords)


def _ordered(
    given: xr.DataArray, name: str, allowed: Sequence[tuple[str, ...]], coords: Coords
) -> NDArray:
    found = tuple(map(str, given.dims))
    dims = next((dims for dims in allowed if set(dims) == set(found)), None)
    if dims is None:
        wanted = " or ".join(f"({', '.join(dims)})" for dims in allowed)
        raise ValueError(
            f"{name} has dims ({', '.join(found)}); its dims must be named {wanted}, in any order,"
            " which .rename({...}) and .expand_dims('trial') do"
        )
    given = given.transpose(*dims)
    for dim in dims:
        if dim in given.coords:
            given = _aligned(given, dim, name, coords)
    for label, coord in given.coords.items():
        if str(label) in dims:
            continue
        known = coords.setdefault(str(label), _bare(coord))
        if not known.equals(_bare(coord)):
            raise ValueError(f"{name} has another coordinate {label!r} than the arrays before it")
    return np.asarray(given.values)


def _aligned(given: xr.DataArray, dim: str, name: str, coords: Coords) -> xr.DataArray:
    """An array with the labels of one dim in the order of the arguments before."""
    if given.indexes[dim].nlevels > 1:
        raise ValueError(f"{name} has several levels of labels along {dim}; use reset_index first")
    labels = _bare(given[dim])
    if dim == "time":
        labels = _seconds(labels, name)
        known = coords.setdefault(dim, labels)
        if known.shape != labels.shape or not np.allclose(known, labels, rtol=0, atol=1e-9):
            raise ValueError(f"{name} has other times than the arrays before it")
        return given
    known = coords.setdefault(dim, labels)
    if known.equals(labels):
        return given
    if given.indexes[dim].has_duplicates or set(known.values) != set(labels.values):
        raise ValueError(f"{name} has other labels along {dim} than the arrays before it")
    return given.sel({dim: known.values})


def _bare(coord: xr.DataArray) -> xr.DataArray:
    """A coordinate without its own coordinates."""
    return xr.DataArray(coord.values, dims=coord.dims, attrs=coord.attrs)


def _seconds(time: xr.DataArray, name: str) -> xr.DataArray:
    if time.dtype.kind == "m":
        return time.astype("timedelta64[ns]").astype(float) * 1e-9
    if time.dtype.kind not in "iuf":
        raise ValueError(
            f"the times of {name} have dtype {time.dtype}; give seconds relative to the trials'"
            " common event"
        )
    return time.astype(float)
