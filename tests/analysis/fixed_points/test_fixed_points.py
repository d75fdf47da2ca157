import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import pyrodyn
from pyrodyn.analysis import (
    fixed_points,
    free_run,
    lyapunov_spectrum,
    phase_portrait,
    visited_states,
)
from pyrodyn.analysis.fixed_points.certified import PiecewiseLinear
from pyrodyn.analysis.fixed_points.fixed_points import PIECEWISE_LINEAR
from pyrodyn.infer import Fit, GuideError
from pyrodyn.models import LowRankRNN, NodeSAE
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.low_rank_rnn import LowRankState


def network(**options) -> LowRankRNN:
    torch.manual_seed(0)
    sizes = {"latent_dim": 2, "num_units": 20, "input_dim": 1, "activation": "clipped_relu"}
    model = LowRankRNN(4, **{**sizes, **options})
    with torch.no_grad():
        if not model.is_full_rank:
            model.n *= 10
    return model


@pytest.mark.parametrize("activation", PIECEWISE_LINEAR)
@pytest.mark.parametrize("inputs", [None, [0.7]])
def test_points_are_fixed_and_their_eigenvalues_those_of_the_models_step(activation, inputs):
    model = network(activation=activation)
    if activation in ("relu", "leaky_relu"):  # or it may diverge
        with torch.no_grad():
            model.n /= -20
    found = fixed_points(model, inputs=inputs)
    assert found.attrs["complete"] == 1
    assert found.sizes["fixed_point"] >= 1
    v = torch.tensor([inputs or [0.0]])
    model = model.double()

    def step(z: torch.Tensor) -> torch.Tensor:
        return model.mean_step(LowRankState(z, v[0].double(), v[0].double()))

    for point, eigenvalues in zip(found["point"].values, found["eigenvalues"].values, strict=True):
        z = torch.from_numpy(point)
        torch.testing.assert_close(step(z).detach(), z, atol=1e-6, rtol=1e-6)
        jacobian = torch.autograd.functional.jacobian(step, z).numpy()
        expected = np.linalg.eigvals(jacobian)
        np.testing.assert_allclose(
            np.sort_complex(eigenvalues), np.sort_complex(expected), atol=1e-5
        )


def test_a_network_without_a_model_is_enumerated_too():
    """z' = z / 2 + hard tanh(4 z): z = 2 hard tanh(4 z) has the solutions 0 and +-2."""
    bistable = PiecewiseLinear.hard_tanh(0.5, [[1.0]], [[4.0]], 0.0)
    found = fixed_points(bistable)
    np.testing.assert_allclose(np.sort(found["point"].values[:, 0]), [-2, 0, 2], atol=1e-12)
    assert found.attrs["complete"] == 1
    assert found.attrs["kind"] == "map"


def test_the_network_of_a_fit_is_enumerated_too():
    torch.manual_seed(0)
    model = LowRankRNN(3, latent_dim=2, num_units=6)
    fitted = Fit(model, model.guide, xr.Dataset(), best_epoch=0, num_steps=0)
    found = fixed_points(fitted)
    assert found.attrs["complete"] == 1
    np.testing.assert_array_equal(found["point"], fixed_points(model)["point"])


def test_points_have_their_distance_to_the_visited_states():
    bistable = PiecewiseLinear.hard_tanh(0.5, [[1.0]], [[4.0]], 0.0)
    visited = np.array([[[1.0], [1.5]], [[2.5], [3.0]]])
    found = fixed_points(bistable, starts=visited)
    np.testing.assert_allclose(found["point"].values[:, 0], [-2, 0, 2], atol=1e-12)
    np.testing.assert_allclose(found["distance_to_visited"], [3.0, 1.0, 0.5])
    np.testing.assert_allclose(found.attrs["visited_radius"], np.std([1.0, 1.5, 2.5, 3.0]))
    assert "distance_to_visited" not in fixed_points(bistable)
    flip = PiecewiseLinear.hard_tanh(0.0, [[-1.0]], [[3.0]], 0.0)
    cycles = fixed_points(flip, starts=[[0.5], [-3.0]], period=2)
    np.testing.assert_allclose(cycles["distance_to_visited"], [[0.5, 1.5]])
    searched = fixed_points(LowRankRNN(4, latent_dim=2, activation="tanh"), starts=np.ones((3, 2)))
    expected = np.linalg.norm(searched["point"] - 1.0, axis=1)
    assert len(expected)
    np.testing.assert_allclose(searched["distance_to_visited"], expected)
    with pytest.raises(ValueError, match=r"starts must be states of shape \(..., 1\)"):
        fixed_points(bistable, starts=np.zeros((4, 2)))


def test_inputs_of_an_enumeration_are_checked():
    with pytest.raises(ValueError, match="inputs must be 1 finite numbers, one constant per input"):
        fixed_points(network(), inputs=[1.0, 2.0])
    with pytest.raises(ValueError, match="holds its constant input; leave inputs out"):
        fixed_points(PiecewiseLinear.relu(0.5, [[1.0]], [[1.0]], 0.0), inputs=[1.0])


