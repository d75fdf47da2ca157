"""Distances between attractors against exact divergences; statistics of the trivial series."""

import re

import numpy as np
import pytest
from scipy.special import logsumexp

from pyrodyn.analysis.scores.attractors import LAPLACE, attractor_baselines, d_h, d_stsp

NAMES = (
    "white Gaussian",
    "smoothed Gaussian",
    "VAR(1)",
    "VAR(2), 3 PCs",
    "VAR(2), 16 PCs",
    "surrogate",
)


def oscillation(num_bins: int, dim: int, seed: int = 0) -> np.ndarray:
    """Noisy rotations in correlated dims, away from zero."""
    rng = np.random.default_rng(seed)
    phase = np.cumsum(0.3 + 0.1 * rng.standard_normal(num_bins))
    latents = np.stack([np.cos(phase), np.sin(phase), np.cos(2 * phase)], 1)
    mixed = latents @ rng.standard_normal((3, dim))
    return 2.0 + mixed + 0.3 * rng.standard_normal((num_bins, dim))


def covariances(series: np.ndarray, lag: int) -> np.ndarray:
    """Sums over the series divided by its length, whatever the lag."""
    centred = series - series.mean(0)
    return centred[lag:].T @ centred[: len(centred) - lag] / len(centred)


# --- D_stsp -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3, 5, 6, 20])
def test_identical_series_are_at_distance_0(dim):
    series = oscillation(400, dim)
    assert d_stsp(series, series) == 0
    assert d_h(series, series) == pytest.approx(0, abs=1e-7)
    # Where things are visited has no order in time.
    assert d_stsp(series, series[::-1]) == pytest.approx(0, abs=1e-10)


def test_binned_divergence_is_that_of_the_distributions():
    # Centres of the 30 bins of [0, 30]; the range's ends belong to the first and the last bin.
    rng = np.random.default_rng(0)
    counts, others = rng.integers(1, 50, (2, 30))
    others[4] = 0
    centres = np.arange(30) + 0.5
    true = np.concatenate([[0.0, 30.0], np.repeat(centres, counts)])
    generated = np.repeat(centres, others)
    counts[[0, -1]] += 1
    p = (counts + LAPLACE) / (counts.sum() + 30 * LAPLACE)
    q = (others + LAPLACE) / (others.sum() + 30 * LAPLACE)
    assert d_stsp(true[:, None], generated[:, None]) == pytest.approx((p * np.log(p / q)).sum())


def test_binned_divergence_in_2_dims_counts_all_empty_bins():
    rng = np.random.default_rng(1)
    true, generated = rng.standard_normal((500, 2)), 0.7 * rng.standard_normal((300, 2))
    edges = [np.linspace(*np.array([v.min(), v.max()]), 31) for v in true.T]
    p, q = (np.histogram2d(*series.T, bins=edges)[0] for series in (true, generated))
    inside = q.sum()
    p = (p + LAPLACE) / (500 + 900 * LAPLACE)
    q = (q + LAPLACE) / (300 + 900 * LAPLACE)
    expected = (p * np.log(p / q)).sum()
    assert d_stsp(true, generated) == pytest.approx(expected)
    # Points outside are generated points too.
    outside = np.concatenate([generated, np.full((300, 2), 99.0)])
    assert inside > 290
    assert d_stsp(true, outside) == pytest.approx(expected + np.log(2), abs=1e-3)


def test_mixture_divergence_of_single_points_is_that_of_two_gaussians():
    # KL(N(0, I) || N(d, I)) = |d|^2 / 2, estimated with variance |d|^2 / 1000.
    shift = np.full((1, 8), 0.5)
    estimates = [d_stsp(np.zeros((1, 8)), shift, seed=seed) for seed in range(20)]
    assert np.mean(estimates) == pytest.approx(1.0, abs=4 * np.sqrt(2 / 1000 / 20))
    assert np.std(estimates) == pytest.approx(np.sqrt(2 / 1000), rel=0.6)


