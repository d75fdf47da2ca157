"""Sequential Monte Carlo on LFADS: the same densities bin by bin as in one go."""

import pytest
import torch
from pyro import poutine

from pyrodyn.data import Trials, recording
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    VSMC,
    SmoothedScore,
    particle_filter,
    particle_smoother,
)
from pyrodyn.models.state_space import Bootstrap, Observed

OPTIONS = {
    "no_inputs": {},
    "ar1": {"inferred_input_dim": 1},
    "student_t": {"inferred_input_dim": 2, "input_prior": "student_t"},
    "white_with_window": {
        "inferred_input_dim": 1,
        "input_prior": "white",
        "initial_condition_bins": 2,
    },
}


LIGHT_TAILS = [name for name in OPTIONS if name != "student_t"]
"""Under heavy tails the weights of a Gaussian guide have no variance to take a tolerance from."""


@pytest.fixture(params=list(OPTIONS))
def setting(request, make_lfads):
    """A model in double precision and its batch, with known inputs and two forecast bins."""
    torch.manual_seed(0)
    counts = torch.poisson(torch.ones(3, 9, 5)).numpy().astype(int)
    data = recording(counts=counts, bin_width=0.01, inputs=torch.randn(3, 9, 1).numpy())
    model = make_lfads(data, **OPTIONS[request.param]).double().eval()
    batch = Trials(data).batch()
    seen = batch.seen.double()
    seen[:, 7:] = 0
    visible = batch.visible.clone()
    visible[:, 7:] = False
    return model, batch.replace(
        x=batch.x.double(), seen=seen, visible=visible, inputs=batch.inputs.double(), horizon=7
    )


def test_bin_by_bin_the_densities_are_those_in_one_go(setting):
    model, batch = setting
    with torch.no_grad():
        guide_trace = poutine.trace(model.guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model.model, guide_trace)).get_trace(batch)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        observed = Observed.of(model, batch)
        g0 = guide_trace.nodes["g0"]["value"]
        num_bins = observed.x.shape[1]
        u = (
            guide_trace.nodes["u"]["value"]
            if model.inferred_input_dim
            else g0.new_zeros(3, num_bins, 0)
        )
        log_q = model.proposal.initial_condition(model, observed.encoding).log_prob(g0)
        log_p = model.initial_condition().log_prob(g0)
        state, memory, before = None, None, g0
        for t in range(num_bins):
            i = observed.inputs[:, t]
            prior = model.initial(g0, i) if state is None else model.transition(state, i)
            memory = model.proposal.remember(model, before, memory, observed.encoding, t)
            proposed = model.proposal.propose(prior, memory, observed.encoding, t, state is None)
            log_q = log_q + proposed.log_prob(u[:, t])
            state = (
                model.initial_state(g0, u[:, t], i)
                if state is None
                else model.advance(state, u[:, t], i)
            )
            log_p = log_p + prior.log_prob(u[:, t])
            log_p = log_p + model.log_likelihood(state, observed.x[:, t], observed.scored[:, t])
            before = state
    sites = [name for name in ("g0", "u") if name in guide_trace.nodes]
    in_one_go = sum(guide_trace.nodes[name]["log_prob"] for name in sites)
    torch.testing.assert_close(log_q, in_one_go)
    in_one_go = sum(model_trace.nodes[name]["log_prob"] for name in [*sites, "x"])
    torch.testing.assert_close(log_p, in_one_go)


@pytest.mark.parametrize(
    "setting",
    [n if n == "no_inputs" else pytest.param(n, marks=pytest.mark.slow) for n in OPTIONS],
    indirect=True,
)
def test_one_particle_is_the_elbo(setting):
    model, batch = setting
    torch.manual_seed(0)
    with torch.no_grad():
        one = torch.stack([VSMC(1)(model, model.guide)(batch) for _ in range(150)])
        elbo = torch.stack([ELBO()(model, model.guide)(batch) for _ in range(150)])
    error = ((one.var() + elbo.var()) / 150).sqrt()
    assert abs(one.mean() - elbo.mean()) < 4 * error


@pytest.mark.parametrize("num_particles", [1, 3])
def test_evidence_per_bin_counts_what_the_start_weighs(setting, num_particles):
    model, batch = setting
    torch.manual_seed(0)
    with torch.no_grad():
        bound = -VSMC(num_particles, ess_threshold=0.5)(model, model.guide)(batch)
    torch.manual_seed(0)
    filtered = particle_filter(model, batch, num_particles)
    torch.testing.assert_close(filtered.log_evidence.sum(), bound)


@pytest.mark.parametrize("setting", LIGHT_TAILS, indirect=True)
def test_evidence_is_that_of_importance_sampling(setting):
    model, batch = setting
    torch.manual_seed(0)
    with torch.no_grad():
        by_weights = -IWELBO(20_000)(model, model.guide)(batch)
    filtered = particle_filter(model, batch, 5000)
    error = float(filtered.log_evidence_variance.sum()) ** 0.5
    # The other estimate errs less, having more particles and no resampling to add noise.
    assert abs(float(filtered.log_evidence.sum() - by_weights)) < 6 * error
    assert error < 0.5


@pytest.mark.parametrize("objective", [VSMC(4), SmoothedScore(4)], ids=lambda o: type(o).__name__)
def test_a_step_of_training_reaches_every_parameter(setting, objective):
    model, batch = setting
    loss = objective(model, model.guide)(batch)
    loss.backward()
    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert not still


def test_paths_are_ancestral_or_none(setting):
    model, batch = setting
    with pytest.raises(ValueError, match="LFADS has a deterministic part in its state"):
        particle_smoother(model, batch, 3)
    starts, paths = particle_smoother(model, batch, 3, method="ancestral", num_particles=20)
    assert starts.shape == (3, 3, 4)
    assert paths.shape == (3, 3, 9 - model.first_bin, model.inferred_input_dim)


@pytest.mark.parametrize("setting", LIGHT_TAILS, indirect=True)
def test_the_bootstrap_draws_the_start_from_its_prior(setting):
    model, batch = setting
    torch.manual_seed(0)
    guided = particle_filter(model, batch, 5000)
    model.proposal = Bootstrap()
    blind = particle_filter(model, batch, 20_000)
    error = float((guided.log_evidence_variance + blind.log_evidence_variance).sum()) ** 0.5
    assert abs(float(guided.log_evidence.sum() - blind.log_evidence.sum())) < 6 * error
