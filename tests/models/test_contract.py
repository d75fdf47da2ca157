"""Compatibility with Pyro: every model works with Pyro's own tools."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    HMC,
    MCMC,
    NUTS,
    SVI,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn

from pyrodyn.data import Trials, recording
from pyrodyn.data.batch import num_units
from pyrodyn.data.schema import blocks
from pyrodyn.infer import ELBO
from pyrodyn.infer.traces import paired_traces
from pyrodyn.models import (
    LFADS,
    NDT,
    OBSERVATIONS,
    LinearDynamics,
    LowRankRNN,
    NodeSAE,
    RnnSAE,
    ShallowPLRNN,
    StateSpaceModel,
)
from pyrodyn.models.observations import observation as observation_model
from pyrodyn.models.observations import observation_for

NUM_TRIALS, NUM_BINS, NUM_NEURONS, NUM_CHANNELS = 4, 8, 3, 2
COUNTS_AND_SIGNAL = {"counts": "zero_inflated_poisson", "signal": "gaussian"}
TINY_LFADS = {
    "factor_dim": 2,
    "generator_dim": 5,
    "initial_condition_dim": 2,
    "encoder_dim": 4,
    "controller_encoder_dim": 4,
    "controller_dim": 4,
}
TINY_NDT = {"model_dim": 4, "num_layers": 2, "ffn_dim": 3}


class OfFunctions:
    """A model from three functions, which `StateSpaceModel.of` builds."""

    @staticmethod
    def for_recording(recorded, observation):
        spec = observation_for(blocks(recorded), observation)
        num_predictors = observation_model(spec, num_units(recorded)).predictor_dim
        own = nn.ParameterDict(
            {
                "log_sd": torch.tensor([-1.0, 0.0]),
                "push": torch.randn(1, 2),
                "loading": torch.randn(2, num_predictors),
            }
        )
        return StateSpaceModel.of(
            initial=lambda inputs: dist.Normal(inputs @ own["push"], own["log_sd"].exp()),
            transition=lambda z, inputs: torch.distributions.Normal(
                torch.tanh(z) + inputs @ own["push"], own["log_sd"].exp()
            ),
            emission=lambda z: z @ own["loading"],
            latent_dim=2,
            input_dim=1,
            parameters=own,
            observation=spec,
            proposal="encoder",
        )


ZOO = {
    "of_functions": (OfFunctions, {}),
    "lfads": (LFADS, {**TINY_LFADS}),
    "lfads_inputs": (LFADS, {**TINY_LFADS, "inferred_input_dim": 1}),
    "lfads_heavy_tails": (
        LFADS,
        {
            **TINY_LFADS,
            "inferred_input_dim": 2,
            "input_prior": "student_t",
            "recurrent_precision": 1.0,
        },
    ),
    "lfads_counts_and_signal": (
        LFADS,
        {**TINY_LFADS, "inferred_input_dim": 1, "observation": COUNTS_AND_SIGNAL},
    ),
    "low_rank": (LowRankRNN, {"latent_dim": 2, "num_units": 5, "proposal": "encoder"}),
    "low_rank_other_options": (
        LowRankRNN,
        {
            "latent_dim": 2,
            "num_units": 5,
            "activation": "clipped_relu",
            "noise": "full",
            "noise_df": 5.0,
            "filters_inputs": True,
            "readout": "latents_and_inputs",
            "proposal": "causal_encoder",
        },
    ),
    "low_rank_counts_and_signal": (
        LowRankRNN,
        {"latent_dim": 2, "num_units": 5, "observation": COUNTS_AND_SIGNAL},
    ),
    "linear": (LinearDynamics, {"latent_dim": 2, "encoder_bins": 5}),
    "shallow_plrnn": (ShallowPLRNN, {"latent_dim": 2, "num_units": 5, "encoder_bins": 5}),
    "node_sae": (NodeSAE, {"latent_dim": 2, "field_width": 4, "encoder_dim": 3}),
    "node_sae_noise": (
        NodeSAE,
        {
            "latent_dim": 2,
            "field_width": 4,
            "field_depth": 2,
            "linear_term": True,
            "solver": "rk4",
            "readout_width": 4,
            "encoder_dim": 3,
            "process_noise": True,
        },
    ),
    "node_sae_near": (
        NodeSAE,
        {"latent_dim": 2, "encoder_dim": 3, "process_noise": True, "num_initial_states": 5},
    ),
    "ndt": (NDT, {**TINY_NDT}),
    "ndt_other_options": (
        NDT,
        {
            **TINY_NDT,
            "context_back": 3,
            "context_forward": 0,
            "positions": "learned",
            "observation": COUNTS_AND_SIGNAL,
        },
    ),
    "rnn_sae": (RnnSAE, {"latent_dim": 2, "encoder_dim": 3}),
    "rnn_sae_noise": (
        RnnSAE,
        {"latent_dim": 2, "cell": "residual", "encoder_dim": 3, "process_noise": True},
    ),
}
LATENT = {
    "of_functions": {"z"},
    "lfads": {"g0"},
    "lfads_inputs": {"g0", "u"},
    "lfads_heavy_tails": {"g0", "u"},
    "lfads_counts_and_signal": {"g0", "u"},
    "low_rank": {"z"},
    "low_rank_counts_and_signal": {"z"},
    "low_rank_other_options": {"z"},
    "linear": {"z"},
    "shallow_plrnn": {"z"},
    "node_sae": {"z0"},
    "node_sae_noise": {"z"},
    "node_sae_near": {"z"},
    "ndt": set(),
    "ndt_other_options": set(),
    "rnn_sae": {"z0"},
    "rnn_sae_noise": {"z"},
}


def data(observation: str | dict[str, str] = "poisson"):
    rng = np.random.default_rng(0)
    shape = (NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    inputs = rng.normal(size=(NUM_TRIALS, NUM_BINS, 1))
    if observation == COUNTS_AND_SIGNAL:
        signal = rng.normal(size=(NUM_TRIALS, NUM_BINS, NUM_CHANNELS))
        counts = rng.poisson(1.0, shape)
        return recording(counts, signal=signal, bin_width=0.01, inputs=inputs)
    arrays = {
        "bernoulli": {"counts": rng.binomial(1, 0.4, shape)},
        "gaussian": {"signal": rng.normal(size=shape)},
        "gamma": {"signal": rng.gamma(2.0, size=shape)},
        "zero_inflated_gamma": {"signal": rng.gamma(2.0, size=shape) * rng.binomial(1, 0.6, shape)},
    }.get(observation, {"counts": rng.poisson(1.0, shape)})
    return recording(**arrays, bin_width=0.01, inputs=inputs)


def observed_by(kind: str):
    return ZOO[kind][1].get("observation", "poisson")


def build(kind: str, observation: str | dict[str, str] | None = None):
    torch.manual_seed(0)
    model_class, sizes = ZOO[kind]
    sizes = {**sizes, "observation": observation or observed_by(kind)}
    return model_class.for_recording(data(sizes["observation"]), **sizes).eval()


@pytest.fixture(params=list(ZOO))
def kind(request):
    return request.param


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def batch(kind):
    return Trials(data(observed_by(kind))).batch()


@pytest.mark.parametrize("observation", [*OBSERVATIONS, COUNTS_AND_SIGNAL], ids=str)
@pytest.mark.parametrize("num_particles", [1, 4])
def test_elbo_and_its_gradient_are_finite(kind, observation, num_particles):
    model = build(kind, observation)
    batch = Trials(data(observation)).batch()
    loss = ELBO(num_particles)(model, model.guide)(batch)
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def monte_carlo_elbo(model, batch, num_particles):
    """The negative ELBO as `Trace_ELBO` estimates it, the mean of log q - log p over draws."""
    guide_trace, model_trace = paired_traces(model, model.guide, batch, num_particles)
    return (guide_trace.log_prob_sum() - model_trace.log_prob_sum()) / num_particles


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_pyro_elbos_equal_pyrodyn_elbos_on_the_same_noise(kind, batch, elbo, num_particles):
    """Value and gradient, as `pyro.infer.SVI` takes them."""
    model = build(kind)
    theirs = elbo(
        num_particles=num_particles, vectorize_particles=num_particles > 1, max_plate_nesting=1
    )
    torch.manual_seed(1)
    program = model if num_particles == 1 else model.model  # both are the generative program
    value = theirs.loss_and_grads(program, model.guide, batch)
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    if elbo is TraceMeanField_ELBO:
        ours = ELBO(num_particles)(model, model.guide)(batch)
    else:
        ours = monte_carlo_elbo(model, batch, num_particles)
    ours.backward()
    assert value == pytest.approx(float(ours.detach()), rel=1e-5)
    for (name, parameter), its in zip(model.named_parameters(), found, strict=True):
        torch.testing.assert_close(its, parameter.grad, rtol=1e-3, atol=1e-3, msg=name)


SVI_LOSSES = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "RenyiELBO": lambda: RenyiELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(num_particles=2, max_plate_nesting=1),
}


@pytest.mark.parametrize("loss", SVI_LOSSES)
def test_svi_trains_every_parameter(kind, batch, loss):
    if loss == "ReweightedWakeSleep" and not LATENT[kind]:
        pytest.skip("Pyro's wake-sleep needs a latent site to weight")
    model = build(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), SVI_LOSSES[loss]())
    for _ in range(3):
        svi.step(batch)
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_lift_reaches_every_parameter(kind, batch):
    model = build(kind)
    names = {name for name, _ in model.named_parameters()}
    for program in (model.model, model.guide):
        trace = poutine.trace(poutine.lift(program, prior=dist.Normal(0.0, 0.1))).get_trace(batch)
        trace.compute_log_prob()
        drawn = set(trace.stochastic_nodes) - {"trials"}
        assert {name.split("$$$")[-1] for name in drawn} == names | LATENT[kind]


def test_predictive_draws_in_parallel(kind, batch):
    model = build(kind)
    predictive = Predictive(model, guide=model.guide, num_samples=7, parallel=True)
    draws = predictive(batch.unobserved())
    assert draws["x"].shape[-3:] == batch.seen.shape
    assert draws["x"].shape[0] == 7
    counts, signal = draws["x"].tensor_split([NUM_NEURONS], -1)
    assert (counts >= 0).all()
    assert (counts % 1 == 0).all()
    assert (signal % 1 != 0).all()
    assert signal.shape[-1] == (NUM_CHANNELS if observed_by(kind) == COUNTS_AND_SIGNAL else 0)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoLowRankMultivariateNormal])
def test_autoguides_train(kind, batch, autoguide):
    if autoguide is AutoLowRankMultivariateNormal and not LATENT[kind]:
        pytest.skip("Pyro refuses such a guide of no latent site")
    model = build(kind)
    guide = autoguide(model)
    loss = ELBO()(model, guide)
    loss(batch)  # a guide makes its parameters in its first run
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    torch.manual_seed(0)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    first, last = np.array(values[:15]), np.array(values[-15:])
    assert last.mean() < first.mean() - 4 * np.sqrt((first.var() + last.var()) / 15)
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(lambda m: NUTS(m, max_tree_depth=3), id="nuts"),
        pytest.param(lambda m: HMC(m, num_steps=3), id="hmc", marks=pytest.mark.slow),
    ],
)
def test_mcmc_samples_the_posterior(kind, batch, kernel):
    model = build(kind)
    torch.manual_seed(0)
    sampler = MCMC(kernel(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    sampler.run(batch)
    draws = sampler.get_samples()
    assert set(draws) == LATENT[kind]
    for name, value in draws.items():
        assert torch.isfinite(value).all(), name
        assert value.shape[:2] == (5, NUM_TRIALS)


def test_conditioning_fixes_sites(kind, batch):
    model = build(kind)
    site = min(LATENT[kind] or {"rates"})
    with torch.no_grad():
        value = torch.zeros_like(poutine.trace(model).get_trace(batch).nodes[site]["value"])
        trace = poutine.trace(poutine.condition(model, {site: value})).get_trace(batch)
    assert trace.nodes[site]["is_observed"]
    assert trace.nodes[site]["value"] is value


def test_observations_have_their_models_support(kind, batch):
    site = poutine.trace(build(kind)).get_trace(batch).nodes["x"]
    assert site["fn"].support.check(batch.x).all()
    assert not site["fn"].support.check(batch.x - 100).any()  # counts below 0


def test_model_can_be_rendered(kind, batch):
    graph = pyro.render_model(build(kind).model, model_args=(batch,))
    for site in (*LATENT[kind], "x"):
        assert site in graph.source


def test_model_and_guide_have_the_same_latent_sites(kind, batch):
    model = build(kind)
    traces = [poutine.trace(program).get_trace(batch) for program in (model.model, model.guide)]
    sites = [set(trace.stochastic_nodes) - {"trials"} for trace in traces]
    assert sites[0] == sites[1] == LATENT[kind]


def test_every_parameter_is_trained(kind, batch):
    model = build(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        ELBO()(model, model.guide)(batch).backward()
        optimizer.step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_two_instances_share_nothing(kind, batch):
    one, two = build(kind), build(kind)
    before = {name: p.detach().clone() for name, p in two.named_parameters()}
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-1)
    ELBO()(one, one.guide)(batch).backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in two.named_parameters())
    assert not pyro.get_param_store().keys()


def test_minibatch_losses_average_to_the_full_data_loss(kind):
    """The mean over disjoint minibatches equals the full-data value, per draw of the same noise."""
    model = build(kind)
    trials = Trials(data(observed_by(kind)))
    loss = ELBO(50)(model, model.guide)
    with torch.no_grad():
        whole = torch.stack([loss(trials.batch()) for _ in range(40)])
        parts = torch.stack(
            [
                (
                    loss(trials.batch(torch.tensor([0, 1])))
                    + loss(trials.batch(torch.tensor([2, 3])))
                )
                / 2
                for _ in range(40)
            ]
        )
    error = ((whole.var() + parts.var()) / 40).sqrt()
    rounding = 1e-6 * abs(whole.mean())
    assert abs(whole.mean() - parts.mean()) < 4 * error + rounding


def test_deterministic_under_a_seed(kind, batch):
    model = build(kind)
    values = []
    for _ in range(2):
        torch.manual_seed(5)
        values.append(ELBO()(model, model.guide)(batch))
    assert torch.equal(*values)
