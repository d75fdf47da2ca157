"""Recordings with known truth: a dynamical system seen through spikes::

    dz/dt = f(z)                              one of `SYSTEMS`, or a system of your own
    a_t   = zscore(C zscore(z_t))             C uniform on (-1/2, 1/2); one row per neuron
    rates = c link(gain a_t)                  expected counts per bin; c sets the mean rate
    x_t   ~ Poisson(rates)                    or negative binomial, or Normal(gain a_t, noise_sd)

and, if channels are simulated in addition to neurons, a field potential that depends on the same
state through a readout of its own::

    y_t   ~ Normal(b_t, noise_sd),            b_t = zscore(D zscore(z_t)),  D as C

Every trial starts from a random state of its own and is run onto the attractor (burn-in) before its
first bin is recorded. Trials are therefore independent, and a random split into training and test
trials leaks no information, unlike neighbouring segments of one long trajectory. The state of a bin
is that at its left edge.

There are two units of time. ``bin_width`` is in seconds and affects only the counts, because
``mean_rate`` is in spikes per second; ``time_per_bin`` is the time that passes in one bin in the
system's own unit.

The readout follows Sedler, Versteeg & Pandarinath (2023, arXiv 2212.03771), the pulses follow
Sussillo et al. (2016, arXiv 1608.06315, section 4). Trajectories are integrated by the classical
fourth-order Runge-Kutta method, for all trials at once; delayed states are obtained by cubic
Hermite interpolation, which preserves the order.
"""

import math
from collections import deque
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.recording import recording
from pyrodyn.data.systems import SYSTEMS, Array, System

OBSERVATIONS = ("poisson", "negative_binomial", "gaussian")
LINKS = ("exp", "softplus")


