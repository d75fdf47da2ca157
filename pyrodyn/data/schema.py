"""The schema of a recording: trials of one population, as an `xarray.Dataset`.

Its dims are ``trial, time`` and ``neuron`` (spike counts), ``channel`` (a real-valued signal) or
both. Times are in seconds; the other coordinates are labels. Variables:

==============  ===================================  ==============================================
``counts``      ``(trial, time, neuron)`` int        spikes per bin; or
``signal``      ``(trial, time, channel)`` float     a field potential, calcium trace, ...; or both
``inputs``      ``(trial, time, input)``             known external inputs (optional)
``behavior``    ``(trial, time, quantity)``          behaviour of the animal (optional)
``condition``   ``(trial,)``                         the trial's experimental condition (optional)
``valid``       ``(trial, time[, neuron])`` bool     false where nothing was measured (optional)
``rates``       as the observed variable             true expected counts per bin (simulations)
``latents``     ``(trial, time, latent)``            true latent state (simulations)
==============  ===================================  ==============================================

If both are observed, ``rates`` refers to the counts, ``valid`` without the dim ``neuron`` to the
bins of both and with it to the counts alone, and the signal has two variables of its own:

================  =================================  ==============================================
``signal_mean``   ``(trial, time, channel)``         true mean of the signal (simulations)
``signal_valid``  ``(trial, time, channel)`` bool    false where no signal was measured (optional)
================  =================================  ==============================================

Two boolean coordinates mark what an encoder must not see: ``held_out`` on neurons (co-smoothing)
and ``forecast`` on time (the last bins); in a recording of both, ``signal_held_out`` marks
channels. `recording.held_out` sets them, and batches respect them. Of several sessions as one
recording, ``session`` on trials, ``neuron_session`` and ``channel_session`` name the session
(`pyrodyn.data.sessions`). Any other coordinate is kept, such as ``split`` on trials.

A model receives the observed variables as one array, the columns of the counts followed by those of
the signal; `blocks` gives the columns of each.

`validate` checks a dataset once; all other code relies on the schema and checks nothing again.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

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

SESSIONS = {"trial": "session", "neuron": "neuron_session", "channel": "channel_session"}
"""Coordinates that name the session of trials and units in a recording of several."""

LONGEST_BIN = {"counts": 1.0, "signal": 5.0}
"""Seconds per bin above which a bin width was probably given in another unit."""

HIGHEST_RATE, HIGHEST_COUNT = 1000.0, 200.0
"""Mean spikes per second and per bin above which counts are probably not spike counts."""


class Block(NamedTuple):
    """The columns of one observed variable, and the names of what belongs to it.

    Attributes:
        observed: the variable, ``"counts"`` or ``"signal"``.
        columns: its columns in a batch.
        x: name of the observed and predicted variable in a `DataTree`.
        rates: name of its expected values, true or inferred.
        valid: name of the variable that marks where it was measured.
        held_out: name of the coordinate that marks what an encoder must not see.
    """

    observed: str
    columns: slice
    x: str = "x"
    rates: str = "rates"
    valid: str = "valid"
    held_out: str = "held_out"

    @property
    def unit(self) -> str:
        """Name of its last dim, ``"neuron"`` or ``"channel"``."""
        return OBSERVED[self.observed]

    @property
    def size(self) -> int:
        """Number of its columns."""
        size: int = self.columns.stop - self.columns.start
        return size

    @property
    def dims(self) -> tuple[str, str, str]:
        """Dims of the variable."""
        return ("trial", "time", self.unit)


def blocks(data: xr.Dataset) -> tuple[Block, ...]:
    """The observed variables of a recording: one, or counts and then a signal."""
    return blocks_of({name: data.sizes[OBSERVED[name]] for name in OBSERVED if name in data})


def blocks_of(sizes: Mapping[str, int]) -> tuple[Block, ...]:
    """The blocks of observed variables of these numbers of columns."""
    if len(sizes) == 1:
        ((observed, size),) = sizes.items()
        return (Block(observed, slice(0, size)),)
    num_neurons, num_units = sizes["counts"], sizes["counts"] + sizes["signal"]
    names = ("signal", "signal_mean", "signal_valid", "signal_held_out")
    return (
        Block("counts", slice(0, num_neurons), x="counts"),
        Block("signal", slice(num_neurons, num_units), *names),
    )


def measured(data: xr.Dataset, block: Block) -> xr.DataArray:
    """Where a block was measured, bool ``(trial, time, neuron | channel)``."""
    observed = data[block.observed]
    # One entry that stands for all: recordings may be as large as half the memory.
    everywhere = observed.copy(data=np.broadcast_to(np.True_, observed.shape))
    for name in {"valid", block.valid}:
        if name in data and set(data[name].dims) <= set(block.dims):
            everywhere = everywhere & data[name]
    return everywhere.rename(None)


def validate(data: xr.Dataset) -> xr.Dataset:
    """Check a dataset against the schema and bring it to canonical form.

    Canonical form: dims in order, ``counts`` int32, ``signal``, ``inputs``, ``behavior``, ``rates``
    and ``latents`` float32, 0 where ``valid`` is false (but ``behavior``, whose gaps are NaN, and
    finite ``inputs``, which are known there too), times evenly spaced in seconds, ``bin_width`` in
    attrs, text labels as fixed-width text.

    Raises:
        ValueError: one sentence naming the variable, the fault and the first index at which it
            occurs.
    """
    _check_dims(data)
    observed = blocks(data)
    units = [block.unit for block in observed]
    data = data.copy().transpose("trial", "time", *units, ...)
    for dim in ("trial", *units):
        if dim not in data.coords:
            data = data.assign_coords({dim: np.arange(data.sizes[dim])})
    width = _bin_width(data)
    data = data.assign_attrs(bin_width=width).assign_coords(time=data["time"].astype(np.float64))
    for label in [*data.coords, *(["condition"] if "condition" in data else [])]:
        if data[label].dtype.kind in "OTS":
            data[label] = data[label].copy(data=_labels(data[label].values, str(label)))
    if "condition" in data and data["condition"].dtype.kind == "f":
        remedy = "drop that trial or give it a label"
        _refuse(data["condition"], np.isnan, "is missing", remedy)
    for unit in units:
        if data.indexes[unit].has_duplicates:
            raise ValueError(
                f"{unit} label {_first_duplicate(data, unit)} occurs more than once; give every"
                f" {unit} a label of its own, such as names={{{unit!r}: [...]}}"
            )
    _check_marks(data, observed)
    _check_valid(data, observed)
    if "signal_valid" in data:  # along channel, so that it goes where the channels are dropped
        data["signal_valid"] = data["signal_valid"].broadcast_like(data["signal"])

    where = [measured(data, block) for block in observed]
    for block, mask in zip(observed, where, strict=True):
        for name in (block.observed, block.rates):
            if name in data:
                data[name] = _observed(data[name], mask, block)
    # One unmeasured neuron does not make the trial's latents unknown in that bin.
    known = where[0].any(units[0])
    for mask, unit in zip(where[1:], units[1:], strict=True):
        known = known | mask.any(unit)
    if "inputs" in data:
        # Inputs may be known in bins in which nothing was measured.
        _check_numeric(data["inputs"])
        data["inputs"] = _as_float32(_known(data["inputs"], known | np.isfinite(data["inputs"])))
    if "latents" in data:
        data["latents"] = _as_float32(_known(data["latents"], known))
    if "behavior" in data:
        _check_numeric(data["behavior"])
        remedy = "use NaN where it was not measured"
        _refuse(data["behavior"], np.isinf, "is infinite", remedy)
        data["behavior"] = _as_float32(data["behavior"])
    for message in _suspects(data, where):
        warnings.warn(message, UserWarning, stacklevel=3)
    return data


def _suspects(data: xr.Dataset, where: list[xr.DataArray]) -> Iterator[str]:
    """What is valid but probably a mistake, in a sentence each."""
    width = data.attrs["bin_width"]
    longest = max(LONGEST_BIN[block.observed] for block in blocks(data))
    if width > longest:
        yield (
            f"bins are {width:g} s wide; bin_width is in seconds ({width / 1000:g} if {width:g} is"
            " in milliseconds)"
        )
    if data.indexes["trial"].has_duplicates:
        yield f"trial label {_first_duplicate(data, 'trial')} occurs more than once"
    for block, mask in zip(blocks(data), where, strict=True):
        values, seen = data[block.observed].values, mask.values
        if block.observed == "counts":
            silent = data["neuron"].values[~values.any((0, 1))]
            if silent.size:
                yield f"{silent.size} neuron(s) never fire: {shortened(silent)}"
            # Unmeasured entries are 0.
            mean = float(values.sum(dtype=float)) / int(np.count_nonzero(seen))
            if mean > HIGHEST_COUNT or mean > HIGHEST_RATE * width:
                yield (
                    f"the mean count is {mean:.4g} per bin of {width:g} s ({mean / width:.4g}"
                    " spikes per second); check bin_width, and give real values as signal="
                )
        else:
            low = values.min((0, 1), where=seen, initial=np.inf)
            high = values.max((0, 1), where=seen, initial=-np.inf)
            if (low == high).any() and int(np.count_nonzero(seen)) > block.size:
                labels = data["channel"].values[low == high]
                yield f"{labels.size} channel(s) are constant: {shortened(labels)}"


def shortened(labels: Iterable[object]) -> str:
    """The first five labels, for a message."""
    given = [str(label) for label in labels]
    return ", ".join(given[:5]) + (", ..." if len(given) > 5 else "")


def _first_duplicate(data: xr.Dataset, dim: str) -> str:
    index = data.indexes[dim]
    return repr(index[index.duplicated()].tolist()[0])


def observed_name(data: xr.Dataset) -> str:
    """Name of the observed variable, ``"counts"`` or ``"signal"``; if both, ``"counts"``."""
    return "counts" if "counts" in data else "signal"


def unit_dim(data: xr.Dataset) -> str:
    """Name of its last dim, ``"neuron"`` or ``"channel"``."""
    return OBSERVED[observed_name(data)]


def is_number(value: object) -> bool:
    """Whether a value is one real number (a bool is not)."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def wrong_dims(name: str, ndim: int, wanted: tuple[str, ...]) -> str:
    """Error message for an array with the wrong number of dims."""
    return f"{name} has {ndim} dims; it must have dims ({', '.join(wanted)})"


