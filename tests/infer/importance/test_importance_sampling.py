"""Importance sampling against the exact evidence and posterior."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import NUM_TRIALS, batch_of, by_recursion, data, exact_of, linear_network
from pyro import poutine

from pyrodyn.infer import importance_sample
from pyrodyn.infer.importance import importance_sampling
from pyrodyn.infer.importance.importance_sampling import (
    FEWEST_PARTICLES,
    pareto_k,
    pareto_smoothed,
    weighted_particles,
)
from pyrodyn.infer.traces import guide_program, traced, with_particles


def test_evidence_and_moments_are_exact():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    torch.manual_seed(0)
    sample = importance_sample(model, model.guide, batch, 20_000)
    exact = exact_of(model, batch)
    for trial in range(NUM_TRIALS):
        truth = by_recursion(exact, trial)
        error = float(sample.log_evidence_error[trial])
        assert abs(float(sample.log_evidence[trial]) - truth.log_evidence) < 4 * error
        chosen = sample.smoothed.resampled(20_000)[:, trial]
        paths = sample.sites["z"][chosen, trial].numpy()
        scale = np.sqrt(np.diagonal(truth.covariance, axis1=1, axis2=2))
        tolerance = 5 * scale / float(sample.effective_sample_size[trial]) ** 0.5
        assert (np.abs(paths.mean(0) - truth.mean) < tolerance).all()


def test_particles_drawn_in_parts_keep_their_own_weights(monkeypatch):
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    monkeypatch.setattr(importance_sampling, "MOST_ENTRIES", 13 * batch.seen.numel())
    torch.manual_seed(0)
    sites, log_weights = weighted_particles(model, model.guide, batch, 40)  # the last part has one
    assert len(sites["z"].unique(dim=0)) == 40
    scored = {}
    for name, program in {"p": model.model, "q": guide_program(model.guide)}.items():
        trace = traced(with_particles(poutine.condition(program, sites), 40), batch)
        trace.compute_log_prob()
        scored[name] = trace.nodes["z"]["log_prob"]
        if name == "p":
            scored[name] = scored[name] + trace.nodes["x"]["log_prob"]
    torch.testing.assert_close(log_weights, scored["p"] - scored["q"])


@pytest.mark.slow
def test_the_error_is_that_of_many_runs():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    torch.manual_seed(0)
    runs = [importance_sample(model, model.guide, batch, 1000) for _ in range(100)]
    scale = torch.stack([run.log_evidence for run in runs]).std(0)
    estimated = torch.stack([run.log_evidence_error for run in runs]).mean(0)
    torch.testing.assert_close(estimated, scale, rtol=0.3, atol=0.0)


def test_k_hat_separates_a_good_guide_from_a_bad_one():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)

    def narrow(given):
        with model.trials(given):
            mean = model.start_mean.expand(given.num_trials, given.num_bins, -1)
            pyro.sample("z", dist.Normal(mean, 0.05).to_event(2))

    torch.manual_seed(0)
    good = importance_sample(model, model.guide, batch, 1000)
    bad = importance_sample(model, narrow, batch, 1000)
    assert (good.smoothed.pareto_k < 0.7).all()
    assert (bad.smoothed.pareto_k > 0.7).all()
    assert (good.effective_sample_size > bad.effective_sample_size).all()


@pytest.mark.parametrize(
    ("offset", "expected"), [(torch.nan, "60 of 60 are not finite"), (1e30, "all are 0")]
)
def test_a_trial_without_usable_weights_is_named(offset, expected):
    batch = batch_of(data())
    offsets = torch.zeros(NUM_TRIALS)
    offsets[2] = offset

    def model(batch):
        with pyro.plate("trials", NUM_TRIALS, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([NUM_TRIALS]))
            observation = dist.Normal(z + offsets, 1.0, validate_args=False)
            pyro.sample("x", observation, obs=torch.zeros(NUM_TRIALS))

    def guide(batch):
        with pyro.plate("trials", NUM_TRIALS, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([NUM_TRIALS]))

    with pytest.raises(
        ArithmeticError, match=f"trial 2 has no usable importance weights: {expected}"
    ):
        importance_sample(model, guide, batch, 60)


def test_requests_that_make_no_weights_are_refused():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    for num_particles in (1, 29):
        with pytest.raises(ValueError, match=f"num_particles={num_particles}; smoothing"):
            importance_sample(model, model.guide, batch, num_particles)


def test_equal_weights_are_as_good_as_posterior_draws():
    recorded = data()
    model, batch = linear_network(recorded, proposal="bootstrap"), batch_of(recorded)
    scored = batch.scored.clone()
    scored[0] = False
    torch.manual_seed(0)
    sample = importance_sample(model, model.guide, batch.replace(scored=scored), 100)
    assert sample.smoothed.pareto_k[0] == -torch.inf
    assert float(sample.effective_sample_size[0]) == pytest.approx(100)
    assert float(sample.log_evidence[0]) == pytest.approx(0, abs=1e-9)
    assert sample.smoothed.pareto_k[1:].isfinite().all()


def test_k_hat_is_infinite_if_all_but_the_largest_weight_are_negligible():
    torch.manual_seed(0)
    one_alone = torch.full((100, 1), -torch.inf, dtype=torch.float64)
    one_alone[3] = 0.0
    scale = 1000 * torch.randn(1000, 5, dtype=torch.float64)
    for log_weights in (one_alone, scale):
        smoothed = pareto_smoothed(log_weights)
        assert (smoothed.pareto_k == torch.inf).all()
        torch.testing.assert_close(smoothed.log_weights, torch.log_softmax(log_weights, 0))


@pytest.mark.parametrize("scale", [300.0, 450.0])
def test_k_hat_of_hopeless_weights_is_never_small(scale):
    torch.manual_seed(0)
    assert (pareto_smoothed(scale * torch.randn(1000, 40).double()).pareto_k > 10).all()


@pytest.mark.parametrize("num_particles", [FEWEST_PARTICLES, 31, 224, 225, 226, 5000])
def test_k_hat_without_smoothing_equals_that_of_all_weights(num_particles):
    torch.manual_seed(0)
    log_weights = torch.tensor([0.3, 2.0, 30.0]) * torch.randn(num_particles, 3)
    log_weights[::7, 0] = -torch.inf
    assert torch.equal(pareto_k(log_weights), pareto_smoothed(log_weights).pareto_k)


def test_the_fewest_particles_have_a_k_hat():
    torch.manual_seed(0)
    assert pareto_smoothed(torch.randn(FEWEST_PARTICLES, 20)).pareto_k.isfinite().all()
