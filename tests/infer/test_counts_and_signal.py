"""Counts and a signal of one latent path, against exact answers: the Kalman filter where both are
Gaussian, quadrature where one latent is seen through spikes and a field potential, and the model of
one alone where the other is not scored.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from linear_gaussian import batch_of, by_recursion, exact_of, linear_network
from torch.distributions import Normal, Poisson

from pyrodyn.analysis import free_run, plot_rates, rate_r2, recording_bits_per_spike
from pyrodyn.analysis.scores.rates import entry_mask
from pyrodyn.data import held_out, recording, select_modality, simulate, split
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    VSMC,
    Schedule,
    SmoothedScore,
    fit,
    importance_sample,
    particle_filter,
    particle_smoother,
)
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE, RnnSAE, load, save
from pyrodyn.posterior import predict

NUM_TRIALS, NUM_BINS, NUM_NEURONS, NUM_CHANNELS = 3, 6, 4, 2
GAUSSIANS = {"counts": "gaussian", "signal": "gaussian"}


def pair(
    num_neurons: int = NUM_NEURONS, num_channels: int = NUM_CHANNELS, **more: object
) -> xr.Dataset:
    """Counts and a signal, with inputs."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (NUM_TRIALS, NUM_BINS, num_neurons))
    counts[0, 0] += 1
    return recording(
        counts,
        signal=rng.normal(size=(NUM_TRIALS, NUM_BINS, num_channels)),
        bin_width=0.01,
        inputs=rng.normal(size=(NUM_TRIALS, NUM_BINS, 1)),
        **more,
    )


# ------------------------------------------------------------------ one of them unscored

LFADS_SIZES = {
    "factor_dim": 2,
    "generator_dim": 5,
    "initial_condition_dim": 2,
    "encoder_dim": 4,
    "controller_encoder_dim": 4,
    "controller_dim": 4,
}
LOW_RANK_SIZES = {"latent_dim": 2, "num_units": 5}
ZOO = {
    "lfads": (LFADS, {**LFADS_SIZES, "inferred_input_dim": 1}),
    "node_sae": (NodeSAE, {"latent_dim": 2, "field_width": 4, "encoder_dim": 3}),
    "rnn_sae_noise": (RnnSAE, {"latent_dim": 2, "encoder_dim": 3, "process_noise": True}),
    "low_rank_encoder": (LowRankRNN, {**LOW_RANK_SIZES, "proposal": "encoder"}),
    "low_rank_bootstrap": (LowRankRNN, {**LOW_RANK_SIZES, "proposal": "bootstrap"}),
    "low_rank_optimal": (LowRankRNN, {**LOW_RANK_SIZES, "proposal": "optimal"}),
}


def both_and_one(kind: str, observed: str):
    """A model of both, one of the variable alone that has the same weights, and their batches: the
    first sees and scores nothing of the other variable.
    """
    model_class, sizes = ZOO[kind]
    recorded = pair()
    torch.manual_seed(0)
    both = model_class.for_recording(recorded, **sizes).double().eval()
    one = model_class.for_recording(select_modality(recorded, observed), **sizes).double().eval()
    theirs = both.state_dict()
    weights = {}
    for name, own in one.state_dict().items():
        weight = theirs[name.replace("observation.", f"observation.parts.{observed}.")]
        for dim, size in enumerate(own.shape):  # the columns of this variable
            start = 0 if observed == "counts" else weight.shape[dim] - size
            weight = weight.narrow(dim, start, size)
        weights[name] = weight
    one.load_state_dict(weights)
    batch = batch_of(recorded)
    is_own = torch.arange(NUM_NEURONS + NUM_CHANNELS) < NUM_NEURONS
    is_own = is_own if observed == "counts" else ~is_own
    masked = batch.replace(
        x=torch.where(is_own, batch.x, math.nan),
        seen=batch.seen * is_own,
        visible=batch.visible & is_own,
        scored=batch.scored & is_own,
    )
    return both, one, masked, batch_of(select_modality(recorded, observed))


