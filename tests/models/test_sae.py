"""Sequential autoencoders: densities against each other, options, forecasts, limits."""

import warnings

import numpy as np
import pytest
import torch
from pyro import poutine

from pyrodyn import data, fit, load, predict, save, to_datatree
from pyrodyn.infer import ELBO, IWELBO, VSMC, SmoothedScore, particle_filter, path_pool
from pyrodyn.models import NodeSAE, RnnSAE
from pyrodyn.models.rollout_cache import RolloutCache
from pyrodyn.models.state_space import Bootstrap, ProposalPath
from pyrodyn.nn.cells import CELLS
from pyrodyn.nn.solvers import SOLVERS

TINY = {"latent_dim": 2, "field_width": 5, "encoder_dim": 4}
TINY_RNN = {"latent_dim": 2, "encoder_dim": 4}


def counts(num_trials=4, num_bins=7, num_inputs=1, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_trials, num_bins, num_inputs)) if num_inputs else None
    return data.recording(
        counts=rng.poisson(1.0, (num_trials, num_bins, 3)), bin_width=0.01, inputs=inputs
    )


def made(kind=NodeSAE, recording=None, **sizes):
    torch.manual_seed(0)
    recording = counts() if recording is None else recording
    return kind.for_recording(recording, **sizes).eval(), recording


def test_the_path_drawn_in_one_go_follows_the_proposal_bin_by_bin():
    model, recording = made(**TINY, process_noise=True)
    batch = model.trials_of(recording).batch()
    with torch.no_grad():
        trace = poutine.trace(model.guide).get_trace(batch)
        steered = trace.nodes["z"]["fn"]
        path = steered.rsample((5,))
        kept = steered.log_prob_steps(path)
        inputs = model.known_inputs(batch)
        by_bins = ProposalPath(model, model.proposal.encode(model, batch), None, inputs)
        torch.testing.assert_close(kept, steered.log_prob_steps(path.clone()))
        torch.testing.assert_close(kept, by_bins.log_prob_steps(path))


def test_what_the_guide_hands_on_changes_neither_the_bound_nor_its_gradient(monkeypatch):
    model, recording = made(**TINY, process_noise=True)
    batch = model.trials_of(recording).batch()

    def bound_and_gradient() -> list[torch.Tensor]:
        torch.manual_seed(3)
        loss = ELBO(num_particles=2)(model, model.guide)(batch)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)]

    evaluations = []
    original = type(model.phi).forward
    monkeypatch.setattr(
        type(model.phi), "forward", lambda *args: evaluations.append(1) or original(*args)
    )
    taken_up = bound_and_gradient()
    assert not evaluations
    monkeypatch.setattr(RolloutCache, "take", lambda *_: None)
    for ours, anew in zip(taken_up, bound_and_gradient(), strict=True):
        torch.testing.assert_close(ours, anew, rtol=1e-4, atol=1e-4)
    assert evaluations


def test_the_proposal_is_the_prior_times_its_factor():
    """By quadrature over one latent."""
    model, recording = made(**{**TINY, "latent_dim": 1}, process_noise=True)
    batch = model.trials_of(recording).batch()
    grid = torch.linspace(-6, 6, 4001)[:, None, None]
    with torch.no_grad():
        pull = model.proposal.encode(model, batch)
        before = model.initial_state(None, torch.randn(4, 1), batch.inputs[:, 1])
        prior = model.transition(before, batch.inputs[:, 2])
        proposed = model.proposal.propose(prior, None, pull, 2, False)
        # J and h, back from g = P / Q and P h.
        Q, P = model.noise_scales()[1] ** 2, pull.scale[:, 2] ** 2
        J, h = 1 / P - 1 / Q, pull.offset[:, 2] / P
        assert (J > 0).all()
        at = grid[..., 0]
        log_product = prior.log_prob(grid) + (h * grid - 0.5 * J * grid**2).sum(-1)
        weights = torch.softmax(log_product, 0)
    mean = (weights * at).sum(0)
    torch.testing.assert_close(mean, proposed.mean[:, 0], atol=1e-3, rtol=1e-3)
    spread = (weights * (at - mean) ** 2).sum(0).sqrt()
    torch.testing.assert_close(spread, proposed.variance[:, 0].sqrt(), atol=1e-3, rtol=1e-3)


