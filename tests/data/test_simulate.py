"""Simulated recordings: accurate flows, rates that follow from the latents, the given noise."""

import math

import numpy as np
import pytest
import xarray as xr

from pyrodyn.data.simulate import rk4_step, simulate, trajectory
from pyrodyn.data.systems import SYSTEMS, Array, System, rate_network

ORDINARY = [name for name, system in SYSTEMS.items() if not system.delay]


def attractor_states(system: System, num_states: int, step: float, seed: int = 0) -> Array:
    """States spread over the attractor, each from its own start."""
    rng = np.random.default_rng(seed)
    state = rng.uniform(system.initial_low, system.initial_high, (num_states, system.dim))
    for _ in range(math.ceil(system.burn_in / step)):
        state = rk4_step(system, state, step)
    return state


def largest_exponent(
    system: System, num_paths: int, duration: float, step: float
) -> tuple[float, float]:
    """Benettin's two-path estimate with its standard error over independent paths."""
    state = attractor_states(system, num_paths, step)
    distance, renormalise_every = 1e-7, 10
    direction = np.random.default_rng(1).standard_normal(state.shape)
    growth = np.zeros(num_paths)
    settle = max(1, round(0.05 * duration / step / renormalise_every))
    rounds = round(duration / step / renormalise_every)
    for index in range(settle + rounds):
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        neighbour = state + distance * direction
        for _ in range(renormalise_every):
            state, neighbour = rk4_step(system, state, step), rk4_step(system, neighbour, step)
        direction = neighbour - state
        if index >= settle:
            growth += np.log(np.linalg.norm(direction, axis=-1) / distance)
    rates = growth / (rounds * renormalise_every * step)
    return float(rates.mean()), float(rates.std(ddof=1) / np.sqrt(num_paths))


def spectrum(system: System, num_paths: int, duration: float, step: float) -> tuple[Array, Array]:
    """All exponents by QR along the tangent flow, with standard errors over independent paths."""
    assert system.jacobian is not None
    tangent_system = system._replace(
        field=lambda joint: np.concatenate(
            [
                system.field(joint[..., 0])[..., None],
                system.jacobian(joint[..., 0]) @ joint[..., 1:],  # type: ignore[misc]
            ],
            -1,
        )
    )
    state = attractor_states(system, num_paths, step)
    basis = np.broadcast_to(np.eye(system.dim), (num_paths, system.dim, system.dim))
    joint = np.concatenate([state[..., None], basis], -1)
    growth = np.zeros(state.shape)
    settle, rounds = round(0.05 * duration / step), round(duration / step)
    for index in range(settle + rounds):
        joint = rk4_step(tangent_system, joint, step)
        orthogonal, triangular = np.linalg.qr(joint[..., 1:])
        joint = np.concatenate([joint[..., :1], orthogonal], -1)
        if index >= settle:
            growth += np.log(np.abs(np.diagonal(triangular, axis1=-2, axis2=-1)))
    rates = growth / (rounds * step)
    return rates.mean(0), rates.std(0, ddof=1) / np.sqrt(num_paths)


# --- the flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDINARY)
def test_jacobian_is_the_derivative_of_the_field(name: str) -> None:
    system = SYSTEMS[name]
    state = np.random.default_rng(0).uniform(
        system.initial_low, system.initial_high, (4, system.dim)
    )
    assert system.jacobian is not None
    jacobian = system.jacobian(state)
    epsilon = 1e-6
    for column, shift in enumerate(epsilon * np.eye(system.dim)):
        slope = (system.field(state + shift) - system.field(state - shift)) / (2 * epsilon)
        np.testing.assert_allclose(jacobian[..., column], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["lorenz", "rossler", "arneodo", "thomas", "lorenz96"])
def test_runge_kutta_converges_with_order_four(name: str) -> None:
    system = SYSTEMS[name]
    start = attractor_states(system, 20, system.max_step)

    def after(num_steps: int) -> Array:
        state = start
        for _ in range(num_steps):
            state = rk4_step(system, state, 8 * system.max_step / num_steps)
        return state

    truth = after(1024)
    errors = [np.abs(after(num_steps) - truth).mean() for num_steps in (16, 32, 64)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 4, atol=0.25)


