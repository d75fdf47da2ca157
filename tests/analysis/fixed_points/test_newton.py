"""The search for fixed points: known systems, linear maps, slow points, invalid arguments."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from pyrodyn.analysis import fixed_points
from pyrodyn.analysis.dynamics import known_dynamics
from pyrodyn.data.simulate import trajectory
from pyrodyn.data.systems import SYSTEMS
from pyrodyn.models import LFADS, Dynamics, LowRankRNN, NodeSAE

C = np.sqrt(2.667 * 27)
D = np.sqrt(5.7**2 - 4 * 0.2 * 0.2)
KNOWN = {
    "lorenz": [[-C, -C, 27.0], [0.0, 0.0, 0.0], [C, C, 27.0]],
    "rossler": [[x, -5 * x, 5 * x] for x in ((5.7 - D) / 2, (5.7 + D) / 2)],
    "arneodo": [[-np.sqrt(5.5), 0.0, 0.0], [0.0, 0.0, 0.0], [np.sqrt(5.5), 0.0, 0.0]],
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_flows_have_their_known_fixed_points(name):
    system = SYSTEMS[name]
    visited = trajectory(system, 400, system.max_step)
    found = fixed_points(known_dynamics(name), starts=visited, num_starts=256)
    np.testing.assert_allclose(found["point"], KNOWN[name], atol=1e-9)
    assert found["residual"].max() < 1e-9
    assert (found["stability"] == "saddle").all()
    assert found.attrs["kind"] == "flow"
    assert found.attrs["complete"] == 0
    assert system.jacobian is not None
    assert found["jacobian"].dims == ("fixed_point", "latent", "by")
    for point, jacobian, eigenvalues in zip(
        KNOWN[name], found["jacobian"].values, found["eigenvalues"].values, strict=True
    ):
        np.testing.assert_allclose(jacobian, system.jacobian(np.array(point)), atol=1e-7)
        expected = np.linalg.eigvals(system.jacobian(np.array(point)))
        np.testing.assert_allclose(
            np.sort_complex(eigenvalues), np.sort_complex(expected), atol=1e-8
        )
        assert (np.diff(eigenvalues.real) <= 1e-9).all()
    converged = int(found["num_starts"].sum() + found["slow_num_starts"].sum())
    others = found.attrs["num_unfinished"] + found.attrs["num_outside"]
    assert converged + others == 256


@pytest.mark.parametrize(
    ("moduli", "stability"),
    [
        ((0.9, -0.5), "stable"),
        ((1.5, 0.5), "saddle"),
        ((1.5, -2.0), "unstable"),
        ((-1.0, 0.5), "marginal"),
    ],
)
def test_a_linear_map_under_a_constant_input(moduli, stability):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    matrix = torch.from_numpy(rotation @ np.diag(moduli) @ rotation.T)
    linear = Dynamics(lambda z, i: z @ matrix.mT + i, 2, input_dim=2)
    found = fixed_points(linear, inputs=[1.0, 2.0], region=([-50.0, -50.0], [50.0, 50.0]))
    expected = np.linalg.solve(np.eye(2) - matrix.numpy(), [1.0, 2.0])
    np.testing.assert_allclose(found["point"], expected[None], atol=1e-8)
    np.testing.assert_array_equal(found["num_starts"], [512])
    np.testing.assert_array_equal(found["stability"], [stability])
    np.testing.assert_allclose(found["jacobian"], matrix[None], atol=1e-12)
    np.testing.assert_allclose(
        found["eigenvalues"].values[0], sorted(moduli, key=abs)[::-1], atol=1e-12
    )
    assert found.attrs["kind"] == "map"


@pytest.mark.parametrize("excess", [1e-2, 1e-6])
def test_a_nearly_neutral_network_has_no_more_fixed_points_than_it_has(excess):
    """z' = tanh((1 + excess) z): 0 and two others, near which the residual is tiny everywhere."""
    network = Dynamics(lambda z, i: torch.tanh((1 + excess) * z), 1)
    found = fixed_points(network, region=([-2.0], [2.0]))
    outer = brentq(lambda z: np.tanh((1 + excess) * z) - z, excess**0.5, 2.0, xtol=1e-14)
    np.testing.assert_allclose(found["point"].values[:, 0], [-outer, 0, outer], atol=1e-8)
    assert list(found["stability"].values) == ["stable", "unstable", "stable"]
    assert found["residual"].max() < 1e-14


