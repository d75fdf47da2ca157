"""`RefinedGuide`: reaches exact posteriors, and touches nothing but its own parameters."""

import contextlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_posteriors import TwoSides, quadrature, standing
from exact_posteriors import data as counts
from linear_gaussian import batch_of, by_recursion, exact_of, linear_network
from linear_gaussian import data as signals
from pyro.infer.autoguide import AutoNormal

import pyrodyn
from pyrodyn.data import held_out, recording
from pyrodyn.infer import ELBO, FlowStart, GuideError, RefinedGuide, check_guide, importance_sample
from pyrodyn.models import LFADS, NodeSAE

QUIET = {"progress": False, "accelerator": "cpu"}


def linear_autoencoder():
    """Three trials, a model of linear dynamics and Gaussian observations, and its exact posterior
    mean and covariance of z0.
    """
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(3, 6, 4))
    recorded = held_out(recording(signal=signal, bin_width=0.01), neurons=0.25, seed=0)
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recorded, latent_dim=2, linear_term=True, encoder_dim=3).eval()
    with torch.no_grad():
        model.observation.use_raw_units()
        for parameter in model.phi.field.linear_layers()[-1].parameters():
            parameter.zero_()
        model.phi.field.linear.copy_(torch.tensor([[-0.2, 0.9], [-0.7, 0.1]]))
        model.start_mean.copy_(torch.tensor([0.3, -0.5]))
        unit, silent = torch.eye(2), torch.zeros(2, 0)
        step = model.phi(unit, silent).T.double().numpy()
        C, b = (p.double().numpy() for p in (model.readout[-1].weight, model.readout[-1].bias))
        state = model.initial_state(unit, unit[:, :0], silent)
        noise = model.emission(state).stddev[0].double().numpy()
        prior = model.initial_condition()
        mean, sd = prior.mean.double().numpy(), prior.stddev.double().numpy()
    shown = ~recorded["held_out"].values
    C, b, noise = C[shown], b[shown], noise[shown]
    precision, pull, to_bin = np.diag(1 / sd**2), np.tile(mean / sd**2, (3, 1)), np.eye(2)
    for t in range(6):
        loading = C @ to_bin / noise[:, None] ** 2
        precision = precision + to_bin.T @ C.T @ loading
        pull = pull + (signal[:, t, shown] - b) @ loading
        to_bin = step @ to_bin
    covariance = np.linalg.inv(precision)
    return model, recorded, pull @ covariance, covariance


def test_a_linear_gaussian_posterior_is_reached():
    """From an untrained encoder; then every weight is the evidence."""
    model, recorded, mean, covariance = linear_autoencoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = model.trials_of(recorded).batch()
    torch.manual_seed(0)
    found = importance_sample(model, RefinedGuide(model, num_steps=150), batch.as_seen(), 4000)
    own = importance_sample(model, model.guide, batch.as_seen(), 4000)
    gap, before_steps = (f.log_evidence - f.log_weights.mean(0) for f in (found, own))
    assert (gap < 0.02).all()
    assert (before_steps > 1).all()
    difference = (found.log_evidence - own.log_evidence).abs()
    assert (difference < 4 * own.log_evidence_error).all()
    z = found.sites["z0"].double().numpy()
    sd = np.sqrt(covariance.diagonal())
    assert (np.abs(z.mean(0) - mean) < 0.2 * sd).all()
    for trial in range(3):
        np.testing.assert_allclose(
            np.cov(z[:, trial].T) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.2
        )
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_evidence_gap_of_a_path_narrows():
    """Of a linear-Gaussian network, with its exact evidence. The dependence between bins remains
    that of the untrained encoder, so that the gap does not close.
    """
    recorded = signals()
    model = linear_network(recorded).eval()
    batch = batch_of(recorded)
    evidence = torch.tensor(
        [by_recursion(exact_of(model, batch), trial).log_evidence for trial in range(3)]
    )
    torch.manual_seed(0)
    gaps = []
    for guide in (model.guide, RefinedGuide(model, num_steps=80)):
        found = importance_sample(model, guide, batch, 2000)
        gaps.append(evidence - found.log_weights.mean(0))
    error = found.log_weights.std(0) / 2000**0.5
    assert (gaps[1] > -4 * error).all()
    assert (gaps[1] + 4 * error < 0.6 * gaps[0]).all()


def test_initial_state_and_inputs_of_lfads():
    """The ELBO of every trial rises; the evidence stays what it is."""
    recorded = counts()
    torch.manual_seed(0)
    model = LFADS.for_recording(
        recorded,
        factor_dim=3,
        generator_dim=7,
        initial_condition_dim=4,
        encoder_dim=5,
        controller_encoder_dim=5,
        controller_dim=6,
        inferred_input_dim=2,
    )
    with torch.no_grad():
        model.u_posterior.bias += 1.0  # a guide that is wrong
    batch = model.trials_of(recorded).batch()
    torch.manual_seed(0)
    own = importance_sample(model, model.guide, batch, 2000)
    found = importance_sample(model, RefinedGuide(model, num_steps=60), batch, 2000)
    error = torch.hypot(own.log_weights.std(0), found.log_weights.std(0)) / 2000**0.5
    assert (found.log_weights.mean(0) > own.log_weights.mean(0) + 4 * error).all()
    assert model.training  # as it was


