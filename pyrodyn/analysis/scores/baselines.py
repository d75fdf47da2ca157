"""Baselines: plain predictions of held-out neurons or channels, to stand beside a model's score.

Of spike counts, each from the visible neurons of the test trial unless stated otherwise:

- condition average: the average training trial of the condition, see `condition_psth`. It uses the
  trial's label and no spike. Without conditions it is the average over all trials.
- templates: these averages, mixed by the probability of each condition given the visible counts,
  p(c | x) ~ prod Poisson(x | average_c).
- Poisson GLM: regression of each held-out neuron on the smoothed visible neurons and on cosines of
  the time in the trial. Features of all regressions are square roots of rates, which stabilises
  their variance, and these cosines.
- principal components: regression of all neurons on the first components of these features.
- linear dynamical system: regression of all neurons on what a system fitted to the standardised
  visible neurons by EM expects of these neurons, by its Kalman smoother, in place of the smoothed
  counts.

Of a signal: the condition average, and ridge regression from the visible channels.

Widths of kernels, numbers of dimensions and penalties are chosen on every fifth training trial;
then all training trials are fitted. Test trials are used for the scores alone.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from pyrodyn.analysis.scores.decoding import decode
from pyrodyn.analysis.scores.linear_dynamics import fit_linear_dynamics, smoothed_states
from pyrodyn.analysis.scores.poisson_regression import poisson_rates, poisson_regression
from pyrodyn.analysis.scores.prediction import only_block, prediction_scores
from pyrodyn.analysis.scores.psth import condition_averages, condition_psth, smooth
from pyrodyn.analysis.scores.rates import SMALLEST_RATE, Array, Mask, entry_mask, mean_r2, r2
from pyrodyn.data.schema import blocks, measured

WIDTHS = (0.03, 0.06, 0.12, 0.25, 0.5)
"""Standard deviations of the smoothing kernel in seconds."""

DIMS = (4, 8, 16, 32)
"""Numbers of principal components; the linear dynamical system has at most `MOST_STATES`."""

MOST_STATES = 16

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Precisions of the weights of features whose mean variance is 1, tried by the Poisson GLM."""

COMPONENTS_PENALTY, STATES_PENALTY = 1.0, 100.0
"""Those of the other two regressions, whose dimension is chosen."""

SMALLEST_SD, SMALLEST_EXPECTED = 1e-2, 1e-3
"""Bounds on a neuron's standard deviation, and on a linear prediction of its count."""

ROWS_TO_CHOOSE = 10_000
"""Bins of training trials with which widths, dimensions and penalties are chosen."""

COSINES = 10
"""Functions of the time in the trial among the features of a regression."""

RIDGE = tuple(float(penalty) for penalty in np.logspace(-2, 6, 9))
"""Penalties of the regression of channels."""


class _Spikes(NamedTuple):
    """Counts of a recording, and what a baseline may read of them."""

    counts: Array
    measured: Mask
    is_visible: Mask
    """``(trial, time, visible neuron)``; false in forecast bins, too."""
    held_out: Mask
    """``(neuron,)``"""
    bin_width: float

    @property
    def visible(self) -> Array:
        return self.counts[..., ~self.held_out]

    def trials(self, chosen: Mask) -> "_Spikes":
        """Some of the trials."""
        return self._replace(
            counts=self.counts[chosen],
            measured=self.measured[chosen],
            is_visible=self.is_visible[chosen],
        )


Features = Callable[[_Spikes], Array]
"""From the visible neurons to ``(trial, time, feature)``."""


class _Candidate(NamedTuple):
    """One choice of a regression's features and penalty."""

    features: Callable[[_Spikes], Features]
    """Fits what the features need to the training trials."""
    penalty: float


def baselines(train: xr.Dataset, test: xr.Dataset, *, lag: int = 0) -> pd.DataFrame:
    """Scores of the baselines on test trials.

    Args:
        train: trials to fit, of counts or a signal, with ``held_out`` neurons or channels (see
            `pyrodyn.data.held_out`).
        test: other trials of the same recording.
        lag: bins by which ``behavior`` follows the rates, as in `decode`.

    Returns:
        One row per baseline, one column per score of `prediction_scores` (of a signal only
        ``co_smoothing``). The rates of the visible neurons are their smoothed counts in the Poisson
        GLM, and predictions in the others. The condition average is NaN if a test condition has no
        training trial.

    Raises:
        ValueError: for a recording of both counts and a signal, without held-out neurons or
            channels, or with fewer than five training trials.
    """
    for part in (train, test):
        only_block(part)
        entry_mask(part, "held_out")
    if train.sizes["trial"] < 5:
        raise ValueError(
            f"{train.sizes['trial']} training trials; baselines need five, to choose penalties"
        )
    if "signal" in train:
        return _of_signal(train, test)
    rows = {
        name: _scores(train, test, predict, lag)
        for name, predict in (
            ("condition average", _condition_average),
            ("templates", _templates),
            ("Poisson GLM", _from_smoothed),
            ("principal components", _from_components),
            ("linear dynamical system", _from_states),
        )
    }
    return pd.DataFrame(rows, dtype=float).T.rename_axis("baseline")