def simulate(
    system: str | System,
    num_trials: int = 400,
    num_bins: int = 100,
    num_neurons: int = 50,
    *,
    bin_width: float = 0.01,
    mean_rate: float = 20.0,
    seed: int = 0,
    time_per_bin: float | None = None,
    observation: str = "poisson",
    link: str = "exp",
    gain: float | ArrayLike = 1.0,
    dispersion: float = 0.5,
    noise_sd: float = 0.5,
    num_channels: int = 0,
    pulse_probability: float = 1.0,
    pulse_size: float = 0.5,
) -> xr.Dataset:
    """Simulate a recording of a dynamical system together with its true rates and latents.

    Args:
        system: a name in `SYSTEMS`, or a `System`.
        num_trials: number of independent trials.
        num_bins: bins per trial.
        num_neurons: number of neurons (channels of a gaussian signal).
        bin_width: seconds per bin.
        mean_rate: spikes per second, averaged over neurons, trials and time. Unused for a signal.
        seed: seeds initial states, pulses, readout and observations, each by a separate stream.
        time_per_bin: system time per bin; the system's default where None.
        observation: "poisson", "negative_binomial" (counts with variance ``rates + dispersion
            rates^2``) or "gaussian" (a signal with mean ``rates``).
        link: "exp" or "softplus". Unused for a signal, whose link is the identity.
        gain: standard deviation of the link's argument (with "exp": of the log rates) over trials
            and time, one number or one per neuron.
        dispersion: of the negative binomial; 0 would be Poisson.
        noise_sd: standard deviation of the gaussian observations around their mean.
        num_channels: channels of a signal observed in addition to counts.
        pulse_probability: fraction of trials that receive a pulse, for systems with a pulse. The
            other random numbers do not depend on it: 0 gives the same recording without pulses.
        pulse_size: the pulse adds ``pulse_size`` times the system's pulse direction to the state.

    Returns:
        A recording with ``counts``, ``signal`` or both, ``rates`` (expected counts per bin, or the
        signal's mean; beside counts that is ``signal_mean``), ``latents`` (the system's state, not
        rescaled; for a delay system the present and the delayed state), and the simulation's
        settings in attrs. If the system has a pulse, the coordinate ``pulse_bin`` on trials holds
        the bin at whose left edge the pulse arrived (in the middle half of the trial), -1 for none,
        and ``pulse_size`` is in attrs. Models do not receive it.

    Raises:
        ValueError: if an argument is out of range, or the system diverges.
    """
    system = _system(system)
    if time_per_bin is None:
        time_per_bin = system.time_per_bin
    check_integer(1, num_trials=num_trials, num_bins=num_bins, num_neurons=num_neurons)
    check_integer(0, num_channels=num_channels, seed=seed)
    scales = {
        "bin_width": bin_width,
        "mean_rate": mean_rate,
        "time_per_bin": time_per_bin,
        "dispersion": dispersion,
    }
    for name, value in scales.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be a positive number")
    for name, choice, known in (("observation", observation, OBSERVATIONS), ("link", link, LINKS)):
        if choice not in known:
            raise ValueError(f"unknown {name} {choice!r}; choose one of {', '.join(known)}")
    gains = np.asarray(gain, dtype=float)
    if gains.shape not in ((), (num_neurons,)):
        raise ValueError(
            f"gain has shape {gains.shape}; give one number or {num_neurons}, one per neuron"
        )
    if num_channels and observation == "gaussian":
        raise ValueError(
            f"num_channels is {num_channels}, the number of channels in addition to counts; for a"
            " gaussian signal alone give num_neurons"
        )
    if not noise_sd >= 0:
        raise ValueError(f"noise_sd is {noise_sd}; it must not be negative")
    if not 0 <= pulse_probability <= 1:
        raise ValueError(f"pulse_probability is {pulse_probability}; it must lie between 0 and 1")

    initial_rng, pulse_rng, readout_rng, observation_rng, channel_rng, noise_rng = (
        np.random.default_rng(seed).spawn(6)
    )
    pulse_bin = _pulse_bins(num_trials, num_bins, pulse_probability, pulse_rng)
    substeps = math.ceil(time_per_bin / system.max_step - 1e-9)
    step = time_per_bin / substeps
    burn_in_steps = math.ceil(system.burn_in / step)
    initial = _initial_states(system, num_trials, initial_rng)
    if system.pulse is None:
        path = _flow(system, initial, step)
    else:
        kick_step = np.where(pulse_bin < 0, -1, burn_in_steps + substeps * pulse_bin)
        path = _flow(system, initial, step, pulse_size * system.pulse, kick_step)
    latents = np.empty((num_trials, num_bins, system.dim))
    with np.errstate(all="ignore"):
        stop = burn_in_steps + substeps * num_bins
        for time, state in enumerate(islice(path, burn_in_steps, stop, substeps)):
            latents[:, time] = state
    _refuse_divergence(latents, system)

    activity = gains * _readout(latents, num_neurons, readout_rng)
    if observation == "gaussian":
        signal = activity + noise_sd * observation_rng.standard_normal(activity.shape)
        data = recording(signal=signal, bin_width=bin_width, rates=activity, latents=latents)
    else:
        rates = np.exp(activity) if link == "exp" else np.logaddexp(0.0, activity)
        rates *= mean_rate * bin_width / rates.mean()
        intensity = rates
        if observation == "negative_binomial":
            # A Poisson variable whose rate is gamma distributed with this mean and shape.
            intensity = observation_rng.gamma(1.0 / dispersion, dispersion * rates)
        counts = observation_rng.poisson(intensity)
        of_channels: dict[str, Any] = {}
        if num_channels:
            mean = _readout(latents, num_channels, channel_rng)
            signal = mean + noise_sd * noise_rng.standard_normal(mean.shape)
            of_channels = {"signal": signal, "signal_mean": mean}
        data = recording(counts, bin_width=bin_width, rates=rates, latents=latents, **of_channels)
    if system.pulse is not None:
        data = data.assign_coords(pulse_bin=("trial", pulse_bin)).assign_attrs(
            pulse_size=pulse_size
        )
    return data.assign_attrs(
        system=system.name, time_per_bin=time_per_bin, observation=observation, seed=seed
    )


def trajectory(system: str | System, num_steps: int, step: float, seed: int = 0) -> Array:
    """One long trajectory on a system's attractor, for long-run statistics and Lyapunov exponents.

    Args:
        system: a name in `SYSTEMS`, or a `System`.
        num_steps: number of states to return.
        step: system time between them, which is also the Runge-Kutta step: at most ``max_step`` of
            the system for an accurate trajectory.
        seed: seeds the initial state, from which the burn-in starts.

    Returns:
        ``(num_steps, dim)`` states.

    Raises:
        ValueError: if the system is unknown or diverges, or a number is not positive.
    """
    system = _system(system)
    for name, value in {"num_steps": num_steps, "step": step}.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be a positive number")
    initial = _initial_states(system, 1, np.random.default_rng(seed))
    skip = math.ceil(system.burn_in / step)
    with np.errstate(all="ignore"):
        path = np.stack(
            [state[0] for state in islice(_flow(system, initial, step), skip, skip + num_steps)]
        )
    _refuse_divergence(path, system)
    return path


