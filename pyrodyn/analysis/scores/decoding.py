"""Decoding of behaviour: ridge regression from rates, or other features, at a lag::

    b_{t+lag} ~ W' f_t + w_0,   minimising  sum |b - W' f - w_0|^2 + penalty |W|^2

The penalty is chosen by cross-validation over trials of the training set (folds of bins would leak,
since bins of one trial are correlated); the R2 is that of the test trials. Neither the features nor
the penalty are rescaled, as in the Neural Latents Benchmark (Pei et al. 2021, arXiv 2109.04463),
whose penalties, five folds and mean over behavioural quantities are the defaults here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pyrodyn.analysis.scores.rates import Array, Mask, mean_r2, paired_rows, r2

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-4, 0, 9))
"""Ridge penalties tried by default."""


class Decoding(NamedTuple):
    """Decoded behaviour of the test trials.

    Attributes:
        r2: mean of ``per_quantity``, leaving out NaN.
        per_quantity: ``(quantity,)`` R2; NaN for a constant quantity.
        penalty: the ridge penalty that was chosen on the training trials.
        predicted: ``(trial, time, quantity)`` in the bins of the test behaviour; NaN where the
            features ``lag`` bins earlier were not measured or lie outside the trial.
    """

    r2: float
    per_quantity: Array
    penalty: float
    predicted: Array


def decode(
    features_train: ArrayLike,
    behavior_train: ArrayLike,
    features_test: ArrayLike,
    behavior_test: ArrayLike,
    *,
    lag: int = 0,
    valid_train: ArrayLike | None = None,
    valid_test: ArrayLike | None = None,
    penalties: Sequence[float] = PENALTIES,
    num_folds: int = 5,
) -> Decoding:
    """Fit a ridge decoder on training trials and score it on test trials.

    Args:
        features_train: ``(trial, time, feature)`` rates, latents or smoothed spikes.
        behavior_train: ``(trial, time, quantity)``. Bins where any quantity is NaN are left out.
        features_test: features of the test trials.
        behavior_test: behaviour of the test trials.
        lag: bins by which behaviour follows the features; negative if it precedes them.
        valid_train: bool, ``(trial, time)``; false in unmeasured bins. Behaviour is used if its bin
            and the one ``lag`` earlier are valid.
        valid_test: the same for the test trials.
        penalties: ridge penalties to choose from.
        num_folds: folds of the cross-validation; trial i is in fold i modulo this number, fewer if
            there are fewer trials.

    Returns:
        R2 on the test trials, the chosen penalty and the predictions.

    Raises:
        ValueError: if shapes disagree, a used entry is not finite, fewer than two training trials
            have usable bins, or the lag leaves no bin.
    """
    train = _lagged(features_train, behavior_train, valid_train, lag)
    test = _lagged(features_test, behavior_test, valid_test, lag)
    features, behavior = paired_rows("features and behavior", *train)
    new_features, new_behavior = paired_rows("features and behavior", *test)

    trial = np.nonzero(train[2])[0]
    trials = np.unique(trial)
    if len(trials) < 2:
        raise ValueError(
            f"{len(trials)} training trial has usable bins; cross-validation needs two"
        )
    fold = np.searchsorted(trials, trial) % min(num_folds, len(trials))
    scores = np.zeros(len(penalties))
    for held_out in np.unique(fold):
        rest = fold != held_out
        maps = ridge_path(features[rest], behavior[rest], penalties)
        for index, (weights, intercept) in enumerate(maps):
            predicted = features[~rest] @ weights + intercept
            # A quantity that is constant in this fold is NaN for every penalty alike.
            scores[index] += np.nansum(r2(predicted, behavior[~rest]))
    penalty = penalties[int(np.argmax(scores))]

    weights, intercept = ridge(features, behavior, penalty)
    per_quantity = r2(new_features @ weights + intercept, new_behavior)
    return Decoding(
        mean_r2(per_quantity),
        per_quantity,
        penalty,
        _predictions(features_test, valid_test, lag, weights, intercept),
    )


def ridge(features: Array, targets: Array, penalty: float) -> tuple[Array, Array]:
    """Ridge regression with an unpenalised intercept.

    Args:
        features: ``(row, feature)``.
        targets: ``(row, target)``.
        penalty: factor of the squared weights, added to the squared errors; 0 gives least squares,
            of least norm if features are linearly dependent.

    Returns:
        Weights ``(feature, target)`` and intercepts ``(target,)``.
    """
    return ridge_path(features, targets, [penalty])[0]


def ridge_path(
    features: Array, targets: Array, penalties: Sequence[float]
) -> list[tuple[Array, Array]]:
    """`ridge` for several penalties from one singular value decomposition.

    With centred features F = U S V' the weights are V (S / (S^2 + penalty)) U' targets.

    Args:
        features: ``(row, feature)``.
        targets: ``(row, target)``.
        penalties: as in `ridge`.

    Returns:
        Weights and intercepts per penalty.
    """
    centre, offset = features.mean(0), targets.mean(0)
    left, singular, right = np.linalg.svd(features - centre, full_matrices=False)
    rank = singular > max(features.shape) * np.finfo(float).eps * singular.max(initial=0)
    left, singular, right = left[:, rank], singular[rank], right[rank]
    projected = left.T @ (targets - offset)
    maps = []
    for penalty in penalties:
        weights = right.T @ ((singular / (singular**2 + penalty))[:, None] * projected)
        maps.append((weights, offset - centre @ weights))
    return maps


def _lagged(
    features: ArrayLike, behavior: ArrayLike, valid: ArrayLike | None, lag: int
) -> tuple[Array, Array, Mask]:
    """Features, the behaviour ``lag`` bins later, and a mask of the usable pairs."""
    first, second = np.asarray(features, float), np.asarray(behavior, float)
    measured = np.ones(second.shape[:2], bool) if valid is None else np.asarray(valid, bool)
    if (
        first.ndim != 3
        or second.ndim != 3
        or not first.shape[:2] == second.shape[:2] == measured.shape
    ):
        raise ValueError(
            f"features {first.shape}, behavior {second.shape} and valid {measured.shape} must be "
            "(trial, time, feature), (trial, time, quantity) and (trial, time)"
        )
    early, late = _shifts(first.shape[1], lag)
    later = second[:, late]
    usable = measured[:, early] & measured[:, late] & ~np.isnan(later).any(-1)
    return first[:, early], later, usable


def _shifts(num_bins: int, lag: int) -> tuple[slice, slice]:
    """Bins of the features and, ``lag`` later, of the behaviour."""
    if abs(lag) >= num_bins:
        raise ValueError(f"lag is {lag}; it must be shorter than the {num_bins} bins of a trial")
    features = slice(max(0, -lag), num_bins - max(0, lag))
    return features, slice(features.start + lag, features.stop + lag)


def _predictions(
    features: ArrayLike, valid: ArrayLike | None, lag: int, weights: Array, intercept: Array
) -> Array:
    """Decoded behaviour in the trial's bins, NaN where nothing can be decoded."""
    given = np.asarray(features, float)
    early, late = _shifts(given.shape[1], lag)
    measured = np.ones(given.shape[:2], bool) if valid is None else np.asarray(valid, bool)
    decoded = np.where(measured[..., None], given, 0.0) @ weights + intercept
    predicted = np.full(decoded.shape, np.nan)
    predicted[:, late] = np.where(measured[..., None], decoded, np.nan)[:, early]
    return predicted
