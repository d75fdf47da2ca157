"""Dynamical systems with known truth: vector fields, Jacobians, time scales, Lyapunov exponents.

================  ================================================================================
``lorenz``        x' = 10 (y - x), y' = x (28 - z) - y, z' = x y - 2.667 z
``rossler``       x' = -y - z, y' = x + 0.2 y, z' = 0.2 + z (x - 5.7)
``arneodo``       x' = y, y' = z, z' = 5.5 x - 4.5 y - z - x^3
``thomas``        x' = sin y - 0.18 x, and cyclically for y and z
``lorenz96``      x_i' = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + 8, i = 1..20 on a ring
``mackey_glass``  x' = 0.2 d / (1 + d^10) - 0.1 x with d = x(t - 16)
``chaotic_rnn``   0.025 y' = -y + W tanh(y), W_ij ~ N(0, 1.5^2 / 50), 50 units, time in seconds
``pulsed_rnn``    the same network; a pulse kicks y by a multiple of a fixed random vector
================  ================================================================================

Sources: the three-dimensional systems with these constants and times per bin are those of Sedler,
Versteeg & Pandarinath (2023, arXiv 2212.03771); Thomas (1999) with the constant of Sprott, "Chaos
and Time-Series Analysis" (2003); Lorenz (1996); Mackey & Glass (1977); the rate networks are those
of Sussillo et al. (2016, arXiv 1608.06315, section 4).

Fields accept numpy arrays, for fast simulation, and torch tensors, for forward-mode derivatives in
analysis.

A system is a named tuple, of which `_replace` makes variants:
``SYSTEMS["mackey_glass"]._replace(delay=17.0)`` is chaotic, while at the delay of 16 the attractor
is a periodic orbit (chaos begins near 16.8).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


class System(NamedTuple):
    """An autonomous system of differential equations, with or without one delay.

    Attributes:
        name: its name in `SYSTEMS` and in a recording's attrs.
        field: ``(..., dim)`` state to ``(..., dim)`` time derivative, of arrays and, for analysis,
            of tensors. With a delay the state is ``(x(t), x(t - delay))``, so that ``dim`` is even,
            and the derivative is that of ``x(t)``, ``(..., dim / 2)``.
        dim: number of state variables, which a recording stores as latents.
        time_per_bin: system time covered by one bin by default.
        max_step: longest Runge-Kutta step, in system time, that is accurate.
        burn_in: system time after which a trajectory from the box below is on the attractor.
        initial_low: lower corner of the box from which initial states are drawn uniformly; with a
            delay, the constant history before time zero.
        initial_high: upper corner of that box.
        jacobian: ``(..., dim)`` state to ``(..., dim, dim)`` derivative of the field; None with a
            delay.
        lyapunov: Lyapunov exponents per unit of system time, largest first, as far as known.
        delay: system time by which the delayed half of the state lags; 0 for none.
        pulse: ``(dim,)`` direction of an input pulse; None for a system without pulses.
    """

    name: str
    field: Callable[[Any], Any]
    dim: int
    time_per_bin: float
    max_step: float
    burn_in: float
    initial_low: Array
    initial_high: Array
    jacobian: Callable[[Array], Array] | None = None
    lyapunov: tuple[float, ...] = ()
    delay: float = 0.0
    pulse: Array | None = None


def lorenz_field[State: (Array, Tensor)](state: State) -> State:
    """Lorenz (1963), ``(..., 3)`` to ``(..., 3)``."""
    x, y, z = state[..., 0], state[..., 1], state[..., 2]
    derivative = [_times(10.0, y - x), x * (28.0 - z) - y, x * y - _times(2.667, z)]
    return _library(state).stack(derivative, -1)


def lorenz_jacobian(state: Array) -> Array:
    """Jacobian of `lorenz_field`, ``(..., 3)`` to ``(..., 3, 3)``."""
    x, y, z = np.moveaxis(state, -1, 0)
    return _matrix([[-10.0, 10.0, 0.0], [28.0 - z, -1.0, -x], [y, x, -2.667]])


def rossler_field[State: (Array, Tensor)](state: State) -> State:
    """Rossler (1976), ``(..., 3)`` to ``(..., 3)``."""
    x, y, z = state[..., 0], state[..., 1], state[..., 2]
    return _library(state).stack([-y - z, x + _times(0.2, y), 0.2 - z * (5.7 - x)], -1)


def rossler_jacobian(state: Array) -> Array:
    """Jacobian of `rossler_field`, ``(..., 3)`` to ``(..., 3, 3)``."""
    x, _, z = np.moveaxis(state, -1, 0)
    return _matrix([[0.0, -1.0, -1.0], [1.0, 0.2, 0.0], [z, 0.0, x - 5.7]])


def arneodo_field[State: (Array, Tensor)](state: State) -> State:
    """Arneodo, Coullet & Tresser (1980), ``(..., 3)`` to ``(..., 3)``."""
    x, y, z = state[..., 0], state[..., 1], state[..., 2]
    return _library(state).stack([y, z, _times(5.5, x) - _times(4.5, y) - z - x**3], -1)


def arneodo_jacobian(state: Array) -> Array:
    """Jacobian of `arneodo_field`, ``(..., 3)`` to ``(..., 3, 3)``."""
    x, _, _ = np.moveaxis(state, -1, 0)
    return _matrix([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [5.5 - 3.0 * x**2, -4.5, -1.0]])


def thomas_field[State: (Array, Tensor)](state: State) -> State:
    """Thomas' cyclically symmetric system (1999), ``(..., 3)`` to ``(..., 3)``."""
    library = _library(state)
    return library.sin(library.roll(state, -1, -1)) - _times(0.18, state)


