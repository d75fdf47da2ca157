"""Fixed points and short cycles of the dynamics that a model has learned.

For a low-rank network with piecewise-linear units the list is complete and certified, see
`certified`: no start points, no tolerance, and a statement of what was searched.
"""

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from pyrodyn.analysis.certified import PiecewiseLinear, fixed_points_of
from pyrodyn.models.low_rank_rnn import LowRankRNN


def fixed_points(
    model: LowRankRNN,
    *,
    inputs: ArrayLike | None = None,
    region: tuple[ArrayLike, ArrayLike] | None = None,
    period: int = 1,
    max_seconds: float | None = 60.0,
    max_boxes: int = 1_000_000,
) -> xr.Dataset:
    """All fixed points of a model's noiseless dynamics, z = a z + n phi(m z + W_u v).

    Args:
        model: a low-rank network with relu or clipped relu units.
        inputs: v, held constant, ``(input,)``; 0 by default.
        region: lower and upper corner of the box of latents to search, ``(latent,)`` each; by
            default a box that provably holds every fixed point, where there is one.
        period: 1; 2 or 3 for cycles that close after so many bins.
        max_seconds: stop after this time with what is certified by then; None for no limit.
        max_boxes: stop after so many boxes.

    Returns:
        Points, eigenvalues, stability, residuals and regions as `certified.fixed_points_of`
        describes them, with ``complete`` and what was searched among the attributes; the
        coordinate ``neuron`` counts the network's units.

    Raises:
        ValueError: for a model that is not piecewise linear and low-rank, or inputs of the wrong
            number.
    """
    if not isinstance(model, LowRankRNN) or model.is_full_rank:
        raise ValueError(
            f"{type(model).__name__} is no low-rank network; certified fixed points need"
            " LowRankRNN(is_full_rank=False)"
        )
    kinds = {"relu": PiecewiseLinear.relu, "clipped_relu": PiecewiseLinear.clipped_relu}
    if model.activation not in kinds:
        raise ValueError(
            f"activation={model.activation!r} has no kinks to enumerate; certified fixed points"
            f" need one of {', '.join(kinds)}"
        )
    num_inputs = model.input_weights.shape[1]
    held = np.zeros(num_inputs) if inputs is None else np.asarray(inputs, float)
    if held.shape != (num_inputs,) or not np.isfinite(held).all():
        raise ValueError(
            f"inputs must be {num_inputs} finite numbers, one per input held constant, not"
            f" {inputs!r}"
        )
    with torch.no_grad():
        a, n, m, threshold, input_weights = (
            tensor.double().cpu().numpy()
            for tensor in (
                model.decay().expand(model.n.shape[0]),
                model.n,
                model.m,
                model.threshold,
                model.input_weights,
            )
        )
    network = kinds[model.activation](a, n, m, threshold, input_weights @ held)
    return fixed_points_of(
        network, region=region, period=period, max_seconds=max_seconds, max_boxes=max_boxes
    )