def rk4_step(system: System, state: Array, step: float) -> Array:
    """One classical Runge-Kutta step of a system without delay.

    Args:
        system: the system; its ``delay`` must be 0.
        state: ``(..., dim)`` states.
        step: the step in system time.

    Returns:
        ``(..., dim)`` states one step later.
    """
    field = system.field
    k1 = field(state)
    k2 = field(state + 0.5 * step * k1)
    k3 = field(state + 0.5 * step * k2)
    k4 = field(state + step * k3)
    return state + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


def _flow(
    system: System,
    state: Array,
    step: float,
    kick: Array | None = None,
    kick_step: NDArray[np.int64] | None = None,
) -> Iterator[Array]:
    """Yield the ``(trials, dim)`` states of all trials, one step after another, without end.

    At step ``kick_step`` of a trial, ``kick`` is added to its state before the state is yielded.
    """
    if system.delay:
        yield from _delayed_flow(system, state, step)
    for index in count():
        if kick is not None and kick_step is not None:
            state = state + (kick_step == index)[:, None] * kick
        yield state
        state = rk4_step(system, state, step)


def _delayed_flow(system: System, state: Array, step: float) -> Iterator[Array]:
    """`_flow` of a delay system from a constant history; yields (x(t), x(t - delay)).

    Two queues hold the past values and slopes, just long enough to contain the delayed times of
    one Runge-Kutta step.
    """
    lag = system.delay / step
    if lag < 1:
        raise ValueError(
            f"the step {step:g} is longer than the delay {system.delay:g} of {system.name}; "
            "lower time_per_bin or max_step"
        )
    length = math.ceil(lag) + 1
    values = deque([state] * length, length)
    slopes = deque([np.zeros_like(state)] * length, length)

    def delayed(ahead: float) -> Array:
        """State at time t + ahead * step - delay, by cubic Hermite interpolation."""
        position = length - 1 - lag + ahead
        left = min(int(position), length - 2)
        s = position - left
        return (
            (1 + 2 * s) * (1 - s) ** 2 * values[left]
            + s**2 * (3 - 2 * s) * values[left + 1]
            + step * s * (1 - s) * ((1 - s) * slopes[left] - s * slopes[left + 1])
        )

    def slope(now: Array, past: Array) -> Array:
        return system.field(np.concatenate([now, past], -1))

    while True:
        past = delayed(0.0)
        yield np.concatenate([state, past], -1)
        k1 = slopes[-1] = slope(state, past)
        halfway = delayed(0.5)
        k2 = slope(state + 0.5 * step * k1, halfway)
        k3 = slope(state + 0.5 * step * k2, halfway)
        k4 = slope(state + step * k3, delayed(1.0))
        state = state + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        values.append(state)
        slopes.append(k4)


def _system(system: str | System) -> System:
    if isinstance(system, System):
        return system
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; choose one of {', '.join(SYSTEMS)}")
    return SYSTEMS[system]


def _initial_states(system: System, num_trials: int, rng: np.random.Generator) -> Array:
    low, high = system.initial_low, system.initial_high
    return rng.uniform(low, high, (num_trials, len(low)))


def _pulse_bins(
    num_trials: int, num_bins: int, probability: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Bin of each trial's pulse, uniform over the trial's middle half; -1 for no pulse."""
    margin = num_bins // 4
    bins = rng.integers(margin, num_bins - margin, num_trials)
    return np.where(rng.random(num_trials) < probability, bins, -1)


def _readout(latents: Array, num_neurons: int, rng: np.random.Generator) -> Array:
    """Random projection of the standardised latents, standardised per neuron."""
    weights = rng.uniform(-0.5, 0.5, (latents.shape[-1], num_neurons))
    return _standardised(_standardised(latents) @ weights)


def _standardised(values: Array) -> Array:
    """Mean 0 and standard deviation 1 over trials and time; constant columns become 0."""
    centred = values - values.mean((0, 1))
    scale = centred.std((0, 1))
    return centred / np.where(scale > 0, scale, 1.0)


def _refuse_divergence(states: Array, system: System) -> None:
    if not np.isfinite(states).all():
        raise ValueError(
            f"{system.name} diverged; start it closer to its attractor (initial_low, "
            "initial_high) or lower its max_step"
        )