def thomas_jacobian(state: Array) -> Array:
    """Jacobian of `thomas_field`, ``(..., 3)`` to ``(..., 3, 3)``."""
    x, y, z = np.moveaxis(np.cos(state), -1, 0)
    return _matrix([[-0.18, y, 0.0], [0.0, -0.18, z], [x, 0.0, -0.18]])


def lorenz96_field[State: (Array, Tensor)](state: State) -> State:
    """Lorenz (1996) with forcing 8 on a ring of any size, ``(..., dim)`` to ``(..., dim)``."""
    roll = _library(state).roll
    ahead, behind, two_behind = (roll(state, shift, -1) for shift in (-1, 1, 2))
    return 8.0 - (state - (ahead - two_behind) * behind)


def lorenz96_jacobian(state: Array) -> Array:
    """Jacobian of `lorenz96_field`, ``(..., dim)`` to ``(..., dim, dim)``."""
    ahead, behind, two_behind = (np.roll(state, shift, -1) for shift in (-1, 1, 2))
    row = np.arange(state.shape[-1])
    jacobian = np.zeros((*state.shape, state.shape[-1]))
    jacobian[..., row, row] = -1.0
    jacobian[..., row, np.roll(row, -1)] = behind
    jacobian[..., row, np.roll(row, 1)] = ahead - two_behind
    jacobian[..., row, np.roll(row, 2)] = -behind
    return jacobian


def mackey_glass_field[State: (Array, Tensor)](state: State) -> State:
    """Mackey & Glass (1977); ``(..., 2)`` holding x(t), x(t - delay) to ``(..., 1)``."""
    now, delayed = state[..., :1], state[..., 1:]
    return 0.2 * delayed / (1.0 + delayed**10) - 0.1 * now


def rate_network(
    num_units: int = 50, gain: float = 1.5, time_constant: float = 0.025, seed: int = 14
) -> System:
    """A random rate network, ``time_constant y' = -y + W tanh(y)``.

    At 50 units most draws of W converge to a limit cycle or a fixed point, at gain 1.5 nearly all.
    The default seed gives a network that is chaotic from all initial states tested; for gain 2.5,
    seed 34 does.

    Args:
        num_units: number of units.
        gain: W's entries are normal with standard deviation ``gain / sqrt(num_units)``.
        time_constant: seconds; the unit of system time is the second.
        seed: draws W and, after it, the direction of pulses (standard normal entries).

    Returns:
        The system, with its pulse direction and without Lyapunov exponents.
    """
    rng = np.random.default_rng(seed)
    weights = gain / np.sqrt(num_units) * rng.standard_normal((num_units, num_units))
    return System(
        name="rate_network",
        field=partial(_rate_field, weights, time_constant),
        jacobian=partial(_rate_jacobian, weights, time_constant),
        dim=num_units,
        time_per_bin=0.01,
        max_step=0.2 * time_constant,
        burn_in=80 * time_constant,
        initial_low=np.full(num_units, -2.0),
        initial_high=np.full(num_units, 2.0),
        pulse=rng.standard_normal(num_units),
    )