@pytest.mark.parametrize(
    ("kind", "observed"),
    [
        (kind, observed)
        for kind in ZOO
        for observed in ("counts", "signal")
        if (kind, observed) != ("low_rank_optimal", "counts")  # there is none for spikes alone
    ],
)
@pytest.mark.parametrize(
    "objective",
    [ELBO(3), IWELBO(3), VSMC(3), SmoothedScore(3)],
    ids=lambda o: type(o).__name__,
)
def test_with_one_unscored_the_bound_is_that_of_the_other(kind, observed, objective):
    both, one, masked, batch = both_and_one(kind, observed)
    values = []
    for model, its in ((both, masked), (one, batch)):
        torch.manual_seed(1)
        values.append(objective(model, model.guide)(its).detach())
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("observed", ["counts", "signal"])
def test_with_one_unscored_the_filter_is_that_of_the_other(observed):
    for kind in ("low_rank_bootstrap", "low_rank_encoder", "lfads"):
        both, one, masked, batch = both_and_one(kind, observed)
        filtered = []
        for model, its in ((both, masked), (one, batch)):
            torch.manual_seed(1)
            filtered.append(particle_filter(model, its, 50))
        torch.testing.assert_close(filtered[0].log_evidence, filtered[1].log_evidence)
        torch.testing.assert_close(filtered[0].paths, filtered[1].paths)


# ------------------------------------------------------------------ both Gaussian: Kalman


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("proposal", ["optimal", "bootstrap", "encoder"])
@pytest.mark.parametrize("readout", ["latents", "latents_and_inputs", "currents"])
def test_two_gaussian_variables_have_the_evidence_of_kalman(readout, proposal, missing):
    rng = np.random.default_rng(3)
    valid, signal_valid = rng.random((2, NUM_TRIALS, NUM_BINS, 2)) > 0.3
    gaps = {"valid": valid, "signal_valid": signal_valid} if missing else {}
    recorded = pair(2, 2, **gaps)
    sizes = {"num_units": 4} if readout == "currents" else {}
    model = linear_network(
        recorded, observation=GAUSSIANS, readout=readout, proposal=proposal, **sizes
    )
    batch = batch_of(recorded)
    assert missing == (not batch.scored.all())
    torch.manual_seed(0)
    filtered = particle_filter(model, batch, 20_000)
    exact = exact_of(model, batch)
    for trial in range(NUM_TRIALS):
        kalman = by_recursion(exact, trial).log_evidence
        error = float(filtered.log_evidence_variance[trial]) ** 0.5
        assert 0 < error < 0.2
        assert abs(float(filtered.log_evidence[:, trial].sum()) - kalman) < 5 * error


def test_two_gaussian_variables_are_one_of_all_columns():
    """Also in the default proposal, whose weights do not depend on the draw."""
    recorded = pair(2, 2)
    model = linear_network(recorded, observation=GAUSSIANS)
    assert model.config["proposal"] == "optimal"
    joined = np.concatenate([recorded["counts"], recorded["signal"]], -1)
    merged = recording(signal=joined, bin_width=0.01, inputs=recorded["inputs"].values)
    one = linear_network(merged)
    weights = {name: p for name, p in model.state_dict().items() if "observation" not in name}
    own = {name: p for name, p in one.state_dict().items() if "observation" in name}
    one.load_state_dict({**weights, **own})
    runs = []
    for its, batch in ((model, batch_of(recorded)), (one, batch_of(merged))):
        torch.manual_seed(0)
        runs.append(particle_filter(its, batch, 16))
        first = particle_filter(its, batch, 1).log_evidence[0]
        torch.testing.assert_close(first, runs[-1].log_evidence[0])
    torch.testing.assert_close(runs[0].log_evidence, runs[1].log_evidence)
    torch.testing.assert_close(runs[0].paths, runs[1].paths)


# ------------------------------------------------------------------ spikes and a signal: quadrature


def one_latent(proposal: str, **more: object) -> tuple[LowRankRNN, xr.Dataset]:
    """A network of rank 1, seen through spikes and a sharp signal."""
    recorded = pair(3, 2, **more)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(
        recorded, latent_dim=1, num_units=5, activation="tanh", proposal=proposal
    )
    with torch.no_grad():
        model.n *= 5
        model.observation.use_raw_units()
        model.observation.singles()[1].log_scale.copy_(torch.tensor([-1.0, -0.3]))
    return model.double().eval(), recorded


GRID = torch.linspace(-8, 8, 401, dtype=torch.float64)