def test_mixture_divergence_is_that_of_quadrature():
    # Dims after the first hold the same constant in both series and drop out of the divergence.
    rng = np.random.default_rng(2)
    true, generated = 2 * rng.standard_normal(200), 1.0 + 3 * rng.standard_normal(150)
    grid = np.linspace(-25, 25, 20_001)

    def log_density(centres):
        return (
            logsumexp(-((grid[:, None] - centres) ** 2) / 2, axis=1)
            - np.log(len(centres))
            - 0.5 * np.log(2 * np.pi)
        )

    log_p, log_q = log_density(true), log_density(generated)
    expected = np.trapezoid(np.exp(log_p) * (log_p - log_q), grid)
    spread = np.sqrt(np.trapezoid(np.exp(log_p) * (log_p - log_q - expected) ** 2, grid))

    def widened(series):
        return np.column_stack([series, np.full((len(series), 6), 3.0)])

    estimates = [d_stsp(widened(true), widened(generated), seed=seed) for seed in range(20)]
    assert np.mean(estimates) == pytest.approx(expected, abs=4 * spread / np.sqrt(20_000))


def test_the_mixture_reads_the_first_10000_steps_and_its_seed():
    series = np.random.default_rng(3).standard_normal((10_000, 6))
    longer = np.concatenate([series, np.full((50, 6), 100.0)])
    assert d_stsp(longer, series) == 0
    assert d_stsp(series, series[:500], seed=1) == d_stsp(series, series[:500], seed=1)
    assert d_stsp(series, series[:500], seed=1) != d_stsp(series, series[:500], seed=2)


# --- D_H ----------------------------------------------------------------------------------------


def test_spectra_without_common_frequencies_are_at_distance_1():
    t = np.arange(4000)[:, None]
    slow, fast = np.sin(2 * np.pi * 0.05 * t), np.sin(2 * np.pi * 0.4 * t)
    assert d_h(slow, fast) == pytest.approx(1, abs=1e-3)
    assert d_h(slow, fast, smoothing=0.0) == pytest.approx(1, abs=1e-6)
    # Neither phase nor offset nor scale matters.
    assert d_h(slow, 3 + 2 * np.cos(2 * np.pi * 0.05 * t)) == pytest.approx(0, abs=1e-3)


def test_hellinger_distance_of_two_lines_each():
    # Powers p, 1 - p against q, 1 - q at the same two frequencies.
    t = np.arange(1000)[:, None]

    def lines(p):
        slow, fast = np.sin(2 * np.pi * 0.1 * t), np.sin(2 * np.pi * 0.3 * t)
        return np.sqrt(p) * slow + np.sqrt(1 - p) * fast

    p, q = 0.9, 0.2
    expected = np.sqrt(1 - np.sqrt(p * q) - np.sqrt((1 - p) * (1 - q)))
    assert d_h(lines(p), lines(q), smoothing=0.0) == pytest.approx(expected)
    assert d_h(lines(p), lines(q), smoothing=5.0) == pytest.approx(expected, abs=1e-3)
    # The mean over channels, one of which agrees.
    both = np.hstack([lines(p), lines(p)]), np.hstack([lines(q), lines(p)])
    assert d_h(*both, smoothing=0.0) == pytest.approx(expected / 2)


# --- baselines ----------------------------------------------------------------------------------


def test_baselines_have_names_shapes_means_and_seeds():
    train = oscillation(1500, 5)
    series = attractor_baselines(train, 700, seed=1)
    assert tuple(series) == NAMES
    again, other = attractor_baselines(train, 700, seed=1), attractor_baselines(train, 700, seed=2)
    for name in NAMES:
        assert series[name].shape == (700, 5)
        np.testing.assert_array_equal(series[name], again[name])
        assert not np.allclose(series[name], other[name])
        np.testing.assert_allclose(series[name].mean(0), train.mean(0), atol=0.5)


def test_baselines_reproduce_covariances():
    train = oscillation(3000, 4)
    series = attractor_baselines(train, 80_000)
    wanted = covariances(train, 0)
    tolerance = {"atol": 0.05 * np.abs(wanted).max()}
    lags = {"white Gaussian": 0, "smoothed Gaussian": 0, "VAR(1)": 1, "VAR(2), 16 PCs": 2}
    for name, last in lags.items():
        for lag in range(last + 1):
            found = covariances(series[name], lag)
            np.testing.assert_allclose(found, covariances(train, lag), **tolerance)
    np.testing.assert_allclose(covariances(series["white Gaussian"], 1), 0, **tolerance)
    # Products of a Hann window with itself, shifted by a bin.
    window = np.hanning(15)
    overlap = (window[1:] * window[:-1]).sum() / np.square(window).sum()
    found = covariances(series["smoothed Gaussian"], 1)
    np.testing.assert_allclose(found, overlap * wanted, **tolerance)