def _labels(values: NDArray, name: str) -> NDArray:
    """Labels stored as bytes or Python objects, as text or numbers."""
    given = [x.decode() if isinstance(x, bytes) else x for x in values.ravel().tolist()]
    for i, label in enumerate(given):
        if not isinstance(label, str | int | float) or label != label:
            raise ValueError(f"{name} is {label!r} at position {i}; labels are text or numbers")
    if any(isinstance(label, str) for label in given):
        given = [str(label) for label in given]
    return np.array(given).reshape(values.shape)


def _check_dims(data: xr.Dataset) -> None:
    """Refuse unknown variables, and wrong dims."""
    if not isinstance(data, xr.Dataset):
        raise ValueError(
            f"a recording is an xarray.Dataset, not a {type(data).__name__};"
            " pyrodyn.data.recording makes one from arrays"
        )
    present = [name for name in OBSERVED if name in data]
    if not present:
        raise ValueError(
            "a recording holds counts, a signal or both; this dataset holds neither (its"
            f" variables: {', '.join(sorted(map(str, data.data_vars))) or 'none'})"
        )
    per_bin = ("trial", "time")
    allowed = {name: [dims] for name, dims in OPTIONAL.items()}
    # The sizes are not known before the dims have been checked.
    for block in blocks_of(dict.fromkeys(present, 0)):
        allowed |= {block.observed: [block.dims], block.rates: [block.dims]}
        allowed[block.valid] = [per_bin, block.dims]
    for name in map(str, data.data_vars):
        if name not in allowed:
            raise ValueError(
                f"unknown variable {name!r}; a recording may hold {', '.join(sorted(allowed))}"
            )
        found = tuple(map(str, data[name].dims))
        if all(set(found) != set(wanted) for wanted in allowed[name]):
            wanted_dims = " or ".join(f"({', '.join(wanted)})" for wanted in allowed[name])
            raise ValueError(f"{name} has dims ({', '.join(found)}); it must have {wanted_dims}")
    for name in present:
        for dim in (*per_bin, OBSERVED[name]):
            if data.sizes[dim] == 0:
                raise ValueError(f"{name} is empty along {dim}")
    if data.sizes["time"] < 2:
        raise ValueError("a trial needs at least two bins; this recording has one")


