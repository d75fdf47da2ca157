"""Fixed points and short cycles of the dynamics that a model has learned.

For a low-rank network with piecewise-linear units the list is complete and certified, see
`certified`: no start points, no tolerance, and a statement of what was searched. For all other
dynamics it is what a search from many states reaches, see `fixed_point_search`.
"""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from pyrodyn.analysis.dynamics import dynamics_of, held_inputs, states_for
from pyrodyn.analysis.fixed_points.certified import PiecewiseLinear, fixed_points_of
from pyrodyn.analysis.fixed_points.newton import search_fixed_points
from pyrodyn.data.arguments import check_integer
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.low_rank_rnn import LowRankRNN
from pyrodyn.nn.activations import LEAK

PIECEWISE_LINEAR: dict[str, Callable[..., PiecewiseLinear]] = {
    "relu": PiecewiseLinear.relu,
    "leaky_relu": partial(PiecewiseLinear.leaky_relu, leak=LEAK),
    "clipped_relu": PiecewiseLinear.clipped_relu,
    "hard_tanh": PiecewiseLinear.hard_tanh,
}
"""Activations whose networks are enumerated."""


def fixed_points(
    model_or_dynamics: object,
    *,
    inputs: ArrayLike | None = None,
    region: tuple[ArrayLike, ArrayLike] | None = None,
    starts: ArrayLike | Tensor | None = None,
    num_starts: int = 512,
    noise: float = 1.0,
    tolerance: float = 1e-9,
    seed: int = 0,
    period: int = 1,
    max_seconds: float | None = 60.0,
    max_boxes: int = 1_000_000,
) -> xr.Dataset:
    """Fixed points of noiseless dynamics: all of them where they can be enumerated, else those that
    a search finds.

    A low-rank network of piecewise-linear units (relu, leaky relu, clipped relu, hard tanh),
    z = a z + n phi(m z + W_u v), is enumerated and needs no starts. Everything else is searched; to
    search such a network too, hand over its ``dynamics()``.

    Args:
        model_or_dynamics: a model of the zoo, dynamics, or a network without a model, as
            `certified.PiecewiseLinear`, constant input included.
        inputs: held constant, ``(input,)``; 0 by default.
        region: lower and upper corner of the box to look in, ``(state,)`` each. By default, for
            an enumeration, a box that provably holds every fixed point, where there is one; for a
            search, the box of all visited states widened by three times its own width to each side.
        starts: search: visited states, ``(..., state)``, such as those of a free run or of
            posterior draws. Half of the search begins at some of them, half around them. May be
            left out where there is a region: the search then begins all over it.
        num_starts: search: how many states it begins at.
        noise: search: standard deviation of the noise of the second half, in standard deviations
            of the visited states.
        tolerance: search: residual of a fixed point, as part of 1 + its largest entry.
        seed: search: draws the starts.
        period: enumeration: 1; 2 or 3 for cycles that close after so many bins.
        max_seconds: stop after this time with what is found by then; None for no limit.
        max_boxes: enumeration: stop after so many boxes.

    Returns:
        Points, eigenvalues, stability and residuals. Of an enumeration as
        `certified.fixed_points_of` describes them, with ``complete`` and what was searched among
        the attributes; the coordinate ``neuron`` counts the network's units. Of a search as
        `fixed_point_search.search_fixed_points` does, with slow points apart. The attribute
        ``kind`` is "map" or "flow".

    Raises:
        ValueError: for a model without dynamics, inputs, starts or a region that do not fit it, and
            a search without starts or for cycles.
    """
    network = model = model_or_dynamics
    if (
        isinstance(model, LowRankRNN)
        and not model.is_full_rank
        and model.activation in PIECEWISE_LINEAR
    ):
        network = _network_of(model, inputs)
    elif isinstance(network, PiecewiseLinear) and inputs is not None:
        raise ValueError("a PiecewiseLinear network holds its constant input; leave inputs out")
    if isinstance(network, PiecewiseLinear):
        found = fixed_points_of(
            network, region=region, period=period, max_seconds=max_seconds, max_boxes=max_boxes
        )
        found.attrs["kind"] = "map"
        return found
    dynamics = dynamics_of(model)
    if period != 1:
        raise ValueError(
            f"period={period}: cycles are enumerated for low-rank networks with"
            f" {', '.join(PIECEWISE_LINEAR)} units alone; leave period at 1 for a search"
        )
    check_integer(1, num_starts=num_starts)
    check_integer(0, seed=seed)
    if not noise >= 0 or not tolerance > 0:
        raise ValueError(f"noise={noise} must be at least 0 and tolerance={tolerance} above 0")
    held = held_inputs(dynamics, inputs)
    lower, upper, first = _starts(dynamics, starts, region, num_starts, noise, seed)
    found = search_fixed_points(
        dynamics, first, held, lower=lower, upper=upper, tolerance=tolerance,
        max_seconds=max_seconds,
    )  # fmt: skip
    found.attrs |= {"noise": noise, "seed": seed}
    return found


def _starts(
    dynamics: Dynamics,
    visited: ArrayLike | Tensor | None,
    region: tuple[ArrayLike, ArrayLike] | None,
    num_starts: int,
    noise: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of the box in which points count, and where the search begins."""
    rng = np.random.default_rng(seed)
    corners = None if region is None else _corners(dynamics, region)
    if visited is None:
        if corners is None:
            raise ValueError(
                "a search needs starts: give visited states of shape"
                f" (..., {dynamics.state_dim}), or a region to search all over"
            )
        lower, upper = corners
        first = rng.uniform(lower, upper, (num_starts, dynamics.state_dim))
        return torch.from_numpy(lower), torch.from_numpy(upper), torch.from_numpy(first)
    states = states_for(dynamics, visited, "starts").numpy()
    low, high = states.min(0), states.max(0)
    spread = states.std(0)
    if not spread.any():  # one state says nothing of how far to look
        spread = np.ones_like(spread)
        low, high = low - 1, high + 1
    # Directions that were never visited are looked at too, if not as far.
    spread = np.maximum(spread, 0.1 * spread.max())
    chosen = states[rng.integers(len(states), size=num_starts)]
    if len(states) >= num_starts:
        chosen = states[rng.permutation(len(states))[:num_starts]]
    num_noisy = num_starts // 2
    chosen[:num_noisy] += noise * spread * rng.standard_normal((num_noisy, len(spread)))
    if corners is None:
        width = np.maximum(high - low, spread)
        corners = low - 3 * width, high + 3 * width
    return torch.from_numpy(corners[0]), torch.from_numpy(corners[1]), torch.from_numpy(chosen)


def _corners(
    dynamics: Dynamics, region: tuple[ArrayLike, ArrayLike]
) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = (np.array(corner, float) for corner in region)
    wanted = (dynamics.state_dim,)
    is_box = lower.shape == upper.shape == wanted and bool((lower < upper).all())
    if not is_box or not np.isfinite([lower, upper]).all():
        raise ValueError(
            f"region must be a lower and an upper corner of shape {wanted}, finite, with lower <"
            " upper in every direction"
        )
    return lower, upper


def _network_of(model: LowRankRNN, inputs: ArrayLike | None) -> PiecewiseLinear:
    """A model's network under held inputs, in double precision as its `dynamics_of`."""
    model = copy.deepcopy(model).double()
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
    return PIECEWISE_LINEAR[model.activation](a, n, m, threshold, input_weights @ held)
