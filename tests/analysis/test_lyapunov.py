"""Lyapunov spectra: exact ones of linear maps, published ones of known systems."""

import numpy as np
import pytest
import torch

from pyrodyn.analysis.dynamics import known_dynamics
from pyrodyn.analysis.lyapunov import kaplan_yorke, lyapunov_spectrum
from pyrodyn.data.simulate import trajectory
from pyrodyn.data.systems import SYSTEMS, System
from pyrodyn.models import Dynamics, LowRankRNN


def attractor(system: System, num_starts: int) -> np.ndarray:
    """States along one path on the attractor, far enough apart to differ in phase."""
    return trajectory(system, 30 * num_starts, system.max_step)[::30]


def henon(state: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    x, y = state[..., 0], state[..., 1]
    return torch.stack([1 - 1.4 * x**2 + y, 0.3 * x], -1)


HENON = Dynamics(henon, 2, bin_width=0.5)


@pytest.mark.parametrize(
    ("name", "max_step", "num_starts", "num_bins", "burn_in", "largest_error"),
    [("lorenz", 0.016, 400, 200, 100, 0.05), ("rossler", 0.057, 300, 160, 40, 0.05)],
)
@pytest.mark.slow
def test_flows_have_their_published_spectra(
    name, max_step, num_starts, num_bins, burn_in, largest_error
):
    # Steps longer than the simulator's are exact enough here, and quicker.
    system = SYSTEMS[name]._replace(max_step=max_step)
    start = attractor(SYSTEMS[name], num_starts)
    found = lyapunov_spectrum(known_dynamics(system), start, num_bins, burn_in=burn_in)
    exponents = found["exponents_per_second"].values
    error = found["standard_error_per_second"].values
    duration = num_bins * system.time_per_bin
    assert error.max() < largest_error
    # Along the flow growth adds up to the log of a ratio of speeds, of order one.
    np.testing.assert_array_less(
        np.abs(exponents - system.lyapunov), 4 * error + 0.3 / duration + 0.01
    )
    if name == "lorenz":
        np.testing.assert_allclose(exponents.sum(), -13.667, atol=1e-3)
        np.testing.assert_allclose(found["kaplan_yorke"], 2.062, atol=0.01)
    np.testing.assert_allclose(
        found["exponents_per_bin"], exponents * system.time_per_bin, rtol=1e-12
    )
    np.testing.assert_allclose(found["running"][-1], exponents, rtol=1e-9)
    np.testing.assert_allclose(found["time"][-1], duration)
    np.testing.assert_allclose(found["by_trial"].mean("trial"), exponents, rtol=1e-9)


def test_henons_map_and_its_constant_contraction():
    start = np.random.default_rng(0).uniform(-0.1, 0.1, (400, 2))
    found = lyapunov_spectrum(HENON, start, 500)
    exponents, error = found["exponents_per_bin"].values, found["standard_error_per_bin"].values
    assert error[0] < 0.002
    assert abs(exponents[0] - 0.4192) < 4 * error[0]
    np.testing.assert_allclose(exponents.sum(), np.log(0.3), rtol=1e-12)
    np.testing.assert_allclose(found["exponents_per_second"], exponents / 0.5)
    np.testing.assert_allclose(found["kaplan_yorke"], 1.258, atol=0.005)


def test_linear_maps_exactly():
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    moduli = np.array([1.2, 0.9, 0.5, 0.1])
    matrix = torch.from_numpy(turn @ np.diag(moduli) @ turn.T)
    linear = Dynamics(lambda z, i: z @ matrix.mT, 4)
    found = lyapunov_spectrum(linear, np.zeros(4), 30, burn_in=200)
    np.testing.assert_allclose(found["exponents_per_bin"], np.log(moduli), atol=1e-12)
    assert np.isnan(found["standard_error_per_bin"]).all()
    largest = lyapunov_spectrum(linear, np.zeros(4), 30, num_exponents=2, burn_in=200)
    np.testing.assert_allclose(largest["exponents_per_bin"], np.log(moduli[:2]), atol=1e-12)


def test_a_direction_that_collapses_has_an_exponent_of_minus_infinity():
    flat = Dynamics(lambda z, i: torch.stack([2 * z[..., 0], 0 * z[..., 1]], -1), 2)
    found = lyapunov_spectrum(flat, np.zeros((3, 2)), 4, burn_in=0)
    np.testing.assert_array_equal(found["exponents_per_bin"][1], -np.inf)


def test_inputs_reach_the_step():
    scaled = Dynamics(lambda z, i: torch.exp(i) * z, 1, input_dim=1)
    held = lyapunov_spectrum(scaled, [[1.0]], 3, inputs=[0.25], burn_in=2)
    np.testing.assert_allclose(held["exponents_per_bin"], [0.25])
    inputs = np.arange(10.0).reshape(2, 5, 1)
    each = lyapunov_spectrum(scaled, [[1.0], [1.0]], 3, inputs=inputs, burn_in=2)
    np.testing.assert_allclose(each["by_trial"], [[3.0], [8.0]])


def test_a_model_is_analysed_in_double_precision():
    torch.manual_seed(0)
    model = LowRankRNN(4, latent_dim=2, num_units=20, activation="tanh")
    found = lyapunov_spectrum(model, np.zeros((2, 2)), 20)
    step = model.double().dynamics()
    z = torch.zeros(1, 2, dtype=torch.float64)
    for _ in range(1000):
        z = step.step(z, step.no_inputs(z)).detach()
    # It converges to a fixed point, whose eigenvalues give the growth rates.
    moduli = np.abs(np.linalg.eigvals(step.jacobian(z, step.no_inputs(z))[0].detach().numpy()))
    np.testing.assert_allclose(found["exponents_per_bin"], np.sort(np.log(moduli))[::-1], atol=1e-3)


def test_kaplan_and_yorkes_dimension():
    assert kaplan_yorke([0.9, 0.0, -14.5], 3) == pytest.approx(2 + 0.9 / 14.5)
    assert kaplan_yorke([-0.1, -2.0], 2) == 0.0
    assert kaplan_yorke([0.5, -0.2], 2) == 2.0
    assert np.isnan(kaplan_yorke([0.5, -0.2], 3))
    assert kaplan_yorke([1.0, -np.inf], 2) == 1.0
    assert np.isnan(kaplan_yorke([np.nan, 1.0], 2))


def test_a_diverging_trajectory_names_its_trial_and_bin():
    square = Dynamics(lambda z, i: z**2, 1)
    # 10^(2^k) leaves double precision at k = 9: after the ninth bin, counted from 0.
    with pytest.raises(ArithmeticError, match="trial 1 is not finite after bin 8"):
        lyapunov_spectrum(square, [[0.5], [10.0]], 50, burn_in=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": np.zeros((2, 3))}, r"start must be states of shape \(..., 2\)"),
        ({"num_bins": 0}, "num_bins=0 must be an integer of at least 1"),
        ({"num_exponents": 3}, "num_exponents=3; these dynamics have 2 exponents"),
        ({"inputs": [1.0]}, "inputs must be 0 finite numbers"),
        ({"inputs": np.zeros((1, 3, 0))}, r"of shape \(1, 102, 0\)"),
    ],
)
def test_invalid_arguments_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_spectrum(HENON, **{"start": np.zeros(2), "num_bins": 2, **settings})
