"""Kalman filter, smoother and exact draws against two independent implementations: the recursion in
covariance form and the joint Gaussian of all bins, both in `linear_gaussian`.
"""

import numpy as np
import pytest
import torch
from linear_gaussian import (
    NUM_TRIALS,
    batch_of,
    by_joint_gaussian,
    by_recursion,
    data,
    exact_of,
    exact_score,
    joint_posterior,
    linear_network,
    own_parameters,
)

from pyrodyn.data import SampleValidation, recording
from pyrodyn.infer import SmootherResult, exact_paths, kalman_filter, kalman_smoother
from pyrodyn.infer.kalman.kalman_filter import kalman_recursion
from pyrodyn.models import LFADS, LowRankRNN

NETWORKS = {
    "plain": {},
    "filtered inputs in the readout": {
        "filters_inputs": True,
        "readout": "latents_and_inputs",
        "decay_per_latent": True,
    },
    "full rank": {"is_full_rank": True, "noise": "diagonal"},
    "currents": {"readout": "currents", "num_units": 4},
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_filter_and_smoother_have_the_exact_moments(options, missing):
    recorded = data(missing)
    model, batch = linear_network(recorded, **options), batch_of(recorded)
    exact = exact_of(model, batch)
    filtered, smoothed = kalman_filter(model, batch), kalman_smoother(model, batch)
    for trial in range(NUM_TRIALS):
        recursion, joint = by_recursion(exact, trial), by_joint_gaussian(exact, trial)
        close = {"rtol": 1e-9, "atol": 1e-10}
        np.testing.assert_allclose(filtered.log_evidence[:, trial], recursion.increments, **close)
        np.testing.assert_allclose(filtered.means[:, trial], recursion.filtered, **close)
        np.testing.assert_allclose(smoothed.log_evidence[trial], joint.log_evidence, **close)
        np.testing.assert_allclose(smoothed.means[trial], joint.mean, **close)
        np.testing.assert_allclose(smoothed.covariances[trial], joint.covariance, **close)
        np.testing.assert_allclose(smoothed.lag_one_covariances[trial], joint.lag_one, **close)
        # Of the last bin, filter and smoother agree.
        np.testing.assert_allclose(
            filtered.covariances[-1, trial], smoothed.covariances[trial, -1], **close
        )


def test_a_bin_and_a_trial_without_any_entry_are_predicted():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    scored = batch.scored.clone()
    scored[0, 2:4], scored[1] = False, False
    batch = batch.replace(scored=scored, x=torch.where(scored, batch.x, torch.nan))
    smoothed = kalman_smoother(model, batch)
    smoothed.log_evidence.sum().backward()
    assert all(p.grad.isfinite().all() for p in own_parameters(model).values())
    smoothed = SmootherResult(*(field.detach() for field in smoothed))
    exact = exact_of(model, batch)
    for trial in (0, 2):
        truth = by_recursion(exact, trial)
        np.testing.assert_allclose(smoothed.log_evidence[trial], truth.log_evidence)
        np.testing.assert_allclose(smoothed.means[trial], truth.mean, rtol=1e-9)
    assert float(smoothed.log_evidence[1]) == 0


@pytest.mark.parametrize("missing", [False, True])
def test_the_gradient_is_that_of_the_exact_evidence(missing):
    recorded = data(missing)
    model, batch = linear_network(recorded), batch_of(recorded)
    kalman_filter(model, batch).log_evidence.sum().backward()
    found = torch.cat([p.grad.flatten() for p in own_parameters(model).values()])
    torch.testing.assert_close(found, exact_score(model, batch), rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_the_dense_density():
    """By automatic differentiation of the joint Gaussian's log density with respect to A and Q."""
    recorded = data(missing=True)
    model, batch = linear_network(recorded, is_full_rank=True), batch_of(recorded)
    weights = [model.recurrent, model.raw_noise, model.raw_start_noise, model.loading]
    ours = torch.autograd.grad(kalman_filter(model, batch).log_evidence.sum(), weights)
    dense = torch.autograd.grad(dense_log_evidence(model, batch), weights)
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def dense_log_evidence(model, batch):
    system = model.linear_gaussian(batch.inputs)
    T, dim = batch.num_bins, len(system.A)
    cov = [[None] * T for _ in range(T)]
    for t in range(T):
        own = system.initial_noise.matrix
        if t:
            own = system.A @ cov[t - 1][t - 1] @ system.A.mT + system.noise.matrix
        cov[t][t] = own
        for s in range(t + 1, T):
            cov[s][t] = system.A @ cov[s - 1][t]
            cov[t][s] = cov[s][t].mT
    Z = torch.cat([torch.cat(row, 1) for row in cov])
    total = torch.zeros((), dtype=torch.double)
    for trial in range(batch.num_trials):
        mean = [system.b[trial, 0]]
        for t in range(1, T):
            mean.append(system.A @ mean[-1] + system.b[trial, t])
        C = torch.block_diag(*[system.C] * T)
        keep = batch.scored[trial].flatten()
        d = system.d.expand(batch.x.shape)[trial].flatten()
        V = C @ Z @ C.mT + torch.diag(system.r.repeat(T))
        fitted = torch.distributions.MultivariateNormal(
            (C @ torch.cat(mean) + d)[keep], V[keep][:, keep]
        )
        total = total + fitted.log_prob(batch.x[trial].flatten()[keep])
    assert Z.shape == (T * dim, T * dim)
    return total


@torch.no_grad()
def test_single_precision_suffices_for_precise_observations_and_long_trials():
    """Noise of 1e-4 units, a nearly constant latent and 400 bins."""
    rng = np.random.default_rng(0)
    recorded = recording(
        signal=rng.normal(size=(NUM_TRIALS, 400, 4)),
        inputs=rng.normal(size=(NUM_TRIALS, 400, 1)),
        bin_width=0.01,
    )
    model = linear_network(recorded, noise="scalar")
    model.raw_noise.fill_(-6.0)
    model.observation.log_scale.fill_(-9.0)
    single = model.float()
    batch = single.trials_of(recorded).batch()
    found = kalman_filter(single, batch)
    double = model.double()
    exact = exact_of(double, batch_of(recorded))
    for trial in range(NUM_TRIALS):
        truth = by_recursion(exact, trial)
        np.testing.assert_allclose(
            found.log_evidence[:, trial].sum(), truth.log_evidence, rtol=1e-6
        )
        np.testing.assert_allclose(found.means[:, trial], truth.filtered, rtol=1e-4, atol=1e-5)
    assert (torch.linalg.eigvalsh(found.covariances) > 0).all()


@torch.no_grad()
def test_weights_of_scored_entries_multiply_their_log_density():
    """Two copies of a channel of equal noise are one channel of weight 2."""
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    drawn = SampleValidation(0.5, seed=0)(batch)
    weighted = drawn.replace(scored_weight=2.0)
    system = model.linear_gaussian(batch.inputs)
    twice = system._replace(
        C=torch.cat([system.C] * 2),
        d=torch.cat([system.d] * 2, -1),
        r=torch.cat([system.r] * 2),
    )
    doubled = kalman_recursion(
        twice, torch.cat([batch.x] * 2, -1), torch.cat([weighted.scored] * 2, -1).double()
    )
    found = kalman_filter(model, weighted)
    torch.testing.assert_close(found.log_evidence.mT, doubled.log_evidence)
    torch.testing.assert_close(found.means.transpose(0, 1), doubled.means)


@pytest.mark.parametrize("missing", [False, True])
def test_draws_have_the_moments_of_the_smoother(missing):
    recorded, num_draws = data(missing), 20_000
    model, batch = linear_network(recorded), batch_of(recorded)
    torch.manual_seed(0)
    drawn = exact_paths(model, batch, num_draws)
    exact = exact_of(model, batch)
    for trial in range(NUM_TRIALS):
        mean, covariance, evidence = joint_posterior(exact, trial)
        paths = drawn.paths[:, trial].flatten(1).numpy()
        sd = np.sqrt(np.diagonal(covariance))
        assert (np.abs(paths.mean(0) - mean) < 4.5 * sd / num_draws**0.5).all()
        # All bins jointly: the standard error of a sample covariance.
        error = np.sqrt((np.outer(sd, sd) ** 2 + covariance**2) / num_draws)
        assert (np.abs(np.cov(paths.T) - covariance) < 4.5 * error).all()
        np.testing.assert_allclose(drawn.log_evidence[trial], evidence)


def test_what_has_no_exact_inference_is_refused_with_the_reason():
    recorded = data()
    batch = batch_of(recorded)
    for options, reason in (
        ({"activation": "tanh"}, r"activation='tanh' \(not 'identity'\)"),
        ({"noise_df": 4.0, "proposal": "encoder"}, "noise_df=4.0"),
        ({"readout": "rates", "num_units": 4}, "readout='rates'"),
    ):
        model = linear_network(recorded, **options)
        with pytest.raises(ValueError, match=f"no exact inference, because of its {reason}"):
            kalman_filter(model, batch)

    class Own(LowRankRNN):
        def emission(self, state):
            return super().emission(state._replace(z=state.z**2))

    own = Own(4, input_dim=1, activation="identity", observation="gaussian", proposal="encoder")
    with pytest.raises(ValueError, match="a density that a subclass overrides"):
        kalman_filter(own.double(), batch)
    with pytest.raises(ValueError, match="LFADS is not linear and Gaussian"):
        kalman_filter(LFADS(4, input_dim=1, observation="gaussian").double(), batch)
    with pytest.raises(ValueError, match="holds no observations"):
        kalman_smoother(linear_network(recorded), batch.unobserved())
    with pytest.raises(ValueError, match="num_draws=0"):
        exact_paths(linear_network(recorded), batch, 0)


def test_diverging_dynamics_name_trial_and_bin():
    recorded = data()
    model = linear_network(recorded)
    with torch.no_grad():
        model.n *= 1e200
    with pytest.raises(ArithmeticError, match=r"evidence of trial 0 is not finite at bin \d"):
        kalman_filter(model, batch_of(recorded))