# ------------------------------------------------------------------ counts

Rates = tuple[Array, Array]
"""Expected counts of all neurons in training and test trials."""


def _scores(
    train: xr.Dataset,
    test: xr.Dataset,
    predict: Callable[[xr.Dataset, xr.Dataset], Rates | None],
    lag: int,
) -> dict[str, float]:
    rates = predict(train, test)
    return {} if rates is None else prediction_scores(train, test, *rates, lag=lag)


def _condition_average(train: xr.Dataset, test: xr.Dataset) -> Rates | None:
    if "condition" not in train or "condition" not in test:
        train, test = (
            part.assign(condition=("trial", np.zeros(part.sizes["trial"], int)))
            for part in (train, test)
        )
    if np.setdiff1d(test["condition"], train["condition"]).size:
        return None
    return condition_psth(train, train).values, condition_psth(train, test).values


def _templates(train: xr.Dataset, test: xr.Dataset) -> Rates | None:
    if "condition" not in train:
        return _condition_average(train, test)
    _, averages = condition_averages(train)

    def mixed(recording: xr.Dataset) -> Array:
        spikes = _spikes(recording)
        expected = np.maximum(averages[..., ~spikes.held_out], SMALLEST_RATE)
        counts, seen = np.where(spikes.is_visible, spikes.visible, 0), spikes.is_visible
        log_p = np.einsum("ntk,ctk->nc", counts, np.log(expected))
        log_p -= np.einsum("ntk,ctk->nc", seen.astype(float), expected)
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        return np.einsum("nc,ctk->ntk", p / p.sum(1, keepdims=True), averages)

    return mixed(train), mixed(test)


def _from_smoothed(train: xr.Dataset, test: xr.Dataset) -> Rates:
    def smoothed(width: float) -> Callable[[_Spikes], Features]:
        return lambda _: lambda spikes: np.sqrt(_smooth_visible(spikes, width))

    candidates = [
        (width, _Candidate(smoothed(width), penalty))
        for width, penalty in itertools.product(WIDTHS, PENALTIES)
    ]
    parts = _spikes(train), _spikes(test)
    hidden = parts[0].held_out
    width, candidate = _best(parts[0], candidates)

    def with_visible(spikes: _Spikes, predicted: Array) -> Array:
        rates = np.empty(spikes.counts.shape)
        rates[..., hidden] = predicted
        rates[..., ~hidden] = _smooth_visible(spikes, width)
        return rates

    on_train, on_test = _predicted(*parts, candidate, hidden)
    return with_visible(parts[0], on_train), with_visible(parts[1], on_test)


def _from_components(train: xr.Dataset, test: xr.Dataset) -> Rates:
    def components(width: float, dim: int) -> Callable[[_Spikes], Features]:
        def fitted(spikes: _Spikes) -> Features:
            rows = np.sqrt(_smooth_visible(spikes, width)[spikes.measured.any(-1)])
            centre = rows.mean(0)
            axes = np.linalg.eigh((rows - centre).T @ (rows - centre))[1][:, ::-1][:, :dim]
            return lambda spikes: (np.sqrt(_smooth_visible(spikes, width)) - centre) @ axes

        return fitted

    spikes = _spikes(train)
    dims = [dim for dim in DIMS if dim <= spikes.visible.shape[-1]] or [1]
    candidates = [
        (0.0, _Candidate(components(width, dim), COMPONENTS_PENALTY))
        for width, dim in itertools.product(WIDTHS, dims)
    ]
    chosen = _best(spikes, candidates)[1]
    return _predicted(spikes, _spikes(test), chosen, np.ones_like(spikes.held_out))


def _from_states(train: xr.Dataset, test: xr.Dataset) -> Rates:
    def states(dim: int) -> Callable[[_Spikes], Features]:
        def fitted(spikes: _Spikes) -> Features:
            rows = spikes.visible[spikes.is_visible.all(-1)]
            mean, sd = rows.mean(0), np.maximum(rows.std(0), SMALLEST_SD)

            def standard(spikes: _Spikes) -> tuple[Array, Mask]:
                return (spikes.visible - mean) / sd, spikes.is_visible.all(-1)

            system = fit_linear_dynamics(*standard(spikes), dim)

            def expected(spikes: _Spikes) -> Array:
                latents = smoothed_states(system, *standard(spikes)).mean
                rates = mean + sd * (latents @ system.C.T + system.d)
                return np.sqrt(np.maximum(rates, SMALLEST_EXPECTED))

            return expected

        return fitted

    spikes = _spikes(train)
    most = min(MOST_STATES, spikes.visible.shape[-1])
    dims = [dim for dim in DIMS if dim <= most] or [1]
    candidates = [(0.0, _Candidate(states(dim), STATES_PENALTY)) for dim in dims]
    chosen = _best(spikes, candidates)[1]
    return _predicted(spikes, _spikes(test), chosen, np.ones_like(spikes.held_out))


