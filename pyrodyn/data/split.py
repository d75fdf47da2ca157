"""Parts of a recording, by trials: training and test sets, and folds.

N trials in fractions f_p of parts p are given out by the method of largest remainders: part p gets
floor(N f_p), and the trials left over go to the parts with the largest N f_p - floor(N f_p). Where
trials have conditions, every condition c is shared out alike: it gives part p either floor(n_c f_p)
or one more, and the extra ones go where n_c f_p has the largest remainders, such that the overall
sizes are still those above.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import linprog

from pyrodyn.data.arguments import check_integer


def split(data: xr.Dataset, fractions: Sequence[float], seed: int = 0) -> tuple[xr.Dataset, ...]:
    """Share a recording's trials out at random, in proportion within each condition.

    A ``split`` coordinate that the recording brings along plays no part.

    Args:
        data: a recording.
        fractions: one per part, such as ``(0.8, 0.2)``; they sum to 1.
        seed: seeds the draw of trials.

    Returns:
        One recording per fraction, with its trials in their order in ``data``. Every trial is in
        exactly one.

    Raises:
        ValueError: where the fractions do not sum to 1 or a part would be empty.
    """
    if isinstance(fractions, str) or not isinstance(fractions, Sequence) or len(fractions) < 2:
        raise ValueError(f"fractions={fractions!r} must be a sequence of two or more numbers")
    shares = np.asarray(fractions, float)
    if not (shares > 0).all() or not np.isclose(shares.sum(), 1, rtol=0, atol=1e-6):
        raise ValueError(f"fractions={tuple(fractions)} must be positive and sum to 1")
    return tuple(data.isel(trial=trials) for trials in _parts(data, shares / shares.sum(), seed))


def folds(data: xr.Dataset, num_folds: int, seed: int = 0) -> list[tuple[xr.Dataset, xr.Dataset]]:
    """Training and test parts for cross-validation: every trial is tested exactly once.

    Args:
        data: a recording.
        num_folds: number of folds, whose test parts differ in size by at most one trial.
        seed: seeds the draw of trials.

    Returns:
        ``(train, test)`` per fold, shared out within each condition as `split` does.

    Raises:
        ValueError: for fewer than two folds, or more folds than trials.
    """
    check_integer(2, num_folds=num_folds)
    tests = _parts(data, np.full(num_folds, 1 / num_folds), seed)
    everything = np.arange(data.sizes["trial"])
    return [
        (data.isel(trial=np.setdiff1d(everything, test)), data.isel(trial=test)) for test in tests
    ]


def _parts(data: xr.Dataset, shares: NDArray, seed: int) -> list[NDArray]:
    """Sorted positions of the trials of each part."""
    check_integer(0, seed=seed)
    num_trials = data.sizes["trial"]
    sizes = _largest_remainder(num_trials * shares, num_trials)
    if (sizes == 0).any():
        raise ValueError(
            f"part {int(np.argmin(sizes))} of {len(shares)} would be empty with {num_trials}"
            " trial(s); use fewer parts or larger fractions"
        )
    if "condition" in data:
        condition = np.unique(data["condition"].values, return_inverse=True)[1]
    else:
        condition = np.zeros(num_trials, int)
    rng = np.random.default_rng(seed)
    table = _shared_out(np.bincount(condition), shares, sizes, rng)
    part_of_trial = np.empty(num_trials, int)
    for number, row in enumerate(table):
        trials = rng.permutation(np.flatnonzero(condition == number))
        part_of_trial[trials] = np.repeat(np.arange(len(shares)), row)
    return [np.flatnonzero(part_of_trial == part) for part in range(len(shares))]


def _floors(quotas: NDArray) -> tuple[NDArray, NDArray]:
    """Whole parts and remainders, where a quota that is whole but for rounding counts as whole."""
    whole = np.floor(quotas + 1e-9).astype(int)
    return whole, np.round(np.maximum(quotas - whole, 0), 9)


def _largest_remainder(quotas: NDArray, total: int) -> NDArray:
    sizes, remainders = _floors(quotas)
    order = np.argsort(-remainders, kind="stable")
    sizes[order[: total - sizes.sum()]] += 1
    return sizes


def _shared_out(
    trials_per_condition: NDArray, shares: NDArray, sizes: NDArray, rng: np.random.Generator
) -> NDArray:
    """Trials ``(condition, part)``: rows sum to the conditions' trials, columns to ``sizes``.

    Of all such tables it takes the one that gives its extra trials to the largest remainders, which
    is a transport problem: its linear programme has whole solutions. Conditions with equally many
    trials share one row of it.
    """
    kinds, kind = np.unique(trials_per_condition, return_inverse=True)
    alike = np.bincount(kind)[:, None]
    whole, remainders = _floors(kinds[:, None] * shares)
    left_over = kinds - whole.sum(axis=1)
    num_kinds, num_parts = whole.shape
    rows = np.kron(np.identity(num_kinds), np.ones(num_parts))
    columns = np.kron(np.ones(num_kinds), np.identity(num_parts))
    for most in (alike * (remainders > 0), np.full(whole.shape, np.inf)):
        solution = linprog(
            -remainders.ravel(),
            A_eq=np.concatenate([rows, columns]),
            b_eq=np.concatenate([alike[:, 0] * left_over, sizes - (alike * whole).sum(axis=0)]),
            bounds=np.stack([np.zeros(whole.size), most.ravel()], axis=1),
            method="highs-ds",
        )
        if solution.success:
            break
    extra = np.rint(solution.x).astype(int).reshape(whole.shape)
    table = whole[kind]
    for number in range(num_kinds):
        # Dealing each part's extra trials out in turn gives no condition two of the same part.
        conditions = rng.permutation(np.flatnonzero(kind == number))
        parts = np.repeat(np.arange(num_parts), extra[number])
        np.add.at(table, (np.resize(conditions, parts.size), parts), 1)
    return table
