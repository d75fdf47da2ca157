"""Bits per spike and rate R2 against closed forms; nothing unmeasured reaches them."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.analysis.scores.rates import (
    bits_per_spike,
    entry_mask,
    rate_r2,
    recording_bits_per_spike,
)
from pyrodyn.data.recording import held_out, recording


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def rates(rng: np.random.Generator) -> NDArray:
    return np.exp(rng.normal(-1, 0.7, (20, 30, 8)))


@pytest.fixture
def ragged(rng: np.random.Generator, rates: NDArray) -> xr.Dataset:
    """Trials of 20 to 30 bins, two held-out neurons, five forecast bins."""
    lengths = rng.integers(20, 31, 20)
    lengths[0] = 30
    counts = rng.poisson(rates)
    data = recording(
        counts=[trial[:length] for trial, length in zip(counts, lengths, strict=True)],
        rates=[trial[:length] for trial, length in zip(rates, lengths, strict=True)],
        bin_width=0.01,
    )
    return held_out(data, neurons=[2, 5], forecast_bins=5)


def with_filler(data: xr.Dataset, values: NDArray, filler: float) -> NDArray:
    """Values whose entries outside ``valid`` are absurd."""
    return np.where(data["valid"].values[..., None], values, filler)


# --- entries ------------------------------------------------------------------------------------


def test_entry_mask_partitions_the_measured_entries(ragged: xr.Dataset) -> None:
    masks = {name: entry_mask(ragged, name) for name in ("held_in", "held_out", "forecast")}
    together = sum(mask.astype(int) for mask in masks.values())
    np.testing.assert_array_equal(together, entry_mask(ragged).astype(int))
    assert entry_mask(ragged).dims == ("trial", "time", "neuron")
    valid = ragged["valid"].values
    np.testing.assert_array_equal(masks["held_out"].any(("trial", "time")), ragged["held_out"])
    assert masks["held_out"].values[:, :25, 2].sum() == valid[:, :25].sum()
    assert masks["forecast"].sum() == valid[:, 25:].sum() * 8


def test_invalid_entries_raise(ragged: xr.Dataset, rates: NDArray) -> None:
    with pytest.raises(ValueError, match="'heldout'; choose one of all, held_in"):
        entry_mask(ragged, "heldout")
    plain = recording(counts=np.ones((2, 3, 4), int), bin_width=0.1)
    assert bool(entry_mask(plain, "held_in").all())
    for entries in ("held_out", "forecast"):
        with pytest.raises(ValueError, match=f"is {entries}.*held_out marks"):
            entry_mask(plain, entries)


# --- bits per spike -----------------------------------------------------------------------------


def test_null_scores_exactly_zero(rng: np.random.Generator, rates: NDArray) -> None:
    counts = rng.poisson(rates)
    null = np.broadcast_to(counts.mean((0, 1)), counts.shape)
    assert bits_per_spike(null, counts) == 0.0
    assert bits_per_spike(np.broadcast_to([0.3] * 8, counts.shape), counts, null=[0.3] * 8) == 0.0


def test_bits_per_spike_by_hand() -> None:
    # One neuron, one bin with one spike and one with none, predicted as 1 and 0.5:
    # model log 1 - 1.5, null log(1/2) - 1, one spike.
    score = bits_per_spike([[1.0], [0.5]], [[1], [0]])
    assert score == pytest.approx((np.log(2) - 0.5) / np.log(2), rel=1e-12)


def test_expected_score_of_the_true_rates(rng: np.random.Generator, rates: NDArray) -> None:
    draws = rng.poisson(rates, (200, *rates.shape))
    null = rates.mean((0, 1))
    scores = [bits_per_spike(rates, counts, null=null) for counts in draws]
    # E of the numerator with the null at the mean rate is sum rates log(rates / null).
    oracle = (rates * np.log(rates / null)).sum() / rates.sum() / np.log(2)
    assert abs(np.mean(scores) - oracle) < 4 * np.std(scores) / np.sqrt(200)
    wrong = [bits_per_spike(1.3 * rates, counts, null=null) for counts in draws]
    loss = (np.log(1.3) - 0.3) / np.log(2)
    assert abs(np.mean(wrong) - oracle - loss) < 4 * np.std(wrong) / np.sqrt(200)


def test_permuting_neurons_and_trials_changes_nothing(
    rng: np.random.Generator, rates: NDArray
) -> None:
    counts = rng.poisson(rates)
    score = bits_per_spike(rates, counts)
    neurons, trials = rng.permutation(8), rng.permutation(20)
    permuted = bits_per_spike(rates[trials][..., neurons], counts[trials][..., neurons])
    assert permuted == pytest.approx(score, rel=1e-12)
    assert bits_per_spike(rates[..., neurons], counts) < score - 0.1


def test_named_dims_are_matched_by_name(ragged: xr.Dataset) -> None:
    turned = ragged["rates"].transpose("neuron", "trial", "time")
    mask = entry_mask(ragged)
    assert bits_per_spike(turned, ragged["counts"], mask=mask) == bits_per_spike(
        ragged["rates"].values, ragged["counts"].values, mask=mask.values
    )
    with pytest.raises(ValueError, match="has dims"):
        bits_per_spike(turned.rename(neuron="channel"), ragged["counts"])


@pytest.mark.parametrize("filler", [1e6, -5.0, np.nan, np.inf])
@pytest.mark.parametrize("entries", ["all", "held_in", "held_out", "forecast"])
def test_filler_reaches_no_count_score(
    ragged: xr.Dataset, rates: NDArray, entries: str, filler: float
) -> None:
    expected = recording_bits_per_spike(rates, ragged, entries)
    spoiled = ragged.assign(
        counts=ragged["counts"].copy(data=with_filler(ragged, ragged["counts"].values, 1e6))
    )
    assert (
        recording_bits_per_spike(with_filler(ragged, rates, filler), spoiled, entries) == expected
    )
    keep = entry_mask(ragged, entries).values
    per_neuron = [
        bits_per_spike(
            rates[..., [n]][keep[..., n]], ragged["counts"].values[..., [n]][keep[..., n]]
        )
        * ragged["counts"].values[..., n][keep[..., n]].sum()
        for n in np.flatnonzero(keep.any((0, 1)))
    ]
    assert expected == pytest.approx(sum(per_neuron) / ragged["counts"].values[keep].sum())


def test_nan_counts_are_dropped(rng: np.random.Generator, rates: NDArray) -> None:
    counts = rng.poisson(rates).astype(float)
    counts[3:, 25:] = np.nan
    keep = ~np.isnan(counts)
    assert bits_per_spike(rates, counts) == bits_per_spike(
        rates, np.where(keep, counts, 7.0), mask=keep
    )


def test_a_mask_without_the_last_dim(rng: np.random.Generator) -> None:
    # Square on purpose: broadcasting the mask along the wrong dims would go unnoticed.
    rates, counts = np.exp(rng.normal(size=(6, 6, 6))), rng.poisson(1.0, (6, 6, 6))
    mask = rng.random((6, 6)) < 0.6
    full = np.repeat(mask[..., None], 6, -1)
    assert bits_per_spike(rates, counts, mask=mask) == bits_per_spike(rates, counts, mask=full)
    assert bits_per_spike(rates, counts, mask=mask) != bits_per_spike(rates, counts)


def test_zero_rates_are_floored() -> None:
    counts = np.array([[0, 1], [1, 0]])
    floored = bits_per_spike([[0.0, 1.0], [1.0, 1e-9]], counts)
    assert floored == bits_per_spike([[1e-9, 1.0], [1.0, 1e-9]], counts)
    cost = bits_per_spike([[1.0, 1.0], [1.0, 0.0]], counts) - bits_per_spike(
        [[1.0, 1.0], [0.0, 0.0]], counts
    )
    assert cost == pytest.approx((-np.log(1e-9) - 1) / 2 / np.log(2))


def test_invalid_rates_and_counts_raise(rates: NDArray) -> None:
    counts = np.ones(rates.shape)
    with pytest.raises(ValueError, match="no spike"):
        bits_per_spike(rates, 0 * counts)
    with pytest.raises(ValueError, match="no spike"):
        bits_per_spike(rates, counts, mask=np.zeros(rates.shape, bool))
    with pytest.raises(ValueError, match=r"rates has shape \(20, 30, 8\) where counts has"):
        bits_per_spike(rates, counts[..., :3])
    with pytest.raises(ValueError, match="mask has shape"):
        bits_per_spike(rates, counts, mask=np.ones(8, bool))
    rates[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"rates is nan at \(1, 2, 3\)"):
        bits_per_spike(rates, counts)
    rates[1, 2, 3] = -1.0
    with pytest.raises(ValueError, match=r"rates is -1 at \(1, 2, 3\)"):
        bits_per_spike(rates, counts)
    signal = recording(signal=np.random.default_rng(0).normal(size=(2, 5, 8)), bin_width=0.1)
    with pytest.raises(ValueError, match="has no counts"):
        recording_bits_per_spike(rates[:2, :5], signal, "all")


# --- rate R2 ------------------------------------------------------------------------------------


def test_rate_r2_of_known_predictions(rates: NDArray) -> None:
    assert rate_r2(rates, rates).mean == rate_r2(rates, rates).pooled == 1.0
    mean = np.broadcast_to(rates.mean((0, 1)), rates.shape)
    np.testing.assert_allclose(rate_r2(mean, rates).per_neuron, 0, atol=1e-12)
    # Adding k standard deviations to the mean costs k^2.
    shifted = mean + np.arange(8) * rates.std((0, 1))
    result = rate_r2(shifted, rates)
    np.testing.assert_allclose(result.per_neuron, -(np.arange(8.0) ** 2))
    assert result.mean == pytest.approx(-17.5)
    variance = rates.var((0, 1))
    assert result.pooled == pytest.approx(-(np.arange(8) ** 2 * variance).sum() / variance.sum())


def test_rate_r2_of_noise_of_known_size(rng: np.random.Generator, rates: NDArray) -> None:
    # Residuals of half the truth's sd: R2 = 3/4, with sampling error 1/4 sqrt(2 / n) per neuron.
    noisy = rates + 0.5 * rates.std((0, 1)) * rng.standard_normal(rates.shape)
    assert rate_r2(noisy, rates).mean == pytest.approx(0.75, abs=4 * 0.25 * np.sqrt(2 / rates.size))


@pytest.mark.parametrize("filler", [1e6, np.nan, -np.inf])
def test_filler_reaches_no_rate_score(
    ragged: xr.Dataset, rng: np.random.Generator, filler: float
) -> None:
    truth = ragged["rates"].values.astype(float)
    inferred = truth * np.exp(0.3 * rng.standard_normal(truth.shape))
    mask = entry_mask(ragged)
    result = rate_r2(
        with_filler(ragged, inferred, filler), with_filler(ragged, truth, -filler), mask
    )
    rows = ragged["valid"].values
    expected = rate_r2(inferred[rows], truth[rows])
    np.testing.assert_allclose(result.per_neuron, expected.per_neuron, rtol=1e-12)
    assert result.pooled == pytest.approx(expected.pooled, rel=1e-12)
    assert result.mean == pytest.approx(expected.mean, rel=1e-12)


def test_constant_neurons_are_left_out(rates: NDArray) -> None:
    truth = rates.copy()
    truth[..., 4] = 0.1 + 0.2
    result = rate_r2(0.9 * truth, truth)
    assert np.flatnonzero(np.isnan(result.per_neuron)).tolist() == [4]
    assert result.mean == pytest.approx(np.delete(result.per_neuron, 4).mean())
    with pytest.raises(ValueError, match="never varies"):
        rate_r2(rates, np.ones(rates.shape))
    with pytest.raises(ValueError, match=r"truth is nan at \(0, 0, 0\)"):
        rate_r2(rates, np.where(truth == truth[0, 0, 0], np.nan, truth))


# --- the benchmark with a known ceiling ---------------------------------------------------------


def test_oracle_of_the_lorenz_benchmark() -> None:
    path = Path(os.environ.get("PYRODYN_DATA", "")) / "lorenz_lfads_truth/lorenz_lfads_truth.npz"
    if "PYRODYN_DATA" not in os.environ or not path.exists():
        pytest.skip("lorenz_lfads_truth is not in the directory PYRODYN_DATA")
    with np.load(path, allow_pickle=False) as data:
        counts, rates = data["valid_data"], 0.01 * data["valid_truth"].astype(float)
        train_mean = data["train_data"].mean((0, 1))
    assert bits_per_spike(rates, counts) == pytest.approx(0.9585, abs=5e-4)
    assert bits_per_spike(rates, counts, null=train_mean) == pytest.approx(0.9624, abs=5e-4)
    assert rate_r2(rates, rates).pooled == 1.0
