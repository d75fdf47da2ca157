"""The plain alternatives to a model, on simulated recordings in which each is the truth."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from pyrodyn.analysis.scores import baselines as module
from pyrodyn.analysis.scores.baselines import baselines
from pyrodyn.analysis.scores.poisson_regression import poisson_rates, poisson_regression
from pyrodyn.analysis.scores.psth import smooth
from pyrodyn.analysis.scores.rates import bits_per_spike
from pyrodyn.data import held_out, recording

PREDICTIONS = (
    module._condition_average,
    module._templates,
    module._from_smoothed,
    module._from_components,
    module._from_states,
)


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice among more only takes longer."""
    monkeypatch.setattr(module, "WIDTHS", (0.03, 0.06))
    monkeypatch.setattr(module, "PENALTIES", (1.0, 10.0))
    monkeypatch.setattr(module, "DIMS", (2, 4))


def oscillating(num_trials: int = 60, num_bins: int = 30, seed: int = 0) -> xr.Dataset:
    """Two latent oscillations of random phase drive 12 neurons; two conditions differ in level."""
    rng = np.random.default_rng(seed)
    t = np.arange(num_bins)
    phase = rng.uniform(0, 2 * np.pi, (num_trials, 1))
    latents = np.stack([np.cos(0.3 * t + phase), np.sin(0.3 * t + phase)], -1)
    loading = np.random.default_rng(5).normal(size=(2, 12))
    condition = np.arange(num_trials) % 2
    rates = np.exp(0.8 * latents @ loading - 0.5 + condition[:, None, None])
    return held_out(
        recording(
            rng.poisson(rates),
            bin_width=0.02,
            condition=condition,
            behavior=latents,
            rates=rates,
        ),
        neurons=[1, 5, 8],
    )


@pytest.fixture(scope="module")
def parts() -> tuple[xr.Dataset, xr.Dataset]:
    data = oscillating()
    return data.isel(trial=slice(0, 45)), data.isel(trial=slice(45, 60))


def oracle(test: xr.Dataset, rates: np.ndarray) -> float:
    hidden = test["held_out"].values
    return bits_per_spike(rates[..., hidden], test["counts"].values[..., hidden])


@pytest.mark.slow
def test_the_baselines_of_a_latent_oscillation(parts) -> None:
    train, test = parts
    table = baselines(train, test)
    truth = oracle(test, test["rates"].values)
    co_smoothing = table["co_smoothing"]
    assert list(table.columns) == ["co_smoothing", "rate_r2", "behavior_r2"]
    assert (co_smoothing < truth).all()
    # Two latents explain everything; the phase of a trial is unknown to averages.
    for name, fraction in {
        "Poisson GLM": 0.65,
        "principal components": 0.65,
        "linear dynamical system": 0.85,
    }.items():
        assert co_smoothing[name] > fraction * truth, name
        assert table["behavior_r2"][name] > 0.4, name
    averages = ["condition average", "templates"]
    assert (co_smoothing[averages] < 0.3 * truth).all()
    assert (table["behavior_r2"][averages] < 0.1).all()
    assert (table["rate_r2"] > 0.1).all()


def test_templates_find_the_condition(parts) -> None:
    train, test = parts
    averages, mixed = (
        predict(train, test)[1] for predict in (module._condition_average, module._templates)
    )
    # 30 bins of 9 neurons with twice or more the rate leave no doubt about the condition.
    np.testing.assert_allclose(mixed, averages, rtol=1e-6)


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.slow
def test_no_baseline_reads_what_it_predicts(parts, predict: Callable) -> None:
    train, test = parts
    test = held_out(test, forecast_bins=4)
    changed = test.copy(deep=True)
    hidden = test["held_out"].values
    changed["counts"].values[..., hidden] = 7
    changed["counts"].values[:, -4:] = 7
    for before, after in zip(predict(train, test), predict(train, changed), strict=True):
        np.testing.assert_array_equal(before[:, :-4], after[:, :-4])


@pytest.mark.slow
def test_the_glm_is_exact_where_it_is_the_truth() -> None:
    rng = np.random.default_rng(0)
    visible = rng.poisson(1.0, (80, 40, 4))
    drive = np.sqrt(smooth(visible, 0.02, 0.06)) - 1
    rates = np.exp(drive @ np.array([[4.0, 0.0], [-2.0, 2.0], [0.0, 4.0], [2.0, -4.0]]) - 0.5)
    counts = np.concatenate([visible, rng.poisson(rates)], -1)
    data = held_out(recording(counts, bin_width=0.02), neurons=[4, 5])
    train, test = data.isel(trial=slice(0, 60)), data.isel(trial=slice(60, 80))
    truth = bits_per_spike(rates[60:], counts[60:, :, 4:])
    assert baselines(train, test)["co_smoothing"]["Poisson GLM"] == pytest.approx(truth, rel=0.03)


