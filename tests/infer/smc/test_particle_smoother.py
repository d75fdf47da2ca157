"""The particle smoother against Rauch-Tung-Striebel."""

import pytest
import torch
from linear_gaussian import NUM_TRIALS, batch_of, by_recursion, data, exact_of, linear_network

from pyrodyn.infer import particle_filter, particle_smoother
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
        if method != "fixed_lag":  # which draws every bin for itself
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
    for settings, said in (
        ({"method": "rauch"}, "method='rauch' is unknown; it is one of ffbsi"),
        ({"num_draws": 0}, "num_draws=0 must be an integer of at least 1"),
        ({"lag": 0}, "lag=0 must be an integer of at least 1"),
        ({"filtered": of_two}, "filtered holds 2 trials of 6 bins, the batch 3 of 6"),
    ):
        with pytest.raises(ValueError, match=said):
            particle_smoother(model, batch, **settings)
