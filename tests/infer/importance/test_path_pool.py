"""A pool of paths: its weights against densities entry by entry, its draws against exact posteriors
and against the particle filter.
"""

import numpy as np
import pytest
import torch
from linear_gaussian import NUM_TRIALS, batch_of, by_recursion, exact_of, linear_network
from linear_gaussian import data as linear_data
from pyro import plate, poutine

from pyrodyn import data, predict
from pyrodyn.infer import importance_sample, particle_filter, path_pool
from pyrodyn.infer.importance import path_pool as pool
from pyrodyn.models import LFADS, OBSERVATIONS, NodeSAE
from pyrodyn.models.state_space import Bootstrap

COUNTS_AND_SIGNAL = {"counts": "zero_inflated_poisson", "signal": "gaussian"}


def recording_for(name, num_trials=5, num_bins=7, num_neurons=4, seed=0):
    """Data inside the support, of which some are missing; of counts, one neuron fires in the first
    trial alone.
    """
    rng = np.random.default_rng(seed)
    shape = (num_trials, num_bins, num_neurons)
    valid = rng.random(shape) > 0.2
    valid[0] = True
    counts = rng.poisson(1.5, shape)
    counts[1:, :, 0] = 0
    match name:
        case "bernoulli":
            return data.recording(counts=counts > 0, bin_width=0.01, valid=valid)
        case "gaussian":  # far from 0 beside its width
            signal = 30 + 0.1 * rng.normal(size=shape)
            return data.recording(signal=signal, bin_width=0.01, valid=valid)
        case "gamma" | "zero_inflated_gamma":
            signal = rng.gamma(2.0, 3.0, shape)
            signal = signal * (rng.random(shape) > 0.3) if name.startswith("zero") else signal
            return data.recording(signal=signal, bin_width=0.01, valid=valid)
        case "both":
            return data.recording(
                counts=counts, signal=-rng.gamma(2.0, 1.0, (*shape[:2], 2)), bin_width=0.01
            )
        case _:
            return data.recording(counts=counts, bin_width=0.01, valid=valid)


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("name", [*OBSERVATIONS, "both"])
def test_weights_are_densities_of_all_that_was_scored(name, is_sparse, monkeypatch):
    monkeypatch.setattr(pool, "SPARSE_BELOW", 2.0 * is_sparse)
    recorded = recording_for(name)
    torch.manual_seed(0)
    observation = COUNTS_AND_SIGNAL if name == "both" else name
    model = NodeSAE.for_recording(
        recorded, latent_dim=2, encoder_dim=3, process_noise=True, observation=observation
    ).eval()
    batch = model.trials_of(recorded).batch(slice(1, None)).replace(weight=1.0, scored_weight=1.5)
    with torch.no_grad():
        sites, observation = pool._sample(model, batch, 20)
        weights_of = pool._Weights(model, batch)
        weights = weights_of(observation)
        paths = sites["z"].expand(20, batch.num_trials, -1, -1)
        particles = plate("particles", 20, dim=-2)(poutine.condition(model.model, {"z": paths}))
        trace = poutine.trace(particles).get_trace(batch)
    trace.compute_log_prob()
    assert weights_of.own.is_sparse == is_sparse
    exact = trace.nodes["x"]["log_prob"]
    assert exact.std(0).min() > 0.1
    # But for what is the same for all paths.
    torch.testing.assert_close(weights - weights[0], exact - exact[0], rtol=1e-4, atol=0.01)


@pytest.mark.parametrize("hides", [False, True])
def test_the_posterior_is_exact(hides, monkeypatch):
    """In pools of several parts too, of which draws are kept as they go by."""
    monkeypatch.setattr(pool, "MOST_ENTRIES", 2**17)
    recorded = linear_data(missing=True)
    recorded["inputs"][:] = recorded["inputs"][0]
    model = linear_network(recorded)
    if hides:
        recorded = data.held_out(recorded, neurons=[1, 3], forecast_bins=2)
    torch.manual_seed(0)
    batch = batch_of(recorded).as_seen()
    found = path_pool(model, batch, 2000, num_particles=200_000)
    exact = exact_of(model, batch)
    for trial in range(NUM_TRIALS):
        truth = by_recursion(exact, trial)
        error = float(found.log_evidence_error[trial])
        assert error < 0.1
        assert abs(float(found.log_evidence[trial]) - truth.log_evidence) < 4 * error
        sd = np.sqrt(np.diagonal(truth.covariance, axis1=1, axis2=2))
        z = found.sites["z"][:, trial].numpy()
        assert (np.abs(z.mean(0) - truth.mean) < 5 * sd * np.hypot(error, 2000**-0.5)).all()
        np.testing.assert_allclose(z.std(0), sd, rtol=0.3)
    assert (found.effective_sample_size > 100).all()
    assert (found.pareto_k < 0.7).all()


def counts(num_trials=6, num_bins=9, num_neurons=3, seed=0):
    rng = np.random.default_rng(seed)
    return data.recording(
        counts=rng.poisson(0.5, (num_trials, num_bins, num_neurons)), bin_width=0.01
    )