def test_three_components_reproduce_their_part_and_nothing_else():
    train = oscillation(3000, 6)
    series = attractor_baselines(train, 80_000)["VAR(2), 3 PCs"]
    centred = train - train.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2]
    np.testing.assert_allclose((series - train.mean(0)) @ directions[3:].T, 0, atol=1e-9)
    inside = directions[:3].T @ directions[:3]
    for lag in range(3):
        wanted = inside @ covariances(train, lag) @ inside
        found = covariances(series, lag)
        np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(covariances(train, 0)).max())


def test_the_surrogate_keeps_auto_and_cross_spectra():
    for num_bins in (600, 601):
        train = oscillation(num_bins, 4)
        surrogate = attractor_baselines(train, num_bins)["surrogate"]
        assert not np.allclose(surrogate, train, atol=0.1)
        spectra, others = (np.fft.rfft(series, axis=0) for series in (train, surrogate))
        for i in range(4):
            cross = spectra[:, i, None] * spectra.conj()
            np.testing.assert_allclose(others[:, i, None] * others.conj(), cross, atol=1e-6)
        assert d_h(train, surrogate) == pytest.approx(0, abs=1e-6)
    longer = attractor_baselines(train, 700)["surrogate"]
    np.testing.assert_array_equal(longer[:601], surrogate)
    np.testing.assert_array_equal(longer[601:], surrogate[:99])


def test_autoregressions_of_a_trend_stay_finite():
    trend = np.linspace(0, 1, 500)[:, None] + 1e-3 * oscillation(500, 2)
    for series in attractor_baselines(trend, 20_000).values():
        assert np.abs(series).max() < 100


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("true", "generated", "message"),
    [
        (np.zeros(9), np.zeros((9, 2)), "true has shape (9,); it must be (time, dim)"),
        (np.ones((9, 2)), np.zeros((0, 2)), "generated has shape (0, 2)"),
        (np.ones((9, 2)), np.ones((9, 3)), "true has 2 dims and generated 3"),
        (np.ones((9, 2)), np.full((9, 2), np.nan), "generated is nan at bin 0, dim 0"),
        (np.full((9, 2), np.inf), np.ones((9, 2)), "true is inf at bin 0, dim 0"),
    ],
)
def test_invalid_series_raise(true, generated, message):
    for distance in (d_stsp, d_h):
        with pytest.raises(ValueError, match=re.escape(message)):
            distance(true, generated)


def test_series_that_do_not_match_raise():
    series = oscillation(100, 3)
    still = series.copy()
    still[:, 1] = 5.0
    with pytest.raises(ValueError, match="true has 100 bins and generated 99"):
        d_h(series, series[1:])
    with pytest.raises(ValueError, match=r"smoothing=-1\.0 must be at least 0"):
        d_h(series, series, smoothing=-1.0)
    with pytest.raises(ValueError, match="generated never varies in dim 1"):
        d_h(series, still)
    with pytest.raises(ValueError, match="true never varies in dim 1"):
        d_stsp(still, series)
    # A generated series that came to rest has a place in space.
    assert d_stsp(series, still) > 1


def test_invalid_training_data_of_baselines_raise():
    with pytest.raises(ValueError, match="num_bins=0 must be an integer of at least 1"):
        attractor_baselines(oscillation(100, 3), 0)
    with pytest.raises(ValueError, match="train has 6 bins of 3 dims"):
        attractor_baselines(oscillation(6, 3), 10)
    with pytest.raises(ValueError, match="train never varies in dim 0"):
        attractor_baselines(np.ones((50, 2)), 10)
    with pytest.raises(ValueError, match=re.escape("train has shape (50,)")):
        attractor_baselines(np.ones(50), 10)
