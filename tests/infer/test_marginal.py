"""The evidence as a factor of Pyro programs, against the Kalman filter and quadrature."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import (
    batch_of,
    copies_of,
    data,
    exact_score,
    linear_network,
    log_evidence,
    own_parameters,
)
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.mcmc import RandomWalkKernel

from pyrodyn.infer import kalman_filter, marginal
from pyrodyn.models import LowRankRNN

NUM_POSTERIOR = 400


@pytest.fixture
def model():
    return linear_network(data(), noise="scalar")


@pytest.fixture
def batch():
    return batch_of(data())


def prior_of_noise():
    return dist.Normal(torch.full((1,), -1.0).double(), 1.0).to_event(1)


def test_a_program_has_the_evidence_and_its_gradient(model, batch):
    program = functools.partial(marginal, model)
    trace = poutine.trace(program).get_trace(batch.replace(weight=2.0))
    total = trace.log_prob_sum()
    assert float(total.detach()) == pytest.approx(2 * log_evidence(model, batch), rel=1e-9)
    site = trace.nodes["evidence"]
    assert [frame.name for frame in site["cond_indep_stack"]] == ["trials"]
    assert not trace.stochastic_nodes[1:]  # nothing but the plate
    total.backward()
    score = torch.cat([p.grad.flatten() for p in own_parameters(model).values()])
    torch.testing.assert_close(score, 2 * exact_score(model, batch), rtol=1e-6, atol=1e-6)


def test_a_profile_is_a_loop(model, batch):
    profile = []
    with torch.no_grad():
        for log_sd in (-2.0, -1.0, 0.0):
            model.raw_noise.fill_(log_sd)
            profile.append(float(marginal(model, batch).sum()))
            assert profile[-1] == pytest.approx(log_evidence(model, batch), rel=1e-9)
    assert len(set(profile)) == 3


def test_a_lifted_parameter_is_that_of_the_evidence(model, batch):
    program = poutine.lift(functools.partial(marginal, model), {"raw_noise": prior_of_noise()})
    trace = poutine.trace(program).get_trace(batch)
    (name,) = [each for each in trace.stochastic_nodes if each.endswith("raw_noise")]
    value = trace.nodes[name]["value"]
    prior = float(prior_of_noise().log_prob(value))
    with torch.no_grad():
        model.raw_noise.copy_(value)
    expected = prior + log_evidence(model, batch)
    assert float(trace.log_prob_sum().detach()) == pytest.approx(expected, rel=1e-9)


@torch.no_grad()
def test_particles_estimate_it_without_bias(model, batch):
    exact = kalman_filter(model, batch).log_evidence.sum(0)
    torch.manual_seed(0)
    runs = marginal(model, copies_of(batch, 400), num_particles=60).view(400, -1)
    ratio = (runs - exact).exp()
    assert ((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / 400**0.5).all()


def test_svi_maximises_the_evidence(model, batch):
    before = log_evidence(model, batch)
    program = functools.partial(marginal, model)
    for particles, steps in ((None, 15), (20, 3)):
        svi = SVI(
            lambda batch, k=particles: program(batch, k),
            lambda batch: None,
            pyro.optim.Adam({"lr": 0.03}),
            Trace_ELBO(),
        )
        for _ in range(steps):
            svi.step(batch)
    assert log_evidence(model, batch) > before + 1


def quadrature(model, batch):
    """Mean and standard deviation of raw_noise under its posterior."""
    grid = torch.linspace(-6.0, 4.0, 201).double()
    density = []
    with torch.no_grad():
        for value in grid:
            model.raw_noise.fill_(float(value))
            prior = prior_of_noise().log_prob(value[None])
            density.append(float(marginal(model, batch).sum() + prior))
    weights = torch.softmax(torch.tensor(density), 0)
    mean = (weights * grid).sum()
    return float(mean), float((weights * (grid - mean).square()).sum().sqrt())


def test_a_prior_of_the_model_is_a_site_of_the_program(model, batch):
    model.set_priors({"raw_noise": dist.Normal(-1.0, 1.0)})
    trace = poutine.trace(functools.partial(marginal, model)).get_trace(batch)
    value = trace.nodes["raw_noise"]["value"]
    wanted = log_evidence(model.at({"raw_noise": value}), batch)
    wanted += float(prior_of_noise().log_prob(value))
    assert float(trace.log_prob_sum().detach()) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", [None, 100])
def test_chains_sample_the_posterior_with_the_latents_integrated_out(model, batch, num_particles):
    """NUTS by the exact evidence, a random walk by an estimate (pseudo-marginal)."""
    mean, sd = quadrature(model, batch)
    program = poutine.lift(
        functools.partial(marginal, model, num_particles=num_particles),
        {"raw_noise": prior_of_noise()},
    )
    pyro.set_rng_seed(0)
    if num_particles is None:
        kernel, num_samples = NUTS(program, max_tree_depth=4), NUM_POSTERIOR
    else:
        kernel, num_samples = RandomWalkKernel(program, init_step_size=0.5), 3 * NUM_POSTERIOR
    mcmc = MCMC(kernel, num_samples, warmup_steps=100, disable_progbar=True)
    mcmc.run(batch)
    (draws,) = mcmc.get_samples().values()
    draws = draws.flatten().numpy()
    effective = NUM_POSTERIOR / 4
    assert abs(draws.mean() - mean) < 4.5 * sd / effective**0.5
    assert np.std(draws) == pytest.approx(sd, rel=0.3)


def test_what_has_no_evidence_is_refused(model, batch):
    kinked = LowRankRNN(4, input_dim=1, observation="gaussian").double()
    with pytest.raises(ValueError, match="no exact inference, because of its activation='relu'"):
        marginal(kinked, batch)
    assert marginal(kinked, batch, 10).shape == (3,)
    with pytest.raises(ValueError, match="this model was made for"):
        marginal(LowRankRNN(5, input_dim=1).double(), batch, 10)