def _spikes(recording: xr.Dataset) -> _Spikes:
    (block,) = blocks(recording)
    mask = measured(recording, block)
    held_out = recording["held_out"].values.astype(bool)
    forecast = recording.coords.get("forecast", xr.DataArray(False)).astype(bool)
    readable = (mask & ~forecast.drop_vars(forecast.coords)).transpose(*block.dims)
    return _Spikes(
        recording["counts"].values.astype(float),
        mask.values,
        readable.values[..., ~held_out],
        held_out,
        float(recording.attrs["bin_width"]),
    )


def _smooth_visible(spikes: _Spikes, width: float) -> Array:
    return smooth(spikes.visible, spikes.bin_width, width, spikes.is_visible)


def _best(
    spikes: _Spikes, candidates: Iterable[tuple[float, _Candidate]]
) -> tuple[float, _Candidate]:
    """The candidate of the highest likelihood of the held-out neurons in every fifth trial."""
    num_trials, num_bins = spikes.counts.shape[:2]
    some = np.arange(num_trials)[: max(5, ROWS_TO_CHOOSE // num_bins)]
    spikes = spikes.trials(np.isin(np.arange(num_trials), some))
    is_judged = some % 5 == 4
    fitted, judged = spikes.trials(~is_judged), spikes.trials(is_judged)
    hidden = spikes.held_out
    counts, mask = judged.counts[..., hidden], judged.measured[..., hidden]

    def log_likelihood(candidate: _Candidate) -> float:
        rates = np.maximum(_predicted(fitted, judged, candidate, hidden)[1], SMALLEST_RATE)
        return float(np.where(mask, counts * np.log(rates) - rates, 0.0).sum())

    return max(candidates, key=lambda named: log_likelihood(named[1]))


def _predicted(train: _Spikes, test: _Spikes, candidate: _Candidate, neurons: Mask) -> Rates:
    """Expected counts of some neurons by Poisson regression on a candidate's features, at most the
    largest count of each in training (an exponential extrapolates far).
    """
    features = candidate.features(train)
    rows = train.measured.any(-1)
    scale = np.sqrt(features(train)[rows].var(0).mean()) or 1.0
    on_train, on_test = (
        _with_time(features(part) / scale, np.sqrt(candidate.penalty)) for part in (train, test)
    )
    counts, mask = train.counts[rows][:, neurons], train.measured[rows][:, neurons]
    fitted = poisson_regression(on_train[rows], counts, candidate.penalty, mask)
    largest = np.maximum(np.where(mask, counts, 0.0).max(0), 1.0)
    predicted = (poisson_rates(features, *fitted) for features in (on_train, on_test))
    rates_on_train, rates_on_test = (np.minimum(rates, largest) for rates in predicted)
    return rates_on_train, rates_on_test


def _with_time(features: Array, size: float) -> Array:
    """Features ``(trial, time, feature)`` and cosines of the time, of standard deviation ``size``:
    the larger, the less a penalty shrinks their weights.
    """
    num_trials, num_bins = features.shape[:2]
    frequencies = np.arange(1, min(COSINES, num_bins - 1) + 1)
    time = (np.arange(num_bins) + 0.5) / num_bins
    cosines = size * np.sqrt(2) * np.cos(np.pi * np.outer(time, frequencies))
    shape = (num_trials, *cosines.shape)
    return np.concatenate([features, np.broadcast_to(cosines, shape)], -1)


# ------------------------------------------------------------------ signals


def _of_signal(train: xr.Dataset, test: xr.Dataset) -> pd.DataFrame:
    held_out = train["held_out"].values.astype(bool)
    visible, hidden = (
        [part["signal"].values[..., chosen].astype(float) for part in (train, test)]
        for chosen in (~held_out, held_out)
    )
    valid = [entry_mask(part).values.all(-1) for part in (train, test)]
    scored = [
        v & ~part.coords.get("forecast", xr.DataArray(np.zeros(v.shape[1], bool))).values
        for v, part in zip(valid, (train, test), strict=True)
    ]
    regressed = decode(
        visible[0],
        hidden[0],
        visible[1],
        hidden[1],
        valid_train=scored[0],
        valid_test=scored[1],
        penalties=RIDGE,
    ).r2
    labels = [
        part["condition"].values if "condition" in part else np.zeros(part.sizes["trial"], int)
        for part in (train, test)
    ]
    average = np.nan
    if not np.setdiff1d(labels[1], labels[0]).size:
        kept = scored[0][..., None]
        predicted = np.empty(hidden[1].shape)
        for label in np.unique(labels[1]):
            trials = labels[0] == label
            total = np.where(kept, hidden[0], 0.0)[trials].sum(0)
            mean = total / np.maximum(kept[trials].sum(0), 1)
            predicted[labels[1] == label] = mean
        average = mean_r2(r2(predicted[scored[1]], hidden[1][scored[1]]))
    scores = {"condition average": average, "ridge regression": regressed}
    return pd.DataFrame({"co_smoothing": scores}).rename_axis("baseline")