def test_another_proposal_is_the_guide_too():
    """That of the model's own prior: log q of its draws is log p."""
    model, recording = made(**TINY, process_noise=True)
    model.proposal = Bootstrap()
    batch = model.trials_of(recording).batch()
    with torch.no_grad():
        guided = poutine.trace(model.guide).get_trace(batch)
        trace = poutine.trace(poutine.replay(model.model, guided)).get_trace(batch)
    for each in (guided, trace):
        each.compute_log_prob()
    log_q, log_p = (each.nodes["z"]["log_prob"] for each in (guided, trace))
    torch.testing.assert_close(log_q, log_p, rtol=1e-4, atol=1e-4)
    assert np.isfinite(predict(model, recording, num_draws=3)["rates"]).all()


@pytest.mark.parametrize("process_noise", [False, True])
def test_forecast_bins_follow_the_model(process_noise):
    model, recording = made(
        recording=data.held_out(counts(), forecast_bins=3), **TINY, process_noise=process_noise
    )
    batch = model.trials_of(recording).batch()
    assert batch.horizon == 4
    if process_noise:
        pull = model.proposal.encode(model, batch)
        assert torch.equal(pull.gain[:, 4:], torch.ones_like(pull.gain[:, 4:]))
        assert not pull.offset[:, 4:].any()
    hidden = recording.copy(deep=True)
    hidden["counts"][:, 4:] = 4
    torch.manual_seed(0)
    predicted = predict(model, recording, num_draws=4)["rates"]
    torch.manual_seed(0)
    np.testing.assert_array_equal(predicted, predict(model, hidden, num_draws=4)["rates"])


@pytest.mark.parametrize("process_noise", [False, True])
@pytest.mark.parametrize("kind", ["node", *CELLS])
def test_every_dynamics_trains_by_every_bound(kind, process_noise):
    sizes = {"process_noise": process_noise}
    if kind == "node":
        model, recording = made(NodeSAE, **TINY, **sizes)
    else:
        model, recording = made(RnnSAE, **TINY_RNN, cell=kind, cell_width=4, **sizes)
    batch = model.trials_of(recording).batch()
    for objective in (ELBO(), IWELBO(3, gradient="dreg"), VSMC(3), SmoothedScore(3)):
        model.zero_grad()
        loss = objective(model, model.guide)(batch)
        loss.backward()
        assert torch.isfinite(loss)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.numel():
                assert parameter.grad is not None, (objective, name)
                assert torch.isfinite(parameter.grad).all(), (objective, name)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_makes_a_model(solver):
    model, recording = made(**TINY, solver=solver)
    batch = model.trials_of(recording).batch()
    loss = ELBO()(model, model.guide)(batch)
    loss.backward()
    assert torch.isfinite(loss)
    state = torch.randn(3, 2)
    dynamics = model.dynamics()
    assert (dynamics.vector_field is None) == (solver == "euler")
    step = model.phi(state, batch.inputs[:3, 0])
    torch.testing.assert_close(dynamics.step(state, batch.inputs[:3, 0]), step, atol=1e-3, rtol=0)


def test_the_field_is_the_derivative_per_second():
    model, _ = made(**TINY, solver="rk4", substeps=4)
    model.record = {"data": {"bin_width": 0.02}}
    dynamics, state = model.dynamics(), torch.randn(6, 2)
    inputs = torch.zeros(6, 1)
    small = model.phi.at_times(state, torch.tensor([0.0, 1e-2]), inputs)
    derivative = (small[:, 1] - state) / (1e-2 * 0.02)
    torch.testing.assert_close(
        dynamics.vector_field(state, inputs), derivative, atol=0.5, rtol=2e-2
    )


def test_without_process_noise_particles_are_an_importance_sample():
    """Nothing is drawn after the start without process noise: VSMC, never resampled, is IWELBO."""
    model, recording = made(**TINY)
    batch = model.trials_of(recording).batch()
    with torch.no_grad():
        pairs = torch.tensor(
            [
                [
                    float(VSMC(8, ess_threshold=0.0)(model, model.guide)(batch)),
                    float(IWELBO(8)(model, model.guide)(batch)),
                ]
                for _ in range(60)
            ]
        )
    error = (pairs.var(0).sum() / len(pairs)).sqrt()
    assert abs(pairs[:, 0].mean() - pairs[:, 1].mean()) < 4 * error
    filtered = particle_filter(model, batch, 16)
    assert filtered.starts.shape == (16, 4, 2)


