"""Segments of continuous recordings: chop and merge.

A continuous recording is one long trial (or a few), and models are fitted to many short ones.
`segment` cuts every trial, now a *source*, into windows of n bins; `merge` puts what was inferred
of the segments back on the time axes of the sources.

Where segments overlap, the merged posterior is the mixture of theirs. The weight of a segment in
its bin j is proportional to the distance from the segment's nearest end,

    w_j = min(j + 1, n - j),

so that two segments with an overlap of m bins cross-fade linearly, with the weights
(m - i) / (m + 1) and (i + 1) / (m + 1) in bin i of the overlap. Means are averaged by these
weights, variances are those of the mixture, and a draw switches from one segment to the next once
within their overlap, at the bin where the weight of the next exceeds a threshold of its own.

Source: chop and merge for LFADS, Keshtkaran et al., Nat Methods 2022 (AutoLFADS), who average the
overlapping bins by such weights.
"""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.binning import EDGE
from pyrodyn.data.schema import blocks, is_number, measured, validate

COORDS = ("source", "segment_start", "segment_bins")
"""Coordinates of segments along trial: the trial that a segment was cut from, the time of its first
bin there in seconds, and its number of bins without padding."""


def segment(data: xr.Dataset, *, seconds: float, overlap: float = 0.0) -> xr.Dataset:
    """Cut the trials of a continuous recording into segments, which become the trials.

    A segment begins every ``seconds - overlap``. The last segment of a trial is padded to the same
    length, and the padding is marked in ``valid``; segments in which nothing was measured are left
    out. `pyrodyn.data.split` gives its parts runs of consecutive segments, and `merge` puts
    results back.

    Args:
        data: a recording of one or more long trials.
        seconds: length of a segment, an integer number of bins, at least two.
        overlap: seconds that consecutive segments share, an integer number of bins and less than
            ``seconds``.

    Returns:
        A validated recording whose trials are numbered and have the coordinates ``source`` (label
        of the trial cut), ``segment_start`` (time of the first bin there, in seconds) and
        ``segment_bins`` (bins without padding). Time counts from the start of the segment.

    Raises:
        ValueError: for lengths that are no integer number of bins or exceed the recording, marked
            forecast bins, and recordings that are segments already.
    """
    data = validate(data)
    width = data.attrs["bin_width"]
    for name in COORDS:
        if name in data.coords:
            raise ValueError(
                f"the recording has a coordinate {name!r} already; segments are cut from the"
                " continuous recording"
            )
    if "forecast" in data.coords:
        raise ValueError("forecast bins are marked; mark those of the segments instead")
    num_bins = _in_bins("seconds", seconds, 2, width)
    step = num_bins - _in_bins("overlap", overlap, 0, width)
    if step < 1:
        raise ValueError(f"overlap={overlap:g} must be shorter than seconds={seconds:g}")
    total = data.sizes["time"]
    if num_bins > total:
        raise ValueError(
            f"seconds={seconds:g} is longer than the recording's trials ({total * width:g} s)"
        )
    # A further segment only where it adds bins to those of the one before.
    first = np.arange(0, max(total - num_bins + step, 1), step)
    trial = np.repeat(np.arange(data.sizes["trial"]), len(first))
    first = np.tile(first, data.sizes["trial"])
    time = first[:, None] + np.arange(num_bins)
    inside = xr.DataArray(time < total, dims=("trial", "time"))
    cut = data.drop_vars(["trial", "time"]).isel(
        trial=xr.DataArray(trial, dims="trial"),
        time=xr.DataArray(np.minimum(time, total - 1), dims=("trial", "time")),
    )
    if not inside.all():
        cut["valid"] = cut.get("valid", True) & inside
        if len(blocks(cut)) == 2 and "neuron" in cut["valid"].dims:
            cut["signal_valid"] = cut.get("signal_valid", True) & inside
        for name, fill in {"inputs": 0.0, "behavior": np.nan}.items():
            if name in cut:
                cut[name] = cut[name].where(inside, fill)
    cut = cut.assign_coords(
        time=width * np.arange(num_bins),
        source=("trial", data["trial"].values[trial]),
        segment_start=("trial", data["time"].values[first]),
        segment_bins=("trial", np.minimum(total - first, num_bins)),
    )
    kept = np.any([measured(cut, block).any(block.dims[1:]) for block in blocks(cut)], axis=0)
    return validate(cut.isel(trial=kept).assign_coords(trial=np.arange(kept.sum())))


