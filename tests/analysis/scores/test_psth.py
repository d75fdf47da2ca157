"""Smoothing, condition averages and their scores against closed forms."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy.special import erf

from pyrodyn.analysis.scores.psth import condition_psth, psth_r2, smooth
from pyrodyn.analysis.scores.rates import bits_per_spike
from pyrodyn.data.recording import recording


def two_conditions(
    num_trials: int, seed: int, valid: NDArray | None = None
) -> tuple[xr.Dataset, NDArray]:
    """Trials of conditions "a" and "b", and the rates of each trial."""
    rng = np.random.default_rng(seed)
    phase = np.linspace(0, 2 * np.pi, 60)[:, None] + np.arange(5)
    rates = np.stack([0.5 + 0.4 * np.sin(phase), 0.5 + 0.4 * np.cos(phase)])
    labels = np.arange(num_trials) % 2
    data = recording(
        counts=rng.poisson(rates[labels]),
        condition=np.array(["a", "b"])[labels],
        bin_width=0.01,
        valid=valid,
    )
    return data, rates[labels]


def test_smoothing_an_impulse_gives_the_kernel() -> None:
    impulse = np.zeros((1, 101, 1))
    impulse[0, 50] = 1
    kernel = smooth(impulse, bin_width=0.005, sd=0.03)[0, :, 0]
    t = 0.005 * (np.arange(101) - 50)
    density = np.exp(-(t**2) / (2 * 0.03**2))
    density[np.abs(t) > 0.12 + 1e-9] = 0
    np.testing.assert_allclose(kernel, density / density.sum(), atol=1e-12)


def test_constants_survive_edges_and_gaps() -> None:
    valid = np.ones((2, 80), bool)
    valid[0, 30:40] = valid[1, 60:] = False
    for filler in (0.0, 1e9, np.nan, np.inf):
        values = np.where(valid[..., None], 3.0, filler) * np.ones((2, 80, 4))
        smoothed = smooth(values, 0.01, 0.02, valid)
        np.testing.assert_allclose(smoothed[valid], 3.0)
    # Nothing measured within four standard deviations (eight bins): zero.
    assert (smoothed[1, 70:] == 0).all()


def test_smoothing_stays_within_trials() -> None:
    values = np.zeros((3, 20, 2))
    values[1] = 1.0
    smoothed = smooth(values, 0.01, 0.05)
    np.testing.assert_allclose(smoothed, values)
    with pytest.raises(ValueError, match="sd is 0"):
        smooth(values, 0.01, 0.0)


def test_smoothing_a_step() -> None:
    step = np.repeat([0.0, 1.0], 100)[None, :, None]
    smoothed = smooth(step, 0.001, 0.01)[0, :, 0]
    t = 0.001 * (np.arange(200) - 99.5)
    np.testing.assert_allclose(
        smoothed[50:150], 0.5 * (1 + erf(t / 0.01 / np.sqrt(2)))[50:150], atol=2e-3
    )


def test_condition_psth_is_the_shrunk_average() -> None:
    counts = np.zeros((4, 40, 2), int)
    counts[:3, 20, 0] = 1  # condition 7, three trials
    counts[3, :, 1] = 1  # condition 8, one trial
    data = recording(counts=counts, condition=[7, 7, 7, 8], bin_width=0.01)
    rates = condition_psth(data, data.isel(trial=[3, 0]), smoothing=0.01)
    assert rates.dims == ("trial", "time", "neuron")
    mean = counts.mean((0, 1))
    kernel = smooth(counts[:1], 0.01, 0.01)[0, :, 0]
    np.testing.assert_allclose(rates[1, :, 0], (3 * kernel + mean[0]) / 4)
    np.testing.assert_allclose(rates[1, :, 1], mean[1] / 4)
    np.testing.assert_allclose(rates[0, :, 1], (1 + mean[1]) / 2)


def test_condition_psth_averages_the_measured_trials() -> None:
    """One spike in every measured bin: n of them and the neuron's mean 1 average to 1."""
    valid = np.ones((3, 40), bool)
    valid[1, 20:] = valid[2, 30:] = False
    counts = np.where(valid[..., None], 1, 0) * np.ones((3, 40, 2), int)
    data = recording(counts=counts, condition=[0, 0, 0], bin_width=0.01, valid=valid)
    np.testing.assert_allclose(condition_psth(data, data), 1.0)


