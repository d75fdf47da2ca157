"""The particle smoother against Rauch-Tung-Striebel."""

import numpy as np
import pytest
import torch
from linear_gaussian import NUM_TRIALS, batch_of, by_recursion, data, exact_of, linear_network

from pyrodyn.infer import FilterResult, particle_filter, particle_smoother
from pyrodyn.infer.smc import particle_smoother as smoother
from pyrodyn.infer.smc.particle_smoother import _drawn, _fixed_lag
from pyrodyn.models import NodeSAE
from pyrodyn.models.state_space import Bootstrap


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("proposal", ["optimal", "bootstrap"])
@pytest.mark.parametrize("method", ["ffbsi", "mcmc", "ancestral", "fixed_lag"])
def test_moments_are_those_of_rts(method, proposal, missing):
    recorded = data(missing)
    model, batch = linear_network(recorded), batch_of(recorded)
    if proposal == "bootstrap":
        model.proposal = Bootstrap()
    torch.manual_seed(0)
    # Several filters: draws from one of them share its error.
    runs = [
        particle_smoother(
            model, batch, 150, method=method, num_particles=800, num_moves=15, lag=10
        ).paths
        for _ in range(12)
    ]
    exact = exact_of(model, batch)
    for trial in range(NUM_TRIALS):
        truth = by_recursion(exact, trial)
        means = torch.stack([run[:, trial].mean(0) for run in runs])
        _check(means, torch.from_numpy(truth.mean))
        moments = [_covariances(run[:, trial], torch.from_numpy(truth.mean)) for run in runs]
        _check(torch.stack([own for own, _ in moments]), torch.from_numpy(truth.covariance))
        if method != "fixed_lag":  # whose bins are independent
            _check(torch.stack([lag for _, lag in moments]), torch.from_numpy(truth.lag_one))


def _covariances(paths: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariance of every bin, and of every bin with the one before it."""
    away = paths - mean
    own = torch.einsum("ktd,kte->tde", away, away) / len(paths)
    lag_one = torch.einsum("ktd,kte->tde", away[:, 1:], away[:, :-1]) / len(paths)
    return own, lag_one


def _check(estimates: torch.Tensor, truth: torch.Tensor) -> None:
    error = estimates.std(0) / len(estimates) ** 0.5
    # Twelve runs: Student's t with 11 degrees of freedom has heavier tails than z < 4.
    assert ((estimates.mean(0) - truth).abs() < 6 * error + 5e-3).all()
    assert error.max() < 0.1


def test_filtered_particles_paired_by_number_are_no_smoother():
    """The fault of a public code, which the tests above must be able to see."""
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    torch.manual_seed(0)
    filtered = particle_filter(model, batch, 20_000)
    truth = by_recursion(exact_of(model, batch), 0)
    paths = filtered.paths[:, :, 0].permute(1, 0, 2)
    weights = filtered.log_weights[0, :, 0].exp()
    mean_of_first = (weights[:, None] * paths[:, 0]).sum(0)
    assert (mean_of_first - torch.from_numpy(truth.mean[0])).abs().max() > 0.1


def test_fixed_lag_traces_ancestors_from_so_many_bins_later():
    num_bins, num_particles, lag = 7, 5, 3
    generator = torch.Generator().manual_seed(0)
    shuffles = [torch.randperm(num_particles, generator=generator) for _ in range(num_bins)]
    best = torch.randint(num_particles, (num_bins,), generator=generator)
    log_weights = torch.full((num_bins, num_particles, 1), -torch.inf)
    log_weights[torch.arange(num_bins), best] = 0.0
    empty = torch.zeros(num_bins, 1)
    filtered = FilterResult(
        starts=None,
        paths=torch.zeros(num_bins, num_particles, 1, 1),
        states=None,
        ancestors=torch.stack(shuffles)[..., None],
        log_weights=log_weights,
        effective_sample_size=empty,
        resampled=empty > 0,
        log_evidence=empty,
        log_evidence_variance=empty[0],
    )
    for t in range(num_bins):
        last = min(t + lag, num_bins - 1)
        expected = int(best[last])
        for later in range(last, t, -1):
            expected = int(shuffles[later][expected])
        assert (_fixed_lag(filtered, 4, lag)[t] == expected).all()


def test_backward_simulation_moves_by_the_inputs_of_the_later_bin(make_recording, monkeypatch):
    inputs = np.random.default_rng(1).standard_normal((3, 6, 2))
    recorded = make_recording(3, 6, 4, inputs=inputs)
    model = NodeSAE.for_recording(recorded, latent_dim=2, process_noise=True)
    batch = model.trials_of(recorded).batch()
    filtered = particle_filter(model, batch, 20)
    weights = []
    monkeypatch.setattr(
        smoother, "_drawn", lambda log_weights: weights.append(log_weights) or _drawn(log_weights)
    )
    path = particle_smoother(model, batch, 5, filtered=filtered).paths
    scale = model.noise_scales()[1]
    with torch.no_grad():
        for t in range(4, -1, -1):
            mean = model.phi(filtered.paths[t][:, None], batch.inputs[:, t + 1])
            log_p = torch.distributions.Normal(mean, scale).log_prob(path[:, :, t + 1]).sum(-1)
            expected = log_p + filtered.log_weights[t][:, None]
            torch.testing.assert_close(weights[4 - t], expected, rtol=1e-4, atol=1e-4)


def test_a_filter_already_run_is_taken():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    torch.manual_seed(0)
    filtered = particle_filter(model, batch, 64)
    paths = particle_smoother(model, batch, 5, filtered=filtered).paths
    assert paths.shape == (5, NUM_TRIALS, batch.num_bins, 2)
    # Every bin of every path is one of the filter's particles.
    there = (paths.permute(2, 0, 1, 3)[:, :, None] == filtered.paths[:, None]).all(-1).any(2)
    assert there.all()


def test_requests_that_make_no_sense_are_refused():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    of_two = particle_filter(model, batch_of(recorded.isel(trial=slice(2))), 4)
    for settings, message in (
        ({"method": "rauch"}, "method='rauch' is unknown; it is one of ffbsi"),
        ({"num_draws": 0}, "num_draws=0 must be an integer of at least 1"),
        ({"lag": 0}, "lag=0 must be an integer of at least 1"),
        ({"filtered": of_two}, "filtered has 2 trials of 6 bins, the batch 3 of 6"),
    ):
        with pytest.raises(ValueError, match=message):
            particle_smoother(model, batch, **settings)