def _in_bins(name: str, seconds: float, least: int, width: float) -> int:
    """A length in bins."""
    bins = seconds / width if is_number(seconds) else np.nan
    if not (np.isfinite(bins) and abs(bins - round(bins)) < EDGE * max(1, bins)):
        bins = -1
    if round(bins) < least:
        raise ValueError(
            f"{name}={seconds!r} must be an integer number of bins of {width:g} s"
            + (f", at least {least}" if least else "")
        )
    return round(bins)


def merge[Result: (xr.Dataset, xr.DataTree)](result: Result, segments: xr.Dataset) -> Result:
    """What was inferred of segments, on the time axes of the recording that they were cut from.

    Args:
        result: from `pyrodyn.predict` or `pyrodyn.to_datatree`, or any dataset with the dims
            ``trial`` and ``time``, of all or some of the segments.
        segments: from `segment`, or its parts put together again.

    Returns:
        The same variables with one trial per source and times in seconds of the source; NaN in
        bins of which no segment has a result (False for booleans). Overlapping bins are merged as
        the module's docstring describes: means are averaged, standard deviations (``NAME_sd``
        beside ``NAME``) are those of the mixture, and draws, as all integers, switch from segment
        to segment. Variables with a value per segment and no time, such as initial states and log
        evidence, are left out; those without a dim ``trial`` are kept.

    Raises:
        ValueError: if ``segments`` was not cut by `segment`, or the result has other trials.
    """
    if COORDS[1] not in segments.coords:
        raise ValueError(
            "segments is not from pyrodyn.data.segment: it lacks the coordinate 'segment_start'"
        )
    if isinstance(result, xr.DataTree):
        merged = {
            path: _merged(node.to_dataset(inherit=False), segments)
            for path, node in result.subtree_with_keys
        }
        return xr.DataTree.from_dict(merged)
    return _merged(result, segments)


class _Piece(NamedTuple):
    """The place of one segment on the merged time axis."""

    segment: int
    """Its position among the trials of the result."""
    source: int
    """Position of its source."""
    bins: slice
    """Bins of the merged axis."""
    own: slice
    """The same bins of the result."""
    weights: NDArray[np.float64]
    """One per bin; at each bin of a source those of all segments sum to 1."""


def _merged(result: xr.Dataset, segments: xr.Dataset) -> xr.Dataset:
    if "trial" not in result.dims:
        return result
    known = np.isin(result["trial"].values, segments["trial"].values)
    if not known.all():
        raise ValueError(
            f"trial {result['trial'].values[~known][0]} of the result is not among the"
            f" {segments.sizes['trial']} segments; give the recording that it was inferred from"
        )
    if "time" not in result.dims:
        return result.drop_dims("trial")
    sources, time, pieces = _places(result, segments)
    variables: dict[Any, Any] = {}
    for name, array in result.data_vars.items():
        if not {"trial", "time"} <= set(array.dims):
            continue
        draws = [dim for dim in ("chain", "draw") if dim in array.dims]
        array = array.transpose(*draws, "trial", "time", ...)
        shape = array.shape[len(draws) :]
        values = array.values.reshape(-1, *shape)
        place = (len(sources), len(time), pieces)
        base = result.get(str(name).removesuffix("_sd"))
        if draws or array.dtype.kind != "f":
            found = _switched(values, *place)
        elif str(name).endswith("_sd") and base is not None:
            mean = base.transpose("trial", "time", ...).values[None].astype(float)
            second = _averaged(values.astype(float) ** 2 + mean**2, *place)
            variance = second - _averaged(mean, *place) ** 2
            found = np.sqrt(np.maximum(variance, 0)).astype(array.dtype)
        else:
            found = _averaged(values, *place).astype(array.dtype)
        found = found.reshape(*array.shape[: len(draws)], *found.shape[1:])
        variables[name] = (array.dims, found, array.attrs)
    rest = result.drop_dims(["trial", "time"], errors="ignore")
    return rest.assign(variables).assign_coords(trial=sources, time=time)


