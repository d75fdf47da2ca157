"""Linear dynamical systems: the equations, exact inference, fits by the evidence, fixed points."""

import numpy as np
import pytest
import torch
import xarray as xr
from linear_gaussian import Exact, by_joint_gaussian

import pyrodyn
from pyrodyn.analysis import fixed_points
from pyrodyn.data import held_out, recording, split
from pyrodyn.infer import IWELBO, VSMC, Kalman, kalman_filter, particle_filter
from pyrodyn.models import LinearDynamics
from pyrodyn.models.proposals import EncoderFactor, OptimalFactor
from pyrodyn.models.state_space import Bootstrap

QUIET = {"progress": False, "accelerator": "cpu"}
ANGLE = 0.3
TRUE_A = 0.95 * np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
TRUE_B = np.array([[0.5], [0.0]])


def simulated(num_trials: int = 3, num_bins: int = 6, seed: int = 0) -> xr.Dataset:
    """A rotation driven by an input, seen by five channels."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_trials, num_bins, 1))
    C = np.random.default_rng(1).normal(size=(5, 2))
    z = rng.normal(size=(num_trials, 2))
    x = []
    for t in range(num_bins):
        if t:
            z = z @ TRUE_A.T + inputs[:, t] @ TRUE_B.T + 0.3 * rng.normal(size=z.shape)
        x.append(z @ C.T + 2.0 + 0.5 * rng.normal(size=(num_trials, 5)))
    return recording(signal=np.stack(x, 1), inputs=inputs, bin_width=0.02)


def random_model(data: xr.Dataset, **options: object) -> LinearDynamics:
    model = LinearDynamics.for_recording(data, seed=0, latent_dim=2, **options).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (model.A, model.B, model.start_mean, model.raw_noise):
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def exact_of(model: LinearDynamics, batch) -> Exact:
    """By the equations of the module's docstring, from the parameters."""
    part = model.observation.gaussian_part()
    pushed = (batch.inputs @ model.B.mT).detach().numpy()
    pushed[:, 0] = model.start_mean.detach()
    start, noise = (
        raw.tril(-1) + torch.diag(raw.diagonal().exp() + 1e-4)
        for raw in (model.raw_start_noise.detach(), model.raw_noise.detach())
    )
    arrays = (
        part.unit[:, None] * model.loading,
        torch.diag(part.scale.square()),
        (part.offset + part.unit * model.bias).expand(batch.x.shape),
    )
    C, R, d = (array.detach().numpy() for array in arrays)
    return Exact(
        model.A.detach().numpy(),
        pushed,
        (start @ start.mT).numpy(),
        (noise @ noise.mT).numpy(),
        C,
        R,
        d,
        batch.x.numpy(),
        batch.scored.numpy(),
    )


def test_the_evidence_is_that_of_the_equations():
    data = simulated()
    model = random_model(data)
    batch = model.trials_of(data).batch()
    exact = exact_of(model, batch)
    found = kalman_filter(model, batch).log_evidence.sum(0).detach()
    wanted = [by_joint_gaussian(exact, trial).log_evidence for trial in range(3)]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