def test_a_free_run_follows_the_model():
    model = network()
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2000, 4, 1))
    run = free_run(model, 2000, 4, inputs=inputs, seed=1)
    z = torch.from_numpy(run["latents"].values)
    with torch.no_grad():
        states = model.states(None, z, torch.from_numpy(inputs).float())
        before = LowRankState(*(field[:, :-1] for field in states))
        residual = z[:, 1:] - model.mean_step(before)
        covariance = model.process_noise()[1].matrix
        rates = model.emission(states).mean
    found = torch.einsum("btd,bte->de", residual, residual) / (2000 * 3)
    # Variances of 6000 draws err by sqrt(2 / 6000) of themselves.
    assert ((found - covariance).abs() < 4 * (2 / 6000) ** 0.5 * covariance.max()).all()
    np.testing.assert_allclose(run["rates"].values, rates, rtol=1e-4, atol=1e-5)
    assert (run["x"].values.mean() - rates.numpy().mean()) < 4 * run["x"].values.std() / 32000**0.5


def test_a_free_run_starts_from_given_states(make_lfads, make_recording):
    model = network(input_dim=0)
    start = np.random.default_rng(0).normal(size=(3, 2))
    run = free_run(model, 3, 5, start=start)
    np.testing.assert_allclose(run["latents"].values[:, 0], start, rtol=1e-6)
    late = free_run(model, 3, 2, start=start, burn_in=3)
    np.testing.assert_array_equal(late["latents"].values, run["latents"].values[:, 3:])
    lfads = make_lfads(make_recording(4), inferred_input_dim=1)
    g0 = np.random.default_rng(0).normal(size=(3, 4))
    runs = [free_run(lfads, 3, 5, start=g0, seed=seed)["rates"].values for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_a_free_run_returns_the_states_of_the_dynamics(make_lfads, make_recording):
    model = network(input_dim=0)
    run = free_run(model, 3, 5)
    np.testing.assert_array_equal(run["states"], run["latents"])
    lfads = make_lfads(make_recording(4))
    run = free_run(lfads, 3, 5)
    assert run.sizes["latent"] == 0  # nothing is drawn without inferred inputs
    dynamics = lfads.dynamics()
    state = torch.from_numpy(run["states"].values)
    with torch.no_grad():
        moved = dynamics.step(state[:, :-1], dynamics.no_inputs(state[:, :-1]))
    torch.testing.assert_close(moved, state[:, 1:])


def test_a_diverging_trajectory_is_named_by_trial_and_bin(make_recording):
    recording = make_recording(4)
    model = NodeSAE.for_recording(recording, latent_dim=3, linear_term=True)
    with torch.no_grad():  # by a factor of 5e11 per bin: bin 4 is beyond single precision
        model.phi.field.linear.copy_(1e6 * torch.eye(3))
        for layer in model.phi.field.linear_layers():
            layer.weight.zero_()
            layer.bias.zero_()
    start = np.zeros((3, 3))
    start[1] = 1.0
    with pytest.raises(ArithmeticError, match="trial 1 is not finite from bin 4 on"):
        free_run(model, 3, 20, start=start)
    with pytest.raises(ArithmeticError, match="trial 1 is not finite from bin 4 on"):
        free_run(model, 3, 9, start=start, burn_in=4)
    with pytest.raises(ArithmeticError, match=r"trial \d is not finite from bin \d+ on"):
        visited_states(model, recording)


def test_states_are_visited_by_the_guide_that_was_fitted(make_recording):
    recording = make_recording(4)
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recording, latent_dim=2, encoder_dim=3)

    def wide(batch):
        with model.trials(batch):
            pyro.sample("z0", dist.Normal(torch.full((2,), 3.0), 1e-3).to_event(1))

    fitted = pyrodyn.fit(model, recording, guide=wide, max_epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"was fitted with the guide .*wide"):
        visited_states(model, recording)
    for states in (visited_states(fitted, recording), visited_states(model, recording, guide=wide)):
        np.testing.assert_allclose(states[:, 0], 3.0, atol=0.01)

    def misspelt(batch):
        with model.trials(batch):
            pyro.sample("z_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(GuideError, match="'z_0', which is no site"):
        visited_states(model, recording, guide=misspelt)


def test_models_without_dynamics_raise(make_recording):
    class Still(LatentDynamics):
        def start_readout(self, predictors):
            raise NotImplementedError

        def model(self, batch):
            raise NotImplementedError

        def guide(self, batch):
            raise NotImplementedError

    still, message = Still(), "Still has no dynamics of its own to analyse"
    for analysed in (
        lambda: fixed_points(still, starts=np.zeros(3)),
        lambda: lyapunov_spectrum(still, np.zeros(3), 10),
        lambda: phase_portrait(still, np.zeros((4, 2))),
        lambda: free_run(still, 2, 3),
        lambda: visited_states(still, make_recording(4)),
    ):
        with pytest.raises(ValueError, match=message):
            analysed()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bins": 0}, "num_bins=0 must be an integer of at least 1"),
        ({}, "has 1 inputs; give inputs of shape \\(2, 3, 1\\)"),
        ({"inputs": np.zeros((2, 3, 2))}, "inputs must be of shape \\(2, 3, 1\\)"),
        ({"burn_in": 2, "inputs": np.zeros((2, 3, 1))}, "\\(2, 5, 1\\) \\(burn-in included\\)"),
        (
            {"inputs": np.where(np.arange(6).reshape(2, 3, 1) == 4, np.nan, 0.0)},
            "input 0 is not finite in run 1, bin 1",
        ),
        (
            {"inputs": np.zeros((2, 3, 1)), "start": [[0.0, 0.0], [np.nan, 0.0]]},
            "start is not finite in run 1",
        ),
        ({"inputs": np.zeros((2, 3, 1)), "start": np.zeros((1, 2))}, "start must be \\(2, 2\\)"),
    ],
)
def test_invalid_free_runs_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        free_run(network(), **{"num_trials": 2, "num_bins": 3, **settings})
