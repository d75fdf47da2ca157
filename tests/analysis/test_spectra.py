"""Spectra, time scales and dimensions of series that have known ones."""

import numpy as np
import pytest

from pyrodyn.analysis import participation_ratio, power_spectrum, timescales


def test_power_adds_up_to_the_variance_and_peaks_where_the_wave_is():
    time = np.arange(20_000) * 0.01
    x = np.stack([np.sin(2 * np.pi * 12.5 * time), np.random.default_rng(0).normal(size=20_000)], 1)
    power = power_spectrum(x, 0.01)
    assert float(power.frequency[power[:, 0].argmax("frequency")]) == pytest.approx(12.5, abs=0.2)
    width = float(power.frequency[1])
    np.testing.assert_allclose(power.sum("frequency") * width, x.var(0), rtol=0.03)
    np.testing.assert_allclose(
        power_spectrum(x.reshape(4, -1, 2), 0.01).sum(), power.sum(), rtol=0.05
    )


def test_the_time_scale_of_an_autoregressive_process():
    rng, phi = np.random.default_rng(0), np.array([0.9, 0.99])
    trials, z = [], rng.standard_normal((200, 2)) / np.sqrt(1 - phi**2)
    for noise in rng.standard_normal((1000, 200, 2)):
        z = phi * z + noise
        trials.append(z)
    found = timescales(np.stack(trials, 1), 0.02)
    np.testing.assert_allclose(found, -0.02 / np.log(phi), rtol=0.06)


def test_what_never_decays_has_no_time_scale():
    slow = np.stack([np.arange(10.0), np.ones(10)], 1)
    assert np.isnan(timescales(slow[None].repeat(3, 0) + np.arange(3)[:, None, None] * 1e6, 1.0)[0])
    assert np.isnan(timescales(slow, 1.0)[1])


def test_participation_ratios():
    rng = np.random.default_rng(0)
    assert participation_ratio(rng.standard_normal((200_000, 5))) == pytest.approx(5, rel=1e-3)
    line = rng.standard_normal((100, 1)) * np.array([1.0, -2.0, 3.0])
    assert participation_ratio(line) == pytest.approx(1.0)
    assert participation_ratio(line.reshape(10, 10, 3)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: power_spectrum(x, 0.0), "bin_width=0.0"),
        (lambda x: power_spectrum(x[:, 0], 0.1), r"x must be \(time, dim\)"),
        (lambda x: timescales(x * np.inf, 0.1), "x is not finite"),
        (lambda x: participation_ratio(np.ones((5, 2))), "x is constant"),
        (lambda x: participation_ratio(x[:, 0]), "x must be finite states"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(np.random.default_rng(0).standard_normal((50, 2)))
