"""Stochastic low-rank RNNs: every pair of options, densities against the equations, gauge."""

import itertools
import math

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.distributions import StudentT

from pyrodyn.data import CoordinatedDropout, Trials, recording
from pyrodyn.infer import ELBO, VSMC, particle_filter
from pyrodyn.kernels.activations import ACTIVATIONS
from pyrodyn.models import LowRankRNN, load, save
from pyrodyn.models.low_rank_rnn import READOUTS, LowRankState, log_softplus
from pyrodyn.models.process_noise import NOISES
from pyrodyn.models.proposals import PROPOSALS
from pyrodyn.models.state_space import Bootstrap

NUM_TRIALS, NUM_BINS, NUM_NEURONS, NUM_INPUTS = 3, 6, 4, 2
COUNTS_AND_SIGNAL = {"counts": "zero_inflated_poisson", "signal": "gaussian"}

OPTIONS = {
    "activation": ACTIVATIONS,
    "noise": NOISES,
    "noise_df": (None, 4.0),
    "decay_per_latent": (False, True),
    "filters_inputs": (False, True),
    "is_full_rank": (False, True),
    "readout": READOUTS,
    "observation": ("gaussian", "poisson", "zero_inflated_poisson", COUNTS_AND_SIGNAL),
    "link": ("canonical", "softplus"),
    "proposal": PROPOSALS,
}
PAIRS = [
    ((one, value), (other, its))
    for one, other in itertools.combinations(OPTIONS, 2)
    for value, its in itertools.product(OPTIONS[one], OPTIONS[other])
]


def data(observation: str | dict[str, str] = "gaussian"):
    rng = np.random.default_rng(0)
    shape = (NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    signal, counts = rng.normal(size=shape), rng.poisson(1.0, shape)
    if observation == "gaussian":
        arrays = {"signal": signal}
    elif isinstance(observation, str):
        arrays = {"counts": counts}
    else:  # as many in all
        arrays = {"counts": counts[..., :3], "signal": signal[..., 3:]}
    inputs = rng.normal(size=(NUM_TRIALS, NUM_BINS, NUM_INPUTS))
    return recording(**arrays, bin_width=0.01, inputs=inputs)


def build(**options) -> tuple[LowRankRNN, object]:
    observation = options.get("observation", "gaussian")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"latent_dim": 2, "num_units": 4, "observation": observation}
        model = LowRankRNN.for_recording(data(observation), **{**sizes, **options})
    return model, Trials(data(observation)).batch()