def test_it_finds_what_the_particle_filter_finds():
    """Of trials that stand for more than themselves, too."""
    recorded = counts()
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3, process_noise=True).eval()
    batch = model.trials_of(recorded).batch(slice(0, 3))
    assert batch.weight == 2.0
    pooled = path_pool(model, batch, num_particles=50_000)
    model.proposal = Bootstrap()
    with torch.no_grad():
        filtered = particle_filter(model, batch, 2000)
    evidence, variance = filtered.log_evidence.sum(0), filtered.log_evidence_variance
    error = (pooled.log_evidence_error.square() + variance).sqrt()
    assert (error < 0.1).all()
    assert ((pooled.log_evidence - evidence).abs() < 4 * error).all()


def test_a_start_alone_is_drawn_too():
    recorded = counts()
    torch.manual_seed(0)
    model = LFADS.for_recording(
        recorded,
        factor_dim=3,
        generator_dim=5,
        initial_condition_dim=2,
        encoder_dim=4,
        inferred_input_dim=0,
        initial_condition_bins=3,
    ).eval()
    batch = model.trials_of(recorded).batch()
    pooled = path_pool(model, batch, 30, num_particles=20_000)
    assert pooled.sites["g0"].shape == (30, 6, 2)
    guided = importance_sample(model, model.guide, batch, 20_000)
    error = torch.hypot(pooled.log_evidence_error, guided.log_evidence_error)
    assert (error < 0.2).all()
    assert ((pooled.log_evidence - guided.log_evidence).abs() < 4 * error).all()


def test_hidden_neurons_and_forecast_bins_are_not_looked_at():
    recorded = data.held_out(counts(), neurons=0.5, forecast_bins=2, seed=0)
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3)
    hidden = (recorded["held_out"] | recorded["forecast"]).transpose("time", "neuron")
    other = recorded.copy(deep=True)
    other["counts"] = recorded["counts"].where(~hidden, 7)
    predicted = [predict(model, r, method="pool", num_particles=500) for r in (recorded, other)]
    np.testing.assert_array_equal(predicted[0]["rates"], predicted[1]["rates"])
    assert predicted[0].sizes["time"] == recorded.sizes["time"]


def test_trials_under_different_inputs_are_refused():
    rng = np.random.default_rng(0)
    recorded = counts().assign(inputs=(("trial", "time", "input"), rng.normal(size=(6, 9, 1))))
    recorded["inputs"][1:3] = recorded["inputs"][0]
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3)
    with pytest.raises(ValueError, match="inputs of trial 3 differ from those of trial 0"):
        predict(model, recorded, method="pool")
    alike = recorded.isel(trial=slice(3))
    assert np.isfinite(predict(model, alike, method="pool", num_particles=100)["rates"]).all()


def test_requests_that_make_no_pool_are_refused():
    recorded = counts()
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3)
    batch = model.trials_of(recorded).batch()
    with pytest.raises(ValueError, match="num_draws=0"):
        path_pool(model, batch, 0)
    with pytest.raises(ValueError, match="num_particles=29"):
        path_pool(model, batch, num_particles=29)
    with pytest.raises(ValueError, match="this batch has x=None"):
        path_pool(model, batch.unobserved())


def test_a_trial_that_no_path_explains_is_named():
    recorded = counts()
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3)
    with torch.no_grad():
        model.phi.field.linear_layers()[-1].bias.fill_(1e30)
    with pytest.raises(ArithmeticError, match="none of 100 trajectories explains trial 0"):
        predict(model, recorded, method="pool", num_particles=100)


class Endless(torch.nn.Module):
    """Log rates that are infinite where they were positive, 0 elsewhere."""

    def forward(self, log_rates):
        return torch.where(log_rates > 0, torch.inf, 0.0)


def test_paths_that_run_off_weigh_nothing():
    """Half of them: the evidence is half of what the rest tell, which is all the same."""
    recorded = counts()
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recorded, latent_dim=1, encoder_dim=3).eval()
    with torch.no_grad():
        model.phi.field.linear_layers()[-1].weight.zero_()
        model.phi.field.linear_layers()[-1].bias.zero_()
        model.readout[0].weight.fill_(1.0)
        model.readout[0].bias.zero_()
    model.readout.append(Endless())
    batch = model.trials_of(recorded).batch()
    found = path_pool(model, batch, num_particles=10_000)
    assert (found.sites["z0"] < 0).all()
    of_rate_one = -1 - torch.lgamma(batch.x + 1)
    expected = of_rate_one.sum((1, 2)) + np.log(0.5)
    assert ((found.log_evidence - expected).abs() < 4 * found.log_evidence_error).all()


@pytest.mark.cuda
def test_a_gpu_finds_the_same_evidence():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    recorded = counts()
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=3, process_noise=True).eval()
    found = []
    for device in ("cpu", "cuda"):
        model.to(device)
        batch = data.Trials(recorded, device).batch()
        found.append(path_pool(model, batch, num_particles=20_000))
    error = torch.hypot(found[0].log_evidence_error, found[1].log_evidence_error.cpu())
    difference = found[0].log_evidence - found[1].log_evidence.cpu()
    assert (difference.abs() < 4 * error).all()