def _check_marks(data: xr.Dataset, observed: tuple[Block, ...]) -> None:
    """Check the coordinates that `held_out` sets."""
    marks = [(block.held_out, block.unit) for block in observed]
    for name, dim in (*marks, ("forecast", "time")):
        if name not in data.coords:
            continue
        mark = data[name]
        if mark.dims != (dim,) or mark.dtype != bool:
            raise ValueError(
                f"coordinate {name} must be bool along {dim}; it is {mark.dtype} along"
                f" {tuple(map(str, mark.dims))}, so set it with held_out(...)"
            )
    for names in ([name for name, _ in marks], ["forecast"]):
        if all(name in data.coords and bool(data[name].all()) for name in names):
            dims = " and no ".join(str(data[name].dims[0]) for name in names)
            raise ValueError(
                f"coordinate {' and '.join(names)} leaves no {dims} for the encoder to see"
            )
    if "forecast" in data.coords and (np.diff(data["forecast"].values.astype(int)) < 0).any():
        raise ValueError("coordinate forecast must mark the last bins of time and no others")


def _check_valid(data: xr.Dataset, observed: tuple[Block, ...]) -> None:
    """Check the variables that mark what was measured."""
    for name in {"valid", *(block.valid for block in observed)} & set(data.data_vars):
        if data[name].dtype != bool:
            raise ValueError(f"{name} has dtype {data[name].dtype}; it must be bool")
    empty = np.ones(data.sizes["trial"], bool)
    for block in observed:
        empty &= ~measured(data, block).any(block.dims[1:]).values
    if empty.any():
        trial = data["trial"].values[int(np.argmax(empty))]
        raise ValueError(f"valid marks every bin of trial {trial} as unmeasured; drop that trial")