def test_delay_flow_solves_a_linear_equation_with_order_four() -> None:
    # x' = -(pi/2) x(t - 1) ends in a cos(pi t / 2) + b sin(pi t / 2): all other modes decay.
    system = System(
        name="linear delay",
        field=lambda state: -0.5 * np.pi * state[..., 1:],
        dim=2,
        time_per_bin=0.1,
        max_step=0.1,
        burn_in=60.0,
        initial_low=np.array([0.5]),
        initial_high=np.array([1.5]),
        delay=1.0,
    )

    def one_period_error(step: float) -> float:
        path = trajectory(system, round(4 / step) + 1, step)
        return float(np.abs(path[-1] - path[0]).max())

    # None of these steps divides the delay: interpolation is part of what is tested.
    steps = 4 / np.array([30, 58, 118])
    errors = [one_period_error(step) for step in steps]
    assert errors[-1] < 1e-5
    orders = np.diff(np.log(errors)) / np.diff(np.log(steps))
    np.testing.assert_allclose(orders, 4, atol=0.25)
    path = trajectory(system, 101, 0.04)
    np.testing.assert_allclose(path[25:, 1], path[:-25, 0], atol=1e-12)


@pytest.mark.slow
def test_lorenz_has_the_known_largest_lyapunov_exponent() -> None:
    exponent, error = largest_exponent(SYSTEMS["lorenz"], num_paths=200, duration=100.0, step=0.01)
    assert error < 0.005
    assert abs(exponent - 0.906) < 0.03 * 0.906


@pytest.mark.parametrize(
    ("name", "duration", "step"),
    [
        ("lorenz", 40.0, 0.01),
        ("rossler", 300.0, 0.05),
        ("arneodo", 300.0, 0.05),
        ("thomas", 500.0, 0.1),
    ],
)
@pytest.mark.slow
def test_spectra_agree_with_the_table_and_with_the_divergence(
    name: str, duration: float, step: float
) -> None:
    system = SYSTEMS[name]
    exponents, errors = spectrum(system, 60, duration, step)
    # The transient of the tangent flow, of order one, adds to the sampling error.
    np.testing.assert_array_less(
        np.abs(exponents - system.lyapunov), 4 * errors + 1.0 / duration + 0.005
    )
    if name != "rossler":  # the divergence is constant, and the exponents add up to it
        assert system.jacobian is not None
        divergence = np.trace(system.jacobian(np.ones(3)))
        np.testing.assert_allclose(exponents.sum(), divergence, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "duration", "tolerance"), [("chaotic_rnn", 6.0, 0.1), ("lorenz96", 10.0, 0.05)]
)
def test_large_systems_are_chaotic(name: str, duration: float, tolerance: float) -> None:
    system = SYSTEMS[name]
    exponent, error = largest_exponent(system, 60, duration, system.max_step)
    assert abs(exponent - system.lyapunov[0]) < 4 * error + tolerance
    assert exponent > 5 * error


def test_mackey_glass_repeats_at_delay_16_and_not_at_17() -> None:
    def closest_return(delay: float) -> float:
        system = SYSTEMS["mackey_glass"]._replace(delay=delay, burn_in=4000.0)
        path = trajectory(system, 1400, 0.5)
        return min(
            float(np.abs(path[lag : lag + 400] - path[:400]).max()) for lag in range(160, 1000)
        )

    assert closest_return(16.0) < 0.02 < 0.1 < closest_return(17.0)


@pytest.mark.slow
def test_every_start_in_the_box_stays_on_its_attractor() -> None:
    for name in ("rossler", "arneodo", "lorenz", "thomas"):
        system = SYSTEMS[name]
        states = attractor_states(system, 4000, system.max_step)
        assert np.abs(states).max() < 50, name


# --- the recording ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_recording_and_its_truth(name: str) -> None:
    data = simulate(name, 12, 30, 7, bin_width=0.02, mean_rate=40.0, seed=3)
    assert data["counts"].shape == data["rates"].shape == (12, 30, 7)
    assert data["latents"].shape == (12, 30, SYSTEMS[name].dim)
    assert data.attrs["bin_width"] == 0.02
    assert data.attrs["system"] == name
    np.testing.assert_allclose(data["rates"].mean(), 40.0 * 0.02, rtol=1e-5)
    if not SYSTEMS[name].delay and SYSTEMS[name].pulse is None:
        # The recorded states follow the flow from bin to bin.
        state = data["latents"].values[:, 0].astype(float)
        substeps = 50
        for _ in range(substeps):
            state = rk4_step(SYSTEMS[name], state, SYSTEMS[name].time_per_bin / substeps)
        scale = float(data["latents"].std())
        np.testing.assert_allclose(data["latents"].values[:, 1], state, atol=1e-4 * scale)


def test_time_per_bin_sets_the_speed_without_touching_the_start() -> None:
    slow = simulate("lorenz", 5, 21, 5, time_per_bin=0.005)
    fast = simulate("lorenz", 5, 11, 5, time_per_bin=0.01)
    step = (
        np.abs(np.diff(fast["latents"], axis=1)).mean()
        / np.abs(np.diff(slow["latents"], axis=1)).mean()
    )
    assert 1.5 < step < 2.5