@torch.no_grad()
def test_the_programs_have_the_densities_of_the_matrices():
    """The fully adapted filter, whose bins are scored by the model's own densities, is unbiased for
    the Kalman filter's evidence, and bounds tighten towards it.
    """
    data = simulated()
    model = random_model(data)
    assert isinstance(model.proposal, OptimalFactor)
    batch = model.trials_of(data).batch()
    evidence = kalman_filter(model, batch).log_evidence.sum(0)
    torch.manual_seed(0)
    runs = torch.stack([particle_filter(model, batch, 200).log_evidence.sum(0) for _ in range(40)])
    ratio = (runs - evidence).exp()
    assert ((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / 40**0.5).all()
    bounds = [
        -float(objective(model, model.guide)(batch)) / 3
        for objective in (IWELBO(1), IWELBO(100), VSMC(100))
    ]
    assert bounds[0] < bounds[1] < float(evidence.mean()) + 0.2
    assert bounds[0] < bounds[2] < float(evidence.mean()) + 0.2


@pytest.mark.slow
def test_a_bare_fit_finds_the_eigenvalues_of_the_truth():
    train, valid = split(simulated(60, 30), (0.7, 0.3), seed=0)
    model = LinearDynamics.for_recording(train, seed=0, latent_dim=2)
    fitted = pyrodyn.fit(model, train, valid, max_steps=200, **QUIET)
    values, wanted = (np.linalg.eigvals(A) for A in (fitted.model.A.detach().numpy(), TRUE_A))
    np.testing.assert_allclose(np.sort_complex(values), np.sort_complex(wanted), atol=0.06)


def test_a_bare_fit_and_what_comes_after_it_are_exact():
    train, valid = split(simulated(12, 6), (0.7, 0.3), seed=0)
    model = LinearDynamics.for_recording(train, seed=0, latent_dim=2)
    recipe = pyrodyn.recommended(model, train)
    assert isinstance(recipe.objective, Kalman)
    assert not recipe.transforms
    fitted = pyrodyn.fit(model, train, valid, max_steps=3, **QUIET)
    assert fitted.record["training"]["objective"] == {"name": "Kalman"}
    assert fitted.record["training"]["is_bound"]
    tree = pyrodyn.to_datatree(fitted, valid, num_draws=50)
    assert tree.attrs["method"] == "exact"
    total = float(tree["sample_stats"]["log_evidence"].sum())
    assert total == pytest.approx(float(pyrodyn.posterior.elpd(tree).elpd))
    assert pyrodyn.posterior.elpd(tree).monte_carlo_se == 0
    by_filter = kalman_filter(fitted.model, fitted.model.trials_of(valid).batch())
    assert total == pytest.approx(float(by_filter.log_evidence.sum().detach()), rel=1e-6)


def test_held_out_channels_and_forecast_bins_are_not_conditioned_on():
    data = held_out(simulated(), neurons=[1, 3], forecast_bins=2)
    model = random_model(data).float()
    predicted = pyrodyn.predict(model, data, method="exact", num_draws=4000)
    batch = model.double().trials_of(data).batch().as_seen()
    exact = exact_of(model, batch)
    assert not exact.scored.all()
    for trial in range(3):
        truth = by_joint_gaussian(exact, trial)
        sd = np.sqrt(np.diagonal(truth.covariance, axis1=1, axis2=2))
        assert (np.abs(predicted["z"].values[trial] - truth.mean) < 4.5 * sd / 4000**0.5).all()
        np.testing.assert_allclose(predicted["z_sd"].values[trial], sd, rtol=0.06)
        np.testing.assert_allclose(predicted["log_evidence"][trial], truth.log_evidence, rtol=1e-5)


def test_the_fixed_point_is_that_of_the_equations():
    data = simulated()
    model = random_model(data)
    found = fixed_points(model, inputs=[0.7], region=([-9.0, -9.0], [9.0, 9.0]), num_starts=5)
    A, B = model.A.detach(), model.B.detach()
    wanted = torch.linalg.solve(torch.eye(2, dtype=A.dtype) - A, B @ torch.tensor([0.7]).double())
    np.testing.assert_allclose(found["point"].values, wanted[None], rtol=1e-6)
    np.testing.assert_allclose(
        np.sort_complex(found["eigenvalues"].values[0]),
        np.sort_complex(np.linalg.eigvals(A.numpy())),
        rtol=1e-6,
    )


def test_proposals_fit_the_observations():
    data = simulated()
    counts = recording(np.ones((2, 8, 5), int), bin_width=0.02)
    assert isinstance(LinearDynamics.for_recording(counts).proposal, EncoderFactor)
    own = LinearDynamics.for_recording(data, proposal="bootstrap")
    assert isinstance(own.proposal, Bootstrap)
    with pytest.raises(ValueError, match="optimal proposal needs a gaussian observation"):
        LinearDynamics(5, proposal="optimal")
    with pytest.raises(ValueError, match="noise='white' is unknown; it is one of scalar"):
        LinearDynamics(5, noise="white")
    poisson = LinearDynamics.for_recording(counts)
    recipe = pyrodyn.recommended(poisson, counts)
    assert isinstance(recipe.objective, VSMC)
    with pytest.raises(ValueError, match="exact inference in a LinearDynamics needs a gaussian"):
        kalman_filter(poisson, poisson.trials_of(counts).batch())


class Shifted(LinearDynamics):
    """Another mean of the first state."""

    def initial(self, start, inputs):
        prior = super().initial(start, inputs)
        return prior.with_mean(prior.mean + 1.0, prior.covariance)


def test_an_overridden_density_has_no_matrices_and_is_the_density_of_the_filter():
    data = simulated()
    model = random_model(data)
    shifted = Shifted(**model.config).double()
    shifted.load_state_dict(model.state_dict())
    batch = model.trials_of(data).batch()
    with pytest.raises(ValueError, match="Shifted overrides a density of LinearDynamics"):
        kalman_filter(shifted, batch)
    with torch.no_grad():
        model.start_mean += 1.0
        torch.manual_seed(0)
        found = particle_filter(shifted, batch, 4000)
        wanted = kalman_filter(model, batch).log_evidence.sum(0)
    error = found.log_evidence_variance.sqrt()
    assert ((found.log_evidence.sum(0) - wanted).abs() < 5 * error + 0.05).all()


def test_a_saved_system_is_the_same(tmp_path):
    data = simulated()
    model = random_model(data)
    pyrodyn.save(model, tmp_path)
    loaded = pyrodyn.load(tmp_path)
    assert isinstance(loaded, LinearDynamics)
    batch = model.trials_of(data).batch()
    one, other = (kalman_filter(each, batch).log_evidence for each in (model, loaded))
    assert torch.equal(one, other)
