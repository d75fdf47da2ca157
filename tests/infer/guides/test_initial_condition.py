"""First states solved for: against exact posteriors, grids, gradients and many draws."""

import numpy as np
import pytest
import torch
from pyro import poutine

from pyrodyn import data, fit, predict
from pyrodyn.infer import LaplaceStart, MixtureStart, importance_sample
from pyrodyn.infer.guides import laplace
from pyrodyn.models import LFADS, NodeSAE, RnnSAE


def counts(num_trials=6, num_bins=9, num_neurons=4, mean=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return data.recording(
        counts=rng.poisson(mean, (num_trials, num_bins, num_neurons)), bin_width=0.01
    )


class LorenzFlow(torch.nn.Module):
    """Lorenz' own flow over a bin, in two Runge-Kutta steps."""

    def __init__(self, time_per_bin):
        super().__init__()
        self.step = time_per_bin / 2

    @staticmethod
    def field(z):
        x, y, w = z.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - w) - y, x * y - w * 8 / 3], -1)

    def forward(self, z, inputs):
        for _ in range(2):
            a = self.field(z)
            b = self.field(z + self.step / 2 * a)
            c = self.field(z + self.step / 2 * b)
            d = self.field(z + self.step * c)
            z = z + self.step / 6 * (a + 2 * b + 2 * c + d)
        return z

    def roll(self, z, inputs):
        path = [z[..., None, :]]
        for t in range(inputs.shape[1]):
            path.append(self(path[-1], inputs[:, t]))
        return torch.cat(path, -2)[..., 1:, :]


def lorenz_model(recording):
    """The system that a recording is of as a model: its field, its readout; an untrained guide."""
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recording, latent_dim=3, encoder_dim=3).eval()
    model.phi = LorenzFlow(recording.attrs["time_per_bin"])
    latents = recording["latents"].values.reshape(-1, 3)
    known = np.column_stack([latents, np.ones(len(latents))])
    log_rates = np.log(recording["rates"].values).reshape(len(known), -1)
    affine = np.linalg.lstsq(known, log_rates, rcond=None)[0]
    with torch.no_grad():
        model.readout[-1].weight.copy_(torch.tensor(affine[:3].T))
        model.readout[-1].bias.copy_(torch.tensor(affine[3]))
        model.start_mean.copy_(torch.tensor(latents.mean(0)))
        model.start_log_scale.copy_(torch.tensor(np.log(latents.std(0))))
    return model


def log_joint(model, batch, start):
    """Log p(s, visible x) per trial by the model's own Pyro program."""
    seen = batch.replace(scored=batch.visible)
    conditioned = poutine.condition(model.model, data={model.initial_condition_site: start})
    trace = poutine.trace(conditioned).get_trace(seen)
    trace.compute_log_prob()
    return trace.nodes[model.initial_condition_site]["log_prob"] + trace.nodes["x"]["log_prob"]


