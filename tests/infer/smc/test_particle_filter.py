"""The particle filter against the Kalman filter."""

import copy
import math

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
    linear_network,
    posterior_paths,
)
from pyro import poutine
from pyro.distributions import Normal

from pyrodyn.data import teacher
from pyrodyn.distributions.gaussian import SharedNormal
from pyrodyn.infer import ELBO, RESAMPLING, VSMC, importance_sample, particle_filter
from pyrodyn.models import LowRankRNN
from pyrodyn.models.low_rank_rnn import LowRankState
from pyrodyn.models.proposals import EncoderFactor, OptimalFactor
from pyrodyn.models.state_space import Bootstrap

VARIANTS = {
    "plain": {},
    "scalar": {"noise": "scalar"},
    "diagonal": {"noise": "diagonal", "decay_per_latent": True},
    "inputs": {"readout": "latents_and_inputs", "filters_inputs": True},
    "currents": {"readout": "currents", "num_units": 4},
    "full_rank": {"is_full_rank": True, "latent_dim": 1, "num_units": 3},
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_both_oracles_agree(variant, missing):
    recorded = data(missing)
    exact = exact_of(linear_network(recorded, **VARIANTS[variant]), batch_of(recorded))
    for trial in range(NUM_TRIALS):
        one, other = by_recursion(exact, trial), by_joint_gaussian(exact, trial)
        for field in ("log_evidence", "mean", "covariance", "lag_one"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=1e-10)


def test_exact_paths_have_the_moments_of_the_smoother():
    """At every bin, and between neighbours."""
    exact = exact_of(linear_network(data()), batch_of(data()))
    num_draws = 40_000
    for trial in range(NUM_TRIALS):
        moments, paths = by_recursion(exact, trial), posterior_paths(exact, trial, num_draws)
        sd = np.sqrt(np.diagonal(moments.covariance, axis1=1, axis2=2))
        assert (np.abs(paths.mean(0) - moments.mean) < 5 * sd / num_draws**0.5).all()
        noise = (paths - moments.mean) / sd
        for lag, wanted in ((0, moments.covariance), (1, moments.lag_one)):
            found = np.einsum("nti,ntj->tij", noise[:, lag:], noise[:, : len(sd) - lag])
            scale = sd[lag:, :, None] * sd[: len(sd) - lag, None]
            assert (np.abs(found / num_draws - wanted / scale) < 5 * (2 / num_draws) ** 0.5).all()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("proposal", [Bootstrap, OptimalFactor])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_evidence_and_means_are_those_of_kalman(variant, proposal, missing):
    recorded = data(missing)
    model, batch = linear_network(recorded, **VARIANTS[variant]), batch_of(recorded)
    model.proposal = proposal()
    torch.manual_seed(0)
    filtered = particle_filter(model, batch, 20_000)
    exact = exact_of(model, batch)
    for trial in range(NUM_TRIALS):
        kalman = by_recursion(exact, trial)
        error = float(filtered.log_evidence_variance[trial]) ** 0.5
        assert abs(float(filtered.log_evidence[:, trial].sum()) - kalman.log_evidence) < 5 * error
        increments = filtered.log_evidence[:, trial].numpy()
        assert (np.abs(increments - kalman.increments) < 5 * error).all()
        spread = (
            filtered.log_weights[:, :, trial].exp()[..., None]
            * (filtered.paths[:, :, trial] - filtered.mean()[:, None, trial]).square()
        ).sum(1)
        # Particles that descend from few do not err independently: hence the evidence's error.
        error_of_mean = spread.sqrt().numpy() * max(error, 20_000**-0.5)
        assert (
            np.abs(filtered.mean()[:, trial].numpy() - kalman.filtered) < 5 * error_of_mean
        ).all()


@pytest.mark.parametrize("proposal", [Bootstrap, OptimalFactor])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("resampling", list(RESAMPLING))
def test_the_evidence_is_unbiased(resampling, threshold, proposal):
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    model.proposal = proposal()
    exact = exact_of(model, batch)
    truth = torch.tensor([by_recursion(exact, trial).log_evidence for trial in range(NUM_TRIALS)])
    # Runs side by side, as copies of the trials.
    copies = 3000
    many = batch.replace(
        **{
            name: getattr(batch, name).repeat(copies, *[1] * (getattr(batch, name).ndim - 1))
            for name in ("x", "seen", "visible", "scored", "inputs", "trial")
        }
    )
    torch.manual_seed(2)
    filtered = particle_filter(model, many, 10, resampling=resampling, ess_threshold=threshold)
    ratio = (filtered.log_evidence.sum(0).view(copies, NUM_TRIALS) - truth).exp()
    error = ratio.std(0) / copies**0.5
    assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
    # A filter that had found nothing out would be unbiased too: its spread would be enormous.
    assert (ratio.std(0) < 8).all()


@pytest.mark.slow
def test_the_variance_of_one_run_is_that_of_many():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    model.proposal = Bootstrap()
    torch.manual_seed(0)
    runs = [
        particle_filter(model, batch, 500, resampling="multinomial", ess_threshold=1.0)
        for _ in range(300)
    ]
    variance = torch.stack([run.log_evidence.sum(0) for run in runs]).var(0)
    estimated = torch.stack([run.log_evidence_variance for run in runs]).mean(0)
    torch.testing.assert_close(estimated, variance, rtol=0.3, atol=0.0)


def test_optimal_weights_do_not_depend_on_the_draw():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    first = particle_filter(model, batch, 1)
    second = particle_filter(model, batch, 1)
    assert not torch.equal(first.paths[0], second.paths[0])
    # The first bin's weight is p(x_1), whatever was drawn.
    torch.testing.assert_close(first.log_evidence[0], second.log_evidence[0])
    exact = exact_of(model, batch)
    for trial in range(NUM_TRIALS):
        kalman = by_recursion(exact, trial).increments[0]
        np.testing.assert_allclose(float(first.log_evidence[0, trial]), kalman)


def test_weighing_by_lookahead_is_weighing_by_densities():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)

    class Plain(OptimalFactor):
        """The same proposal, weighted by p(z) p(x | z) / q(z)."""

        def is_exact(self, encoding):
            return False

    results = []
    for proposal in (OptimalFactor(), Plain()):
        model.proposal = proposal
        torch.manual_seed(0)
        results.append(particle_filter(model, batch, 8, ess_threshold=1.0))
    torch.testing.assert_close(results[0].log_evidence, results[1].log_evidence)
    torch.testing.assert_close(results[0].paths, results[1].paths)


