"""Scores of inferred rates::

    bits per spike   (log p(x | rates) - log p(x | null)) / (num_spikes ln 2),  p Poisson
    rate R2          1 - SS_residual / SS_total of inferred against true rates

A boolean mask selects the entries that are scored; no other entry is read, so that padding of
ragged trials, lost samples, NaN and infinities do not affect a score. `entry_mask` derives it from
a recording: all measured entries, or those of the held-in part, of the held-out neurons
(co-smoothing) or of the forecast bins.

Bits per spike on entries that the encoder has read can exceed those of the true rates, since a
flexible filter also follows the noise: score held-out neurons and, in simulations, the rate R2.

Sources: Pei et al. (2021), "Neural Latents Benchmark '21" (arXiv 2109.04463), for co-smoothing and
forward prediction; Sedler, Versteeg & Pandarinath (2023, arXiv 2212.03771) for the rate R2 averaged
over neurons. The benchmark's other two scores are in `pyrodyn.analysis.scores.psth` (trial
averages) and `pyrodyn.analysis.scores.decoding` (behaviour); latents are scored in
`pyrodyn.analysis.scores.alignment`.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyrodyn.data.schema import blocks, measured

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

ENTRIES = ("all", "held_in", "held_out", "forecast")
SMALLEST_RATE = 1e-9
"""Expected count that replaces smaller rates (as in the Neural Latents Benchmark)."""


class RateR2(NamedTuple):
    """R2 of rates.

    Attributes:
        per_neuron: ``(neuron,)``, each about its own mean; NaN if a neuron's truth is constant.
        mean: unweighted mean over the neurons whose truth varies.
        pooled: squares summed over neurons (each about its own mean) before the division, which
            weights neurons by their variance.
    """

    per_neuron: Array
    mean: float
    pooled: float


def entry_mask(
    recording: xr.Dataset, entries: str = "all", observed: str | None = None
) -> xr.DataArray:
    """The entries of a recording's observed variable that a score includes.

    Args:
        recording: a recording.
        entries: "all", "held_in" (neurons and bins that the encoder sees), "held_out" (held-out
            neurons before the forecast: co-smoothing) or "forecast" (all neurons in the last bins).
        observed: the variable, ``"counts"`` or ``"signal"``; by default the counts if both were
            recorded.

    Returns:
        Bool, ``(trial, time, neuron | channel)``; false for unmeasured entries.

    Raises:
        ValueError: if ``entries`` is unknown or selects nothing in this recording, or the variable
            is missing.
    """
    if entries not in ENTRIES:
        raise ValueError(f"unknown entries {entries!r}; choose one of {', '.join(ENTRIES)}")
    recorded = {block.observed: block for block in blocks(recording)}
    if observed is not None and observed not in recorded:
        raise ValueError(f"observed={observed!r}; this recording contains {' and '.join(recorded)}")
    block = next(iter(recorded.values())) if observed is None else recorded[observed]
    held_out = recording.coords.get(block.held_out, xr.DataArray(False)).astype(bool)
    forecast = recording.coords.get("forecast", xr.DataArray(False)).astype(bool)
    chosen = {
        "all": xr.DataArray(True),
        "held_in": ~held_out & ~forecast,
        "held_out": held_out & ~forecast,
        "forecast": forecast,
    }[entries]
    mask: xr.DataArray = measured(recording, block) & chosen.drop_vars(chosen.coords)
    if not bool(mask.any()):
        raise ValueError(
            f"no measured entry of this recording is {entries}; pyrodyn.data.held_out marks "
            "neurons to hold out and bins to forecast"
        )
    return mask


def bits_per_spike(
    rates: ArrayLike,
    counts: ArrayLike,
    *,
    null: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> float:
    """Poisson log-likelihood gained over constant rates, in bits per spike.

    Args:
        rates: ``(..., neuron)`` expected counts per bin; smaller values are raised to 1e-9.
        counts: spike counts of the same shape. NaN is left out.
        null: rates of the null model, one per neuron or shaped as the counts; by default each
            neuron's mean count over the scored entries. Pass the means of the training trials here.
        mask: bool, shaped as the counts or without their last dim; true where an entry is scored.

    Returns:
        Bits per spike; exactly 0 for rates that equal the null model's.

    Raises:
        ValueError: if shapes differ, a scored rate is negative or not finite, or no spike is
            scored.
    """
    model, spikes, keep = aligned("rates", rates, "counts", counts, mask)
    keep = keep & ~np.isnan(spikes)
    if null is None:
        others = tuple(range(spikes.ndim - 1))
        null = np.where(keep, spikes, 0).sum(others) / np.maximum(keep.sum(others), 1)
    constant = np.broadcast_to(np.asarray(null, float), spikes.shape)
    for name, values in (("rates", model), ("null", constant)):
        check_entries(
            name, values, keep & ~((values >= 0) & np.isfinite(values)), "finite and >= 0"
        )
    spikes = spikes[keep]
    if not spikes.sum() > 0:
        raise ValueError("the scored entries contain no spike; bits per spike need at least one")

    def log_likelihood(expected: Array) -> float:
        # Without log x!, which cancels between model and null.
        expected = np.maximum(expected[keep], SMALLEST_RATE)
        return (spikes * np.log(expected) - expected).sum()

    return float((log_likelihood(model) - log_likelihood(constant)) / (spikes.sum() * np.log(2)))


def recording_bits_per_spike(
    rates: ArrayLike,
    recording: xr.Dataset,
    entries: str = "held_out",
    *,
    null: ArrayLike | None = None,
) -> float:
    """`bits_per_spike` of a recording's held-out neurons, forecast bins, held-in part or all of it.

    In a recording of counts and a signal, only the counts are scored.

    Args:
        rates: expected counts per bin, shaped as the recording's counts.
        recording: a recording with counts.
        entries: as in `entry_mask`.
        null: as in `bits_per_spike`.

    Returns:
        Bits per spike: the co-smoothing score for "held_out", that of forward prediction for
        "forecast".

    Raises:
        ValueError: as `entry_mask` and `bits_per_spike`, or if the recording has no counts.
    """
    counts = counts_of(recording)
    return bits_per_spike(rates, counts, null=null, mask=entry_mask(recording, entries))


def rate_r2(rates: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> RateR2:
    """R2 of inferred against true rates.

    Args:
        rates: ``(..., neuron)`` inferred rates.
        truth: true rates of the same shape and unit.
        mask: bool, shaped as the rates or without their last dim; true where an entry is scored.

    Returns:
        R2 per neuron, its mean, and the pooled R2.

    Raises:
        ValueError: if shapes differ, a scored entry is not finite, or no neuron's truth varies.
    """
    predicted, true, keep = aligned("rates", rates, "truth", truth, mask)
    for name, values in (("rates", predicted), ("truth", true)):
        check_entries(name, values, keep & ~np.isfinite(values), "finite")
    residual, total = _squares(predicted, true, keep)
    per_neuron = _r2(residual, total)
    mean = mean_r2(per_neuron)
    return RateR2(per_neuron, mean, float(1 - residual.sum() / total.sum()))


def r2(predicted: Array, truth: Array) -> Array:
    """R2 per column, ``(row, column)`` to ``(column,)``; NaN where the truth is constant."""
    return _r2(*_squares(predicted, truth, np.ones(truth.shape, bool)))


def mean_r2(per_column: Array) -> float:
    """Mean over the columns whose truth varies.

    Raises:
        ValueError: if none does.
    """
    if np.isnan(per_column).all():
        raise ValueError("R2 is undefined: the target never varies over the scored entries")
    return float(np.nanmean(per_column))


def paired_rows(
    what: str, first: ArrayLike, second: ArrayLike, valid: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Two ``(trial, time, ...)`` arrays to ``(rows, ...)`` arrays of their valid bins, checked.

    Args:
        what: name of the arrays' content, for the error.
        first: ``(trial, time, columns)``.
        second: ``(trial, time, other columns)``.
        valid: bool, ``(trial, time)``; false in bins to leave out.

    Returns:
        Both with one row per valid bin.

    Raises:
        ValueError: if trials or bins differ, or a valid entry is not finite.
    """
    arrays = np.asarray(first, float), np.asarray(second, float)
    shape = arrays[0].shape[:-1]
    keep = np.ones(shape, bool) if valid is None else np.asarray(valid, bool)
    if arrays[1].shape[:-1] != shape or keep.shape != shape:
        raise ValueError(
            f"{what} cover {shape} and {arrays[1].shape[:-1]} trials and bins, valid {keep.shape}; "
            "they must agree"
        )
    for array in arrays:
        check_entries(what, array, keep[..., None] & ~np.isfinite(array), "finite")
    return arrays[0][keep], arrays[1][keep]