@pytest.mark.slow
def test_regressions_know_the_time_in_the_trial() -> None:
    """Rates that depend on the time alone need no visible neuron."""
    rng = np.random.default_rng(0)
    rates = np.exp(np.sin(2 * np.pi * np.arange(20) / 20)[:, None] * np.ones(6)) / 2
    counts = rng.poisson(np.broadcast_to(rates, (100, 20, 6)))
    data = held_out(recording(counts, bin_width=0.02), neurons=[4, 5])
    train, test = data.isel(trial=slice(0, 70)), data.isel(trial=slice(70, 100))
    truth = oracle(test, np.broadcast_to(rates, (30, 20, 6)))
    found = baselines(train, test)["co_smoothing"]
    for name in ("Poisson GLM", "principal components", "linear dynamical system"):
        assert found[name] == pytest.approx(truth, rel=0.1), name


@pytest.mark.slow
def test_ragged_trials_and_conditions_without_training_trials(parts) -> None:
    train, test = parts
    length = np.arange(45) % 10 + 20
    valid = np.arange(30) < length[:, None]
    train = train.assign(valid=(("trial", "time"), valid))
    other = test.assign(condition=("trial", np.full(15, 9)))
    table = baselines(train, other)
    assert np.isnan(table.loc["condition average"]).all()
    assert np.isfinite(table.drop("condition average")).all(axis=None)
    filled = train.copy(deep=True)
    filled["counts"].values[~valid] = 99
    xr.testing.assert_identical(table.to_xarray(), baselines(filled, other).to_xarray())


def test_without_conditions_the_average_is_over_all_trials(parts) -> None:
    train, test = (part.drop_vars("condition") for part in parts)
    averages, mixed = (
        predict(train, test)[1] for predict in (module._condition_average, module._templates)
    )
    np.testing.assert_array_equal(averages, mixed)
    np.testing.assert_array_equal(averages[0], averages[1])


def test_channels_are_regressed_on_channels() -> None:
    rng = np.random.default_rng(0)
    visible = rng.normal(size=(50, 40, 6))
    level = np.arange(50) % 2
    hidden = visible @ rng.normal(size=(6, 2)) / np.sqrt(6) + 2.0 * level[:, None, None]
    noise = 0.5 * rng.normal(size=hidden.shape)
    data = held_out(
        recording(
            signal=np.concatenate([visible, hidden + noise], -1), bin_width=0.01, condition=level
        ),
        neurons=[6, 7],
    )
    train, test = data.isel(trial=slice(0, 40)), data.isel(trial=slice(40, 50))
    table = baselines(train, test)
    observed = test["signal"].values[..., 6:]
    variance = observed.var((0, 1))
    of_visible = variance - 0.25 - 1.0  # noise, and the condition's level
    assert table["co_smoothing"]["ridge regression"] == pytest.approx(
        (of_visible / variance).mean(), abs=0.05
    )
    assert table["co_smoothing"]["condition average"] == pytest.approx(
        (1 / variance).mean(), abs=0.05
    )


def test_regression_reaches_the_penalised_optimum() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3)) * [1.0, 0.1, 3.0] + 2.0
    counts = rng.poisson(np.exp(features @ rng.normal(size=(3, 4)) * 0.2 - 1)).astype(float)
    counts[:, 3] = 0
    mask = rng.random(counts.shape) > 0.2
    counts[~mask] = np.nan
    weights, intercepts = poisson_regression(features, counts, 3.0, mask)
    residual = np.where(mask, poisson_rates(features, weights, intercepts) - counts, 0.0)
    gradient = features.T @ residual + 3.0 * weights
    spikes = np.where(mask, counts, 0.0).sum(0)
    np.testing.assert_allclose(gradient[:, :3], 0, atol=2e-3 * spikes[:3].max())
    np.testing.assert_allclose(residual.sum(0)[:3], 0, atol=1e-3 * spikes[:3].max())
    # A silent neuron: half a spike in all its rows.
    assert (weights[:, 3] == 0).all()
    assert np.exp(intercepts[3]) * mask[:, 3].sum() == pytest.approx(0.5)


def test_what_has_no_baseline_is_refused(parts, make_recording) -> None:
    train, test = parts
    with pytest.raises(ValueError, match="no measured entry of this recording is held_out"):
        baselines(make_recording(12), make_recording(6))
    with pytest.raises(ValueError, match="4 training trials; baselines need five"):
        baselines(train.isel(trial=slice(0, 4)), test)
    both = test.assign(signal=(("trial", "time", "channel"), np.zeros((15, 30, 2))))
    with pytest.raises(ValueError, match="select_modality"):
        baselines(train, both)