def test_held_out_neurons_enter_the_weight_alone():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    visible = batch.visible.clone()
    visible[:, :, 1] = False
    hidden = batch.replace(visible=visible, seen=batch.seen * visible)
    torch.manual_seed(0)
    filtered = particle_filter(model, hidden, 20_000)
    exact = exact_of(model, batch)
    for trial in range(NUM_TRIALS):
        error = float(filtered.log_evidence_variance[trial]) ** 0.5
        assert error > 0
        truth = by_recursion(exact, trial).log_evidence
        assert abs(float(filtered.log_evidence[:, trial].sum()) - truth) < 5 * error


def test_trials_are_filtered_as_if_alone():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    model.proposal = Bootstrap()
    together = batch.replace(x=torch.cat([batch.x[:1], 1e3 * batch.x[1:]]))
    torch.manual_seed(0)
    one = particle_filter(model, batch, 64)
    torch.manual_seed(0)
    other = particle_filter(model, together, 64)
    torch.testing.assert_close(one.paths[:, :, 0], other.paths[:, :, 0])
    torch.testing.assert_close(one.log_evidence[:, 0], other.log_evidence[:, 0])


def test_all_weights_zero_names_trial_and_bin():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    model.proposal = Bootstrap()
    batch.x[1, 3] = 1e200
    with pytest.raises(ArithmeticError, match="bin 3 of trial 1: all weights are 0"):
        particle_filter(model, batch, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_particles": 0}, "num_particles=0 must be an integer of at least 1"),
        ({"resampling": "killing"}, "resampling='killing' is unknown"),
        ({"ess_threshold": 1.5}, "ess_threshold=1.5 is a fraction"),
    ],
)
def test_settings_that_make_no_run_are_refused(settings, message):
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    with pytest.raises(ValueError, match=message):
        particle_filter(model, batch, **{"num_particles": 4, **settings})


class OfShape(Bootstrap):
    """Proposes standard normals of a shape."""

    def __init__(self, batch_shape, event_shape):
        super().__init__()
        self.shape, self.num_event_dims = (*batch_shape, *event_shape), len(event_shape)

    def propose(self, prior, memory, encoding, t, is_first):
        like = torch.zeros(self.shape, dtype=torch.float64)
        return Normal(like, 1.0).to_event(self.num_event_dims)


@pytest.mark.parametrize("run", ["filter", "vsmc", "elbo"])
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((NUM_TRIALS,), (3,)), r"batch shape \(3,\) and event shape \(3,\); .* shape \(2,\)"),
        (((NUM_TRIALS,), (1,)), r"and event shape \(1,\); this model's z_t needs .* \(2,\)"),
        (((NUM_TRIALS, 2), ()), r"batch shape \(3, 2\) and event shape \(\)"),
        (((5,), (2,)), r"OfShape proposes a distribution of batch shape \(5,\)"),
        (((7, 1, 1), (2,)), r"OfShape proposes a distribution of batch shape \(7, 1, 1\)"),
    ],
)
def test_a_proposal_of_the_wrong_shape_is_refused(shapes, message, run):
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    model.proposal = OfShape(*shapes)
    with pytest.raises(ValueError, match=message):
        match run:
            case "filter":
                particle_filter(model, batch, 4)
            case "vsmc":
                VSMC(4)(model, model.guide)(batch)
            case _:
                ELBO()(model, model.guide)(batch)


