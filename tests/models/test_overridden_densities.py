"""A density that a subclass, or an instance, overrides is the density everywhere: in the Pyro
programs, the bounds, the filter and the smoother.

Everything is compared at fixed draws with log joints summed bin by bin from the four densities.
"""

import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyrodyn.data import recording
from pyrodyn.data.batch import Batch
from pyrodyn.distributions.gaussian import SharedStudentT
from pyrodyn.infer import ELBO, IWELBO, VSMC, particle_filter, particle_smoother
from pyrodyn.infer.traces import paired_traces
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE
from pyrodyn.models.lfads import LFADSState
from pyrodyn.models.low_rank_rnn import LowRankState
from pyrodyn.models.sae import LatentState
from pyrodyn.models.state_space import Bootstrap, StateSpaceModel

NUM_TRIALS, NUM_BINS, NUM_NEURONS, NUM_PARTICLES = 2, 4, 3, 4

SMALL_LFADS = {
    "inferred_input_dim": 2,
    "factor_dim": 3,
    "generator_dim": 5,
    "initial_condition_dim": 4,
    "encoder_dim": 3,
    "controller_encoder_dim": 3,
    "controller_dim": 4,
}
SMALL_SAE = {"latent_dim": 2, "field_width": 4, "encoder_dim": 3, "dropout": 0.0}
SMALL_NETWORK = {"latent_dim": 2, "num_units": 5, "filters_inputs": True}
MODELS: dict[str, tuple[type[StateSpaceModel], dict[str, Any]]] = {
    "lfads": (LFADS, SMALL_LFADS),
    "lfads_alone": (LFADS, {**SMALL_LFADS, "inferred_input_dim": 0}),
    "node_noise": (NodeSAE, {**SMALL_SAE, "process_noise": True}),
    "node": (NodeSAE, SMALL_SAE),
    "network_signal": (LowRankRNN, {**SMALL_NETWORK, "observation": "gaussian"}),
    "network_counts": (LowRankRNN, {**SMALL_NETWORK, "observation": "poisson"}),
}

# ------------------------------------------------------------------ what is overridden


def heavy(mean: Tensor, scale: float) -> Any:
    return dist.StudentT(4.0, mean, scale, validate_args=False).to_event(1)


def lfads_initial_condition(self):
    return heavy(self.g0_mean + 0.5, 0.7)


def node_initial_condition(self):
    return heavy(self.start_mean + 0.5, 0.7)


def lfads_initial(self, start, inputs):
    return heavy(start[..., :2], 0.6)


def lfads_transition(self, state, inputs):
    return heavy(state.u.sum(-1, keepdim=True) + state.g[..., :2], 0.4)


def lfads_initial_state(self, start, z, inputs):
    u, g = LFADS.initial_state(self, start, z, inputs)
    return LFADSState(u, 0.5 * g)


def lfads_advance(self, state, z, inputs):
    u, g = LFADS.advance(self, state, z, inputs)
    return LFADSState(u, 0.5 * g)


def lfads_emission(self, state):
    return self.observation(self.readout(self.factors(state.g)) + 0.7)


def node_initial(self, start, inputs):
    return heavy(self.start_mean.expand(*inputs.shape[:-1], -1) + 0.3, 0.8)


def node_transition(self, state, inputs):
    return heavy(self.phi(state.z, inputs), 0.4)


def node_initial_state(self, start, z, inputs):
    return LatentState(0.5 * NodeSAE.initial_state(self, start, z, inputs).z)


def node_advance(self, state, z, inputs):
    return LatentState(0.5 * NodeSAE.advance(self, state, z, inputs).z)


def node_emission(self, state):
    return self.observation(self.readout(state.z) + 0.7)


def network_initial(self, start, inputs):
    return SharedStudentT(
        self.start_mean.expand(*inputs.shape[:-1], -1), self.process_noise()[1], 4.0
    )


def network_transition(self, state, inputs):
    return SharedStudentT(0.5 * state.z, self.process_noise()[1], 4.0)


def network_mean_step(self, state):
    return 0.5 * state.z


def network_initial_state(self, start, z, inputs):
    return LowRankState(z, 0.5 * inputs, inputs)


def network_advance(self, state, z, inputs):
    return LowRankState(z, 0.5 * state.v + inputs, inputs)


def network_emission(self, state):
    return self.observation(self._read(state) + 0.7)