def test_condition_psth_approaches_the_truth() -> None:
    train, _ = two_conditions(2000, seed=1)
    test, rates = two_conditions(40, seed=2)
    predicted = condition_psth(train, test, smoothing=0.01)
    np.testing.assert_allclose(predicted, rates, atol=0.08)
    oracle = bits_per_spike(rates, test["counts"])
    assert abs(bits_per_spike(predicted, test["counts"]) - oracle) < 0.02


def test_condition_psth_does_not_read_filler() -> None:
    valid = np.arange(60) < np.random.default_rng(3).integers(30, 61, 30)[:, None]
    valid[:2] = True
    train, _ = two_conditions(30, seed=1, valid=valid)
    spoiled = train.assign(counts=train["counts"].where(train["valid"], 999))
    np.testing.assert_array_equal(condition_psth(train, train), condition_psth(spoiled, train))
    rates = np.where(valid[..., None], two_conditions(30, seed=1)[1], np.nan)
    first, second = psth_r2(rates, train), psth_r2(rates, spoiled)
    np.testing.assert_array_equal(first.per_neuron, second.per_neuron)
    assert np.isfinite(first.per_neuron).all()


def test_psth_r2_of_the_psth_itself_is_one() -> None:
    data, _ = two_conditions(20, seed=1)
    smoothed = smooth(data["counts"], 0.01, 0.07)
    assert psth_r2(smoothed, data).mean == pytest.approx(1, abs=1e-12)
    # Only the average over a condition's trials counts.
    averaged = np.where(
        (data["condition"].values == "a")[:, None, None],
        smoothed[::2].mean(0),
        smoothed[1::2].mean(0),
    )
    assert psth_r2(averaged, data).mean == pytest.approx(1, abs=1e-12)
    flat = np.broadcast_to(averaged[:2].mean((0, 1)), smoothed.shape)
    np.testing.assert_allclose(psth_r2(flat, data).per_neuron, 0, atol=1e-12)


def test_psth_r2_of_held_out_trials_uses_the_reference() -> None:
    everything, rates = two_conditions(4000, seed=1)
    few, rates_of_few = everything.isel(trial=slice(4)), rates[:4]
    own = psth_r2(rates_of_few, few, smoothing=0.01)
    all_trials = psth_r2(rates_of_few, few, smoothing=0.01, reference=everything)
    assert own.mean < 0.8 < 0.97 < all_trials.mean
    only_b = psth_r2(
        rates_of_few, few, smoothing=0.01, reference=everything.isel(trial=slice(1, None, 2))
    )
    swapped = rates_of_few.copy()
    swapped[::2] = 1e3  # condition "a" is not in that reference: not scored
    again = psth_r2(
        swapped, few, smoothing=0.01, reference=everything.isel(trial=slice(1, None, 2))
    )
    np.testing.assert_array_equal(only_b.per_neuron, again.per_neuron)


def test_invalid_arguments_raise() -> None:
    data, rates = two_conditions(6, seed=1)
    with pytest.raises(ValueError, match="has no condition"):
        psth_r2(rates, data.drop_vars("condition"))
    with pytest.raises(ValueError, match="share no condition"):
        psth_r2(rates[::2], data.isel(trial=slice(0, None, 2)), reference=data.isel(trial=[1]))
    with pytest.raises(ValueError, match="condition b of the test trials has no training trial"):
        condition_psth(data.isel(trial=[0, 2]), data)
    rates[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"rates is nan at \(1, 2, 3\)"):
        psth_r2(rates, data)


@pytest.mark.filterwarnings("ignore:1 neuron.* never fire")
def test_condition_average_of_the_maze_recording() -> None:
    path = Path(os.environ.get("PYRODYN_DATA", "")) / "mc_maze_large_9cond/mc_maze_large_9cond.npz"
    if "PYRODYN_DATA" not in os.environ or not path.exists():
        pytest.skip("mc_maze_large_9cond is not in the directory PYRODYN_DATA")
    with np.load(path, allow_pickle=False) as arrays:
        data = recording(counts=arrays["spikes"], condition=arrays["condition"], bin_width=0.005)
    fold = np.arange(data.sizes["trial"]) % 5
    rates = np.empty(data["counts"].shape)
    for held_out in range(5):
        train, test = data.isel(trial=fold != held_out), data.isel(trial=fold == held_out)
        rates[fold == held_out] = condition_psth(train, test)
    assert bits_per_spike(rates, data["counts"]) == pytest.approx(0.22, abs=0.01)