@pytest.mark.slow
def test_the_posterior_of_a_linear_gaussian_model_is_exact():
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(3, 6, 4))
    recording = data.held_out(data.recording(signal=signal, bin_width=0.01), neurons=0.25, seed=0)
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recording, latent_dim=2, linear_term=True, encoder_dim=3)
    model.eval()
    with torch.no_grad():
        model.observation.use_raw_units()
        model.phi.field.linear_layers()[-1].weight.zero_()
        model.phi.field.linear_layers()[-1].bias.zero_()
        model.phi.field.linear.copy_(torch.tensor([[-0.2, 0.9], [-0.7, 0.1]]))
        model.start_mean.copy_(torch.tensor([0.3, -0.5]))
        A = model.phi.field.linear.double().numpy()
        step = np.eye(2) + A + A @ A / 2  # one midpoint step
        unit = torch.eye(2)
        silent = torch.zeros(2, 0)
        np.testing.assert_allclose(model.phi(unit, silent).T.numpy(), step, atol=1e-6)
        C, b = (p.double().numpy() for p in (model.readout[-1].weight, model.readout[-1].bias))
        batch = model.trials_of(recording).batch()
        noise = (
            model.emission(model.initial_state(unit, unit[:, :0], silent))
            .stddev[0]
            .double()
            .numpy()
        )
        mean, sd = model.initial_condition().mean.numpy(), model.initial_condition().stddev.numpy()
    shown = ~recording["held_out"].values
    C, b, noise = C[shown], b[shown], noise[shown]
    precision, pull = np.diag(1 / sd**2), np.tile(mean / sd**2, (3, 1))
    to_bin = np.eye(2)
    for t in range(6):
        loading = C @ to_bin / noise[:, None] ** 2
        precision = precision + to_bin.T @ C.T @ loading
        pull = pull + (signal[:, t, shown] - b) @ loading
        to_bin = step @ to_bin
    solution = LaplaceStart(model, num_searches=1).distribution(batch)
    np.testing.assert_allclose(
        solution.precision_matrix.numpy(), np.tile(precision, (3, 1, 1)), rtol=1e-3, atol=1e-3
    )
    mean = np.linalg.solve(precision, pull.T).T
    np.testing.assert_allclose(solution.mean.numpy(), mean, atol=1e-3)
    torch.manual_seed(0)
    mixed = importance_sample(model, MixtureStart(model), batch.as_seen(), 2000)
    single = importance_sample(model, LaplaceStart(model), batch.as_seen(), 2000)
    assert (mixed.effective_sample_size > 400).all()
    weights, z = mixed.smoothed.log_weights.exp(), mixed.sites["z0"]
    variance = np.linalg.inv(precision).diagonal(axis1=-2, axis2=-1)
    error = np.sqrt(variance / mixed.effective_sample_size.numpy()[:, None])
    found = torch.einsum("kt,ktd->td", weights, z).numpy()
    assert (np.abs(found - mean) < 4 * error).all()
    # Of an exact posterior all weights are the evidence.
    difference = (mixed.log_evidence - single.log_evidence).abs()
    assert (difference < 4 * mixed.log_evidence_error + 1e-3).all()


def test_the_mode_and_its_width_are_those_of_a_grid():
    recording = counts()
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recording, latent_dim=1, encoder_dim=3).eval()
    batch = model.trials_of(recording).batch()
    solution = LaplaceStart(model).distribution(batch)
    grid = torch.linspace(-4, 4, 401).double()
    with torch.no_grad():
        density = torch.stack(
            [log_joint(model, batch, s.float().expand(6, 1)) for s in grid]
        ).double()
    near = 10  # points to either side, for the parabola through the mode
    best = density.argmax(0).clamp(near, 400 - near)
    ahead, top, behind = (density[best + k, torch.arange(6)] for k in (near, 0, -near))
    width = grid[near] - grid[0]
    curvature = (2 * top - ahead - behind) / width**2
    mode = grid[best] + (ahead - behind) / (2 * width) / curvature
    np.testing.assert_allclose(solution.mean[:, 0], mode, atol=0.02)
    np.testing.assert_allclose(solution.precision_matrix[:, 0, 0], curvature, rtol=0.05)


@pytest.mark.slow
def test_starts_of_chaotic_paths_are_found():
    """Lorenz' own field over 70 bins of .04, with an untrained guide's guesses: what is found
    explains every trial as well as its true start, of which hasty searches miss some.
    """
    recording = data.simulate("lorenz", 30, 70, 20, mean_rate=100.0, time_per_bin=0.04, seed=1)
    model = lorenz_model(recording)
    batch = model.trials_of(recording).batch()
    truth = log_joint(model, batch, torch.as_tensor(recording["latents"].values[:, 0]))
    num_missed = []
    for num_steps in (None, 30):
        torch.manual_seed(0)
        found = LaplaceStart(model, num_steps=num_steps).distribution(batch).mean
        num_missed.append(int((log_joint(model, batch, found) < truth - 3).sum()))
    assert num_missed[0] == 0
    assert num_missed[1] > 3