@pytest.mark.slow
def test_beta_zero_is_the_deterministic_autoencoder():
    """Without its KL the posterior loses its width."""
    recording = counts(num_trials=16, num_inputs=0)
    model, _ = made(recording=recording, **TINY, dropout=0.0)
    batch = model.trials_of(recording).batch()

    def width():
        return float(model.proposal.encode(model, batch).base_dist.scale.detach().mean())

    with torch.no_grad():
        model.readout[-1].weight.mul_(4.0)
    before = width()
    fit(
        model,
        recording,
        objective=ELBO(beta={"z0": 0.0}),
        max_epochs=150,
        progress=False,
    )
    assert width() < 0.5 * before


def test_a_fit_with_too_coarse_a_step_warns():
    recording = counts(num_inputs=0)
    model, _ = made(recording=recording, **TINY, solver="euler", substeps=2, linear_term=True)
    with torch.no_grad():  # a rotation that Euler's steps spiral away from
        model.phi.field.linear.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    with pytest.warns(UserWarning, match="train with more substeps"):
        fit(model, recording, max_epochs=1, progress=False)
    fine, _ = made(recording=recording, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(fine, recording, max_epochs=1, progress=False)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"latent_dim": 0}, "latent_dim=0 must be an integer of at least 1"),
        ({"field_depth": 0}, "field_depth=0"),
        ({"readout_width": -1}, "readout_width=-1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"initial_noise": 0.0}, "initial_noise=0.0 must be a finite standard deviation"),
        ({"initial_noise": float("nan")}, "initial_noise=nan must be a finite"),
        ({"initial_noise": float("inf")}, "initial_noise=inf"),
        ({"num_initial_states": 1}, "num_initial_states=1 has no standard deviation"),
        ({"solver": "leapfrog"}, "solver='leapfrog' is unknown"),
        ({"substeps": 0}, "substeps=0"),
        ({"observation": "cauchy"}, "observation='cauchy' is unknown"),
    ],
)
def test_sizes_that_make_no_model(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        NodeSAE(3, **sizes)


@pytest.mark.parametrize("kind, sizes", [(NodeSAE, TINY), (RnnSAE, TINY_RNN)])
def test_noise_before_training_is_as_wide_as_asked_for(kind, sizes):
    model, _ = made(kind, **sizes, process_noise=True, initial_noise=2.0)
    with torch.no_grad():
        torch.testing.assert_close(
            model.noise_scales()[1], torch.full((2,), 2.0), atol=2e-3, rtol=0.0
        )


def test_unknown_cells():
    with pytest.raises(ValueError, match="cell='lstm' is unknown; it is one of gru"):
        RnnSAE(3, cell="lstm")


@pytest.mark.parametrize("kind, sizes", [(NodeSAE, TINY), (RnnSAE, TINY_RNN)])
def test_without_noise_the_same_dynamics_carry_the_initial_state(kind, sizes):
    model, recording = made(kind, **sizes, process_noise=True)
    with torch.no_grad():
        model.start_mean.fill_(0.7)
        model.log_noise.fill_(-12.0)  # but for the floor
    quiet = model.without_noise()
    assert not quiet.training
    assert quiet.config == {**model.config, "process_noise": False}
    batch = quiet.trials_of(recording).batch()
    with torch.no_grad():
        first = quiet.initial_condition().mean.expand(4, -1)
        states = quiet.states(first, first.new_zeros(4, 7, 0), batch.inputs)
        noisy = poutine.trace(model.model).get_trace(batch.unobserved())
        path = noisy.nodes["z"]["value"]
        from_its_first = quiet.states(path[:, 0], path[..., :0], batch.inputs)
        torch.testing.assert_close(from_its_first.z, path, atol=0.03, rtol=0.0)
        torch.testing.assert_close(states.z[:, 0], first)
        rates = [m.emission(states).mean for m in (quiet, model)]
        torch.testing.assert_close(*rates)
    model.proposal = Bootstrap()
    torch.testing.assert_close(model.without_noise().start_mean, quiet.start_mean)
    with pytest.raises(ValueError, match="this model has no process noise"):
        quiet.without_noise()


def test_its_guide_starts_where_the_noisy_one_did():
    """Where the encoder's forward direction, which has one bin to go by, is uninformative."""
    model, recording = made(**TINY, process_noise=True)
    with torch.no_grad():
        model.proposal.head.weight[:, :4] = 0.0
        model.proposal.head.bias[2:] = 20.0  # data that outweigh the prior
        model.start_log_scale.copy_(torch.tensor([1.0, 2.0]).log())
    quiet = model.without_noise().eval()
    batch = quiet.trials_of(recording).batch()
    with torch.no_grad():
        prior = model.initial(None, batch.inputs[:, 0])
        noisy = model.proposal.propose(
            prior, None, model.proposal.encode(model, batch), 0, True
        ).mean
        guessed = quiet.proposal.encode(quiet, batch)
    torch.testing.assert_close(guessed.mean, noisy, atol=0.1, rtol=0.0)
    share = torch.tensor([0.15, 0.30]).expand(4, -1)  # of spreads of 1 and 2
    torch.testing.assert_close(guessed.stddev, share, atol=0.02, rtol=0.0)


def test_a_path_that_runs_off_is_named():
    model, recording = made(**TINY, linear_term=True)
    with torch.no_grad():
        model.phi.field.linear.fill_(1e6)
    for summary in (predict, to_datatree):
        with pytest.raises(ArithmeticError, match=r"rates of trial \d are not finite at bin [1-6]"):
            summary(model, recording, num_draws=2)


POINTS = torch.tensor([[1.0, 4.0], [-3.0, 2.0], [2.0, -2.0], [0.0, 3.0]])


@pytest.mark.parametrize("process_noise", [False, True])
@pytest.mark.parametrize("kind, sizes", [(NodeSAE, TINY), (RnnSAE, TINY_RNN)])
def test_initial_states_lie_near_given_points(kind, sizes, process_noise, tmp_path):
    model, recording = made(kind, counts(num_inputs=0), **sizes, process_noise=process_noise)
    moved = model.with_initial_states(POINTS)
    assert model.initial_states is None
    assert not moved.training
    save(moved, tmp_path)
    for same in (moved, load(tmp_path)):
        batch = same.trials_of(recording).batch()
        sites = path_pool(same, batch, 50, num_particles=500).sites
        first = sites["z"][:, :, 0] if process_noise else sites["z0"]
        distance = ((first[:, :, None] - POINTS) / (0.03 * POINTS.std(0))).norm(dim=-1)
        assert (distance.amin(-1) < 4.5).all()
        assert distance.argmin(-1).unique().numel() > 1
        torch.testing.assert_close(same.start_mean, POINTS.mean(0))
        torch.testing.assert_close(same.start_log_scale.exp(), POINTS.std(0))
    if process_noise:
        torch.testing.assert_close(moved.without_noise().initial_states, POINTS)


@pytest.mark.parametrize("process_noise", [False, True])
def test_the_evidence_is_that_of_initial_states_near_points(process_noise):
    """By quadrature over the initial state of rates that stay; noise is as good as none."""
    model, recording = made(
        recording=counts(num_inputs=0), **TINY, process_noise=process_noise, initial_noise=1e-6
    )
    with torch.no_grad():
        model.phi.field.linear_layers()[-1].weight.zero_()
        model.phi.field.linear_layers()[-1].bias.zero_()
    moved = model.with_initial_states(POINTS)
    batch = moved.trials_of(recording).batch()
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    offsets = torch.tensor(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)).float()
    log_weights = torch.tensor(np.log(np.outer(weights, weights).ravel() / (2 * np.pi)))
    first = (POINTS[:, None] + 0.03 * POINTS.std(0) * offsets).flatten(0, 1)
    with torch.no_grad():
        likelihood = moved.observation(moved.readout(first))
        log_likelihood = likelihood.log_prob(batch.x[:, :, None]).sum((1, 3)).double()
    exact = (log_likelihood + log_weights.repeat(4) - np.log(4)).logsumexp(-1)
    found = path_pool(moved, batch, num_particles=20_000)
    assert (found.log_evidence_error < 0.03).all()
    assert ((found.log_evidence - exact).abs() < 4 * found.log_evidence_error + 0.005).all()
    if process_noise:
        moved.proposal = Bootstrap()
        with torch.no_grad():
            filtered = particle_filter(moved, batch, 5000)
        error = filtered.log_evidence_variance.sqrt()
        assert ((filtered.log_evidence.sum(0) - exact).abs() < 4 * error + 0.005).all()


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        (POINTS[:, :1], r"states of shape \(4, 1\); .* needs at least 2 points, \(point, 2\)"),
        (POINTS[:1], r"states of shape \(1, 2\)"),
        (torch.cat([POINTS, torch.tensor([[0.0, torch.nan]])]), "state 4 is not finite"),
        (torch.tensor([[0.0, 1.0], [2.0, 1.0]]), "all states have the same latent 1"),
    ],
)
def test_points_that_make_no_prior_of_initial_states(points, sentence):
    model, _ = made(**TINY)
    with pytest.raises(ValueError, match=sentence):
        model.with_initial_states(points)
