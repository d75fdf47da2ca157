"""Fisher scoring: scores against gradients of evidence that quadrature and the Kalman filter know,
steps against their equation, and where they lead against the maximum of that evidence.
"""

import math

import numpy as np
import pytest
import torch
from linear_gaussian import batch_of, exact_of, exact_score, linear_network, posterior_paths
from linear_gaussian import data as linear_data
from pyro import plate, poutine

from pyrodyn import data
from pyrodyn.infer import fisher_scoring, path_pool
from pyrodyn.infer.importance import fisher_scoring as scoring
from pyrodyn.models import LFADS, NodeSAE

NUM_BINS = 8

FREE = ("start_mean", "start_log_scale", "readout.0.weight", "readout.0.bias")
"""Weights that climb where others are held."""


def counts(num_trials, seed=0):
    """Of trials that begin at different levels and decay from there."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(num_trials, 1, 1)) * np.exp(-0.1 * np.arange(NUM_BINS))[:, None]
    rates = np.exp(0.5 + level * [1.0, -0.7, 0.3])
    return data.recording(counts=rng.poisson(rates), bin_width=0.01)


def one_latent(recorded, seed=0):
    """A model without process noise, whose evidence is an integral over one number."""
    torch.manual_seed(seed)
    model = NodeSAE.for_recording(recorded, latent_dim=1, field_width=4, encoder_dim=3)
    return model.double().eval()


def drawn_for(recorded):
    """A model, all trials, and a few draws for each."""
    model = one_latent(recorded)
    batch = model.trials_of(recorded).batch()
    torch.manual_seed(0)
    sites = path_pool(model, batch, 5, num_particles=200).sites
    return model, scoring._Draws(model, batch, sites)


def on_a_grid(model, batch):
    """z0, and log p(x_n, z0) of every trial there: all of both that counts."""
    sd = model.initial_condition().stddev.item()
    grid = torch.linspace(-7 * sd, 7 * sd, 400, dtype=torch.float64)
    z0 = model.start_mean.item() + grid[:, None, None].expand(-1, batch.num_trials, 1)
    program = plate("grid", len(grid), dim=-2)(poutine.condition(model.model, {"z0": z0}))
    trace = poutine.trace(program).get_trace(batch.replace(weight=1.0))
    trace.compute_log_prob()
    return z0, trace.nodes["z0"]["log_prob"] + trace.nodes["x"]["log_prob"]


def log_evidence(model, batch):
    """Log p(x_n) by quadrature, as autograd sees it."""
    z0, joint = on_a_grid(model, batch)
    return joint.logsumexp(0) + math.log(z0[1, 0, 0] - z0[0, 0, 0])


def assert_agree(found, exact):
    """The mean of independent estimates with what they are estimates of."""
    error = found.std(0) / len(found) ** 0.5
    assert exact.abs().max() > 1
    assert (error < 0.1 * exact.abs().max()).all()
    assert ((found.mean(0) - exact).abs() <= 5 * error + 1e-3 * exact.abs().max()).all()


def test_scores_are_gradients_of_each_trials_evidence():
    """Through a path that the weights bend, of trials that stand for more than themselves and of
    which some entries were not measured.
    """
    recorded = counts(8)
    valid = np.random.default_rng(1).random(recorded["counts"].shape) > 0.2
    recorded = recorded.assign(valid=(("trial", "time", "neuron"), valid))
    model = one_latent(recorded)
    batch = model.trials_of(recorded).batch(slice(0, 4))
    assert batch.weight == 2.0
    z0, joint = on_a_grid(model, batch)
    torch.manual_seed(0)
    chosen = torch.multinomial(joint.detach().softmax(0).T, 4000, replacement=True).T
    drawn = z0.gather(0, chosen[..., None])
    groups = [scoring._Draws(model, batch, {"z0": drawn[i::20]}) for i in range(20)]
    assert len(groups[0].parameters) == 8  # start, field and readout; no guide
    exact = torch.stack([groups[0]._gradient(log_evidence(model, batch)[n]) for n in range(4)])
    assert_agree(torch.stack([group.scores for group in groups]), exact)


def test_of_paths_with_process_noise_too():
    recorded = linear_data()
    model = linear_network(recorded, seed=2)
    batch = batch_of(recorded)
    exact = exact_of(model, batch)
    paths = np.stack([posterior_paths(exact, n, 16_000) for n in range(batch.num_trials)], 1)
    drawn = torch.from_numpy(paths)
    found = [scoring._Draws(model, batch, {"z": drawn[i::20]}).slope for i in range(20)]
    assert_agree(torch.stack(found), exact_score(model, batch))


def test_weights_that_have_a_density_climb_it_too():
    recorded = counts(5)
    torch.manual_seed(0)
    model = LFADS.for_recording(
        recorded,
        factor_dim=2,
        generator_dim=3,
        initial_condition_dim=1,
        encoder_dim=3,
        inferred_input_dim=0,
        initial_condition_bins=3,
        recurrent_precision=7.0,
    ).eval()
    batch = model.trials_of(recorded).batch()
    draws = scoring._Draws(model, batch, path_pool(model, batch, 3, num_particles=200).sites)
    (density,) = model.weight_priors().values()
    alone = draws.slope - draws.scores.sum(0)
    torch.testing.assert_close(alone, draws._gradient(density))
    assert alone.abs().max() > 0.1


@pytest.mark.parametrize("num_trials", [5, 300])
def test_steps_solve_their_equation(num_trials):
    """With fewer trials than weights, and with more."""
    _, draws = drawn_for(counts(num_trials))
    information = draws.scores.T @ draws.scores
    for damping in (0.1, 10.0):
        damped = information + damping * information.diagonal().diag()
        torch.testing.assert_close(damped @ draws._step(damping), draws.slope)


@pytest.mark.slow
def test_they_lead_to_the_maximum_of_the_evidence():
    """To within a quarter of what the data themselves leave open: half a nat per weight."""
    recorded = counts(100)
    model = one_latent(recorded)
    torch.manual_seed(0)
    batch = model.trials_of(recorded).batch()
    with torch.no_grad():  # of the model itself: scores tell curvature where it can be right
        model.readout[0].weight.copy_(torch.tensor([[0.5], [-0.4], [0.3]]))
        shown = poutine.trace(model.model).get_trace(batch.unobserved()).nodes["x"]["value"]
        batch = batch.replace(x=shown, seen=shown)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in FREE)
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    climber = torch.optim.LBFGS(free, max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        climber.zero_grad()
        value = -log_evidence(model, batch).sum()
        value.backward()
        return value.item()

    start = -loss()
    climber.step(loss)
    highest = -loss()
    assert highest - start > 5
    assert all(parameter.grad.abs().max() < 0.01 for parameter in free)
    model.load_state_dict(before)

    model.train()
    steps = fisher_scoring(model, batch, 4, num_draws=50, num_particles=100_000)
    assert model.training
    reached = -loss()
    assert highest - reached < 0.25 * 0.5 * sum(parameter.numel() for parameter in free)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in FREE)
    error = float(steps[0].log_evidence_error.sum())  # trials share their pool
    assert abs(float(steps[0].log_evidence.sum()) - start) < 4 * error


def test_a_step_that_its_draws_cannot_tell_of_is_shortened():
    """Scores ten times too small make F a hundred times too small."""
    model, draws = drawn_for(counts(5))
    draws.scores /= 10
    start = {name: value.clone() for name, value in model.state_dict().items()}
    weights = scoring._flattened(draws.parameters).detach()
    too_long = draws._tried(1e-3, weights, draws._joint_of_all())
    assert too_long.effective_fraction < scoring.LEAST_EFFECTIVE
    model.load_state_dict(start)
    best = draws.best_step(1e-3)
    assert best.effective_fraction >= scoring.LEAST_EFFECTIVE
    assert best.damping > 1e-3
    assert best.gain > 0


def test_an_interruption_leaves_the_last_good_weights(monkeypatch):
    model, draws = drawn_for(counts(5))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    tell, calls = draws._joint_of_all, []

    def interrupted():
        calls.append(None)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return tell()

    monkeypatch.setattr(draws, "_joint_of_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draws.best_step(1.0)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_requests_that_make_no_step_are_refused():
    recorded = counts(5)
    model = one_latent(recorded)
    batch = model.trials_of(recorded).batch()
    with pytest.raises(ValueError, match="num_steps=0"):
        fisher_scoring(model, batch, 0)
    with pytest.raises(ValueError, match="num_draws=1"):
        fisher_scoring(model, batch, num_draws=1)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="the generative program has no trainable parameter"):
        fisher_scoring(model, batch, num_particles=100)


@pytest.mark.cuda
def test_a_gpu_finds_the_same_step():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    recorded = counts(20)
    model, draws = drawn_for(recorded)
    on_cpu = draws.best_step(1.0)
    model.cuda()
    there = {name: value.cuda() for name, value in draws.sites.items()}
    on_gpu = scoring._Draws(model, model.trials_of(recorded).batch(), there).best_step(1.0)
    torch.testing.assert_close(on_gpu.weights.cpu(), on_cpu.weights)
