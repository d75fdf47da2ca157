"""Attractor distances against known divergences, and baselines against what they promise."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp

from pyrodyn.analysis import attractor_baselines, d_h, d_stsp

RNG = np.random.default_rng(0)


def wave(frequency, num_bins=4000, phase=0.0):
    return np.sin(2 * np.pi * frequency * np.arange(num_bins) + phase)[:, None]


@pytest.mark.parametrize("dim", [2, 8])
def test_a_series_is_at_no_distance_of_itself(dim):
    x = RNG.standard_normal((500, dim))
    assert d_stsp(x, x) == pytest.approx(0.0, abs=1e-12)
    assert d_h(x, x) == pytest.approx(0.0, abs=1e-6)


def test_histograms_give_the_divergence_of_their_shares():
    """Two cells, of known shares in both series."""
    true = np.repeat([0.0, 1.0], [500, 500])[:, None]
    generated = np.repeat([0.0, 1.0], [800, 200])[:, None]
    expected = 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)
    assert d_stsp(true, generated) == pytest.approx(expected, abs=1e-4)


def test_states_outside_the_true_box_count_as_missing():
    """Half of the generated states in place: log 2. None: the Laplace floor is all that is left."""
    true = np.repeat(np.arange(10.0), 100)[:, None]
    half_lost = np.concatenate([true, true + 100.0])
    assert d_stsp(true, half_lost) == pytest.approx(np.log(2), abs=1e-3)
    assert d_stsp(true, true + 100.0) == pytest.approx(np.log(0.1 / 1e-5), abs=0.05)


def test_mixtures_agree_with_quadrature():
    """Centres that differ along one of six dims: the others cancel, one integral is left."""
    a, b = np.array([-1.0, 1.0, 2.0]), np.array([-0.5, 0.5, 3.0])

    def embedded(centres):
        return np.repeat(np.pad(centres[:, None], ((0, 0), (0, 5))), 100, axis=0)

    def log_density(x, centres):
        parts = -0.5 * (x - centres) ** 2 - 0.5 * np.log(2 * np.pi)
        return logsumexp(parts) - np.log(len(centres))

    def integrand(x):
        return np.exp(log_density(x, a)) * (log_density(x, a) - log_density(x, b))

    exact = quad(integrand, -9, 11)[0]
    estimates = [d_stsp(embedded(a), embedded(b), seed=seed) for seed in range(20)]
    error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - exact) < 4 * error


def test_spectra_apart_are_at_distance_one_and_phases_do_not_matter():
    assert d_h(wave(0.05), wave(0.4)) > 0.99
    assert d_h(wave(0.05), wave(0.05, phase=1.0)) < 0.02
    assert d_h(3 * wave(0.05) + 7, wave(0.05)) < 1e-6


def test_hellinger_distance_of_half_shared_power():
    """Half of each spectrum in common: H^2 = 1 - 1/2."""
    low, high = wave(0.02), wave(0.42)
    one, other = low + wave(0.2), low + high
    assert d_h(one, other, smoothing=3.0) == pytest.approx(np.sqrt(0.5), abs=0.02)


@pytest.fixture(scope="module")
def train():
    """A linear process with rotation in 20 dims, two of them strong."""
    rng = np.random.default_rng(1)
    turn = 0.97 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    z, path = np.zeros(2), []
    for noise in rng.standard_normal((20_000, 2)):
        z = turn @ z + 0.3 * noise
        path.append(z)
    mixing = rng.standard_normal((2, 20))
    return np.stack(path) @ mixing + 0.1 * rng.standard_normal((20_000, 20)) + 3.0


def test_baselines_keep_what_they_promise(train):
    found = attractor_baselines(train, 20_000, seed=0)
    covariance = np.cov(train.T)
    scale = np.abs(covariance).max()
    for name in ("white", "var1", "pca16_var2"):
        np.testing.assert_allclose(np.cov(found[name].T), covariance, atol=0.1 * scale)
    for name, series in found.items():
        assert series.shape == train.shape, name
        np.testing.assert_allclose(series.mean(0), train.mean(0), atol=0.15)
    for name in ("var1", "pca3_var2"):
        lagged, expected = (x[1:].T @ x[:-1] / len(x) for x in (found[name] - 3, train - 3))
        np.testing.assert_allclose(lagged, expected, atol=0.15 * scale)
    spectra = [np.abs(np.fft.rfft(x, axis=0)) for x in (train, found["surrogate"])]
    np.testing.assert_allclose(spectra[1], spectra[0], rtol=1e-6, atol=1e-6)
    assert d_h(train, found["surrogate"]) < 1e-3
    assert d_h(train, found["white"]) > 0.3 > d_h(train, found["pca3_var2"])
    assert np.linalg.matrix_rank(found["pca3_var2"] - train.mean(0), tol=1e-6) == 3


def test_baselines_repeat_by_their_seed(train):
    one, same, other = (attractor_baselines(train[:500], 300, seed=s) for s in (0, 0, 1))
    for name, series in one.items():
        np.testing.assert_array_equal(series, same[name])
        assert not np.array_equal(series, other[name])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: d_stsp(x[:, 0], x), r"true must be a series \(time, dim\)"),
        (lambda x: d_stsp(x, x[:, :1]), "true has 2 dims and generated 1"),
        (lambda x: d_stsp(x, np.where(x > 2, np.nan, x)), "generated is not finite at bin"),
        (lambda x: d_h(x, x[:-1]), "series of one length, not 50 and 49"),
        (lambda x: d_h(x, x, smoothing=0.0), "smoothing=0.0"),
        (lambda x: d_h(x, np.ones_like(x)), "dim 0 is constant"),
        (lambda x: attractor_baselines(x, 51), "num_bins=51 must lie between 4 and the 50"),
    ],
)
def test_bad_input(call, sentence):
    x = np.random.default_rng(0).standard_normal((50, 2))
    x[7] = 3.0
    with pytest.raises(ValueError, match=sentence):
        call(x)
