"""Training, validation and test trials, and cross-validation folds.

N trials are divided in fractions f_p by the method of largest remainders: part p gets floor(N f_p)
trials, and the remaining trials go to the parts with the largest N f_p - floor(N f_p). If trials
have conditions, or belong to several sessions, the split is stratified: condition c (of a session)
gives part p floor(n_c f_p) trials or one more, where the extra ones go to the largest remainders of
n_c f_p such that the sizes of the parts are those above.

Segments of continuous recordings (`pyrodyn.data.segment`) are not drawn one by one, since
consecutive segments resemble each other and may overlap. If there are enough sources for every
part, whole sources are drawn. Otherwise the segments of each source, in order of time and closed to
a circle at a random place, are cut into one run per part. Of two segments that overlap and belong
to different parts, the one in the larger part is left out.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import linprog

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.schema import SESSIONS


def split(data: xr.Dataset, fractions: Sequence[float], seed: int = 0) -> tuple[xr.Dataset, ...]:
    """Split a recording's trials at random, stratified by condition and session.

    A ``split`` coordinate of the recording is not used. Segments of a continuous recording are
    split in runs of consecutive segments, without regard to conditions.

    Args:
        data: a recording.
        fractions: one per part, such as ``(0.8, 0.2)``; they sum to 1.
        seed: seeds the draw of trials.

    Returns:
        One recording per fraction, with its trials in their order in ``data``. Every trial is in
        exactly one, except segments that overlap with another part's, which are in none.

    Raises:
        ValueError: if the fractions do not sum to 1 or a part would be empty.
    """
    if isinstance(fractions, str) or not isinstance(fractions, Sequence) or len(fractions) < 2:
        raise ValueError(f"fractions={fractions!r} must be a sequence of two or more numbers")
    values = np.asarray(fractions, float)
    if not (values > 0).all() or not np.isclose(values.sum(), 1, rtol=0, atol=1e-6):
        raise ValueError(f"fractions={tuple(fractions)} must be positive and sum to 1")
    parts = _without_overlap(data, _parts(data, values / values.sum(), seed))
    return tuple(data.isel(trial=trials) for trials in parts)


def folds(data: xr.Dataset, num_folds: int, seed: int = 0) -> list[tuple[xr.Dataset, xr.Dataset]]:
    """Training and test parts for cross-validation: every trial is in exactly one test part.

    Args:
        data: a recording.
        num_folds: number of folds, whose test parts differ in size by at most one trial.
        seed: seeds the draw of trials.

    Returns:
        ``(train, test)`` per fold, stratified as in `split`; of segments, ``train``
        lacks those that overlap with ``test``.

    Raises:
        ValueError: for fewer than two folds, or more folds than trials.
    """
    check_integer(2, num_folds=num_folds)
    tests = _parts(data, np.full(num_folds, 1 / num_folds), seed)
    everything = np.arange(data.sizes["trial"])
    pairs = [_without_overlap(data, [np.setdiff1d(everything, test), test]) for test in tests]
    return [(data.isel(trial=train), data.isel(trial=test)) for train, test in pairs]


def _parts(data: xr.Dataset, fractions: NDArray, seed: int) -> list[NDArray]:
    """Sorted positions of the trials of each part."""
    check_integer(0, seed=seed)
    num_trials = data.sizes["trial"]
    sizes = _largest_remainder(num_trials * fractions, num_trials)
    if num_trials == 1:
        raise ValueError(
            f"the recording is one trial ({data.sizes['time'] * data.attrs['bin_width']:g} s) and"
            " cannot be split; cut it by pyrodyn.data.segment(recording, seconds=...)"
        )
    _check_not_empty(sizes, num_trials)
    if "segment_start" in data.coords:
        return _runs(data, fractions, np.random.default_rng(seed))
    stratum = np.zeros(num_trials, int)
    for name in ("condition", SESSIONS["trial"]):
        if name in data or name in data.coords:
            labels, label = np.unique(data[name].values, return_inverse=True)
            stratum = stratum * len(labels) + label
    stratum = np.unique(stratum, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    table = _stratified_sizes(np.bincount(stratum), fractions, sizes, rng)
    part_of_trial = np.empty(num_trials, int)
    for number, row in enumerate(table):
        trials = rng.permutation(np.flatnonzero(stratum == number))
        part_of_trial[trials] = np.repeat(np.arange(len(fractions)), row)
    return [np.flatnonzero(part_of_trial == part) for part in range(len(fractions))]


def _check_not_empty(sizes: NDArray, num_trials: int) -> None:
    if (sizes == 0).any():
        raise ValueError(
            f"part {int(np.argmin(sizes))} of {len(sizes)} would be empty with {num_trials}"
            " trial(s); use fewer parts or larger fractions"
        )


def _runs(data: xr.Dataset, fractions: NDArray, rng: np.random.Generator) -> list[NDArray]:
    """Sorted positions of the segments of each part: whole sources, or runs within each."""
    sources, source = np.unique(data["source"].values, return_inverse=True)
    numbers, part_of = np.arange(len(fractions)), np.empty(len(source), int)
    if (_floors(len(sources) * fractions)[0] > 0).all():
        sizes = _largest_remainder(len(sources) * fractions, len(sources))
        part_of = rng.permutation(np.repeat(numbers, sizes))[source]
    else:
        start = data["segment_start"].values
        for number in range(len(sources)):
            segments = np.flatnonzero(source == number)
            segments = segments[np.argsort(start[segments], kind="stable")]
            sizes = _largest_remainder(len(segments) * fractions, len(segments))
            order = rng.permutation(len(fractions))
            runs = np.repeat(order, sizes[order])
            part_of[segments] = np.roll(runs, rng.integers(len(segments)))
    return [np.flatnonzero(part_of == part) for part in numbers]


def _without_overlap(data: xr.Dataset, parts: list[NDArray]) -> list[NDArray]:
    """The parts without the segments that overlap with those of a smaller (or later) part."""
    if "segment_start" not in data.coords:
        return parts
    source = np.unique(data["source"].values, return_inverse=True)[1]
    begin = np.rint(data["segment_start"].values / data.attrs["bin_width"]).astype(int)
    num_bins = data.sizes["time"]
    # One axis for all sources, on which those of different sources lie far apart.
    begin = begin - begin.min() + source * (np.ptp(begin) + 2 * num_bins)
    kept: list[NDArray] = [np.zeros(0, int)] * len(parts)
    others = np.zeros(0, int)
    for part in sorted(range(len(parts)), key=lambda number: (len(parts[number]), -number)):
        own = begin[parts[part]]
        after = np.searchsorted(others, own - num_bins, side="right")
        kept[part] = parts[part][after == np.searchsorted(others, own + num_bins)]
        others = np.sort(np.concatenate([others, begin[kept[part]]]))
    _check_not_empty(np.array([len(part) for part in kept]), len(begin))
    return kept


def _floors(quotas: NDArray) -> tuple[NDArray, NDArray]:
    """Integer parts and remainders; a quota within rounding of an integer has remainder 0."""
    floors = np.floor(quotas + 1e-9).astype(int)
    return floors, np.round(np.maximum(quotas - floors, 0), 9)


def _largest_remainder(quotas: NDArray, total: int) -> NDArray:
    sizes, remainders = _floors(quotas)
    order = np.argsort(-remainders, kind="stable")
    sizes[order[: total - sizes.sum()]] += 1
    return sizes


def _stratified_sizes(
    trials_per_condition: NDArray, fractions: NDArray, sizes: NDArray, rng: np.random.Generator
) -> NDArray:
    """Trials ``(condition, part)``: rows sum to the conditions' trials, columns to ``sizes``.

    Of all such tables this is the one that gives its extra trials to the largest remainders. It
    solves a transport problem, whose linear programme has integer solutions. Conditions with the
    same number of trials are one row of the programme.
    """
    kinds, kind = np.unique(trials_per_condition, return_inverse=True)
    num_conditions = np.bincount(kind)[:, None]
    floors, remainders = _floors(kinds[:, None] * fractions)
    num_extra = kinds - floors.sum(axis=1)
    num_kinds, num_parts = floors.shape
    rows = np.kron(np.identity(num_kinds), np.ones(num_parts))
    columns = np.kron(np.ones(num_kinds), np.identity(num_parts))
    row_sums = num_conditions[:, 0] * num_extra
    column_sums = sizes - (num_conditions * floors).sum(axis=0)
    for upper in (num_conditions * (remainders > 0), np.full(floors.shape, np.inf)):
        solution = linprog(
            -remainders.ravel(),
            A_eq=np.concatenate([rows, columns]),
            b_eq=np.concatenate([row_sums, column_sums]),
            bounds=np.stack([np.zeros(floors.size), upper.ravel()], axis=1),
            method="highs-ds",
        )
        if solution.success:
            break
    extra = np.rint(solution.x).astype(int).reshape(floors.shape)
    table = floors[kind]
    for number in range(num_kinds):
        # Assigning each part's extra trials in turn gives no condition two of the same part.
        conditions = rng.permutation(np.flatnonzero(kind == number))
        parts = np.repeat(np.arange(num_parts), extra[number])
        np.add.at(table, (np.resize(conditions, parts.size), parts), 1)
    return table