@torch.no_grad()
def by_quadrature(model: LowRankRNN, recorded: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Log p(x) per trial and E[z_t | x] per trial and bin, on a grid of the latent."""
    batch, step = batch_of(recorded), float(GRID[1] - GRID[0])
    evidences, means = [], []
    for trial in range(NUM_TRIALS):
        i = batch.inputs[trial]
        points = GRID[:, None]
        states = model.initial_state(None, points, i[0].expand(len(GRID), -1))
        forward = [model.initial(None, i[:1]).log_prob(points)]
        kernels, likelihoods = [], []
        for t in range(NUM_BINS):
            # By the equations: log-linear spikes, a linear signal of its own noise.
            read = points @ model.loading.mT + model.bias
            spikes = Poisson(read[:, :3].exp()).log_prob(batch.x[trial, t, :3])
            scale = model.observation.singles()[1].log_scale.exp()
            potential = Normal(read[:, 3:], scale).log_prob(batch.x[trial, t, 3:])
            terms = torch.cat([spikes, potential], -1)
            likelihoods.append((terms * batch.scored[trial, t]).sum(-1))
            if t + 1 < NUM_BINS:
                states = states._replace(v=i[t].expand(len(GRID), -1))
                transition = model.transition(states, i[t + 1].expand(len(GRID), -1))
                sd = model.process_noise()[1].factor[0, 0]
                kernels.append(Normal(transition.mean, sd).log_prob(GRID) + math.log(step))
                prior = (forward[-1] + likelihoods[-1])[:, None] + kernels[-1]
                forward.append(prior.logsumexp(0))
        backward = [torch.zeros_like(GRID)]
        for kernel, likelihood in zip(kernels[::-1], likelihoods[:0:-1], strict=True):
            backward.insert(0, (kernel + likelihood + backward[0]).logsumexp(1))
        joint = torch.stack(forward) + torch.stack(likelihoods) + torch.stack(backward)
        evidence = joint.logsumexp(1) + math.log(step)
        torch.testing.assert_close(evidence, evidence[:1].expand(NUM_BINS))
        evidences.append(float(evidence[0]))
        means.append((torch.softmax(joint, 1) @ GRID).numpy())
    return np.array(evidences), np.array(means)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("proposal", ["optimal", "bootstrap", "encoder", "causal_encoder"])
def test_spikes_and_a_signal_have_the_exact_evidence(proposal, missing):
    rng = np.random.default_rng(3)
    gaps = {
        "valid": rng.random((NUM_TRIALS, NUM_BINS, 3)) > 0.3,
        "signal_valid": rng.random((NUM_TRIALS, NUM_BINS, 2)) > 0.3,
    }
    model, recorded = one_latent(proposal, **(gaps if missing else {}))
    evidence, means = by_quadrature(model, recorded)
    batch = batch_of(recorded)
    torch.manual_seed(0)
    filtered = particle_filter(model, batch, 20_000)
    error = filtered.log_evidence_variance.sqrt().numpy()
    assert (error > 0).all() and (error < 0.2).all()
    assert (np.abs(filtered.log_evidence.sum(0).numpy() - evidence) < 5 * error).all()
    filtered = particle_filter(model, batch, 1000)
    _, paths = particle_smoother(model, batch, 1000, filtered=filtered)
    error = filtered.log_evidence_variance.sqrt().numpy()[:, None]
    spread = paths.std(0)[..., 0].numpy()
    gap = np.abs(paths.mean(0)[..., 0].numpy() - means)
    assert (gap < 5 * spread * np.hypot(1000**-0.5, error)).all()


def test_the_exact_product_with_the_signal_is_the_sharper_proposal():
    """The spikes enter the weight alone, so it still varies, but less than under the prior."""
    spreads, num_runs = {}, 200
    for proposal in ("optimal", "bootstrap"):
        model, recorded = one_latent(proposal)
        batch = batch_of(recorded)
        trials = torch.arange(NUM_TRIALS).repeat_interleave(num_runs)
        fields = ("x", "seen", "visible", "scored", "inputs", "trial")
        runs = batch.replace(**{name: getattr(batch, name)[trials] for name in fields})
        torch.manual_seed(0)
        evidence = particle_filter(model, runs, 30).log_evidence.sum(0)
        spreads[proposal] = evidence.view(NUM_TRIALS, num_runs).var(1)
    # A ratio of variances of 200 runs errs by some 15 %.
    assert (spreads["optimal"] > 0).all()
    assert (spreads["optimal"] < 0.5 * spreads["bootstrap"]).all()


def test_importance_sampling_has_the_exact_evidence():
    model, recorded = one_latent("optimal")
    evidence, _ = by_quadrature(model, recorded)
    torch.manual_seed(0)
    sample = importance_sample(model, model.guide, batch_of(recorded), 20_000)
    error = sample.log_evidence_error.numpy()
    assert (error < 0.1).all()
    assert (np.abs(sample.log_evidence.numpy() - evidence) < 5 * error).all()


def test_an_unmeasured_channel_does_not_matter():
    """A bin's lost signal leaves its spikes in the likelihood, whatever value stands there."""
    signal_valid = np.ones((NUM_TRIALS, NUM_BINS, 2), bool)
    signal_valid[1, 2, 0] = False
    model, recorded = one_latent("optimal", signal_valid=signal_valid)
    batch = batch_of(recorded)
    absurd = batch.replace(x=torch.where(batch.scored, batch.x, math.nan))
    values = []
    for its in (batch, absurd):
        torch.manual_seed(0)
        values.append(VSMC(5)(model, model.guide)(its).detach())
    assert torch.equal(*values)


# ------------------------------------------------------------------ from a recording to its scores


@pytest.fixture(scope="module")
def parts() -> tuple[xr.Dataset, ...]:
    """Trials to fit and new ones, of a Lorenz system seen through spikes and a field potential."""
    recorded = simulate("lorenz", 80, 30, 12, num_channels=5, mean_rate=30.0, noise_sd=0.7, seed=0)
    return split(recorded, (0.75, 0.25), seed=0)


def fitted(train: xr.Dataset) -> RnnSAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RnnSAE.for_recording(train, latent_dim=3, process_noise=True, encoder_dim=32)
    return fit(
        model,
        train,
        objective=ELBO(),
        transforms=[],
        max_epochs=20,
        batch_size=15,
        schedule=Schedule(learning_rate=2e-2),
        progress=False,
        accelerator="cpu",
    ).model


@pytest.fixture(scope="module")
def model(parts) -> RnnSAE:
    return fitted(parts[0])


@pytest.mark.slow
def test_a_fit_explains_both_and_the_signal_tells_of_the_rates(parts, model):
    train, new = parts
    predicted = predict(model, new, num_draws=30)
    rates = rate_r2(predicted["rates"], new["rates"]).mean
    assert rates > 0.8
    assert rate_r2(predicted["signal_mean"], new["signal_mean"]).mean > 0.9
    # The same model of the spikes alone knows less of them.
    spikes = predict(
        fitted(select_modality(train, "counts")), select_modality(new, "counts"), num_draws=30
    )
    assert rates > rate_r2(spikes["rates"], new["rates"]).mean + 0.05


@pytest.mark.slow
def test_one_is_predicted_from_the_other_alone(parts, model):
    new = parts[1]
    from_signal = held_out(new, neurons=list(range(12)))
    predicted = predict(model, from_signal, num_draws=30)
    # Bits per spike are about the counts alone.
    assert recording_bits_per_spike(predicted["rates"], from_signal) > 0.3
    from_spikes = held_out(new, channels=list(range(5)))
    predicted = predict(model, from_spikes, num_draws=30)
    mask = entry_mask(from_spikes, "held_out", "signal")
    assert mask.dims == ("trial", "time", "channel")
    assert rate_r2(predicted["signal_mean"], new["signal_mean"], mask).mean > 0.2


def test_a_saved_model_of_both_predicts_the_same_bits(parts, model, tmp_path):
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert loaded.config == model.config
    assert loaded.config["observation"] == {"counts": ["poisson", 12], "signal": ["gaussian", 5]}
    assert loaded.record["data"]["observed"] == "counts and signal"
    assert len(loaded.record["data"]["neuron"]) == 12 and len(loaded.record["data"]["channel"]) == 5
    one, other = (predict(m, parts[1], num_draws=3, seed=1) for m in (model, loaded))
    xr.testing.assert_identical(one, other)


def test_a_free_run_and_a_picture_show_both(parts, model):
    run = free_run(model, 3, 10, seed=0)
    assert run["rates"].dims == run["counts"].dims == ("trial", "time", "neuron")
    assert run["signal_mean"].dims == run["signal"].dims == ("trial", "time", "channel")
    assert (run["counts"] % 1 == 0).all()
    assert {name: run.sizes[name] for name in ("neuron", "channel")} == {"neuron": 12, "channel": 5}
    figure = plot_rates(parts[1], predict(model, parts[1], num_draws=3))
    assert figure.axes
    plt.close(figure)
