"""Recordings of several sessions as one, so that a model has dynamics in common for all of them.

Each session has neurons of its own. The recording of all has the trials and the neurons of all, and
``valid`` is false where a trial's session did not record a neuron::

               neurons of a   neurons of b
    trials a   counts         not measured
    trials b   not measured   counts

Unmeasured entries are 0 in the encoder's input and do not enter the likelihood. A linear read-in
W x of the encoder is therefore one of each session, the columns of W for its neurons, and a linear
readout C f + d one of each session, the rows of C and d for its neurons, around dynamics that all
trials share. This is the model of stitched sessions (Pandarinath et al. 2018, Nat Methods 15:805),
for every model and every technique that respects ``valid``. Unlike there, the trials of a batch are
drawn from all sessions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.schema import OBSERVED, OPTIONAL, SESSIONS, blocks, measured, validate

MOST_ENTRIES = 2**31
"""Observations of all trials and units, measured or not; 8 GiB in single precision."""


def sessions(recordings: Mapping[str, xr.Dataset] | Sequence[xr.Dataset]) -> xr.Dataset:
    """One recording of several sessions, with other neurons each.

    Args:
        recordings: by name of the session, or in a list, whose names are then "0", "1", ...

    Returns:
        A recording of all trials and all neurons, labelled ``session/label``. The coordinates
        ``session`` of trials and ``neuron_session`` (``channel_session``) of units name the
        session; `select_session` selects one. Conditions of the same label are the same condition.
        Behaviour that a session lacks is NaN; of true rates and latents, and of other coordinates,
        those are kept that every session has.

    Raises:
        ValueError: for fewer than two sessions, names that are no text or empty, sessions that
            differ in what was observed, in bin width, bins, inputs or dims of latents, and for more
            entries than memory would hold.
    """
    named = _named(recordings)
    parts = {name: validate(data) for name, data in named.items()}
    _check_alike(parts)
    first = next(iter(parts.values()))
    dims = {block.unit: block for block in blocks(first)}
    labels = {
        dim: np.concatenate([_labels(name, part, dim) for name, part in parts.items()])
        for dim in ("trial", *dims)
    }
    names = {
        dim: np.repeat(list(parts), [part.sizes[dim] for part in parts.values()])
        for dim in ("trial", *dims)
    }
    num_trials, num_bins = len(labels["trial"]), first.sizes["time"]
    num_entries = num_trials * num_bins * sum(len(labels[unit]) for unit in dims)
    if num_entries > MOST_ENTRIES:
        raise ValueError(
            f"{num_trials} trials x {num_bins} bins x all neurons of {len(parts)} sessions are"
            f" {num_entries:.2g} entries, more than the {MOST_ENTRIES:.2g} that memory should hold:"
            " take fewer sessions or wider bins"
        )
    variables: dict[str, Any] = {}
    for unit, block in dims.items():
        is_own = names["trial"][:, None] == names[unit]
        mask = np.repeat(is_own[:, None], num_bins, axis=1)
        for name, part in parts.items():
            _fill(mask, names, name, unit, measured(part, block).values)
        # Where both are observed, ``valid`` of bins alone would refer to both.
        variables[block.valid] = (block.dims, mask)
        for variable in (block.observed, block.rates):
            if all(variable in part for part in parts.values()):
                values = np.zeros(mask.shape, first[variable].dtype)
                for name, part in parts.items():
                    _fill(values, names, name, unit, part[variable].values)
                variables[variable] = (block.dims, values)
    for variable in OPTIONAL:
        if variable == "behavior":
            continue
        if all(variable in part for part in parts.values()):
            joined = np.concatenate([part[variable].values for part in parts.values()])
            variables[variable] = (first[variable].dims, joined)
    variables |= _behaviour(parts)
    coords: dict[str, Any] = {**labels, "time": first["time"].values}
    coords |= {SESSIONS[dim]: (dim, names[dim]) for dim in ("trial", *dims)}
    for dim in ("input", "latent"):
        if dim in first.coords and any(dim in dims_ for dims_, _ in variables.values()):
            coords[dim] = first[dim].values
    coords |= _common_coordinates(parts, ("trial", *dims), tuple(coords))
    if "forecast" in first.coords:
        coords["forecast"] = ("time", first["forecast"].values)
    return validate(xr.Dataset(variables, coords, {"bin_width": first.attrs["bin_width"]}))


def select_session[Data: (xr.Dataset, xr.DataArray, xr.DataTree)](data: Data, session: str) -> Data:
    """The trials and units of one session: of a recording, or of what was inferred for one.

    Args:
        data: a recording of `sessions`, the result of `pyrodyn.predict` for it, or a tree.
        session: its name.

    Raises:
        ValueError: for data without sessions, and an unknown name.
    """
    marked: Any = data["constant_data"] if isinstance(data, xr.DataTree) else data
    marks = {dim: name for dim, name in SESSIONS.items() if name in marked.coords}
    if not marks:
        raise ValueError("the data have no coordinate of sessions; pyrodyn.data.sessions gives one")
    names = {dim: marked[name].values.astype(str) for dim, name in marks.items()}
    known = list(dict.fromkeys(name for each in names.values() for name in each.tolist()))
    if session not in known:
        raise ValueError(f"session {session!r} is unknown; the data have {', '.join(known)}")
    own = {dim: marked[dim].values[each == session] for dim, each in names.items()}

    def selected(part: Any) -> Any:
        return part.isel(
            {
                dim: np.flatnonzero(np.isin(part[dim].values, labels))
                for dim, labels in own.items()
                if dim in part.dims
            }
        )

    if isinstance(data, xr.DataTree):
        return data.map_over_datasets(selected)
    return selected(data)


def _named(recordings: Any) -> dict[str, xr.Dataset]:
    if isinstance(recordings, xr.Dataset) or not isinstance(recordings, Mapping | Sequence):
        raise ValueError(
            "sessions are a dict of recordings by name, or a list of recordings; this is a"
            f" {type(recordings).__name__}"
        )
    is_named = isinstance(recordings, Mapping)
    named = dict(recordings) if is_named else {str(i): r for i, r in enumerate(recordings)}
    if len(named) < 2:
        raise ValueError(f"{len(named)} session(s) given; at least two are needed")
    for name in named:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"the session name {name!r} must be text, not empty, without '/'")
    return named


def _check_alike(parts: Mapping[str, xr.Dataset]) -> None:
    """Refuse sessions that cannot share one model, naming what differs."""
    (one, first), *others = parts.items()
    for name, part in others:
        for what, of in FACTS.items():
            mine, yours = of(first), of(part)
            is_same = math.isclose(mine, yours) if isinstance(mine, float) else mine == yours
            if not is_same:
                raise ValueError(f"{what} of session {one!r}: {mine}, but of {name!r}: {yours}")
    for name, part in parts.items():
        if SESSIONS["trial"] in part.coords:
            raise ValueError(f"session {name!r} is a recording of several sessions itself")


def _dim_labels(dim: str) -> Any:
    return lambda data: data[dim].values.tolist() if dim in data.coords else data.sizes.get(dim)


FACTS: dict[str, Any] = {
    "observed variables": lambda data: [name for name in OBSERVED if name in data],
    "bin_width in s": lambda data: float(data.attrs["bin_width"]),
    "bins per trial": lambda data: data.sizes["time"],
    "time of the first bin in s": lambda data: float(data["time"].values[0]),
    "inputs": lambda data: _dim_labels("input")(data) if "inputs" in data else None,
    "forecast bins": lambda data: (
        int(data["forecast"].values.sum()) if "forecast" in data.coords else 0
    ),
    "dims of latents": lambda data: data.sizes.get("latent") if "latents" in data else None,
    "conditions of trials": lambda data: "given" if "condition" in data else "not given",
}
"""What sessions must have in common."""


def _labels(session: str, part: xr.Dataset, dim: str) -> NDArray:
    return np.array([f"{session}/{label}" for label in part[dim].values])


def _fill(whole: NDArray, names: Mapping[str, NDArray], session: str, unit: str, own: Any) -> None:
    """Write a session's block of an array ``(trial, time, unit)``; both are contiguous runs."""
    trials, units = (np.flatnonzero(names[dim] == session) for dim in ("trial", unit))
    whole[trials[0] : trials[-1] + 1, :, units[0] : units[-1] + 1] = own