def test_mean_rate_and_poisson_dispersion() -> None:
    data = simulate("lorenz", 200, 50, 40, mean_rate=60.0, bin_width=0.01, seed=1)
    counts, rates = data["counts"].values.astype(float), data["rates"].values.astype(float)
    assert abs(counts.mean() - 0.6) < 4 * np.sqrt(0.6 / counts.size)
    # Pearson's chi-square of Poisson counts: each term has mean 1 and variance 2 + 1 / rate.
    pearson = (counts - rates) ** 2 / rates
    z = (pearson - 1).sum() / np.sqrt((2 + 1 / rates).sum())
    assert abs(z) < 4
    # and, given the rates, neighbouring bins are uncorrelated
    residual = (counts - rates) / np.sqrt(rates)
    z = (residual[:, 1:] * residual[:, :-1]).sum() / np.sqrt(residual[:, 1:].size)
    assert abs(z) < 4


@pytest.mark.parametrize("dispersion", [0.2, 1.5])
def test_negative_binomial_variance(dispersion: float) -> None:
    data = simulate(
        "rossler",
        200,
        50,
        40,
        mean_rate=200.0,
        gain=0.3,
        observation="negative_binomial",
        dispersion=dispersion,
    )
    counts, rates = data["counts"].values.astype(float), data["rates"].values.astype(float)
    variance = rates + dispersion * rates**2
    pearson = (counts - rates) ** 2 / variance
    z = (pearson - 1).sum() / (pearson.std() * np.sqrt(counts.size))
    assert abs(z) < 4
    z = (counts - rates).sum() / np.sqrt(variance.sum())
    assert abs(z) < 4


def test_gaussian_signal() -> None:
    data = simulate("thomas", 100, 50, 20, observation="gaussian", noise_sd=0.7, gain=2.0)
    noise = (data["signal"] - data["rates"]).values
    assert abs(noise.mean()) < 4 * 0.7 / np.sqrt(noise.size)
    assert abs(noise.std() - 0.7) < 4 * 0.7 / np.sqrt(2 * noise.size)
    np.testing.assert_allclose(data["rates"].std(("trial", "time")), 2.0, rtol=1e-5)
    assert "counts" not in data


def test_gain_is_the_sd_of_the_log_rates() -> None:
    gain = np.linspace(0.2, 1.5, 6)
    data = simulate("arneodo", 50, 40, 6, gain=gain)
    np.testing.assert_allclose(np.log(data["rates"].values).std((0, 1)), gain, rtol=1e-4)


def test_softplus_link_is_linear_where_rates_are_high() -> None:
    exponential = simulate("lorenz", 50, 40, 6, gain=4.0, link="exp", seed=2)
    rectified = simulate("lorenz", 50, 40, 6, gain=4.0, link="softplus", seed=2)
    argument = np.log(exponential["rates"].values)
    rates = rectified["rates"].values
    # Undo the scale: softplus(a) = c rates, where a differs from the log rates by a constant.
    top = argument > np.quantile(argument, 0.8)
    slope, offset = np.polyfit(argument[top], rates[top], 1)
    residual = rates[top] - slope * argument[top] - offset
    assert residual.std() < 0.02 * rates[top].std()
    assert (rates > 0).all()


def test_trials_are_independent() -> None:
    data = simulate("lorenz", 400, 20, 5, seed=4)
    ends, starts = data["latents"].values[:, -1], data["latents"].values[:, 0]
    # No trial continues another: no start lies one bin after any end.
    after = ends.astype(float)
    system = SYSTEMS["lorenz"]
    for _ in range(10):
        after = rk4_step(system, after, system.time_per_bin / 10)
    distance = np.linalg.norm(after[:, None] - starts, axis=-1)
    assert distance.min() > 1e-4
    correlation = np.corrcoef(starts[:-1, 0], starts[1:, 0])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(399)
    # and the starts already lie on the attractor: same moments as the ends
    for power in (1, 2):
        a, b = starts[:, 2] ** power, ends[:, 2] ** power
        assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / np.sqrt(400)


def test_same_seed_same_bytes() -> None:
    first, again, other = (simulate("chaotic_rnn", 6, 12, 9, seed=seed) for seed in (5, 5, 6))
    xr.testing.assert_identical(first, again)
    for name in ("counts", "rates", "latents"):
        assert first[name].values.tobytes() == again[name].values.tobytes()
        assert not np.array_equal(first[name], other[name])


# --- pulses -------------------------------------------------------------------------------------