def makes_no_model(options: dict) -> bool:
    """What the class refuses: an optimal proposal or a softplus link where there is none."""
    observation = options.get("observation", "gaussian")
    has_gaussian = observation in ("gaussian", COUNTS_AND_SIGNAL)
    linear = has_gaussian and options.get("readout") != "rates"
    optimal = options.get("proposal") == "optimal"
    return (optimal and (not linear or options.get("noise_df") is not None)) or (
        options.get("link") == "softplus" and observation == "gaussian"
    )


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(f"{k}={v}" for k, v in pair))
def test_every_pair_of_options_runs(pair):
    options = dict(pair)
    if makes_no_model(options):
        with pytest.raises(ValueError, match=r"optimal proposal needs|link='softplus' is for"):
            build(**options)
        return
    model, batch = build(**options)
    for objective in (ELBO(2), VSMC(3)):
        model.zero_grad()
        loss = objective(model, model.guide)(batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.raw_noise.grad.abs().sum() > 0


@pytest.mark.parametrize("is_full_rank", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_network_explodes_before_it_is_trained(activation, is_full_rank):
    rng = np.random.default_rng(0)
    counts = recording(counts=rng.poisson(1.0, (2, 300, 10)), bin_width=0.01)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(
        counts, latent_dim=3, num_units=10, activation=activation, is_full_rank=is_full_rank
    )
    path = poutine.trace(model).get_trace(model.trials_of(counts).batch()).nodes["z"]["value"]
    early, late = path[:, 20:50].square().mean(), path[:, -30:].square().mean()
    assert late < 10 * early
    with torch.no_grad():
        assert torch.isfinite(VSMC(3)(model, model.guide)(model.trials_of(counts).batch()))


def test_a_step_is_that_of_the_equation():
    model, batch = build(activation="clipped_relu", noise="full", filters_inputs=True)
    z = torch.randn(NUM_TRIALS, 2)
    i = batch.inputs
    a, a_v = (
        float(torch.exp(-torch.exp(p.detach()))) for p in (model.log_rate, model.input_log_rate)
    )
    v = a_v * i[:, 0] + (1 - a_v) * i[:, 0]
    y = z @ model.m.T + v @ model.input_weights.T
    phi = torch.relu(y + model.threshold) - torch.relu(y)
    first = model.initial_state(None, z, i[:, 0])
    distribution = model.transition(first, i[:, 1])
    torch.testing.assert_close(distribution.mean, a * z + phi @ model.n.T)
    second = model.advance(first, z, i[:, 1])
    torch.testing.assert_close(second.v, a_v * v + (1 - a_v) * i[:, 0])
    # Along a path the same states, all bins at once.
    path = torch.randn(NUM_TRIALS, NUM_BINS, 2)
    states = model.states(None, path, i)
    state = model.initial_state(None, path[:, 0], i[:, 0])
    for t in range(1, NUM_BINS):
        state = model.advance(state, path[:, t], i[:, t])
        torch.testing.assert_close(states.v[:, t], state.v)


@pytest.mark.parametrize("link", ["canonical", "softplus"])
@pytest.mark.parametrize("is_full_rank", [False, True])
def test_units_are_read_out_one_by_one_whatever_they_show(is_full_rank, link):
    """Three neurons with two predictors each, then one channel."""
    model, batch = build(
        observation=COUNTS_AND_SIGNAL,
        readout="currents",
        is_full_rank=is_full_rank,
        link=link,
        proposal="encoder",
    )
    model.observation.use_raw_units()
    with torch.no_grad():
        model.gain.normal_()
        model.bias.normal_()
    states = LowRankState(
        torch.randn(NUM_TRIALS, model.start_mean.shape[0]), batch.inputs[:, 0], batch.inputs[:, 0]
    )
    units = model.currents(states)
    gain, bias = model.gain, model.bias
    read = [gain[k] * units[:, n] + bias[k] for k, n in enumerate([0, 1, 2, 0, 1, 2, 3])]
    distribution = model.emission(states)
    for n in range(3):
        mean = torch.exp(read[n]) if link == "canonical" else torch.nn.functional.softplus(read[n])
        torch.testing.assert_close(distribution.mean[:, n], torch.sigmoid(-read[3 + n]) * mean)
    torch.testing.assert_close(distribution.mean[:, 3], read[6])
    # The optimal proposal's matrices say the same of the channel.
    emission = model.linear_emission(batch)
    assert emission.columns == slice(3, 4)
    predicted = states.z @ emission.matrix.mT + emission.offset[:, 0]
    torch.testing.assert_close(predicted, distribution.mean[:, 3:])


def test_a_softplus_starts_at_the_means_of_both():
    model, batch = build(
        observation={"counts": "poisson", "signal": "gaussian"}, link="softplus", readout="latents"
    )
    with torch.no_grad():
        model.loading.zero_()
    states = LowRankState(torch.zeros(1, 2), batch.inputs[:1, 0], batch.inputs[:1, 0])
    torch.testing.assert_close(model.emission(states).mean[0], batch.x.mean((0, 1)))


@pytest.mark.parametrize("df", [None, 4.0])
def test_the_path_scores_as_the_product_of_its_steps(df):
    model, batch = build(noise="full", noise_df=df)
    trace = poutine.trace(model).get_trace(batch)
    path, distribution = trace.nodes["z"]["value"], trace.nodes["z"]["fn"]
    expected = model.initial(None, batch.inputs[:, 0]).log_prob(path[:, 0])
    state = model.initial_state(None, path[:, 0], batch.inputs[:, 0])
    for t in range(1, NUM_BINS):
        expected = expected + model.transition(state, batch.inputs[:, t]).log_prob(path[:, t])
        state = model.advance(state, path[:, t], batch.inputs[:, t])
    torch.testing.assert_close(distribution.log_prob(path), expected)


@pytest.mark.parametrize("df", [None, 4.0])
@pytest.mark.parametrize("proposal", ["encoder", "causal_encoder", "bootstrap"])
def test_the_guide_scores_any_path(proposal, df):
    model, batch = build(proposal=proposal, noise_df=df, noise="full")
    distribution = poutine.trace(model.guide).get_trace(batch).nodes["z"]["fn"]
    drawn = distribution.rsample()
    kept = distribution.log_prob(drawn)
    torch.testing.assert_close(distribution.log_prob(drawn.clone()), kept)


def test_noise_is_student_t_where_asked_for():
    model, _ = build(noise="scalar", noise_df=4.0, latent_dim=1)
    state = LowRankState(torch.zeros(1, 1), torch.zeros(1, 2), torch.zeros(1, 2))
    distribution = model.transition(state, torch.zeros(1, 2))
    grid = torch.linspace(-3, 3, 50)[:, None, None]
    scale = float(model.process_noise()[1].factor.detach())
    expected = StudentT(4.0, distribution.mean.detach()[0, 0], scale).log_prob(grid[:, 0, 0])
    torch.testing.assert_close(distribution.log_prob(grid)[:, 0].detach(), expected)
    torch.manual_seed(0)
    draws = distribution.rsample((200_000,)).detach()[:, 0, 0] - distribution.mean.detach()[0, 0]
    share = float((draws.abs() > 3 * scale).float().mean())
    exact = 2 * stats.t.sf(3.0, 4)
    assert abs(share - exact) < 4 * math.sqrt(exact / 200_000)


@pytest.mark.parametrize("proposal", ["optimal", "bootstrap", "encoder"])
@pytest.mark.parametrize("noise", NOISES)
def test_the_gauge_leaves_the_likelihood(noise, proposal):
    model, batch = build(noise=noise, proposal=proposal, activation="relu", num_units=7)
    model, batch = (
        model.double(),
        batch.replace(x=batch.x.double(), seen=batch.seen.double(), inputs=batch.inputs.double()),
    )
    moved = model.orthonormal()
    gram = moved.m.T @ moved.m
    torch.testing.assert_close(gram, torch.eye(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.m @ moved.n, model.m @ model.n)
    singular = torch.linalg.svdvals(model.m.detach() @ model.n.detach())[:2]
    torch.testing.assert_close(moved.n.detach().norm(dim=1), singular)
    torch.manual_seed(0)
    one = particle_filter(model, batch, 4000)
    other = particle_filter(moved, batch, 4000)
    error = (one.log_evidence_variance + other.log_evidence_variance).sqrt()
    assert ((one.log_evidence.sum(0) - other.log_evidence.sum(0)).abs() < 5 * error + 1e-9).all()


def test_the_gauge_moves_densities_exactly():
    model, batch = build(noise="full", num_units=7, filters_inputs=True)
    model = model.double()
    inputs = batch.inputs.double()
    moved = model.orthonormal()
    T = moved.m.T @ model.m
    path = torch.randn(NUM_TRIALS, NUM_BINS, 2, dtype=torch.float64)
    path_moved = path @ T.T
    one, other = model.states(None, path, inputs), moved.states(None, path_moved, inputs)
    volume = float(torch.linalg.slogdet(T.detach())[1])
    torch.testing.assert_close(
        model.transition(one, inputs).log_prob(path),
        moved.transition(other, inputs).log_prob(path_moved) + volume,
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(
        model.initial(None, inputs[:, 0]).log_prob(path[:, 0]),
        moved.initial(None, inputs[:, 0]).log_prob(path_moved[:, 0]) + volume,
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(model.emission(one).mean, moved.emission(other).mean)


@pytest.mark.parametrize("observation", ["gaussian", COUNTS_AND_SIGNAL], ids=["signal", "both"])
@pytest.mark.parametrize("readout", READOUTS)
def test_the_gauge_holds_in_single_precision(readout, observation):
    options = {"readout": readout, "observation": observation, "proposal": "encoder"}
    model, batch = build(noise="full", activation="relu", **options)
    moved = model.orthonormal()
    T = moved.m.T @ model.m
    volume = NUM_BINS * float(torch.linalg.slogdet(T.detach().double())[1])
    drawn = poutine.trace(model).get_trace(batch)
    conditioned = poutine.condition(moved, data={"z": drawn.nodes["z"]["value"] @ T.T})
    again = poutine.trace(conditioned).get_trace(batch)
    for trace in (drawn, again):
        trace.compute_log_prob()
    one, other = (t.nodes["z"]["log_prob"] + t.nodes["x"]["log_prob"] for t in (drawn, again))
    assert one.dtype == torch.float32
    torch.testing.assert_close(other + volume, one, rtol=1e-5, atol=1e-5)


def test_a_model_without_that_gauge_says_so():
    for options in ({"is_full_rank": True}, {"decay_per_latent": True}):
        model, _ = build(**options)
        with pytest.raises(ValueError, match="whose latents share one decay"):
            model.orthonormal()


def test_the_softplus_link():
    y = torch.tensor([-100.0, -20.0, -1.0, 0.0, 5.0, 100.0], dtype=torch.float64)
    expected = torch.log(torch.log1p(torch.exp(y.clamp_max(50)))).where(y < 50, y.abs().log())
    torch.testing.assert_close(log_softplus(y), expected.where(y > -30, y))
    assert torch.autograd.gradcheck(log_softplus, y[1:].clone().requires_grad_())
    model, batch = build(observation="poisson", link="softplus")
    with torch.no_grad():
        model.loading.zero_()
        states = model.states(None, torch.zeros(NUM_TRIALS, NUM_BINS, 2), batch.inputs)
        rates = model.emission(states).mean
    torch.testing.assert_close(rates[0, 0], batch.x.mean((0, 1)))


@pytest.mark.parametrize("readout", ["latents", "latents_and_inputs", "currents"])
def test_the_likelihood_in_the_dimensions_of_z_is_the_sum_over_channels(readout):
    rng = np.random.default_rng(0)
    signal = recording(
        signal=rng.normal(size=(3, 6, 5)), bin_width=0.01, inputs=rng.normal(size=(3, 6, 2))
    )
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(signal, latent_dim=2, readout=readout).double()
    batch = model.trials_of(signal).batch()
    x, scored = batch.x[:, 1].double(), batch.scored[:, 1]
    inputs = batch.inputs[:, 1].double()
    state = model.initial_state(None, torch.randn(4, 3, 2, dtype=torch.float64), inputs)
    terms = model.emission(state).log_prob(x)
    torch.testing.assert_close(model.log_likelihood(state, x, scored, 0.7), 0.7 * terms.sum(-1))
    scored[1, 3] = False
    torch.testing.assert_close(
        model.log_likelihood(state, x, scored), torch.where(scored, terms, 0.0).sum(-1)
    )


def test_a_causal_encoder_sees_no_future():
    model, batch = build(proposal="causal_encoder")
    changed = batch.replace(seen=batch.seen.clone())
    changed.seen[:, 4:] += 10.0
    one, other = (model.proposal.encode(model, each) for each in (batch, changed))
    torch.testing.assert_close(one.h[:, :4], other.h[:, :4])
    assert not torch.allclose(one.h[:, 4:], other.h[:, 4:])


def test_forecast_bins_follow_the_model():
    model, batch = build(proposal="encoder")
    forecast = batch.replace(horizon=4, seen=batch.seen.clone())
    forecast.seen[:, 4:] = 0
    encoding = model.proposal.encode(model, forecast)
    assert (encoding.h[:, 4:] == 0).all()
    assert (encoding.J[:, 4:] == 0).all()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, batch = build(noise="full")
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    torch.manual_seed(0)
    one = ELBO()(model, model.guide)(batch)
    torch.manual_seed(0)
    assert torch.equal(one, ELBO()(again, again.guide)(batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation='gelu' is unknown; it is one of relu"),
        ({"noise": "coloured"}, "noise='coloured' is unknown"),
        ({"noise_df": 2.0}, "noise_df=2.0 must exceed 2"),
        ({"latent_dim": 0}, "latent_dim=0 must be an integer of at least 1"),
        ({"latent_dim": 5}, "latent_dim=5 is the rank of 4 units"),
        ({"readout": "currents", "num_units": 5}, "but there are 5 units and 4 neurons"),
        ({"proposal": "magic"}, "proposal='magic' is unknown"),
        ({"proposal": "optimal", "noise_df": 5.0}, "and gaussian process noise"),
        ({"observation": "poisson", "proposal": "optimal"}, "the optimal proposal needs"),
        ({"link": "softplus"}, "not for 'gaussian'"),
    ],
)
def test_options_that_make_no_model_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_recording_whose_inputs_were_dropped_is_refused():
    model, _ = build()
    # The coordinate that names the inputs stays behind.
    with pytest.raises(ValueError, match="has 0 inputs; this model was made for 2"):
        model.check(data().drop_vars("inputs").assign_coords(input=["left", "right"]))


@pytest.mark.filterwarnings("ignore:the mean count is")
def test_the_softplus_link_starts_at_large_means_too():
    rng = np.random.default_rng(0)
    recorded = recording(rng.poisson(200.0, (8, 10, 5)), bin_width=0.5)
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=10, link="softplus")
    mean = recorded["counts"].mean(("trial", "time")).values
    np.testing.assert_allclose(log_softplus(model.bias).exp().detach(), mean, rtol=1e-4)


def test_another_proposal_is_saved_and_moves_with_the_gauge(tmp_path):
    model, _ = build(noise="full", proposal="encoder", observation="poisson")
    model.proposal = Bootstrap()
    save(model, tmp_path)
    assert isinstance(load(tmp_path).proposal, Bootstrap)
    assert isinstance(model.orthonormal().proposal, Bootstrap)
    model.proposal = Own()
    save(model, tmp_path)
    with pytest.raises(ValueError, match=r"of the class Own, not .*proposal=Own\(\.\.\.\)"):
        load(tmp_path)
    loaded = load(tmp_path, proposal=Own())
    assert torch.equal(loaded.proposal.scale, model.proposal.scale)
    assert torch.equal(model.orthonormal().proposal.scale, model.proposal.scale)


class Own(Bootstrap):
    """A proposal of a user's own, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(2))


def optimal_network():
    signal = np.random.default_rng(0).standard_normal((4, 6, 5))
    recorded = recording(signal=signal, bin_width=0.01)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(
        recorded, latent_dim=2, num_units=4, activation="identity", proposal="optimal"
    ).double()
    return model, model.trials_of(recorded).batch()


def test_the_optimal_proposal_undoes_the_gain_of_coordinated_dropout():
    model, batch = optimal_network()
    torch.manual_seed(1)
    dropped = CoordinatedDropout(0.4)(batch)
    assert dropped.gain != 1
    unscaled = dropped.replace(seen=dropped.seen / dropped.gain, gain=1.0)
    with torch.no_grad():
        found, expected = (model.proposal.encode(model, b) for b in (dropped, unscaled))
        torch.testing.assert_close(found.h, expected.h)
        visible = dropped.visible
        torch.testing.assert_close(unscaled.seen[visible], batch.seen[visible])


def test_weights_of_the_optimal_proposal_count_observations_as_the_batch_asks():
    model, batch = optimal_network()
    weighted = batch.replace(scored_weight=2.0)
    torch.manual_seed(1)
    filtered = particle_filter(model, weighted, 1)
    path = filtered.paths[:, 0].transpose(0, 1)
    guide = poutine.trace(poutine.condition(model.guide, {"z": path})).get_trace(weighted)
    program = poutine.trace(poutine.condition(model.model, {"z": path})).get_trace(weighted)
    for trace in (guide, program):
        trace.compute_log_prob()
    log_weight = program.log_prob_sum() - guide.log_prob_sum()
    torch.testing.assert_close(filtered.log_evidence.sum(), log_weight)