def test_converged_searches_stop_where_they_would_have_ended(monkeypatch):
    recording = counts(num_neurons=20)
    torch.manual_seed(3)
    model = RnnSAE.for_recording(recording, latent_dim=2, cell="residual_mlp").eval()
    batch = model.trials_of(recording).batch()
    taken = []
    original = LaplaceStart._stepped

    def counted(guide, ascent, searched):
        taken[-1] += len(ascent.start)
        return original(guide, ascent, searched)

    monkeypatch.setattr(LaplaceStart, "_stepped", counted)
    found = []
    for least_gain in (laplace.LEAST_GAIN, -np.inf):
        monkeypatch.setattr(laplace, "LEAST_GAIN", least_gain)
        torch.manual_seed(0)
        taken.append(0)
        found.append(LaplaceStart(model, num_steps=40).distribution(batch))
    assert taken[1] == 40 * 4 * 6  # steps, searches, trials
    assert taken[0] < 0.7 * taken[1]
    spread = found[1].stddev
    np.testing.assert_allclose(found[0].mean / spread, found[1].mean / spread, atol=0.01)


@pytest.mark.parametrize("ic_bins", [0, 3])
def test_any_model_with_nothing_but_a_start_is_solved(ic_bins):
    recording = counts()
    torch.manual_seed(0)
    model = LFADS.for_recording(
        recording,
        factor_dim=3,
        generator_dim=5,
        initial_condition_dim=2,
        encoder_dim=4,
        inferred_input_dim=0,
        initial_condition_bins=ic_bins,
    ).eval()
    batch = model.trials_of(recording).batch()
    start = LaplaceStart(model).distribution(batch).mean.requires_grad_()
    (gradient,) = torch.autograd.grad(log_joint(model, batch, start).sum(), start)
    guess = torch.zeros_like(start).requires_grad_()
    (before,) = torch.autograd.grad(log_joint(model, batch, guess).sum(), guess)
    assert gradient.norm() < 0.01 * before.norm()
    torch.manual_seed(0)
    one, many = (
        importance_sample(model, kind(model), batch, 1000) for kind in (LaplaceStart, MixtureStart)
    )
    error = torch.hypot(one.log_evidence_error, many.log_evidence_error)
    assert (error < 0.1).all()
    assert ((one.log_evidence - many.log_evidence).abs() < 4 * error).all()


def test_weights_of_its_draws_are_nearly_equal():
    """An untrained encoder's are not."""
    recording = counts(num_neurons=20)
    torch.manual_seed(3)
    model = RnnSAE.for_recording(recording, latent_dim=2, cell="residual_mlp").eval()
    batch = model.trials_of(recording).batch()
    solved = importance_sample(model, LaplaceStart(model), batch, 500)
    encoded = importance_sample(model, model.guide, batch, 500)
    assert (solved.effective_sample_size > 400).all()
    assert (solved.effective_sample_size > encoded.effective_sample_size).all()
    difference = (solved.log_evidence - encoded.log_evidence).abs()
    error = torch.hypot(solved.log_evidence_error, encoded.log_evidence_error)
    assert (difference < 5 * error).all()


@pytest.mark.parametrize("kind", [LaplaceStart, MixtureStart])
def test_hidden_neurons_and_forecast_bins_are_not_looked_at(kind):
    recording = data.held_out(counts(), neurons=0.5, forecast_bins=2, seed=0)
    model = NodeSAE.for_recording(recording, latent_dim=2, encoder_dim=3)
    hidden = (recording["held_out"] | recording["forecast"]).transpose("time", "neuron")
    other = recording.copy(deep=True)
    other["counts"] = recording["counts"].where(~hidden, 7)
    solved = [predict(model, r, guide=kind(model)) for r in (recording, other)]
    np.testing.assert_array_equal(solved[0]["rates"], solved[1]["rates"])
    assert solved[0].sizes["time"] == recording.sizes["time"]


def test_what_it_cannot_solve_is_refused():
    recording = counts()
    noisy = NodeSAE.for_recording(recording, latent_dim=3, process_noise=True)
    for kind in (LaplaceStart, MixtureStart):
        with pytest.raises(
            ValueError, match=rf"{kind.__name__} solves .* NodeSAE has other latents"
        ):
            kind(noisy)
    quiet = noisy.without_noise()
    with pytest.raises(ValueError, match="num_searches=0"):
        LaplaceStart(quiet, num_searches=0)
    with pytest.raises(ValueError, match="num_steps=1"):
        LaplaceStart(quiet, num_steps=1)
    with pytest.raises(ValueError, match="num_draws=63"):
        MixtureStart(quiet, num_draws=63)