def _behaviour(parts: Mapping[str, xr.Dataset]) -> dict[str, xr.Variable]:
    """Behaviour of all sessions, NaN where a session lacks a quantity."""
    having = [part["behavior"] for part in parts.values() if "behavior" in part]
    if not having:
        return {}
    quantities = list(dict.fromkeys(q for part in having for q in part["quantity"].values.tolist()))
    columns = [
        part["behavior"].reindex(quantity=quantities).values
        if "behavior" in part
        else np.full((part.sizes["trial"], part.sizes["time"], len(quantities)), np.nan, np.float32)
        for part in parts.values()
    ]
    dims = ("trial", "time", "quantity")
    return {
        "behavior": xr.Variable(dims, np.concatenate(columns)),
        "quantity": xr.Variable("quantity", quantities),
    }


def _common_coordinates(
    parts: Mapping[str, xr.Dataset], dims: Sequence[str], known: Sequence[str]
) -> dict[str, Any]:
    """Other coordinates along trials and units that every session has."""
    found: dict[str, Any] = {}
    first = next(iter(parts.values()))
    for name, array in first.coords.items():
        if str(name) in known or len(array.dims) != 1 or array.dims[0] not in dims:
            continue
        if all(name in part.coords for part in parts.values()):
            joined = np.concatenate([part[name].values for part in parts.values()])
            found[str(name)] = (array.dims[0], joined)
    return found