def aligned(
    first_name: str, first: ArrayLike, second_name: str, second: ArrayLike, mask: ArrayLike | None
) -> tuple[Array, Array, Mask]:
    """Two arrays and a mask of one shape, with dims matched by name if they have names.

    Args:
        first_name: name of the first array, for the error.
        first: ``(..., neuron)``; a DataArray is transposed to the dims of a second DataArray.
        second_name: name of the second array, for the error.
        second: ``(..., neuron)``.
        mask: bool, shaped as the second or without its last dim; None for true everywhere.

    Returns:
        Both arrays as floats, and the mask at their shape.

    Raises:
        ValueError: if the shapes differ.
    """
    if isinstance(first, xr.DataArray) and isinstance(second, xr.DataArray):
        if set(first.dims) != set(second.dims):
            raise ValueError(
                f"{first_name} has dims {first.dims} where {second_name} has {second.dims}"
            )
        first = first.transpose(*second.dims)
    one, two = np.asarray(first, float), np.asarray(second, float)
    keep = np.ones(two.shape, bool) if mask is None else np.asarray(mask, bool)
    if keep.shape == two.shape[:-1]:
        keep = np.broadcast_to(keep[..., None], two.shape)
    for name, array in ((first_name, one), ("mask", keep)):
        if array.shape != two.shape:
            raise ValueError(f"{name} has shape {array.shape} where {second_name} has {two.shape}")
    return one, two, keep


