"""Fixed points and short cycles of the dynamics that a model has learned.

For low-rank networks and shallow PLRNNs with piecewise-linear units the list is complete and
certified, see `certified`: it needs no starting states and no tolerance, and states which region
was searched. For all other dynamics it contains what a search from many states reaches, see
`newton`.
"""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from scipy.spatial import KDTree
from torch import Tensor

from pyrodyn.analysis.dynamics import constant_inputs, dynamics_of, states_for
from pyrodyn.analysis.fixed_points.certified import PiecewiseLinear, fixed_points_of
from pyrodyn.analysis.fixed_points.newton import search_fixed_points
from pyrodyn.data.arguments import check_integer
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.kernels.activations import LEAK
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.low_rank_rnn import LowRankRNN
from pyrodyn.models.shallow_plrnn import ShallowPLRNN

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
    """Fixed points of noiseless dynamics: all of them if they can be enumerated, otherwise those
    that a search finds.

    A low-rank network of piecewise-linear units (relu, leaky relu, clipped relu, hard tanh),
    z = a z + n phi(m z + W_u v), and a `ShallowPLRNN` are enumerated and need no starts. The cost
    of an enumeration grows steeply with the number of latents: beyond about six it ends by
    ``max_seconds``, with ``complete`` 0. All other dynamics are searched; to search such a network
    too, pass `pyrodyn.analysis.dynamics_of` it.

    Args:
        model_or_dynamics: a model of the zoo, dynamics, or a network without a model, as
            `certified.PiecewiseLinear`, which contains its constant input.
        inputs: constant inputs, ``(input,)``; 0 by default.
        region: lower and upper corner of the box to search, ``(state,)`` each. By default, an
            enumeration uses a box that provably contains every fixed point, if any; a search uses
            the bounding box of all visited states, extended by three times its width on each side.
        starts: visited states, ``(..., state)``, such as those of a free run or of posterior draws.
            The result reports the distance of each point from them. Half of a search begins at some
            of them, half around them; it needs them unless it has a region, all over which it
            begins then.
        num_starts: search: number of initial states.
        noise: search: standard deviation of the noise added to the second half, in standard
            deviations of the visited states.
        tolerance: search: residual of a fixed point, relative to 1 + its largest entry.
        seed: search: seeds the initial states.
        period: enumeration: 1; 2 or 3 for cycles that close after that many bins.
        max_seconds: stop after so much processor time of the calling thread, with what is found by
            then; None for no limit.
        max_boxes: enumeration: stop after so many boxes.

    Returns:
        Points, eigenvalues, stability and residuals. For an enumeration as
        `certified.fixed_points_of` describes them, with ``complete`` and the searched region in the
        attributes; the coordinate ``neuron`` counts the network's units. For a search as
        `newton.search_fixed_points` does, with slow points apart. Given starts,
        ``distance_to_visited (fixed_point)`` is the Euclidean distance to the nearest visited
        state, and the attribute ``visited_radius`` the root mean square distance of the visited
        states from their mean, for scale: points far outside are extrapolations of the model.
        The attribute ``kind`` is "map" or "flow".

    Raises:
        ValueError: for a model without dynamics, for inputs, starts or a region that do not fit it,
            and for a search without starts or for cycles.
    """
    model = model_or_dynamics
    network = model = model.model if isinstance(model, Fit) else model
    if isinstance(model, ShallowPLRNN) or (
        isinstance(model, LowRankRNN)
        and not model.is_full_rank
        and model.activation in PIECEWISE_LINEAR
    ):
        network = _network_of(model, inputs)
    elif isinstance(network, PiecewiseLinear) and inputs is not None:
        raise ValueError("a PiecewiseLinear network holds its constant input; leave inputs out")
    if isinstance(network, PiecewiseLinear):
        visited = None if starts is None else states_for(len(network.n), starts, "starts")
        found = fixed_points_of(
            network, region=region, period=period, max_seconds=max_seconds, max_boxes=max_boxes
        )
        found.attrs["kind"] = "map"
        return found if visited is None else _with_distances(found, visited.numpy())
    dynamics = dynamics_of(model)
    if period != 1:
        raise ValueError(
            f"period={period}: cycles are enumerated for low-rank networks with"
            f" {', '.join(PIECEWISE_LINEAR)} units and shallow PLRNNs alone; leave period at 1 to"
            " search"
        )
    check_integer(1, num_starts=num_starts)
    check_integer(0, seed=seed)
    if not noise >= 0 or not tolerance > 0:
        raise ValueError(f"noise={noise} must be at least 0 and tolerance={tolerance} above 0")
    inputs = constant_inputs(dynamics, inputs)
    visited = None if starts is None else states_for(dynamics.state_dim, starts, "starts")
    lower, upper, initial = _initial_states(dynamics, visited, region, num_starts, noise, seed)
    found = search_fixed_points(
        dynamics, initial, inputs, lower=lower, upper=upper, tolerance=tolerance,
        max_seconds=max_seconds,
    )  # fmt: skip
    found.attrs |= {"noise": noise, "seed": seed}
    return found if visited is None else _with_distances(found, visited.numpy())


