"""All scores that a recording allows of one prediction of its rates."""

import xarray as xr
from numpy.typing import ArrayLike

from pyrodyn.analysis.scores.decoding import decode
from pyrodyn.analysis.scores.rates import (
    aligned,
    entry_mask,
    rate_r2,
    recording_bits_per_spike,
)
from pyrodyn.data.schema import Block, blocks


def prediction_scores(
    train: xr.Dataset,
    test: xr.Dataset,
    rates_train: ArrayLike | None,
    rates_test: ArrayLike,
    *,
    lag: int = 0,
) -> dict[str, float]:
    """Scores of the rates that a model, or anything else, predicts for test trials.

    ::

        predicted = pyrodyn.predict(fit, train)["rates"], pyrodyn.predict(fit, test)["rates"]
        scores = prediction_scores(train, test, *predicted)

    Args:
        train: trials with which a decoder of behaviour is fitted.
        test: trials to score, of counts or a signal.
        rates_train: expected observations per bin of ``train``, shaped as its observations; needed
            only where behaviour is decoded.
        rates_test: the same of ``test``.
        lag: bins by which behaviour follows the rates, as in `decode`.

    Returns:
        The columns of `baselines`, each where it can be computed: ``co_smoothing`` of the held-out
        neurons, in bits per spike (of a signal: R2, the mean over held-out channels); ``rate_r2``,
        pooled over all neurons, if the true rates are known; ``behavior_r2``, decoded from the
        rates of all neurons, if there is behaviour.

    Raises:
        ValueError: for a recording of both counts and a signal, and rates of another shape.
    """
    block = only_block(test)
    scores: dict[str, float] = {}
    if block.held_out in test.coords and test[block.held_out].any():
        scores["co_smoothing"] = _co_smoothing(rates_test, test)
    if block.rates in test:
        scores["rate_r2"] = rate_r2(rates_test, test[block.rates], entry_mask(test)).pooled
    if "behavior" in train and "behavior" in test and rates_train is not None:
        scores["behavior_r2"] = decode(
            rates_train,
            train["behavior"],
            rates_test,
            test["behavior"],
            lag=lag,
            valid_train=entry_mask(train).any(block.unit),
            valid_test=entry_mask(test).any(block.unit),
        ).r2
    return scores


def only_block(recording: xr.Dataset) -> Block:
    """The observed variable of a recording that has one.

    Raises:
        ValueError: for a recording of both counts and a signal.
    """
    observed = blocks(recording)
    if len(observed) > 1:
        raise ValueError(
            "the recording holds counts and a signal; scores and baselines need one of them, which"
            " pyrodyn.data.select_modality selects"
        )
    return observed[0]


def _co_smoothing(rates: ArrayLike, test: xr.Dataset) -> float:
    if "counts" in test:
        return recording_bits_per_spike(rates, test, "held_out")
    mask = entry_mask(test, "held_out").values
    predicted, recorded, kept = aligned("rates", rates, "signal", test["signal"].values, mask)
    hidden = test["held_out"].values
    return rate_r2(predicted[..., hidden], recorded[..., hidden], kept[..., hidden]).mean