def test_a_batch_is_solved_once_and_again_after_training():
    recording = counts()
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recording, latent_dim=2, encoder_dim=3).eval()
    batch = model.trials_of(recording).batch()
    guide = LaplaceStart(model, num_searches=1)
    first = guide.distribution(batch)
    assert guide.distribution(batch) is first
    assert guide.distribution(batch.unobserved()) is first  # which shows the encoder the same
    copied = batch.replace(seen=batch.seen.clone())
    assert guide.distribution(copied) is first
    copied.seen[0, 0, 0] += 1
    other = guide.distribution(copied)
    assert other is not first
    assert guide.distribution(batch) is first
    assert guide.distribution(copied) is other
    copied.seen[0, 0, 0] += 1  # in the memory of the solution that was kept last
    assert guide.distribution(copied) is not other
    with torch.no_grad():
        model.start_mean.add_(1.0)
    later = guide.distribution(batch)
    assert (later.mean - first.mean).abs().max() > 0.01


@pytest.mark.parametrize(
    ("kind", "sizes"), [(NodeSAE, {}), (NodeSAE, {"solver": "dopri5"}), (RnnSAE, {})]
)
@pytest.mark.parametrize("num_inputs", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_short_trials_are_solved_too(kind, sizes, num_inputs):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3, 12, num_inputs)) if num_inputs else None
    recorded = data.recording(rng.poisson(2.0, (3, 12, 4)), bin_width=0.01, inputs=inputs)
    torch.manual_seed(0)
    model = kind.for_recording(recorded, latent_dim=2, encoder_dim=4, **sizes).eval()
    batch = model.trials_of(recorded).batch()
    solution = LaplaceStart(model).distribution(batch)
    at_mode = log_joint(model, batch, solution.mean)
    assert (at_mode >= log_joint(model, batch, torch.zeros_like(solution.mean))).all()


def test_a_fit_makes_what_was_solved_before_stale():
    recorded = counts()
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recorded, latent_dim=2, encoder_dim=4).eval()
    batch, guide = model.trials_of(recorded).batch(), LaplaceStart(model)
    before = guide.distribution(batch)
    assert guide.distribution(batch) is before
    fit(model, recorded, max_epochs=2, progress=False)
    means = []
    for solved in (guide, LaplaceStart(model)):
        torch.manual_seed(0)  # of the guesses that it starts from
        means.append(solved.distribution(batch).mean)
    torch.testing.assert_close(*means)
    assert not torch.equal(means[0], before.mean)


def test_both_of_two_initial_states_are_found():
    """Rates that are the same at z and -z: half of the posterior lies on either side, and a grid
    gives its evidence and its width. A single Gaussian covers one side.
    """
    recording = counts(mean=4.0)
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recording, latent_dim=1, readout_width=2, encoder_dim=3).eval()
    with torch.no_grad():
        model.phi.field.linear_layers()[-1].weight.zero_()
        model.phi.field.linear_layers()[-1].bias.zero_()
        model.start_log_scale.fill_(np.log(2.0))
        first, _, last = model.readout
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        first.bias.fill_(-2.0)
        last.weight.fill_(3.0)
        last.bias.fill_(4.0)
    batch = model.trials_of(recording).batch()
    grid = torch.linspace(-6, 6, 301).double()
    with torch.no_grad():
        density = torch.stack([log_joint(model, batch, s.float().expand(6, 1)) for s in grid])
    density = density.double()
    evidence = density.logsumexp(0) + (grid[1] - grid[0]).log()
    square = torch.einsum("gt,g->t", density.softmax(0), grid**2)
    torch.manual_seed(0)
    found = importance_sample(model, MixtureStart(model), batch, 4000)
    assert (found.smoothed.pareto_k < 0.7).all()
    assert ((found.log_evidence - evidence).abs() < 4 * found.log_evidence_error).all()
    assert (found.log_evidence_error < 0.05).all()
    weights, z = found.smoothed.log_weights.exp(), found.sites["z0"][..., 0]
    error = 4 / found.effective_sample_size.sqrt()
    assert ((torch.einsum("kt,kt->t", weights, z.sign()).abs()) < error).all()
    mean_square = torch.einsum("kt,kt->t", weights, z**2)
    spread = torch.einsum("kt,kt->t", weights, (z**2 - mean_square) ** 2).sqrt()
    assert ((mean_square - square).abs() < error * spread).all()
    single = importance_sample(model, LaplaceStart(model), batch, 4000)
    assert ((single.log_evidence - evidence).abs() > 0.3).any()