def _with_distances(found: xr.Dataset, visited: np.ndarray) -> xr.Dataset:
    """The result with each point's distance to the nearest visited state."""
    points = found["point"]
    distance, _ = KDTree(visited).query(points.values.reshape(-1, visited.shape[1]))
    found["distance_to_visited"] = points.dims[:-1], distance.reshape(points.shape[:-1])
    found.attrs["visited_radius"] = float(np.sqrt(visited.var(0).sum()))
    return found


def _initial_states(
    dynamics: Dynamics,
    visited: Tensor | None,
    region: tuple[ArrayLike, ArrayLike] | None,
    num_starts: int,
    noise: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of the box in which points count, and the initial states of the search."""
    rng = np.random.default_rng(seed)
    corners = None if region is None else _corners(dynamics, region)
    if visited is None:
        if corners is None:
            raise ValueError(
                "a search needs starts: give visited states of shape"
                f" (..., {dynamics.state_dim}), or a region to search all over"
            )
        lower, upper = corners
        initial = rng.uniform(lower, upper, (num_starts, dynamics.state_dim))
        return torch.from_numpy(lower), torch.from_numpy(upper), torch.from_numpy(initial)
    states = visited.numpy()
    low, high = states.min(0), states.max(0)
    scale = states.std(0)
    if not scale.any():  # a single state gives no scale
        scale = np.ones_like(scale)
        low, high = low - 1, high + 1
    # Directions that were never visited are searched too, if not as far.
    scale = np.maximum(scale, 0.1 * scale.max())
    chosen = states[rng.integers(len(states), size=num_starts)]
    if len(states) >= num_starts:
        chosen = states[rng.permutation(len(states))[:num_starts]]
    num_noisy = num_starts // 2
    chosen[:num_noisy] += noise * scale * rng.standard_normal((num_noisy, len(scale)))
    if corners is None:
        width = np.maximum(high - low, scale)
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


@torch.no_grad()
def _network_of(model: LowRankRNN | ShallowPLRNN, inputs: ArrayLike | None) -> PiecewiseLinear:
    """A model's network under constant inputs, in double precision as in `dynamics_of`."""
    model = copy.deepcopy(model).cpu().double()
    num_inputs = model.config["input_dim"]
    constant = np.zeros(num_inputs) if inputs is None else np.asarray(inputs, float)
    if constant.shape != (num_inputs,) or not np.isfinite(constant).all():
        raise ValueError(
            f"inputs must be {num_inputs} finite numbers, one constant per input, not {inputs!r}"
        )
    kind = PIECEWISE_LINEAR[model.activation]
    if isinstance(model, ShallowPLRNN):
        weights = [model.A, model.W1, model.W2, model.threshold()]
        offset = model.offset(torch.from_numpy(constant)).numpy()
        return kind(*(tensor.numpy() for tensor in weights))._replace(offset=offset)
    weights = [model.decay(), model.n, model.m, model.threshold]
    drive = model.input_weights.numpy() @ constant
    return kind(*(tensor.numpy() for tensor in weights), drive)