@pytest.mark.parametrize(
    ("slopes", "stability"),
    [((0.5, 0.8), "kink"), ((0.5, 1.5), "kink"), ((0.9, 0.9), "stable"), ((1.2, 1.2), "unstable")],
)
def test_a_point_on_a_kink_has_no_eigenvalues(slopes, stability):
    """z' = slope z with one slope on either side of 0, as a map and as a flow of that velocity."""

    def image(z: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return slopes[1] * z.relu() - slopes[0] * (-z).relu()

    flow = Dynamics(lambda z, i: z, 1, vector_field=lambda z, i: image(z, i) - z)
    for dynamics in (Dynamics(image, 1), flow):
        found = fixed_points(dynamics, region=([-1.0], [1.0]), num_starts=20)
        np.testing.assert_allclose(found["point"], [[0.0]], atol=1e-8)
        assert list(found["stability"].values) == [stability]
        assert np.isnan(found["eigenvalues"].values).all() == (stability == "kink")
        assert np.isnan(found["jacobian"].values).all() == (stability == "kink")


def test_slow_points_are_listed_separately():
    # x' = x^2 + c is slowest at 0, where it moves by c; x' = -y makes that attract.
    def field(z: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return torch.stack([z[..., 0] ** 2 + i[..., 0], -z[..., 1]], -1)

    ghost = Dynamics(lambda z, i: z, 2, input_dim=1, bin_width=0.1, vector_field=field)
    region = ([-2.0, -2.0], [2.0, 2.0])
    found = fixed_points(ghost, inputs=[0.01], region=region)
    assert found.sizes["fixed_point"] == 0
    np.testing.assert_allclose(found["slow_state"], [[0.0, 0.0]], atol=1e-3)
    np.testing.assert_allclose(found["slow_residual"], [0.001], rtol=1e-3)
    np.testing.assert_allclose(found["slow_eigenvalues"], [[0.0, -1.0]], atol=1e-2)
    np.testing.assert_allclose(found["slow_jacobian"], [np.diag([0.0, -1.0])], atol=1e-2)
    found = fixed_points(ghost, inputs=[-0.25], region=region)
    np.testing.assert_allclose(found["point"], [[-0.5, 0.0], [0.5, 0.0]], atol=1e-9)
    np.testing.assert_array_equal(found["stability"], ["stable", "saddle"])
    # A double root, where the Jacobian is singular, is one fixed point nevertheless.
    found = fixed_points(ghost, inputs=[0.0], region=region)
    assert found.sizes["fixed_point"] >= 1
    np.testing.assert_allclose(found["point"], 0.0, atol=2e-4)


def test_points_outside_the_region_are_counted_and_not_listed():
    dynamics = known_dynamics("lorenz")
    found = fixed_points(dynamics, region=([1.0, 1.0, 10.0], [20.0, 20.0, 40.0]))
    np.testing.assert_allclose(found["point"], KNOWN["lorenz"][2:], atol=1e-9)
    assert found.attrs["num_outside"] + int(found["num_starts"].sum()) == 512


def test_the_generator_of_an_lfads():
    torch.manual_seed(0)
    model = LFADS(4, generator_dim=12, input_dim=1, inferred_input_dim=1)
    with torch.no_grad():
        model.generator.weight_hh_l0 *= 4
    starts = torch.randn(3, 40, 12)
    found = fixed_points(model, starts=starts, inputs=[0.1, -0.2], num_starts=64)
    assert found.sizes["fixed_point"] >= 1
    dynamics = model.double().dynamics()
    point = torch.from_numpy(found["point"].values)
    constant = torch.tensor([0.1, -0.2], dtype=torch.float64).expand(len(point), 2)
    assert (dynamics.step(point, constant) - point).abs().max() < 2e-9
    again = fixed_points(model, starts=starts, inputs=[0.1, -0.2], num_starts=64)
    np.testing.assert_array_equal(found["point"], again["point"])


def test_a_search_finds_what_an_enumeration_does():
    torch.manual_seed(0)
    model = LowRankRNN(4, latent_dim=2, num_units=20, activation="clipped_relu")
    with torch.no_grad():
        model.n *= 10
    whole = fixed_points(model.double())
    searched = fixed_points(model.dynamics(), region=(whole.attrs["lower"], whole.attrs["upper"]))
    assert whole.attrs["complete"] == 1
    assert "num_boxes" in whole.attrs
    for point in searched["point"].values:
        assert np.abs(whole["point"].values - point).max(1).min() < 1e-6


@pytest.mark.parametrize(
    "model",
    [
        LowRankRNN(4, latent_dim=2, num_units=8, activation="tanh"),
        LowRankRNN(4, num_units=3, is_full_rank=True),
        NodeSAE(4, latent_dim=2, field_width=8, linear_term=True),
    ],
)
def test_every_model_with_dynamics_is_searched(model):
    dim = model.dynamics().state_dim
    found = fixed_points(model, starts=np.zeros((1, dim)), num_starts=16)
    assert found["point"].shape == (found.sizes["fixed_point"], dim)
    assert found["residual"].size == 0 or found["residual"].max() < 1e-7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"a search needs starts: give visited states of shape \(..., 3\)"),
        ({"starts": np.zeros((4, 2))}, r"starts must be states of shape \(..., 3\)"),
        ({"starts": np.full((4, 3), np.nan)}, "starts must be finite"),
        ({"starts": np.zeros(3), "inputs": [1.0]}, "inputs must be 0 finite numbers"),
        ({"starts": np.zeros(3), "period": 2}, "period=2: cycles are enumerated for low-rank"),
        (
            {"starts": np.zeros(3), "num_starts": 0},
            "num_starts=0 must be an integer of",
        ),
        ({"region": (np.zeros(3), np.zeros(3))}, "region must be a lower and an upper corner"),
    ],
)
def test_invalid_searches_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        fixed_points(known_dynamics("lorenz"), **settings)
    with pytest.raises(ValueError, match="list has no dynamics"):
        fixed_points([])
