import numpy as np
import pytest
import xarray as xr

from pyrodyn.data.recording import recording
from pyrodyn.data.split import folds, split


def labelled(sizes: list[int], seed: int = 0) -> xr.Dataset:
    """A recording with so many trials per condition, in random order."""
    rng = np.random.default_rng(seed)
    condition = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    counts = 1 + rng.poisson(1.0, (len(condition), 3, 2))
    return recording(counts, bin_width=0.01, condition=condition)


def remainders(total: int, shares: list[float]) -> list[int]:
    """Sizes by largest remainders, trial by trial; the first part wins a tie."""
    quotas = [share * total for share in shares]
    sizes = [int(quota + 1e-9) for quota in quotas]
    while sum(sizes) < total:
        wants = [
            round(quota - size, 9) if size <= quota else -1.0
            for quota, size in zip(quotas, sizes, strict=True)
        ]
        sizes[wants.index(max(wants))] += 1
    return sizes


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.7, 0.2, 0.1), (0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)])
@pytest.mark.parametrize("sizes", [[40], [18, 19, 18, 19], [4] * 10, [1] * 12, [7, 1, 30, 2, 5]])
def test_every_trial_is_in_one_part_and_conditions_are_shared_alike(
    sizes: list[int], shares: tuple[float, ...]
) -> None:
    data = labelled(sizes)
    parts = split(data, shares, seed=3)
    trials = np.concatenate([part["trial"].values for part in parts])
    assert sorted(trials.tolist()) == list(range(sum(sizes)))
    assert [part.sizes["trial"] for part in parts] == remainders(sum(sizes), list(shares))
    for part, share in zip(parts, shares, strict=True):
        assert (np.diff(part["trial"].values) > 0).all()
        held = np.bincount(part["condition"].values, minlength=len(sizes))
        assert (np.abs(held - np.array(sizes) * share) < 1).all()
        xr.testing.assert_identical(part, data.sel(trial=part["trial"].values))


def test_known_sizes_overall_and_per_condition() -> None:
    train, valid = split(labelled([4] * 10), (0.8, 0.2))
    assert (train.sizes["trial"], valid.sizes["trial"]) == (32, 8)
    held = np.bincount(valid["condition"].values, minlength=10)
    assert sorted(held.tolist()) == [0, 0, *[1] * 8]


def test_random_tables_keep_both_margins() -> None:
    rng = np.random.default_rng(4)
    for seed in range(60):
        sizes = rng.integers(1, 20, rng.integers(1, 12)).tolist()
        shares = rng.dirichlet(np.full(rng.integers(2, 5), 20.0))
        if sum(sizes) < 12:
            continue
        data = labelled(sizes, seed)
        parts = split(data, shares.tolist(), seed)
        totals = [part.sizes["trial"] for part in parts]
        assert totals == remainders(sum(sizes), shares.tolist())
        held = [np.bincount(part["condition"].values, minlength=len(sizes)) for part in parts]
        assert np.sum(held, axis=0).tolist() == sizes
        assert (np.abs(np.array(held) - shares[:, None] * sizes) < 1).all()


def test_the_seed_decides_and_a_split_coordinate_does_not() -> None:
    data = labelled([20, 20])
    first = split(data, (0.5, 0.5), seed=0)[0]["trial"].values
    marked = data.assign_coords(split=("trial", ["train"] * 10 + ["valid"] * 30))
    again = split(marked, (0.5, 0.5), seed=0)[0]["trial"].values
    other = split(data, (0.5, 0.5), seed=1)[0]["trial"].values
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("sizes", [[5, 3], [3, 5], [9, 5, 6], [5, 6, 9], [6, 9, 5]])
@pytest.mark.parametrize("quarter", [0, 1])
def test_extra_trials_go_to_the_largest_remainders(sizes: list[int], quarter: int) -> None:
    # A quarter of 3, 5, 6 and 9 trials is 0.75, 1.25, 1.5 and 2.25. The nearest whole tables:
    nearest = {(3, 5): [1, 1], (5, 6, 9): [1, 2, 2]}[tuple(sorted(sizes))]
    shares = (0.25, 0.75) if quarter == 0 else (0.75, 0.25)
    part = split(labelled(sizes), shares)[quarter]
    held = np.bincount(part["condition"].values).tolist()
    assert [number for _, number in sorted(zip(sizes, held, strict=True))] == nearest


def test_trials_of_a_condition_are_equally_likely_to_be_held_out() -> None:
    num_draws = 400
    data = labelled([4, 4])
    held = np.zeros(8)
    for seed in range(num_draws):
        held[split(data, (0.75, 0.25), seed)[1]["trial"].values] += 1
    assert held.sum() == 2 * num_draws
    sigma = np.sqrt(num_draws * 0.25 * 0.75)
    assert np.abs(held - num_draws * 0.25).max() / sigma < 4


def test_trials_without_condition_are_split_too() -> None:
    data = labelled([10]).drop_vars("condition")
    train, valid = split(data, (0.7, 0.3))
    assert (train.sizes["trial"], valid.sizes["trial"]) == (7, 3)


@pytest.mark.parametrize(("sizes", "num_folds"), [([10, 10, 10], 5), ([7, 6, 9], 4), ([3], 3)])
def test_folds_test_every_trial_once(sizes: list[int], num_folds: int) -> None:
    data = labelled(sizes)
    pairs = folds(data, num_folds, seed=2)
    assert len(pairs) == num_folds
    tested = np.concatenate([test["trial"].values for _, test in pairs])
    assert sorted(tested.tolist()) == list(range(sum(sizes)))
    numbers = [test.sizes["trial"] for _, test in pairs]
    assert max(numbers) - min(numbers) <= 1
    for train, test in pairs:
        both = np.concatenate([train["trial"].values, test["trial"].values])
        assert sorted(both.tolist()) == list(range(sum(sizes)))
        held = np.bincount(test["condition"].values, minlength=len(sizes))
        assert (np.abs(held - np.array(sizes) / num_folds) < 1).all()
