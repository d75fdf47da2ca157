"""Teacher networks: low-rank networks that perform a task and whose parameters are all known::

    z_1 = g u_1 + s_0 e_1                            in R dimensions, e_t ~ N(0, I)
    z_t = a z_{t-1} + n relu(m (z_{t-1} + g u_{t-1}) - h) + process_noise e_t
    x_t ~ Normal(B z_t + b, observation_noise^2)     or Poisson(softplus(B z_t + b))

This is the generative model of `pyrodyn.models.LowRankRNN` with relu units, scalar noise and inputs
through W_u = g m. A student of that class can represent its teacher exactly, so that any error of a
fit is one of inference and not of the model.

========================  ====  ====================================================================
``limit_cycle``           R 2   a noisy oscillation of `PERIOD` bins
``ring_attractor``        R 2   u = (cos, sin) of an angle for `CUE_BINS` bins, to be remembered
``evidence_integration``  R 1   u = coherence + N(0, 1) after the first bin, summed up to a bound
========================  ====  ====================================================================

The weights are not trained but derived. On the plane the rows of m are N unit vectors spaced evenly
on the circle and all thresholds are -c: unit i is silent where m_i z < -c. Inside the circle of
radius c all units are active and their sum is linear; outside, fewer are active the larger the
radius. With n = k (2/N) m', k a complex number that rotates and scales the plane, and N large::

    z' = (a + k s(r)) z,      s = (w - sin w cos w) / pi,  cos w = -c / r       (s = 1 for r < c)

s decreases from 1 to 1/2, so that z grows inside and shrinks outside the radius at which
``|a + k s| = 1``, and rotates there by the angle of a + k s. A value of s at that radius determines
k and c::

    k = (e^{2 pi i / period} - a) / s,         limit cycle; without rotation, k = (1 - a) / s,
    c = -radius cos w                          every point of the circle is a fixed point

A finite number of units leaves ripples of N-fold symmetry; the tests state how far the period and
the drift along the ring deviate from the formula.

On the line the rows of m are +-1, half with thresholds -c and half with +c. The first half adds
(1 - a) z within the bound c, which makes a line attractor; the second pulls z back beyond it::

    z' = z                                    |z| <= c
    z' = sign(z) c + OUTSIDE_SLOPE (z - sign(z) c)     beyond

Source of the tasks and of the noise levels 0.2 and 0.1 at a = 0.9: Pals et al., NeurIPS 2024.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyrodyn.data.recording import recording
from pyrodyn.data.systems import Array

TASKS = ("limit_cycle", "ring_attractor", "evidence_integration")

DECAY = 0.9
"""a."""

PERIOD = 20.0
"""Bins per turn of the limit cycle."""

RADIUS = 3.0
"""Radius of the limit cycle and of the ring; process noise of standard deviation 0.2 moves the
angle by 0.2 / RADIUS per bin."""

OPENING = 2.0
"""w at that radius: half the arc of units that are active there."""

CUE_BINS = 10
CUE_GAIN = 1.0
"""g of the ring: the cue places z_1 at this radius and drives it outwards while it lasts."""

BOUND = 4.0
OUTSIDE_SLOPE = 0.2
EVIDENCE_GAIN = 1.0
COHERENCES = (-0.8, -0.4, -0.2, 0.2, 0.4, 0.8)
"""Means of the evidence, one per trial; its standard deviation is 1."""

SIGNAL_SCALE, COUNT_SCALE = 1.0, 0.5
"""Length of every row of B (standard deviation if R is 1)."""

COUNT_BIAS, COUNT_BIAS_SD = -1.0, 0.5
"""b of counts is normally distributed, so that neurons differ in their mean rates; for a signal it
is 0."""


class TeacherNetwork(NamedTuple):
    """The dynamics of a teacher.

    Attributes:
        m: ``(unit, latent)``.
        n: ``(latent, unit)``.
        threshold: h, ``(unit,)``.
        input_gain: g; the input weights are g m, and there are as many inputs as latents unless it
            is 0.
        initial_sd: s_0; None for the standard deviation of the process noise.
        decay: a.
    """

    m: Array
    n: Array
    threshold: Array
    input_gain: float
    initial_sd: float | None = None
    decay: float = DECAY

    def mean_step(self, z: Array, inputs: float | ArrayLike = 0.0) -> Array:
        """The latents ``(..., latent)`` one bin later, without noise.

        Args:
            z: latents.
            inputs: u of the same bin, ``(..., latent)``.
        """
        rates = np.maximum(
            (z + self.input_gain * np.asarray(inputs)) @ self.m.T - self.threshold, 0
        )
        return self.decay * z + rates @ self.n.T


def teacher_network(task: str, num_units: int) -> TeacherNetwork:
    """The network of a task; its equations are in the module's docstring.

    Args:
        task: a name in `TASKS`.
        num_units: its units, at least 8 on a circle and 4 on a line.

    Raises:
        ValueError: for an unknown task or too few units.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    fewest = 4 if task == "evidence_integration" else 8
    if num_units < fewest:
        raise ValueError(
            f"{num_units} units cannot perform {task}; give num_neurons at least {fewest}"
        )
    match task:
        case "limit_cycle":
            return _circle(num_units, 2 * math.pi / PERIOD, 0.0, RADIUS / 2)
        case "ring_attractor":
            return _circle(num_units, 0.0, CUE_GAIN, None)
        case _:
            return _line(num_units)