def test_a_law_that_all_particles_share_is_of_the_right_shape():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    for batch_shape in ((), (1,), (NUM_TRIALS,), (4, NUM_TRIALS)):
        model.proposal = OfShape(batch_shape, (2,))
        assert torch.isfinite(particle_filter(model, batch, 4).log_evidence).all()


@pytest.mark.parametrize(
    ("num_neurons", "latent_dim", "message"),
    [
        (4, 3, "4 neurons and 3 latents; the recording has 4 and the model 2"),
        (5, 2, "5 neurons and 2 lat"),
    ],
)
def test_an_encoder_of_another_model_is_refused(num_neurons, latent_dim, message):
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    model.proposal = EncoderFactor(num_neurons, latent_dim).double()
    with pytest.raises(ValueError, match=message):
        particle_filter(model, batch, 4)


def test_few_measurements_with_little_noise_are_filtered_in_single_precision():
    """Where samples were lost, fewer channels than latents are left, of noise exp(-12)."""
    recorded = data(missing=True)
    model, batch = linear_network(recorded, proposal="optimal"), batch_of(recorded)
    assert ((batch.scored.sum(-1) < model.config["latent_dim"]) & batch.scored.any(-1)).any()
    with torch.no_grad():
        model.observation.log_scale.fill_(-12.0)
        shown = poutine.trace(model.model).get_trace(batch.unobserved()).nodes["x"]["value"]
    x = shown * batch.scored
    batch = batch.replace(x=x, seen=x)
    exact = exact_of(model, batch)
    expected = [by_recursion(exact, trial).log_evidence for trial in range(NUM_TRIALS)]
    torch.manual_seed(0)
    single = batch.replace(x=x.float(), seen=x.float(), inputs=batch.inputs.float())
    found = particle_filter(model.float(), single, 4000)
    np.testing.assert_allclose(found.log_evidence.sum(0), expected, atol=0.1)


@pytest.mark.parametrize("proposal", ["optimal", "bootstrap"])
def test_weights_keep_their_digits_where_a_signal_is_far_above_its_noise(proposal):
    """Noise of a hundredth beside a signal of order 1, in single precision. (Written as
    constant + z' h - z' J z / 2 the weights were wrong by more than a nat.)
    """
    recorded = teacher("limit_cycle", 4, 20, 64, observation_noise=0.01)
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=64, proposal=proposal)
    with torch.no_grad():
        for name in ("loading", "bias", "m", "n", "threshold"):
            weights = torch.tensor(recorded[f"teacher_{name}"].values)
            model.get_parameter(name).copy_(weights)
        model.observation.use_raw_units()
        model.observation.log_scale.fill_(math.log(0.01))
    exact = copy.deepcopy(model).double()
    torch.manual_seed(0)
    z = torch.tensor(recorded["latents"].values[:, 9]).float()
    z = z + 0.1 * torch.randn(200, *z.shape)
    logs = []
    with torch.no_grad():
        for network in (model, exact):
            batch = network.trials_of(recorded).batch()
            its = z.to(batch.x)
            nothing = its.new_zeros(4, 0)
            if proposal == "optimal":
                factor = network.proposal.encode(network, batch)
                log = network.proposal.lookahead(
                    SharedNormal(its, network.process_noise()[1]), factor, 10, False
                )
            else:
                state = LowRankState(its, nothing, nothing)
                log = network.log_likelihood(state, batch.x[:, 10], batch.scored[:, 10])
            logs.append(log.double())
    one, other = logs
    # A likelihood of z far from where the data put it is large itself, and rounds to its own size.
    torch.testing.assert_close(one, other, rtol=1e-6, atol=2e-3)


@pytest.mark.parametrize(
    "run", [particle_filter, lambda m, b, k: importance_sample(m, m.guide, b, k)]
)
def test_a_batch_of_another_recording_is_refused(run):
    recorded = data()
    model, batch = linear_network(recorded, proposal="bootstrap"), batch_of(recorded)
    names = ("x", "seen", "visible", "scored")
    with pytest.raises(ValueError, match=r"has 1 neurons or channels and 1 inputs; .* for 4 and 1"):
        run(model, batch.replace(**{name: getattr(batch, name)[..., :1] for name in names}), 30)
    with pytest.raises(ValueError, match="has 4 neurons or channels and 0 inputs"):
        run(model, batch.replace(inputs=batch.inputs[..., :0]), 30)
    x = batch.x.clone()
    x[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="x of the batch is not finite at trial 1, bin 2; mark"):
        run(model, batch.replace(x=x), 30)