def check_entries(name: str, values: Array, wrong: Mask, rule: str) -> None:
    """Raise an error if any entry is wrong.

    Args:
        name: of the array, for the error.
        values: an array.
        wrong: bool of the same shape.
        rule: what entries must be.

    Raises:
        ValueError: naming the first entry where ``wrong`` is true.
    """
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name} is {values[index]:g} at {index}; scored entries must be {rule}")


def counts_of(recording: xr.Dataset) -> xr.DataArray:
    """The counts of a recording; ValueError if it has none."""
    if "counts" not in recording:
        raise ValueError(
            "this recording has no counts; this score is defined for spike counts only"
        )
    return recording["counts"]


def _squares(predicted: Array, truth: Array, keep: Mask) -> tuple[Array, Array]:
    """Per column: squared residuals, and squares about the mean (0 if equal up to rounding)."""
    rows = tuple(range(truth.ndim - 1))
    truth = np.where(keep, truth, 0.0)
    mean = truth.sum(rows) / np.maximum(keep.sum(rows), 1)
    residual = ((np.where(keep, predicted, 0.0) - truth) ** 2).sum(rows)
    total = (np.where(keep, truth - mean, 0.0) ** 2).sum(rows)
    return residual, np.where(total > 1e-24 * (truth**2).sum(rows), total, 0.0)


def _r2(residual: Array, total: Array) -> Array:
    ratio: Array = np.divide(residual, total, out=np.full(total.shape, np.nan), where=total > 0)
    return 1 - ratio
