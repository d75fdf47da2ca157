"""Poisson regression of many neurons on shared features, with a ridge penalty::

    x_rk ~ Poisson(exp(w_k' f_r + b_k)),   minimising  -sum log p(x) + penalty / 2 sum |w_k|^2

All neurons are fitted at once by L-BFGS, in coordinates in which the curvature of each neuron's
loss is close to the identity at its mean rate.
"""

import numpy as np
from scipy.optimize import minimize

from pyrodyn.analysis.scores.rates import Array, Mask

LARGEST_LOG_RATE = 10.0
"""Log rates are limited to this value while the weights are searched for, and afterwards."""

MAX_ITERATIONS = 100


def poisson_regression(
    features: Array, counts: Array, penalty: float, mask: Mask | None = None
) -> tuple[Array, Array]:
    """Weights and intercepts of log rates.

    Args:
        features: ``(row, feature)``.
        counts: ``(row, neuron)`` spike counts.
        penalty: precision of the normal prior of the weights; intercepts are not penalised.
        mask: bool, ``(row, neuron)``; false for counts to leave out.

    Returns:
        Weights ``(feature, neuron)`` and intercepts ``(neuron,)``. A neuron without a spike has
        weights of 0 and the rate of half a spike in all its rows.
    """
    kept = np.ones(counts.shape) if mask is None else mask.astype(float)
    spikes = np.where(kept > 0, counts, 0.0)
    num_rows = np.maximum(kept.sum(0), 1.0)
    mean = np.maximum(spikes.sum(0), 0.5) / num_rows
    centre = features.mean(0)
    squares, axes = np.linalg.eigh((features - centre).T @ (features - centre))
    rotated = (features - centre) @ axes
    # Rows that a neuron lacks are taken to have the features of the others.
    fraction = num_rows / len(features)
    curvature = np.maximum(squares, 0.0)[:, None] * mean * fraction + penalty
    scale = 1 / np.sqrt(np.maximum(curvature, 1e-12))
    start_scale = 1 / np.sqrt(mean * num_rows)
    num_features, num_neurons = scale.shape

    def unpacked(values: Array) -> tuple[Array, Array]:
        table = values.reshape(num_features + 1, num_neurons)
        return table[:-1] * scale, np.log(mean) + table[-1] * start_scale

    def loss(values: Array) -> tuple[float, Array]:
        weights, intercepts = unpacked(values)
        log_rates = np.minimum(rotated @ weights + intercepts, LARGEST_LOG_RATE)
        rates = kept * np.exp(log_rates)
        residual = rates - spikes
        value = rates.sum() - (spikes * log_rates).sum() + penalty / 2 * np.square(weights).sum()
        gradient = np.concatenate(
            [
                (rotated.T @ residual + penalty * weights) * scale,
                (residual.sum(0) * start_scale)[None],
            ]
        )
        return float(value), gradient.ravel()

    silent = spikes.sum(0) == 0
    found = minimize(
        loss,
        np.zeros((num_features + 1) * num_neurons),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "maxcor": 20},
    )
    weights, intercepts = unpacked(found.x)
    weights, intercepts = np.where(silent, 0.0, weights), np.where(silent, np.log(mean), intercepts)
    weights = axes @ weights
    return weights, intercepts - centre @ weights


def poisson_rates(features: Array, weights: Array, intercepts: Array) -> Array:
    """Expected counts ``(..., neuron)`` of features ``(..., feature)``."""
    rates: Array = np.exp(np.minimum(features @ weights + intercepts, LARGEST_LOG_RATE))
    return rates
