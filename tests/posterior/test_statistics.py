"""Statistics of neural data against hand-made series and processes of known value."""

import functools

import numpy as np
import pytest
import xarray as xr

from pyrodyn.posterior import statistics


def counts(values, **coords) -> xr.DataArray:
    return xr.DataArray(np.asarray(values, float), dims=("trial", "time", "neuron"), coords=coords)


@pytest.fixture
def poisson() -> xr.DataArray:
    rng = np.random.default_rng(0)
    return counts(rng.poisson(0.7, (60, 80, 4)))


REDUCING = [
    statistics.mean_rate,
    statistics.standard_deviation,
    statistics.psth,
    statistics.fano_factor,
    statistics.zero_fraction,
    statistics.autocorrelation,
    statistics.pairwise_correlation,
    statistics.population_synchrony,
    statistics.mean_interval,
    statistics.interval_cv,
    statistics.burstiness,
    statistics.power_spectrum,
]


@pytest.mark.parametrize("statistic", REDUCING)
def test_other_dims_stay_and_order_does_not_matter(statistic):
    """A statistic of many draws is that of each, whatever the order of dims."""
    rng = np.random.default_rng(1)
    draws = xr.DataArray(
        rng.poisson(1.0, (2, 3, 6, 9, 4)).astype(float),
        dims=("chain", "draw", "trial", "time", "neuron"),
        coords={"condition": ("trial", list("aabbab"))},
    )
    together = statistic(draws)
    assert {"chain", "draw"} <= set(together.dims) and "trial" not in together.dims
    one = statistic(draws.isel(chain=1, draw=2).transpose("neuron", "trial", "time"))
    of_both = together.isel(chain=1, draw=2).transpose(*one.dims)
    np.testing.assert_allclose(of_both.values, one.values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("statistic", REDUCING)
def test_bare_arrays_give_one_number(statistic, poisson):
    value = statistic(poisson.values)
    assert isinstance(value, float) and value == pytest.approx(float(statistic(poisson).mean()))


def test_flat_arrays(poisson):
    flat = poisson.values.ravel()
    assert statistics.fano_factor(flat) == pytest.approx(flat.var(ddof=1) / flat.mean())
    assert statistics.zero_fraction(flat) == pytest.approx((flat == 0).mean())
    with pytest.raises(ValueError, match=r"psth needs an array \(trial, time, neuron\)"):
        statistics.psth(flat)


def test_values_of_a_poisson_process(poisson):
    """All known: Fano factor, dispersion and synchrony 1, no correlation, a flat spectrum."""
    n = 60 * 80
    assert np.allclose(statistics.fano_factor(poisson), 1, atol=5 * np.sqrt(2 / n) * 2)
    rates = xr.full_like(poisson, 0.7)
    # The variance of (x - l)^2 / l is 2 + 1 / l.
    assert np.allclose(statistics.dispersion(poisson, rates), 1, atol=5 * np.sqrt(3.5 / n))
    assert np.allclose(statistics.zero_fraction(poisson), np.exp(-0.7), atol=5 * 0.5 / n**0.5)
    assert np.allclose(statistics.autocorrelation(poisson, 5), 0, atol=5 / n**0.5)
    assert np.allclose(statistics.pairwise_correlation(poisson), 0, atol=5 / n**0.5)
    assert float(statistics.population_synchrony(poisson)) == pytest.approx(1, abs=0.15)
    spectrum = statistics.power_spectrum(poisson)
    assert np.allclose(spectrum.mean("frequency"), 0.7, atol=0.1)
    np.testing.assert_allclose(statistics.standard_deviation(poisson) ** 2, 0.7, atol=0.1)
    assert spectrum.sizes["frequency"] == 40 and float(spectrum["frequency"][-1]) == 0.5


def test_negative_binomial_counts_are_overdispersed():
    rng = np.random.default_rng(2)
    rates = np.exp(rng.normal(size=(200, 20, 3)))  # which vary, and do not matter given the rates
    gamma = rng.gamma(2.0, rates / 2)
    given = statistics.dispersion(counts(rng.poisson(gamma)), counts(rates))
    expected = 1 + (rates / 2).mean()  # var = rate + rate^2 / 2
    np.testing.assert_allclose(given, expected, rtol=0.2)
    assert np.allclose(
        statistics.dispersion(counts(rng.poisson(rates)), counts(rates)), 1, atol=0.2
    )


def test_hand_made_series():
    x = counts([[[1, 1], [0, 0], [2, 2], [0, 0]], [[0, 0], [1, 1], [0, 0], [1, 1]]])
    assert statistics.pairwise_correlation(x).item() == pytest.approx(1)
    assert float(statistics.population_synchrony(x)) == pytest.approx(2)
    # Spikes at 0, 2, 2 in the first trial and at 1, 3 in the second.
    np.testing.assert_allclose(statistics.mean_interval(x), (2 + 0 + 2) / 3)
    cv = np.std([2, 0, 2]) / (4 / 3)
    np.testing.assert_allclose(statistics.interval_cv(x), cv)
    np.testing.assert_allclose(statistics.burstiness(x), (cv - 1) / (cv + 1))
    np.testing.assert_allclose(statistics.psth(x)[:, 0], [0.5, 0.5, 1, 0.5])
    regular = counts(np.tile([1, 0], 10)[None, :, None])
    assert statistics.burstiness(regular).item() == -1
    np.testing.assert_allclose(
        statistics.autocorrelation(regular, 2).values.ravel(), [-1, 1], atol=1e-12
    )


def test_psth_by_condition_and_unmeasured_entries():
    x = counts(np.arange(12).reshape(3, 2, 2), condition=("trial", ["b", "a", "b"]))
    by = statistics.psth(x)
    np.testing.assert_allclose(by.sel(condition="b").values, (x.values[0] + x.values[2]) / 2)
    x[0, 0, 0] = np.nan
    assert float(statistics.mean_rate(x)[0]) == np.nanmean(x.values[..., 0])
    assert float(statistics.zero_fraction(x.where(x != 1, 0))[0]) == 0  # NaN is no zero


def test_coherence_with_a_signal():
    """A neuron that is the signal coheres with it at every frequency, others do not."""
    rng = np.random.default_rng(3)
    signal = xr.DataArray(rng.normal(size=(200, 16, 1)), dims=("trial", "time", "channel"))
    x = counts(np.concatenate([signal, rng.normal(size=(200, 16, 1))], -1))
    found = statistics.coherence(x, signal)
    np.testing.assert_allclose(found.isel(neuron=0), 1, rtol=1e-10)
    assert float(found.isel(neuron=1).mean()) == pytest.approx(1 / 200, abs=0.005)
    assert float(functools.partial(statistics.coherence, signal=signal)(x).max()) <= 1 + 1e-9


def test_squared_error():
    x, predicted = counts(np.zeros((2, 3, 2))), counts(np.zeros((2, 3, 2)))
    predicted[:, 1] = 2
    np.testing.assert_array_equal(statistics.squared_error(x, predicted), [0, 4, 0])