def _rate_field[State: (Array, Tensor)](
    weights: Array, time_constant: float, state: State
) -> State:
    if isinstance(state, Tensor):
        mixing = torch.as_tensor(weights, dtype=state.dtype, device=state.device)
        return _times(1.0 / time_constant, torch.tanh(state) @ mixing.mT - state)
    return (np.tanh(state) @ weights.T - state) / time_constant


def _rate_jacobian(weights: Array, time_constant: float, state: Array) -> Array:
    slope = 1.0 - np.tanh(state) ** 2
    return (weights * slope[..., None, :] - np.eye(len(weights))) / time_constant


def _library(state: Array | Tensor) -> Any:
    """The library of a state's type; the functions used here are the same in both."""
    return torch if isinstance(state, Tensor) else np


def _times[State: (Array, Tensor)](factor: float, values: State) -> State:
    """A product with a constant. Of tensors it is a sum, z + (c - 1) z: the forward derivative of a
    product with a constant takes torch ten times as long.
    """
    if isinstance(values, Tensor):
        return torch.add(values, values, alpha=factor - 1.0)
    return factor * values


def _matrix(rows: list[list[Array | float]]) -> Array:
    """Nested rows of arrays and constants to one ``(..., rows, columns)`` array."""
    entries = np.broadcast_arrays(*[entry for row in rows for entry in row])
    return np.stack(entries, -1).reshape(*entries[0].shape, len(rows), len(rows[0]))


_NETWORK = rate_network()._replace(lyapunov=(0.85,))

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            name="lorenz",
            field=lorenz_field,
            jacobian=lorenz_jacobian,
            dim=3,
            time_per_bin=0.01501,
            max_step=0.01,
            burn_in=20.0,
            initial_low=np.array([-15.0, -15.0, 10.0]),
            initial_high=np.array([15.0, 15.0, 40.0]),
            lyapunov=(0.906, 0.0, -14.57),
        ),
        System(
            name="rossler",
            field=rossler_field,
            jacobian=rossler_jacobian,
            dim=3,
            time_per_bin=0.1688,
            max_step=0.05,
            burn_in=120.0,
            # Trajectories from far outside diverge: this box lies inside the basin of attraction.
            initial_low=np.array([-6.0, -6.0, 0.0]),
            initial_high=np.array([6.0, 6.0, 0.1]),
            lyapunov=(0.071, 0.0, -5.4),
        ),
        System(
            name="arneodo",
            field=arneodo_field,
            jacobian=arneodo_jacobian,
            dim=3,
            time_per_bin=0.0904,
            max_step=0.05,
            burn_in=75.0,
            # Trajectories from far outside diverge: this box lies inside the basin of attraction.
            initial_low=np.full(3, -2.0),
            initial_high=np.full(3, 2.0),
            # Published tables give 0.24 for the first; but the three must sum to the trace, -1.
            lyapunov=(0.203, 0.0, -1.203),
        ),
        System(
            name="thomas",
            field=thomas_field,
            jacobian=thomas_jacobian,
            dim=3,
            time_per_bin=1.0,
            max_step=0.1,
            burn_in=150.0,
            initial_low=np.full(3, -2.0),
            initial_high=np.full(3, 2.0),
            lyapunov=(0.0349, 0.0, -0.5749),
        ),
        System(
            name="lorenz96",
            field=lorenz96_field,
            jacobian=lorenz96_jacobian,
            dim=20,
            time_per_bin=0.04,
            max_step=0.01,
            burn_in=20.0,
            initial_low=np.full(20, -4.0),
            initial_high=np.full(20, 10.0),
            lyapunov=(1.54, 1.22, 0.95),
        ),
        System(
            name="mackey_glass",
            field=mackey_glass_field,
            dim=2,
            time_per_bin=1.0,
            max_step=0.5,
            burn_in=1000.0,
            initial_low=np.array([0.5]),
            initial_high=np.array([1.5]),
            lyapunov=(0.0,),
            delay=16.0,
        ),
        _NETWORK._replace(name="chaotic_rnn", pulse=None),
        _NETWORK._replace(name="pulsed_rnn"),
    )
}
"""Systems by name; their equations are in the docstring of `pyrodyn.data.systems`."""
"""The named systems. Exponents of lorenz, rossler and thomas are published ones, the others were
computed from the fields above; the tests recompute them all."""
