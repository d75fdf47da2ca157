"""Spectra, timescales and dimensions against closed forms."""

import re

import numpy as np
import pytest
from scipy.signal import lfilter

from pyrodyn.analysis.spectra import participation_ratio, power_spectrum, timescales


def autoregression(phi: float, num_trials: int, num_bins: int, seed: int = 0) -> np.ndarray:
    """Trials of a stationary AR(1) of unit variance, ``(trial, time)``."""
    noise = np.random.default_rng(seed).standard_normal((num_trials, num_bins))
    noise[:, 1:] *= np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise, axis=1)


# --- power spectrum -----------------------------------------------------------------------------


def test_the_spectrum_peaks_where_a_sine_oscillates_and_holds_its_variance():
    t = 0.005 * np.arange(4096)
    x = np.stack([3 * np.sin(2 * np.pi * 25 * t), np.sin(2 * np.pi * 50 * t)], 1)
    power = power_spectrum(x, 0.005)
    assert power.dims == ("frequency", "dim")
    assert power["frequency"].attrs["units"] == "Hz"
    assert power["frequency"].values[-1] == pytest.approx(100)
    np.testing.assert_allclose(power.idxmax("frequency"), [25, 50])
    width = float(power["frequency"][1])
    np.testing.assert_allclose(power.sum("frequency") * width, [4.5, 0.5], rtol=1e-3)


def test_white_noise_is_flat():
    x = np.random.default_rng(0).standard_normal((200, 512, 2))
    power = power_spectrum(x, 0.01)
    # One-sided: the variance 1 over 50 Hz. The lowest bins lose each segment's mean.
    np.testing.assert_allclose(power.isel(frequency=slice(2, -1)), 1 / 50, rtol=0.25)
    assert float(power.isel(frequency=slice(2, -1)).mean()) == pytest.approx(1 / 50, rel=0.01)


def test_an_autoregression_has_its_closed_form_spectrum():
    phi = 0.8
    power = power_spectrum(autoregression(phi, 400, 1024)[..., None], 1.0)
    f = power["frequency"].values[3:-1]
    expected = 2 * (1 - phi**2) / np.abs(1 - phi * np.exp(-2j * np.pi * f)) ** 2
    np.testing.assert_allclose(power.values[3:-1, 0], expected, rtol=0.12)


def test_trials_are_averaged_and_may_be_short():
    x = np.random.default_rng(1).standard_normal((3, 40, 2))
    alone = [power_spectrum(trial, 0.02).values for trial in x]
    np.testing.assert_allclose(power_spectrum(x, 0.02), np.mean(alone, 0))
    assert power_spectrum(x, 0.02).sizes["frequency"] == 21


# --- timescales ---------------------------------------------------------------------------------


def test_the_timescale_of_an_autoregression():
    bin_width, phis = 0.01, (0.5, 0.8, 0.95)
    runs = np.stack([autoregression(phi, 40, 5000, seed) for seed, phi in enumerate(phis)], -1)
    by_trial = np.stack([timescales(trial, bin_width) for trial in runs])
    error = by_trial.std(0, ddof=1) / np.sqrt(40)
    pooled = timescales(runs, bin_width)
    for i, phi in enumerate(phis):
        # Of the line between two lags of phi^k, which lies a little above the curve.
        lag = int(np.floor(-1 / np.log(phi)))
        high, low = phi**lag, phi ** (lag + 1)
        expected = bin_width * (lag + (high - np.exp(-1)) / (high - low))
        assert expected == pytest.approx(-bin_width / np.log(phi), rel=0.06)
        assert abs(pooled[i] - expected) < 4 * error[i]


def test_the_crossing_is_interpolated_between_lags():
    # A triangular pulse far from the ends: independent bins, smoothed by (1, 1), have correlation
    # 1/2 at lag 1 and 0 at lag 2.
    noise = np.random.default_rng(0).standard_normal(200_001)
    x = noise[1:] + noise[:-1]
    expected = 1 + (0.5 - np.exp(-1)) / 0.5
    assert timescales(x[:, None], 1.0)[0] == pytest.approx(expected, abs=0.02)
    assert timescales(x[:, None], 0.25)[0] == pytest.approx(expected / 4, abs=0.005)


def test_constant_correlation_has_no_timescale():
    levels = np.array([-1.0, 1.0, 2.0])[:, None, None] * np.ones((3, 50, 1))
    still = np.ones((3, 50, 1))
    noise = np.random.default_rng(0).standard_normal((3, 50, 1))
    taus = timescales(np.concatenate([levels, still, noise], -1), 0.1)
    assert np.isnan(taus).tolist() == [True, True, False]
    assert 0 < taus[2] < 0.15
    assert np.isnan(timescales(np.ones((1, 2)), 1.0)).all()


# --- participation ratio ------------------------------------------------------------------------


def test_participation_ratio_of_known_covariances():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 6))
    rows -= rows.mean(0)
    white = np.linalg.qr(rows)[0] + 3.0
    assert participation_ratio(white) == pytest.approx(6)
    assert participation_ratio(rows[:, :1] * rng.standard_normal(6)) == pytest.approx(1)
    variances = np.array([4.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    x = (white - 3.0) * np.sqrt(variances) @ rotation
    expected = variances.sum() ** 2 / np.square(variances).sum()
    assert participation_ratio(x) == pytest.approx(expected)
    assert participation_ratio(x.reshape(8, 50, 6)) == pytest.approx(expected)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bin_width", [0.0, -1.0, np.nan, np.inf])
def test_bin_widths_are_positive(bin_width):
    x = np.random.default_rng(0).standard_normal((20, 2))
    for function in (power_spectrum, timescales):
        with pytest.raises(ValueError, match="must be a positive number of seconds"):
            function(x, bin_width)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(5), "x has shape (5,)"),
        (np.zeros((0, 3)), "x has shape (0, 3)"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), "x is nan at (1, 1)"),
    ],
)
def test_invalid_series_raise(x, message):
    for call in (
        lambda: power_spectrum(x, 1.0),
        lambda: timescales(x, 1.0),
        lambda: participation_ratio(x),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_constants_have_no_dimension():
    with pytest.raises(ValueError, match="x is constant"):
        participation_ratio(np.ones((5, 2)))