def test_sparse_counts_of_a_chaotic_path_leave_what_many_draws_tell():
    """Lorenz' own field, some 35 spikes per trial: evidence and mean rates beside those of draws
    from p(s), of which few explain a trial.
    """
    recording = data.simulate("lorenz", 3, 40, 10, mean_rate=8.0, time_per_bin=0.04, seed=3)
    model, num_many = lorenz_model(recording), 60_000
    batch = model.trials_of(recording).batch()
    guide = MixtureStart(model)
    torch.manual_seed(0)
    found = importance_sample(model, guide, batch, 1000)
    assert (found.effective_sample_size > 60).all()
    with torch.no_grad():
        start = model.initial_condition().sample((num_many, 1))
        nothing = start.new_zeros(num_many, 1, 40, 0)
        many = model.emission(model.states(start, nothing, batch.inputs[:1])).mean[:, 0]
        log_weights = torch.einsum("btn,ktn->kb", batch.x, many.log())
        log_weights = log_weights - many.sum((1, 2))[:, None]
        evidence = log_weights.double().logsumexp(0) - np.log(num_many)
        evidence = evidence - torch.lgamma(batch.x + 1).sum((1, 2))
        weights = log_weights.softmax(0)
        count = 1 / weights.square().sum(0)
        rates = torch.einsum("kb,ktn->btn", weights, many)
        variance = torch.einsum("kb,ktn->btn", weights, many.square()) - rates.square()
    assert (count > 20).all()
    error = torch.hypot(found.log_evidence_error, count.rsqrt())
    assert ((found.log_evidence - evidence).abs() < 4 * error).all()
    estimates = predict(
        model, recording, num_draws=400, guide=guide, method="importance", num_particles=1000
    )
    inexactness = 1 / 400 + 1 / found.effective_sample_size + 1 / count
    error = (variance * inexactness[:, None, None]).sqrt()
    assert ((torch.as_tensor(estimates["rates"].values) - rates).abs() < 5 * error).all()


def test_trials_that_no_initial_state_explains_are_named():
    recording = counts()
    torch.manual_seed(0)
    model = NodeSAE.for_recording(recording, latent_dim=2, linear_term=True, encoder_dim=3)
    with torch.no_grad():
        model.phi.field.linear.copy_(1e9 * torch.eye(2))
    with pytest.raises(ArithmeticError, match=r"explains trial 0: the trajectories .* diverge"):
        predict(model, recording, guide=MixtureStart(model))


def test_a_trial_is_lost_only_when_the_draws_of_all_rounds_are(monkeypatch):
    recording = counts(num_neurons=20)
    torch.manual_seed(3)
    model = RnnSAE.for_recording(recording, latent_dim=2, cell="residual_mlp").eval()
    batch = model.trials_of(recording).batch()
    original, num_rounds = MixtureStart._log_likelihood, 0

    def lost_in_the_second(guide, drawn, searched, num_bins):
        nonlocal num_rounds
        num_rounds += 1
        estimates = original(guide, drawn, searched, num_bins)
        return torch.full_like(estimates, -torch.inf) if num_rounds == 2 else estimates

    monkeypatch.setattr(MixtureStart, "_log_likelihood", lost_in_the_second)
    solution = MixtureStart(model).distribution(batch)
    assert num_rounds > 2
    assert torch.isfinite(solution.log_prob(solution.sample())).all()


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [LaplaceStart, MixtureStart])
def test_a_gpu_finds_the_same_evidence(kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    recording = counts(num_neurons=20)
    torch.manual_seed(3)
    model = RnnSAE.for_recording(recording, latent_dim=2, cell="residual_mlp").eval()
    estimates = []
    for device in ("cpu", "cuda"):
        model.to(device)
        batch = model.trials_of(recording).batch()
        found = importance_sample(model, kind(model), batch, 1000)
        estimates.append((found.log_evidence.cpu(), found.log_evidence_error.cpu()))
    difference = (estimates[0][0] - estimates[1][0]).abs()
    assert (difference < 4 * torch.hypot(estimates[0][1], estimates[1][1])).all()
