"""Ridge regression against the normal equations; decoding with lags, gaps and unequal trials."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pyrodyn.analysis.scores.decoding import PENALTIES, decode, ridge, ridge_path
from pyrodyn.analysis.scores.psth import smooth


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def lagged_behavior(rng: np.random.Generator, lag: int, noise: float) -> tuple[NDArray, NDArray]:
    """Features and behaviour that follows them ``lag`` bins later, 40 trials of 30 bins."""
    features = rng.normal(size=(40, 30, 6))
    behavior = np.full((40, 30, 2), np.nan)
    driven = features @ rng.normal(size=(6, 2)) + [3.0, -1.0]
    driven /= driven.std((0, 1))
    source = slice(max(0, -lag), 30 - max(0, lag))
    target = slice(max(0, lag), 30 - max(0, -lag))
    behavior[:, target] = driven[:, source]
    return features, behavior + noise * rng.normal(size=behavior.shape)


@pytest.mark.parametrize("penalty", [1e-4, 0.3, 50.0])
def test_ridge_solves_the_normal_equations(rng: np.random.Generator, penalty: float) -> None:
    features, targets = rng.normal(2, 1, (50, 7)), rng.normal(-1, 3, (50, 2))
    weights, intercept = ridge(features, targets, penalty)
    # With a column of ones whose weight is not penalised.
    design = np.column_stack([features, np.ones(50)])
    gram = design.T @ design + np.diag([penalty] * 7 + [0.0])
    expected = np.linalg.solve(gram, design.T @ targets)
    np.testing.assert_allclose(weights, expected[:-1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(intercept, expected[-1], rtol=1e-9)


def test_ridge_path_is_ridge_for_each_penalty(rng: np.random.Generator) -> None:
    features, targets = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    for penalty, (weights, intercept) in zip(
        PENALTIES, ridge_path(features, targets, PENALTIES), strict=True
    ):
        alone = ridge(features, targets, penalty)
        np.testing.assert_array_equal(weights, alone[0])
        np.testing.assert_array_equal(intercept, alone[1])


def test_ridge_of_dependent_or_silent_features(rng: np.random.Generator) -> None:
    features = rng.normal(size=(30, 3))
    targets = features @ [[1.0], [2.0], [0.0]] + 4
    doubled = np.column_stack([features, features[:, 0], np.zeros(30)])
    weights, intercept = ridge(doubled, targets, 0.0)
    np.testing.assert_allclose(weights[:, 0], [0.5, 2, 0, 0.5, 0], atol=1e-12)
    np.testing.assert_allclose(intercept, 4)


def test_benchmark_penalties() -> None:
    np.testing.assert_allclose(np.log10(PENALTIES), np.arange(-4, 0.1, 0.5))


@pytest.mark.parametrize("lag", [0, 4, -3])
def test_linear_behaviour_is_decoded_at_its_lag_only(rng: np.random.Generator, lag: int) -> None:
    features, behavior = lagged_behavior(rng, lag, noise=0.0)
    result = decode(features[:30], behavior[:30], features[30:], behavior[30:], lag=lag)
    assert result.r2 > 0.9999
    known = ~np.isnan(behavior[30:])
    np.testing.assert_allclose(result.predicted[known], behavior[30:][known], atol=0.01)
    np.testing.assert_array_equal(np.isnan(result.predicted), ~known)
    elsewhere = decode(features[:30], behavior[:30], features[30:], behavior[30:], lag=lag + 1)
    assert elsewhere.r2 < 0.05


def test_r2_with_known_noise(rng: np.random.Generator) -> None:
    features, behavior = lagged_behavior(rng, 0, noise=0.5)
    result = decode(features[:25], behavior[:25], features[25:], behavior[25:])
    # The signal has variance 1 and the noise 1/4: R2 = 1 / 1.25.
    np.testing.assert_allclose(result.per_quantity, 0.8, atol=0.06)
    assert result.r2 == pytest.approx(result.per_quantity.mean())


def test_penalty_is_chosen_on_training_trials(rng: np.random.Generator) -> None:
    features = rng.normal(size=(10, 12, 60))
    behavior = features[..., :1] + 3 * rng.normal(size=(10, 12, 1))
    choices = (1e-6, 1e4)
    strong = decode(features, behavior, features, behavior, penalties=choices)
    assert strong.penalty == 1e4
    exact = decode(features, features[..., :1], features, features[..., :1], penalties=choices)
    assert exact.penalty == 1e-6
    # The test trials have no influence.
    assert decode(features, behavior, features, features[..., :1], penalties=choices).penalty == 1e4


def test_cross_validation_leaves_out_whole_trials(rng: np.random.Generator) -> None:
    """Trials that are constant in time, of features and behaviour that are independent.

    Any bin of a trial predicts the others: folds of bins would choose the smallest penalty.
    """
    features = np.repeat(rng.normal(size=(40, 1, 60)), 6, axis=1)
    behavior = np.repeat(rng.normal(size=(40, 1, 1)), 6, axis=1)
    chosen = decode(features, behavior, features, behavior, penalties=(1e-4, 1e4)).penalty
    assert chosen == 1e4


@pytest.mark.parametrize("lag", [2, -3])
def test_behaviour_whose_features_were_not_measured_is_left_out(
    rng: np.random.Generator, lag: int
) -> None:
    features, behavior = lagged_behavior(rng, lag, noise=0.3)
    valid = np.ones((40, 30), bool)
    valid[::2, 11:14] = False
    late = np.roll(valid, lag, axis=1)  # what follows the gap
    clean = decode(
        features[:30],
        np.where((valid & late)[:30, :, None], behavior[:30], np.nan),
        features[30:],
        np.where((valid & late)[30:, :, None], behavior[30:], np.nan),
        lag=lag,
    )
    features[~valid] = np.nan
    result = decode(
        features[:30], behavior[:30], features[30:], behavior[30:], lag=lag,
        valid_train=valid[:30], valid_test=valid[30:],
    )  # fmt: skip
    np.testing.assert_array_equal(result.per_quantity, clean.per_quantity)
    assert np.isnan(result.predicted[::2, 11 + lag : 14 + lag]).all()


@pytest.mark.parametrize("filler", [1e9, np.nan, np.inf])
def test_filler_and_missing_behaviour_are_not_read(rng: np.random.Generator, filler: float) -> None:
    features, behavior = lagged_behavior(rng, 2, noise=0.3)
    valid = np.arange(30) < rng.integers(15, 31, 40)[:, None]
    behavior[5, 10:14, 0] = np.nan
    clean = decode(
        features[:30],
        np.where(valid[:30, :, None], behavior[:30], np.nan),
        features[30:],
        np.where(valid[30:, :, None], behavior[30:], np.nan),
        lag=2,
    )
    spoiled_features = np.where(valid[..., None], features, filler)
    spoiled_behavior = np.where(valid[..., None], behavior, filler)
    result = decode(
        spoiled_features[:30],
        spoiled_behavior[:30],
        spoiled_features[30:],
        spoiled_behavior[30:],
        lag=2,
        valid_train=valid[:30],
        valid_test=valid[30:],
    )
    np.testing.assert_array_equal(result.per_quantity, clean.per_quantity)
    assert result.penalty == clean.penalty
    assert np.isfinite(result.predicted[:, 2:][valid[30:, :-2]]).all()
    assert np.isnan(result.predicted[:, 2:][~valid[30:, :-2]]).all()


def test_invalid_arguments_raise(rng: np.random.Generator) -> None:
    features, behavior = lagged_behavior(rng, 0, noise=0.1)
    with pytest.raises(ValueError, match=r"behavior \(39, 30, 2\)"):
        decode(features, behavior[:39], features, behavior)
    with pytest.raises(ValueError, match="lag is 30"):
        decode(features, behavior, features, behavior, lag=30)
    with pytest.raises(ValueError, match="cross-validation needs two"):
        decode(features[:1], behavior[:1], features, behavior)
    with pytest.raises(ValueError, match="never varies"):
        decode(features, behavior, features, np.ones_like(behavior))
    features[3, 4, 5] = np.inf
    with pytest.raises(ValueError, match="features and behavior is inf"):
        decode(features, behavior, features, behavior)


def test_hand_velocity_from_smoothed_spikes() -> None:
    path = Path(os.environ.get("PYRODYN_DATA", "")) / "mc_maze_large_9cond/mc_maze_large_9cond.npz"
    if "PYRODYN_DATA" not in os.environ or not path.exists():
        pytest.skip("mc_maze_large_9cond is not in the directory PYRODYN_DATA")
    with np.load(path, allow_pickle=False) as arrays:
        counts, velocity = arrays["spikes"], arrays["hand_vel"].astype(float)
    features = smooth(counts, 0.005, 0.05)
    fold = np.arange(len(counts)) % 5
    scores = []
    for held_out in range(2):
        train, test = fold != held_out, fold == held_out
        result = decode(features[train], velocity[train], features[test], velocity[test], lag=20)
        scores.append(result.per_quantity)
    x, y = np.mean(scores, 0)
    assert 0.68 < x < 0.85
    assert 0.46 < y < 0.65