def _observed(values: xr.DataArray, where: xr.DataArray, block: Block) -> xr.DataArray:
    """A block's observations or their expected values, checked and in canonical form."""
    values = _known(values, where)
    if block.observed == "counts":
        remedy = "counts and their expectations are >= 0"
        _refuse(values, lambda part: part < 0, "is negative", remedy)
    if values.name != "counts":
        return _as_float32(values)
    remedy = "give integer spike counts, or real values as signal="
    if values.dtype.kind == "f":
        _refuse(values, lambda part: part % 1 != 0, "is fractional", remedy)
    if values.dtype != np.int32:
        largest = np.iinfo(np.int32).max
        _refuse(values, lambda part: part > largest, "is beyond 2**31 - 1", remedy)
    return values.astype(np.int32, copy=False)


def _known(values: xr.DataArray, where: xr.DataArray) -> xr.DataArray:
    """Finite numbers, 0 where nothing was measured."""
    _check_numeric(values)
    given, mask = values.values, where.broadcast_like(values).transpose(*values.dims).values
    if any(((given[part] != 0) & ~mask[part]).any() for part in slices(values.shape)):
        values = values.where(where, 0)
    remedy = "mark unmeasured bins in valid="
    _refuse(values, lambda part: ~np.isfinite(part), "is not finite", remedy)
    return values


PART = 2**22
"""Entries that are checked at once: the checks must not need as much memory as the data."""


def slices(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Slices that cover an array in the order of its entries, of at most `PART` entries each."""
    if not shape:
        yield ()
        return
    rows = PART // max(1, math.prod(shape[1:]))
    if rows:
        yield from ((slice(start, start + rows),) for start in range(0, shape[0], rows))
        return
    for row in range(shape[0]):
        yield from ((slice(row, row + 1), *rest) for rest in slices(shape[1:]))


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
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)

    def beyond(part: NDArray) -> NDArray[np.bool_]:
        with np.errstate(over="ignore"):
            return np.isinf(part.astype(np.float32))

    _refuse(values, beyond, "is beyond single precision", "rescale it")
    return single


def _refuse(
    values: xr.DataArray, wrong: Callable[[NDArray], NDArray], fault: str, remedy: str
) -> None:
    """Raise an error that names the first entry for which ``wrong`` is true."""
    given = values.values
    for part in slices(given.shape):
        found = wrong(given[part])
        if not found.any():
            continue
        starts = [piece.start for piece in part] + [0] * (given.ndim - len(part))
        first = np.argwhere(found)[0]
        index = tuple(int(i + start) for i, start in zip(first, starts, strict=True))
        place = ", ".join(f"{dim} {i}" for dim, i in zip(values.dims, index, strict=True))
        raise ValueError(f"{values.name} {fault} ({given[index]:g}) at {place}; {remedy}")