def test_a_trained_flow_is_refined_by_its_fit():
    """Two modes, trained for one set of trials and refined for others; nothing is trained."""
    recorded, others = counts(), counts(4, seed=1)
    model = standing(recorded, TwoSides())
    fitted = pyrodyn.fit(
        model, recorded, guide=FlowStart(model, hidden_dim=8), max_epochs=20, **QUIET
    )
    before = [p.clone() for p in fitted.guide.parameters()]
    batch = model.trials_of(others).batch()
    exact = quadrature(model, batch, 401)
    torch.manual_seed(0)
    elbos = []
    for guide in (fitted.guide, RefinedGuide(fitted, num_steps=30)):
        found = importance_sample(model, guide, batch, 2000)
        elbos.append(found.log_weights.mean(0))
    error = found.log_weights.std(0) / 2000**0.5
    assert (elbos[1] < exact.log_evidence + 4 * error).all()
    assert elbos[1].mean() > elbos[0].mean()
    assert all(torch.equal(p, b) for p, b in zip(fitted.guide.parameters(), before, strict=True))


@pytest.mark.filterwarnings("ignore:draws by method='importance'")
def test_a_posterior_is_refined_once_per_batch(monkeypatch):
    model, recorded, *_ = linear_autoencoder()
    solved = []
    solve = RefinedGuide._solve
    monkeypatch.setattr(
        RefinedGuide,
        "_solve",
        lambda guide, batch, weights: (
            solved.append(len(batch.seen)) or solve(guide, batch, weights)
        ),
    )
    guide = RefinedGuide(model, num_steps=10)
    found = pyrodyn.predict(model, recorded, guide=guide, num_draws=400, batch_size=2)
    assert solved == [2, 1]  # once for all draws and the check of guides
    solved.clear()
    assert found.attrs["guide"] == "RefinedGuide"
    tree = pyrodyn.to_datatree(model, recorded, guide=guide, method="importance")
    assert solved == [3]
    solved.clear()
    assert tree.attrs["guide"] == "RefinedGuide"
    with torch.no_grad():
        model.start_mean.add_(1.0)
    guide.refined(model.trials_of(recorded).batch())
    assert len(solved) == 1


def test_hidden_neurons_and_forecast_bins_are_not_looked_at():
    recorded = held_out(counts(), neurons=0.5, forecast_bins=2, seed=0)
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3).eval()
    hidden = (recorded["held_out"] | recorded["forecast"]).transpose("time", "neuron")
    other = recorded.copy(deep=True)
    other["counts"] = recorded["counts"].where(~hidden, 7)
    one, two = (
        pyrodyn.predict(model, r, guide=RefinedGuide(model, num_steps=20))
        for r in (recorded, other)
    )
    np.testing.assert_array_equal(one["rates"], two["rates"])


def test_what_it_cannot_refine_is_refused():
    recorded = counts()
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3)
    fitted = pyrodyn.fit(model, recorded, guide=AutoNormal(model), max_epochs=1, **QUIET)
    with pytest.raises(GuideError, match=r"the guide wraps the automatic guide self\.guide"):
        pyrodyn.predict(fitted, recorded, guide=RefinedGuide(fitted))
    with pytest.raises(ValueError, match="num_steps=0"):
        RefinedGuide(model, num_steps=0)


@pytest.mark.parametrize(
    ("q", "is_shared"),
    [
        (dist.Delta(torch.zeros(2), event_dim=1), False),
        (dist.LogNormal(torch.zeros(2), 1.0).to_event(1), False),
        (dist.Normal(0.0, 1.0), False),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), True),
    ],
)
def test_sites_that_are_no_real_vectors_per_trial_are_refused(q, is_shared):
    recorded = counts()
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3).eval()

    def guide(batch):
        with contextlib.nullcontext() if is_shared else model.trials(batch):
            pyro.sample("z0", q)

    refined = RefinedGuide(model, num_steps=1)
    refined.guide = guide
    with pytest.raises(GuideError, match="vector from a density of its own; 'z0' is not drawn so"):
        refined(model.trials_of(recorded).batch())


def test_it_passes_the_check_of_guides():
    recorded = counts()
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3).eval()
    guide = RefinedGuide(model, num_steps=2)
    batch = model.trials_of(recorded).batch()
    report = check_guide(model, guide, batch, objective=ELBO())
    assert (report.problems, report.warnings) == ((), ())