def test_pulse_departs_from_the_unpulsed_twin_at_its_bin() -> None:
    pulsed = simulate("pulsed_rnn", 40, 32, 6, seed=1)
    twin = simulate("pulsed_rnn", 40, 32, 6, seed=1, pulse_probability=0.0)
    direction = SYSTEMS["pulsed_rnn"].pulse
    assert direction is not None
    bins = pulsed["pulse_bin"].values
    assert (twin["pulse_bin"].values == -1).all()
    assert bins.min() >= 8
    assert bins.max() < 24
    assert len(np.unique(bins)) > 8
    difference = (pulsed["latents"] - twin["latents"]).values
    for trial, pulse in enumerate(bins):
        assert (difference[trial, :pulse] == 0).all()
        np.testing.assert_allclose(difference[trial, pulse], 0.5 * direction, atol=1e-5)
        assert np.abs(difference[trial, pulse + 1 :]).max() > 0.1


@pytest.mark.slow
def test_some_trials_without_pulse() -> None:
    data = simulate("pulsed_rnn", 400, 8, 2, seed=1, pulse_probability=0.3)
    share = float((data["pulse_bin"] >= 0).mean())
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)
    assert "pulse_bin" not in simulate("chaotic_rnn", 3, 8, 4).coords


# --- systems of one's own and bad arguments ----------------------------------------------------


def test_a_system_of_ones_own() -> None:
    network = rate_network(num_units=12, gain=2.0, seed=1)
    data = simulate(network, 4, 10, 5)
    assert data["latents"].sizes["latent"] == 12
    assert data.attrs["system"] == "rate_network"


def test_trajectory_is_one_path_of_the_flow() -> None:
    path = trajectory("lorenz", 50, 0.01, seed=2)
    assert path.shape == (50, 3)
    np.testing.assert_array_equal(path, trajectory("lorenz", 50, 0.01, seed=2))
    np.testing.assert_allclose(
        path[1:], rk4_step(SYSTEMS["lorenz"], path[:-1], 0.01), rtol=0, atol=1e-12
    )


def test_unknown_system_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"lorentz.*lorenz, rossler, arneodo, thomas"):
        simulate("lorentz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_trials": 0}, "num_trials=0 must be"),
        ({"num_bins": -3}, "num_bins=-3 must be"),
        ({"num_neurons": 0}, "num_neurons=0 must be"),
        ({"bin_width": 0.0}, "bin_width is 0"),
        ({"mean_rate": -1.0}, "mean_rate is -1"),
        ({"time_per_bin": math.nan}, "time_per_bin is nan"),
        ({"dispersion": 0.0}, "dispersion is 0"),
        ({"noise_sd": -0.1}, "noise_sd is -0.1"),
        ({"observation": "bernoulli"}, "'bernoulli'.*poisson, negative_binomial, gaussian"),
        ({"link": "relu"}, "'relu'.*exp, softplus"),
        ({"gain": [1.0, 2.0]}, "gain has shape"),
        ({"pulse_probability": 1.5}, "pulse_probability is 1.5"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate("lorenz", **arguments)


def test_divergence_and_short_delay_are_named() -> None:
    runaway = SYSTEMS["arneodo"]._replace(
        initial_low=np.full(3, 30.0), initial_high=np.full(3, 60.0)
    )
    with pytest.raises(ValueError, match="arneodo diverged"):
        simulate(runaway, 3, 5, 4)
    with pytest.raises(ValueError, match="longer than the delay"):
        simulate(SYSTEMS["mackey_glass"]._replace(delay=0.1), 3, 5, 4)
    with pytest.raises(ValueError, match="num_steps is 0"):
        trajectory("lorenz", 0, 0.01)


def test_channels_see_the_same_state_beside_the_spikes() -> None:
    sizes = {"num_trials": 60, "num_bins": 50, "num_neurons": 4, "seed": 3}
    spikes = simulate("lorenz", **sizes)
    data = simulate("lorenz", **sizes, num_channels=5, noise_sd=0.3)
    for name in spikes.variables:
        xr.testing.assert_identical(data[name].drop_attrs(), spikes[name].drop_attrs())
    mean, latents = data["signal_mean"].values, data["latents"].values
    # A linear readout, standardised: a regression on the state leaves nothing.
    state = (latents - latents.mean((0, 1))).reshape(-1, 3)
    weights = np.linalg.lstsq(state, mean.reshape(-1, 5), rcond=None)[0]
    np.testing.assert_allclose(state @ weights, mean.reshape(-1, 5), atol=1e-4)
    np.testing.assert_allclose(mean.std((0, 1)), 1.0, rtol=1e-5)
    noise = (data["signal"] - data["signal_mean"]).values
    error = 0.3 / np.sqrt(2 * noise.size)
    assert abs(noise.std() - 0.3) < 4 * error
    assert abs(noise.mean()) < 4 * 0.3 / np.sqrt(noise.size)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_channels": -1}, "num_channels=-1 must be an integer of at least 0"),
        ({"observation": "gaussian"}, r"num_channels is .*, the number of channels in addition to"),
    ],
)
def test_channels_beside_no_counts_are_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        simulate("lorenz", 2, 5, 3, **{"num_channels": 2, **wrong})