def _places(
    result: xr.Dataset, segments: xr.Dataset
) -> tuple[NDArray, NDArray[np.float64], list[_Piece]]:
    """Labels of the sources, the merged times, and the places of the segments in order of time."""
    width, num_bins = segments.attrs["bin_width"], segments.sizes["time"]
    start = float(segments["segment_start"].min())

    def bins_of(seconds: Any) -> Any:
        return np.rint(np.asarray(seconds) / width).astype(int)

    ends = bins_of(segments["segment_start"].values - start) + segments["segment_bins"].values
    time = start + width * np.arange(int(ends.max()))
    sources = np.array(list(dict.fromkeys(segments["source"].values.tolist())))
    # A model may not infer the first bins, which only set its initial state.
    first = int(bins_of(result["time"].values[0] - segments["time"].values[0]))
    triangle = np.minimum(np.arange(num_bins) + 1.0, num_bins - np.arange(num_bins))

    own = segments.sel(trial=result["trial"].values)
    begins = bins_of(own["segment_start"].values - start) + first
    lengths = np.minimum(own["segment_bins"].values - first, result.sizes["time"])
    total = np.zeros((len(sources), len(time)))
    pieces = []
    for i in np.argsort(begins, kind="stable"):
        if lengths[i] > 0:
            bins = slice(int(begins[i]), int(begins[i] + lengths[i]))
            source = int(np.flatnonzero(sources == own["source"].values[i])[0])
            weights = triangle[first : first + int(lengths[i])]
            total[source, bins] += weights
            pieces.append(_Piece(int(i), source, bins, slice(0, int(lengths[i])), weights))
    return sources, time, [p._replace(weights=p.weights / total[p.source, p.bins]) for p in pieces]


def _averaged(values: NDArray, num_sources: int, num_bins: int, pieces: list[_Piece]) -> NDArray:
    """Weighted means of ``(draw, segment, time, ...)``; NaN in bins without a segment."""
    found = np.zeros((len(values), num_sources, num_bins, *values.shape[3:]))
    covered = np.zeros((num_sources, num_bins), bool)
    for piece in pieces:
        weights = piece.weights.reshape(-1, *[1] * (values.ndim - 3))
        found[:, piece.source, piece.bins] += weights * values[:, piece.segment, piece.own]
        covered[piece.source, piece.bins] = True
    found[:, ~covered] = np.nan
    return found


def _switched(values: NDArray, num_sources: int, num_bins: int, pieces: list[_Piece]) -> NDArray:
    """Draws ``(draw, segment, time, ...)``, each of one segment per bin: the first, in order of
    time, up to which the weights sum to more than the draw's threshold. The thresholds are spaced
    evenly, so that each segment gives as many draws as its weight.
    """
    thresholds = (np.arange(len(values)) + 0.5) / len(values)
    found = np.zeros((len(values), num_sources, num_bins, *values.shape[3:]), values.dtype)
    reached = np.zeros((num_sources, num_bins))
    for piece in pieces:
        before = reached[piece.source, piece.bins]
        after = before + piece.weights
        draw, time = np.nonzero((thresholds[:, None] >= before) & (thresholds[:, None] < after))
        found[draw, piece.source, piece.bins.start + time] = values[draw, piece.segment, time]
        reached[piece.source, piece.bins] = after
    if values.dtype.kind != "b" and not (covered := reached > 0).all():
        found = found.astype(np.result_type(values.dtype, np.float32))
        found[:, ~covered] = np.nan
    return found