OVERRIDDEN: dict[str, dict[str, Callable[..., Any]]] = {
    "lfads": {
        "initial_condition": lfads_initial_condition,
        "initial": lfads_initial,
        "transition": lfads_transition,
        "initial_state": lfads_initial_state,
        "advance": lfads_advance,
        "emission": lfads_emission,
    },
    "node": {
        "initial_condition": node_initial_condition,
        "initial": node_initial,
        "transition": node_transition,
        "initial_state": node_initial_state,
        "advance": node_advance,
        "emission": node_emission,
    },
    "network": {
        "initial": network_initial,
        "transition": network_transition,
        "mean_step": network_mean_step,
        "initial_state": network_initial_state,
        "advance": network_advance,
        "emission": network_emission,
    },
}
NOT_DRAWN = {
    "lfads_alone": ("initial", "transition"),
    "node": ("initial", "transition"),
    "node_noise": ("initial_condition",),
}
CASES = [
    (kind, name, is_instance)
    for kind in MODELS
    for name in OVERRIDDEN[kind.split("_")[0]]
    if name not in NOT_DRAWN.get(kind, ())
    for is_instance in ((False, True) if name == "emission" else (False,))
]


def data(kind: str):
    rng = np.random.default_rng(0)
    shape = (NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    is_signal = kind == "network_signal"
    observed = (
        {"signal": rng.normal(size=shape)} if is_signal else {"counts": rng.poisson(1, shape)}
    )
    inputs = rng.normal(size=(NUM_TRIALS, NUM_BINS, 1))
    valid = rng.random(shape) > 0.2
    return recording(**observed, bin_width=0.01, inputs=inputs, valid=valid)


def build(
    kind: str, name: str = "", is_instance: bool = False, **options: Any
) -> tuple[StateSpaceModel, Batch]:
    """A model of which one density is overridden, and its batch, in double precision."""
    family, sizes = MODELS[kind]
    if name and not is_instance:
        family = type("Mine", (family,), {name: OVERRIDDEN[kind.split("_")[0]][name]})
    if kind == "network_signal" and is_instance:
        options.setdefault("proposal", "encoder")
    recorded = data(kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family.for_recording(recorded, **{**sizes, **options}).double().eval()
    if name and is_instance:
        method = types.MethodType(OVERRIDDEN[kind.split("_")[0]][name], model)
        setattr(model, name, method)
    batch = model.trials_of(recorded).batch()
    doubled = {field: getattr(batch, field).double() for field in ("x", "seen", "inputs")}
    return model, batch.replace(**doubled)


# ------------------------------------------------------------------ by the four densities


def emission_terms(model: StateSpaceModel, batch: Batch, state: Any, t: int) -> Tensor:
    terms = model.emission(state).log_prob(batch.x[:, t])
    return torch.where(batch.scored[:, t], terms, 0.0).sum(-1)


def log_joint(model: StateSpaceModel, batch: Batch, start: Tensor | None, path: Tensor) -> Tensor:
    """Log p(start, path, x) per draw and trial."""
    total = 0.0 if start is None else model.initial_condition().log_prob(start)
    state = None
    for t in range(NUM_BINS):
        z, i = path[..., t, :], batch.inputs[:, t]
        if state is None:
            total = total + model.initial(start, i).log_prob(z)
            state = model.initial_state(start, z, i)
        else:
            total = total + model.transition(state, i).log_prob(z)
            state = model.advance(state, z, i)
        total = total + emission_terms(model, batch, state, t)
    return total


def log_proposed(
    model: StateSpaceModel, batch: Batch, start: Tensor | None, path: Tensor
) -> Tensor:
    """Log q(start, path) per draw and trial."""
    proposal, encoding = model.proposal, model.proposal.encode(model, batch)
    total = 0.0
    if start is not None:
        total = proposal.initial_condition(model, encoding).log_prob(start)
    state = memory = None
    for t in range(NUM_BINS):
        z, i = path[..., t, :], batch.inputs[:, t]
        before = start if state is None else state
        memory = proposal.remember(model, before, memory, encoding, t)
        prior = model.initial(start, i) if state is None else model.transition(state, i)
        q = proposal.propose(prior, memory, encoding, t, state is None)
        total = total + q.log_prob(z)
        state = model.initial_state(start, z, i) if t == 0 else model.advance(state, z, i)
    return total


def drawn(model: StateSpaceModel, trace: poutine.Trace) -> tuple[Tensor | None, Tensor]:
    """The initial condition and the path of a trace of the guide."""
    site = model.initial_condition_site
    start = trace.nodes[site]["value"] if site else None
    if model.path_site:
        return start, trace.nodes[model.path_site]["value"]
    return start, start.new_zeros(*start.shape[:-1], NUM_BINS, 0)


def log_prob(trace: poutine.Trace, names: list[str]) -> Tensor:
    return sum(trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"]) for name in names)


def latent(model: StateSpaceModel) -> list[str]:
    return [name for name in (model.initial_condition_site, model.path_site) if name]


def log_mean_exp(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


# ------------------------------------------------------------------ everything agrees


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def overridden(request) -> tuple[StateSpaceModel, Batch]:
    return build(*request.param)


@torch.no_grad()
def test_the_override_is_another_density(overridden, request):
    """Otherwise nothing below could fail."""
    model, batch = overridden
    kind = request.node.callspec.params["overridden"][0]
    plain, _ = build(kind, proposal="encoder") if kind == "network_signal" else build(kind)
    torch.manual_seed(0)
    start, path = drawn(plain, poutine.trace(plain.guide).get_trace(batch))
    change = log_joint(model, batch, start, path) - log_joint(plain, batch, start, path)
    assert (change.abs() > 1e-3).all()


@torch.no_grad()
def test_the_programs_are_of_these_densities(overridden):
    model, batch = overridden
    torch.manual_seed(0)
    guide, replayed = paired_traces(model, model.guide, batch, 1)
    start, path = drawn(model, guide)
    log_p, log_q = log_joint(model, batch, start, path), log_proposed(model, batch, start, path)
    torch.testing.assert_close(log_prob(replayed, [*latent(model), "x"]), log_p)
    torch.testing.assert_close(log_prob(guide, latent(model)), log_q)
    copies = {name: guide.nodes[name]["value"].clone() for name in latent(model)}
    fresh = poutine.trace(poutine.condition(model, copies)).get_trace(batch)
    torch.testing.assert_close(log_prob(fresh, [*latent(model), "x"]), log_p)
    rates = torch.stack(
        [model.emission(state).mean for state in states_of(model, batch, start, path)], -2
    )
    torch.testing.assert_close(replayed.nodes["rates"]["value"], rates)


def states_of(model, batch, start, path):
    state = model.initial_state(start, path[..., 0, :], batch.inputs[:, 0])
    yield state
    for t in range(1, NUM_BINS):
        state = model.advance(state, path[..., t, :], batch.inputs[:, t])
        yield state


@torch.no_grad()
def test_elbo_and_importance_weighted_bound(overridden):
    model, batch = overridden
    for objective, is_mean in ((ELBO(NUM_PARTICLES), True), (IWELBO(NUM_PARTICLES), False)):
        torch.manual_seed(0)
        loss = objective(model, model.guide)(batch)
        torch.manual_seed(0)
        guide, replayed = paired_traces(model, model.guide, batch, NUM_PARTICLES)
        start, path = drawn(model, guide)
        log_w = log_joint(model, batch, start, path) - log_proposed(model, batch, start, path)
        if is_mean:  # KLs of which the closed form is known do not depend on the draw
            for name in latent(model):
                sites = (guide.nodes[name], replayed.nodes[name])
                try:
                    kl = torch.distributions.kl_divergence(*(site["fn"] for site in sites))
                except NotImplementedError:
                    continue
                q, p = (site["fn"].log_prob(site["value"]) for site in sites)
                log_w = log_w + q - p - kl
        bound = log_w.mean(0) if is_mean else log_mean_exp(log_w)
        torch.testing.assert_close(-loss, bound.sum())


@torch.no_grad()
def test_particles_that_are_never_resampled(overridden):
    model, batch = overridden
    torch.manual_seed(0)
    filtered = particle_filter(model, batch, NUM_PARTICLES, ess_threshold=0.0)
    start, path = filtered.starts, filtered.paths.permute(1, 2, 0, 3)
    log_w = log_joint(model, batch, start, path) - log_proposed(model, batch, start, path)
    torch.testing.assert_close(filtered.log_evidence.sum(0), log_mean_exp(log_w))


@torch.no_grad()
def test_particles_that_are_resampled_at_every_bin(overridden):
    """Filter and VSMC draw the same particles."""
    model, batch = overridden
    torch.manual_seed(0)
    filtered = particle_filter(model, batch, NUM_PARTICLES, ess_threshold=1.0)
    torch.manual_seed(0)
    loss = VSMC(NUM_PARTICLES)(model, model.guide)(batch)
    torch.testing.assert_close(-loss, filtered.log_evidence.sum())
    torch.testing.assert_close(filtered.log_evidence.sum(0), evidence_of(model, batch, filtered))


def evidence_of(model: StateSpaceModel, batch: Batch, filtered: Any) -> Tensor:
    """The evidence of particles resampled at every bin, by the filter's draws and ancestors."""
    proposal, encoding = model.proposal, model.proposal.encode(model, batch)
    start, state, memory = filtered.starts, None, None
    total, log_w = 0.0, torch.zeros(NUM_PARTICLES, NUM_TRIALS, dtype=torch.double)
    if start is not None:
        q = proposal.initial_condition(model, encoding)
        log_w = model.initial_condition().log_prob(start) - q.log_prob(start)

    def prior_at(t: int) -> Any:
        i = batch.inputs[:, t]
        return model.initial(start, i) if state is None else model.transition(state, i)

    for t in range(NUM_BINS):
        ahead = torch.zeros_like(log_w)
        if proposal.looks_ahead:
            ahead = ahead + proposal.lookahead(prior_at(t), encoding, t, t == 0)
        ancestors = filtered.ancestors[t]
        if t > 0 or start is not None:
            log_w = log_mean_exp(log_w + ahead) - ahead.gather(0, ancestors)
        start, state, memory = (of_ancestors(each, ancestors) for each in (start, state, memory))
        z, i, prior = filtered.paths[t], batch.inputs[:, t], prior_at(t)
        memory = proposal.remember(model, start if t == 0 else state, memory, encoding, t)
        q = proposal.propose(prior, memory, encoding, t, t == 0)
        state = model.initial_state(start, z, i) if t == 0 else model.advance(state, z, i)
        log_w = log_w + prior.log_prob(z) - q.log_prob(z) + emission_terms(model, batch, state, t)
        total, log_w = total + log_mean_exp(log_w), log_w - log_mean_exp(log_w)
    return total


def of_ancestors(values: Any, ancestors: Tensor) -> Any:
    if isinstance(values, tuple):
        return type(values)(*(of_ancestors(field, ancestors) for field in values))
    if values is None or values.ndim < 3:
        return values
    return values.gather(0, ancestors[..., None].expand_as(values))


# ------------------------------------------------------------------ proposals and smoothers


def test_the_default_proposal_of_a_subclass_needs_no_density_that_it_overrides():
    assert type(build("network_signal")[0].proposal).__name__ == "OptimalFactor"
    assert type(build("network_signal", "emission")[0].proposal).__name__ == "EncoderFactor"


def test_the_optimal_proposal_of_another_emission_is_refused():
    model, batch = build("network_signal", "emission", proposal="optimal")
    for run in (model.guide, lambda batch: particle_filter(model, batch, 2)):
        with pytest.raises(ValueError, match=r"of Mine is overridden: .*proposal='encoder'"):
            run(batch)


@torch.no_grad()
def test_a_factor_times_another_kind_of_prior_is_refused_and_the_bootstrap_is_not():
    model, batch = build("network_counts", "transition")
    model.transition = lambda state, inputs: heavy(0.5 * state.z, 0.3)
    with pytest.raises(ValueError, match=r"EncoderFactor multiplies .* Independent: .*Bootstrap"):
        model.guide(batch)
    model.proposal = Bootstrap()
    torch.manual_seed(0)
    guide, replayed = paired_traces(model, model.guide, batch, 1)
    log_p = log_joint(model, batch, *drawn(model, guide))
    torch.testing.assert_close(log_prob(replayed, ["z", "x"]), log_p)


@pytest.mark.parametrize("kind", ["lfads_alone", "node"])
@pytest.mark.parametrize("name", ["initial", "transition"])
def test_what_a_model_without_noise_never_draws_is_refused(kind, name):
    model, batch = build(kind, name)
    with pytest.raises(ValueError, match=rf"Mine.{name} is a distribution of shape \(2,\), but"):
        model.model(batch)


@pytest.mark.parametrize("kind", ["network_counts", "node_noise"])
def test_a_path_with_another_state_is_markov_only_where_its_class_says_so(kind):
    model, batch = build(kind, "advance")
    with pytest.raises(ValueError, match="use method='ancestral'"):
        particle_smoother(model, batch, 2, method="ffbsi")
    type(model).path_is_markov = True
    particle_smoother(model, batch, 2, method="ffbsi")


def test_another_basis_of_another_density_is_refused():
    model, _ = build("network_counts", "transition")
    with pytest.raises(ValueError, match="Mine overrides a density of LowRankRNN"):
        model.orthonormal()