def teacher(
    task: str,
    num_trials: int = 400,
    num_bins: int = 75,
    num_neurons: int = 20,
    *,
    observation: str = "gaussian",
    process_noise: float = 0.2,
    observation_noise: float = 0.1,
    bin_width: float = 0.01,
    seed: int = 0,
) -> xr.Dataset:
    """Simulate a recording of a network that performs a task, together with the truth.

    Args:
        task: a name in `TASKS`.
        num_trials: number of independent trials.
        num_bins: bins per trial.
        num_neurons: number of neurons (channels of a gaussian signal), and of the network's units.
        observation: "gaussian" (a signal) or "poisson" (counts, by a softplus of the readout).
        process_noise: standard deviation of every latent's noise per bin.
        observation_noise: standard deviation of a gaussian signal around its mean.
        bin_width: seconds per bin; it does not affect the dynamics.
        seed: seeds initial states, inputs, process noise, readout and observations, each by a
            separate stream.

    Returns:
        A recording with ``signal`` or ``counts``, ``rates`` (expected observation per bin),
        ``latents`` (z), ``inputs`` if the task has any, ``condition`` (the coherence) for
        ``evidence_integration`` and the coordinate ``cue_angle`` on trials for ``ring_attractor``.
        The teacher's weights are coordinates (``teacher_m``, ``teacher_n``, ``teacher_threshold``,
        ``teacher_loading``, ``teacher_bias``), its scalar parameters are in attrs.

    Raises:
        ValueError: if an argument is out of range.
    """
    sizes = {"num_trials": num_trials, "num_bins": num_bins, "num_neurons": num_neurons}
    for name, value in {**sizes, "bin_width": bin_width}.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be a positive number")
    noises = {"process_noise": process_noise, "observation_noise": observation_noise}
    for name, value in noises.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must not be negative")
    if observation not in ("gaussian", "poisson"):
        raise ValueError(f"unknown observation {observation!r}; choose one of gaussian, poisson")
    network = teacher_network(task, num_neurons)
    initial_sd = process_noise if network.initial_sd is None else network.initial_sd

    initial_rng, input_rng, process_rng, readout_rng, observation_rng = np.random.default_rng(
        seed
    ).spawn(5)
    inputs, labels = _inputs(task, num_trials, num_bins, input_rng)
    latent_dim = network.m.shape[1]
    latents = np.empty((num_trials, num_bins, latent_dim))
    noise = process_noise * process_rng.standard_normal(latents.shape)
    latents[:, 0] = network.input_gain * inputs[:, 0]
    latents[:, 0] += initial_sd * initial_rng.standard_normal((num_trials, latent_dim))
    for t in range(1, num_bins):
        latents[:, t] = network.mean_step(latents[:, t - 1], inputs[:, t - 1]) + noise[:, t]

    is_signal = observation == "gaussian"
    loading = _directions(num_neurons, latent_dim, readout_rng)
    loading *= SIGNAL_SCALE if is_signal else COUNT_SCALE
    bias = COUNT_BIAS + COUNT_BIAS_SD * readout_rng.standard_normal(num_neurons)
    if is_signal:
        bias = np.zeros(num_neurons)
    readout = latents @ loading.T + bias
    rates = readout if is_signal else np.logaddexp(0.0, readout)
    optional: dict[str, Any] = {} if network.input_gain == 0 else {"inputs": inputs}
    if task == "evidence_integration":
        optional["condition"] = labels
    if is_signal:
        noise = observation_noise * observation_rng.standard_normal(readout.shape)
        data = recording(
            signal=readout + noise, bin_width=bin_width, rates=rates, latents=latents, **optional
        )
    else:
        counts = observation_rng.poisson(rates)
        data = recording(counts, bin_width=bin_width, rates=rates, latents=latents, **optional)
    unit = "channel" if is_signal else "neuron"
    data = data.assign_coords(
        teacher_m=(("unit", "latent"), network.m),
        teacher_n=(("latent", "unit"), network.n),
        teacher_threshold=("unit", network.threshold),
        teacher_loading=((unit, "latent"), loading),
        teacher_bias=(unit, bias),
    )
    if task == "ring_attractor":
        data = data.assign_coords(cue_angle=("trial", labels))
    more: dict[str, Any] = (
        {"observation_noise": observation_noise} if is_signal else {"link": "softplus"}
    )
    if task == "limit_cycle":
        more["period"] = PERIOD
    return data.assign_attrs(
        task=task,
        observation=observation,
        decay=network.decay,
        input_gain=network.input_gain,
        process_noise=process_noise,
        initial_sd=initial_sd,
        seed=seed,
        **more,
    )


def _circle(
    num_units: int, angle: float, input_gain: float, initial_sd: float | None
) -> TeacherNetwork:
    """The network on the plane that stays at `RADIUS` and rotates by an angle per bin."""
    directions = 2 * math.pi * np.arange(num_units) / num_units
    m = np.stack([np.cos(directions), np.sin(directions)], -1)
    s = (OPENING - math.sin(OPENING) * math.cos(OPENING)) / math.pi
    real, imaginary = (math.cos(angle) - DECAY) / s, math.sin(angle) / s
    rotation = np.array([[real, -imaginary], [imaginary, real]])
    threshold = np.full(num_units, RADIUS * math.cos(OPENING))
    return TeacherNetwork(m, rotation @ m.T * (2 / num_units), threshold, input_gain, initial_sd)


def _line(num_units: int) -> TeacherNetwork:
    """The network on the line: four groups of units, by the sign of m and by the threshold."""
    group = np.arange(num_units) % 4
    sign, is_outer = np.where(group % 2, -1.0, 1.0), group >= 2
    inner_gain = (1 - DECAY) / 2
    outer_gain = OUTSIDE_SLOPE - DECAY - inner_gain
    n = sign * np.where(is_outer, outer_gain, inner_gain) / np.bincount(group)[group]
    return TeacherNetwork(sign[:, None], n[None], np.where(is_outer, BOUND, -BOUND), EVIDENCE_GAIN)


def _inputs(
    task: str, num_trials: int, num_bins: int, rng: np.random.Generator
) -> tuple[Array, NDArray[np.float64]]:
    """Inputs ``(trial, time, input)`` and the variable that they encode, one number per trial."""
    match task:
        case "ring_attractor":
            angle = rng.uniform(-math.pi, math.pi, num_trials)
            inputs = np.zeros((num_trials, num_bins, 2))
            inputs[:, :CUE_BINS] = np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]
            return inputs, angle
        case "evidence_integration":
            coherence = rng.choice(COHERENCES, num_trials)
            inputs = coherence[:, None, None] + rng.standard_normal((num_trials, num_bins, 1))
            # The first input also sets z_1 and would have more weight than any other.
            inputs[:, 0] = 0.0
            return inputs, coherence
        case _:
            return np.zeros((num_trials, num_bins, 2)), np.zeros(num_trials)


def _directions(num_neurons: int, latent_dim: int, rng: np.random.Generator) -> Array:
    """Random rows of B: normal numbers in one dimension, otherwise vectors of length 1."""
    rows = rng.standard_normal((num_neurons, latent_dim))
    return rows if latent_dim == 1 else rows / np.linalg.norm(rows, axis=-1, keepdims=True)
