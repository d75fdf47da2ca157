"""Contract: the gradient of every objective, parameter by parameter, at fixed draws.

Each objective's loss is differentiated with a seed; the draws of that seed are then taken from the
guide or the filter, and the gradient is computed a second time from the definition: log p and log q
bin by bin with `torch.distributions`, and draws written as mean + F noise. Both must agree in
double precision, and `WITHOUT_GRADIENT` lists the parameters that have none.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import copies_of
from pyro import poutine
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from pyrodyn.data import Trials, recording
from pyrodyn.data.batch import Batch
from pyrodyn.distributions.kernel_density import KernelDensity
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    RWS,
    VSMC,
    Objective,
    SmoothedScore,
    particle_filter,
    particle_smoother,
)
from pyrodyn.infer.frozen import frozen
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE, RnnSAE
from pyrodyn.models.proposals import EncoderFactor, OptimalFactor
from pyrodyn.models.rollout_cache import RolloutCache
from pyrodyn.models.state_space import StateSpaceModel

SHAPE, NUM_PARTICLES = (3, 3, 3), 3
"""Trials, bins and neurons."""

SMALL_LFADS = {
    "factor_dim": 2,
    "generator_dim": 4,
    "initial_condition_dim": 2,
    "encoder_dim": 2,
    "controller_encoder_dim": 2,
    "controller_dim": 3,
}

MODELS: dict[str, tuple[type[StateSpaceModel], dict[str, Any]]] = {
    "LFADS": (LFADS, SMALL_LFADS),
    "LFADS, inferred inputs": (
        LFADS,
        {**SMALL_LFADS, "inferred_input_dim": 1, "recurrent_precision": 0.7},
    ),
    "NodeSAE": (NodeSAE, {"latent_dim": 2, "field_width": 4, "encoder_dim": 2}),
    "NodeSAE, given initial states": (
        NodeSAE,
        {"latent_dim": 2, "field_width": 4, "encoder_dim": 2, "num_initial_states": 3},
    ),
    "NodeSAE, process noise": (
        NodeSAE,
        {"latent_dim": 2, "field_width": 4, "encoder_dim": 2, "process_noise": True},
    ),
    "RnnSAE": (RnnSAE, {"latent_dim": 2, "encoder_dim": 2}),
    "RnnSAE, process noise": (
        RnnSAE,
        {"latent_dim": 2, "encoder_dim": 2, "process_noise": True},
    ),
    "LowRankRNN, encoder": (
        LowRankRNN,
        {"latent_dim": 2, "num_units": 4, "activation": "tanh", "proposal": "encoder"},
    ),
    "LowRankRNN, bootstrap": (
        LowRankRNN,
        {"latent_dim": 2, "num_units": 4, "activation": "tanh", "proposal": "bootstrap"},
    ),
    "LowRankRNN, optimal": (
        LowRankRNN,
        {
            "latent_dim": 2,
            "num_units": 4,
            "activation": "tanh",
            "noise": "full",
            "observation": "gaussian",
            "proposal": "optimal",
        },
    ),
}

OBJECTIVES: dict[str, Objective] = {
    "ELBO": ELBO(NUM_PARTICLES),
    "IWELBO iwae": IWELBO(NUM_PARTICLES),
    "IWELBO stl": IWELBO(NUM_PARTICLES, "stl"),
    "IWELBO dreg": IWELBO(NUM_PARTICLES, "dreg"),
    "RWS": RWS(NUM_PARTICLES),
    "VSMC, one particle": VSMC(1),
    "VSMC, never resampled": VSMC(NUM_PARTICLES, ess_threshold=0.0),
    "VSMC": VSMC(NUM_PARTICLES),
    "VSMC, unbiased": VSMC(NUM_PARTICLES, resampling="multinomial", gradient="unbiased"),
    "SmoothedScore": SmoothedScore(NUM_PARTICLES, num_draws=2),
}

WITHOUT_GRADIENT: dict[str, set[str]] = {
    # Without known or inferred inputs the generator reads zeros.
    "LFADS": {"generator.weight_ih_l0"},
    # Moments of a normal prior, where the prior is a density around points.
    "NodeSAE, given initial states": {"start_mean", "start_log_scale"},
}
"""Parameters without a gradient, under every objective; every other parameter has one."""


def made(name: str) -> tuple[StateSpaceModel, Batch]:
    """A tiny model with weights of order 1, and a minibatch with samples that were lost."""
    rng = np.random.default_rng(0)
    model_class, sizes = MODELS[name]
    is_signal = sizes.get("observation") == "gaussian"
    observed = rng.normal(size=SHAPE) if is_signal else rng.poisson(1.5, SHAPE)
    recorded = recording(
        **{"signal" if is_signal else "counts": observed},
        bin_width=0.02,
        inputs=rng.normal(size=(*SHAPE[:2], int(name != "LFADS"))),
        **({} if is_signal else {"valid": rng.random(SHAPE) > 0.2}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class.for_recording(recorded, **sizes)
        if isinstance(model.proposal, EncoderFactor):
            model.proposal = EncoderFactor(SHAPE[2], 2, kernels=(3, 1), num_channels=3)
        model.double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return model, Trials(recorded, dtype=torch.float64).batch().replace(weight=1.5)


# ------------------------------------------------------------------ the definition


class Chain(NamedTuple):
    """Log densities of draws, ``(bin, particle, trial)``; bin 0 is that of the initial condition.

    Attributes:
        drawn: the values, ``(particle, trial, dim)`` each.
        log_prior: log p of every value.
        log_q: log q of every value.
        log_likelihood: log p(x_t | state_t), 0 in bin 0.
        lookahead: log p(x_t | state_{t-1}) before particles are chosen; empty where not needed.
    """

    drawn: list[Tensor]
    log_prior: Tensor
    log_q: Tensor
    log_likelihood: Tensor
    lookahead: list[Tensor]

    @property
    def log_p(self) -> Tensor:
        """Log p(x, z)."""
        return (self.log_prior + self.log_likelihood).sum(0)


class Gaussian(NamedTuple):
    """N(mean, F F'), whose draws are mean + F noise.

    Attributes:
        mean: ``(particle, trial, dim)``.
        factor: F, of which there are many: which one it is belongs to a guide's definition.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, distribution: Any, shape: torch.Size) -> "Gaussian":
        """From a Gaussian of pyrodyn's or Pyro's."""
        if isinstance(distribution, Independent):
            mean = distribution.base_dist.loc
            factor = torch.diag_embed(distribution.base_dist.scale)
        else:
            mean, factor = distribution.mean, distribution.covariance.factor
        dim = mean.shape[-1]
        return cls(mean.expand(*shape, dim), factor.expand(*shape, dim, dim))

    def covariance(self) -> Tensor:
        return self.factor @ self.factor.mT

    def log_prob(self, value: Tensor) -> Tensor:
        return MultivariateNormal(self.mean, self.covariance()).log_prob(value)

    def at(self, noise: Tensor) -> Tensor:
        return self.mean + (self.factor @ noise[..., None])[..., 0]

    def noise_of(self, value: Tensor) -> Tensor:
        return torch.linalg.solve(self.factor, (value - self.mean)[..., None])[..., 0]


def chain(
    model: StateSpaceModel,
    batch: Batch,
    num_particles: int,
    choose: Callable[[int, Gaussian], Tensor],
    ancestors: Tensor | None = None,
) -> Chain:
    """Run the densities bin by bin; ``choose`` gives the value of each draw."""
    proposal, shape = model.proposal, torch.Size((num_particles, batch.num_trials))
    encoding = proposal.encode(model, batch)
    inputs, bins = model.known_inputs(batch), slice(model.first_bin, None)
    assert batch.x is not None
    x, scored = batch.x[:, bins], batch.scored[:, bins]
    zero = x.new_zeros(shape)
    drawn, log_prior, log_q, log_likelihood, lookahead = [], [], [], [zero], []
    start = state = memory = None
    if model.initial_condition_site:
        q = Gaussian.of(proposal.initial_condition(model, encoding), shape)
        start = choose(0, q)
        drawn.append(start)
        log_prior.append(prior_of_initial_condition(model, shape).log_prob(start))
        log_q.append(q.log_prob(start))
    else:
        drawn.append(zero[..., None][..., :0])
        log_prior.append(zero)
        log_q.append(zero)
    for t in range(x.shape[1]):
        if isinstance(proposal, OptimalFactor):
            prior = Gaussian.of(prior_of(model, start, state, inputs[:, t]), shape)
            emission = model.linear_emission(batch)
            C, r = emission.matrix, emission.variance
            marginal = C @ prior.covariance() @ C.mT + torch.diag(r)
            mean = prior.mean @ C.mT + emission.offset[:, t]
            lookahead.append(MultivariateNormal(mean, marginal).log_prob(x[:, t]))
        if ancestors is not None:
            start, state, memory = (
                selected(value, ancestors[t]) for value in (start, state, memory)
            )
        memory = proposal.remember(model, start if state is None else state, memory, encoding, t)
        prior = prior_of(model, start, state, inputs[:, t])
        if model.path_site:
            p = Gaussian.of(prior, shape)
            q = Gaussian.of(proposal.propose(prior, memory, encoding, t, state is None), shape)
            z = choose(t + 1, q)
            log_prior.append(p.log_prob(z))
            log_q.append(q.log_prob(z))
        else:
            z = zero[..., None][..., :0]
            log_prior.append(zero)
            log_q.append(zero)
        drawn.append(z)
        if state is None:
            state = model.initial_state(start, z, inputs[:, t])
        else:
            state = model.advance(state, z, inputs[:, t])
        entries = model.emission(state).log_prob(x[:, t])
        log_likelihood.append(torch.where(scored[:, t], entries, 0.0).sum(-1).expand(shape))
    return Chain(
        drawn,
        torch.stack(log_prior),
        torch.stack(log_q),
        torch.stack(log_likelihood),
        lookahead,
    )


def prior_of_initial_condition(model: StateSpaceModel, shape: torch.Size) -> Any:
    prior = model.initial_condition()
    if not isinstance(prior, KernelDensity):
        return Gaussian.of(prior, shape)
    points = Independent(Normal(prior.points, prior.width), 1)
    return MixtureSameFamily(Categorical(logits=torch.zeros(len(prior.points))), points)


def prior_of(model: StateSpaceModel, start: Any, state: Any, inputs: Tensor) -> Any:
    return model.initial(start, inputs) if state is None else model.transition(state, inputs)


def selected(value: Any, ancestors: Tensor) -> Any:
    """Particles replaced by their ancestors."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return type(value)(*(selected(field, ancestors) for field in value))
    if value.ndim < 3:
        return value
    return value.gather(0, ancestors[..., None].expand(*ancestors.shape, value.shape[-1]))


def fixed(values: list[Tensor]) -> Callable[[int, Gaussian], Tensor]:
    """Draws at these values."""
    return lambda t, q: values[t]


def reparameterised(
    model: StateSpaceModel, batch: Batch, values: list[Tensor], ancestors: Tensor | None = None
) -> Chain:
    """Draws that have these values, as functions of the parameters: mean + L noise."""
    noise: dict[int, Tensor] = {}

    def invert(t: int, q: Gaussian) -> Tensor:
        noise[t] = q.noise_of(values[t])
        return values[t]

    num_particles = len(values[0])
    with torch.no_grad():
        chain(model, batch, num_particles, invert, ancestors)
    return chain(model, batch, num_particles, lambda t, q: q.at(noise[t]), ancestors)


def log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def frozen_copy(model: StateSpaceModel) -> StateSpaceModel:
    return copy.deepcopy(model).requires_grad_(False)


def of_elbo(model: StateSpaceModel, batch: Batch, values: list[Tensor]) -> Tensor:
    """E[log p(x | z)] - KL, in closed form between normal initial conditions."""
    path = reparameterised(model, batch, values)
    terms = path.log_likelihood + path.log_prior - path.log_q
    bound = terms[1:].sum(0).mean(0)
    if isinstance(model.initial_condition_site and model.initial_condition(), KernelDensity):
        bound = bound + terms[0].mean(0)
    elif model.initial_condition_site:
        encoding = model.proposal.encode(model, batch)
        q = model.proposal.initial_condition(model, encoding).base_dist
        p = model.initial_condition().base_dist
        ratio = (q.scale / p.scale).square()
        kl = 0.5 * (ratio + ((q.loc - p.loc) / p.scale).square() - 1 - ratio.log())
        bound = bound - kl.sum(-1)
    return bound.sum()


def of_iwae(model: StateSpaceModel, batch: Batch, values: list[Tensor]) -> Tensor:
    """log 1/K sum_k w_k."""
    path = reparameterised(model, batch, values)
    return log_mean(path.log_p - path.log_q.sum(0)).sum()


def of_stl(model: StateSpaceModel, batch: Batch, values: list[Tensor]) -> Tensor:
    """The same with constants for the parameters of log q."""
    path = reparameterised(model, batch, values)
    q = chain(frozen_copy(model), batch, len(values[0]), fixed(path.drawn))
    return log_mean(path.log_p - q.log_q.sum(0)).sum()


def of_dreg(model: StateSpaceModel, batch: Batch, values: list[Tensor]) -> Tensor:
    """sum_k W_k dlog p(x, z_k) + W_k^2 (dlog w_k / dz_k) dz_k, Tucker et al. 2019, eq. 8."""
    leaves = [value.clone().requires_grad_() for value in values]
    at_leaves = chain(frozen_copy(model), batch, len(values[0]), fixed(leaves))
    log_w = at_leaves.log_p - at_leaves.log_q.sum(0)
    W = torch.softmax(log_w, 0).detach()
    slopes = torch.autograd.grad((W.square() * log_w).sum(), leaves, allow_unused=True)
    path = reparameterised(model, batch, values)
    moved = sum(
        (slope * z).sum() for slope, z in zip(slopes, path.drawn, strict=True) if slope is not None
    )
    return (W * chain(model, batch, len(values[0]), fixed(values)).log_p).sum() + moved


def of_rws(model: StateSpaceModel, batch: Batch, values: list[Tensor]) -> Tensor:
    """sum_k W_k (log p(x, z_k) + log q(z_k | x))."""
    at = chain(model, batch, len(values[0]), fixed(values))
    log_q = at.log_q.sum(0)
    return (torch.softmax(at.log_p - log_q, 0).detach() * (at.log_p + log_q)).sum()


DEFINITIONS = {
    "ELBO": of_elbo,
    "IWELBO iwae": of_iwae,
    "IWELBO stl": of_stl,
    "IWELBO dreg": of_dreg,
    "RWS": of_rws,
}


def of_vsmc(model: StateSpaceModel, batch: Batch, objective: VSMC, seed: int) -> Tensor:
    """sum_t log 1/K sum_k w_t^k with the ancestors of that seed held fixed, and in the unbiased
    gradient sum_t log P(ancestors_t) (log Z - log Z_{t-1}).
    """
    torch.manual_seed(seed)
    run = particle_filter(
        model,
        batch,
        objective.num_particles,
        resampling=objective.resampling,
        ess_threshold=objective.ess_threshold,
    )
    starts = run.paths[0, ..., :0] if run.starts is None else run.starts
    values = [starts, *run.paths]
    if run.starts is not None and objective.ess_threshold:  # resampled before the first bin
        assert run.resampled[0].all() or objective.num_particles == 1
    path = reparameterised(model, batch, values, run.ancestors)
    log_w = path.log_prior - path.log_q + path.log_likelihood
    if not run.resampled.any():
        return log_mean(log_w.sum(0)).sum()
    is_exact = bool(path.lookahead)
    steps, chosen_from = [], []
    for t in range(len(run.paths)):
        its = path.lookahead[t] if is_exact else log_w[t + 1]
        if t == 0 and run.starts is None:
            chosen_from.append(None)
        else:
            # By an exact proposal particles are chosen by what lies ahead of them.
            chosen_from.append(its if is_exact else log_w[t])
        steps.append(log_mean(its))
    if run.starts is not None:
        steps.insert(0, log_mean(log_w[0]))
    bound = torch.stack(steps).sum(0)
    if objective.gradient == "biased":
        return bound.sum()
    total, score = bound.detach(), torch.zeros(())
    for t, weights in enumerate(chosen_from):
        if weights is None:
            continue
        num_before = t if run.starts is None else t + 1
        before = torch.stack(steps[:num_before]).sum(0).detach()
        if run.starts is not None and t == 0:
            before = torch.zeros_like(total)  # the initial condition's weights are counted later
        log_prob = torch.log_softmax(weights, 0).gather(0, run.ancestors[t]).sum(0)
        score = score + (log_prob * (total - before)).sum()
    return bound.sum() + score


def of_smoothed_score(
    model: StateSpaceModel, batch: Batch, objective: SmoothedScore, seed: int
) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z) of smoothed paths."""
    torch.manual_seed(seed)
    filtered = particle_filter(model, batch, objective.num_particles)
    starts, paths = particle_smoother(
        model,
        batch,
        objective.num_draws,
        method="ffbsi" if model.path_is_markov else "ancestral",
        filtered=filtered,
    )
    values = [paths[..., 0, :0] if starts is None else starts, *paths.unbind(-2)]
    at = chain(model, batch, objective.num_draws, fixed(values))
    return at.log_p.mean(0).sum(), at.log_q.sum(0).mean(0).sum()


# ------------------------------------------------------------------ the contract


def gradients(value: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    return list(
        torch.autograd.grad(value, list(parameters), materialize_grads=True, retain_graph=True)
    )


def guide_draws(
    model: StateSpaceModel, batch: Batch, num_particles: int, seed: int
) -> list[Tensor]:
    """The guide's draws with a seed: that of the initial condition, then bin by bin."""
    torch.manual_seed(seed)
    particles = pyro.plate("particles", num_particles, dim=-2)
    with torch.no_grad():
        trace = poutine.trace(particles(model.guide)).get_trace(batch)
    shape = (num_particles, batch.num_trials)
    start, path = (
        torch.empty(*shape, *empty).double() if name is None else trace.nodes[name]["value"]
        for name, empty in (
            (model.initial_condition_site, (0,)),
            (model.path_site, (batch.num_bins, 0)),
        )
    )
    return [start, *path.unbind(-2)]


def defined(model: StateSpaceModel, batch: Batch, name: str, seed: int) -> list[Tensor]:
    """The gradient of the bound, from the definition."""
    objective, parameters = OBJECTIVES[name], list(model.parameters())
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    priors = gradients(
        sum(model.weight_priors().values(), torch.zeros((), requires_grad=True)), parameters
    )
    if isinstance(objective, SmoothedScore):
        log_p, log_q = of_smoothed_score(model, batch, objective, seed)
        of_p, of_q = gradients(log_p, parameters), gradients(log_q, parameters)
        # The proposal climbs log q by the parameters that the model does not have.
        found = [p if p.any() else q for p, q in zip(of_p, of_q, strict=True)]
    elif isinstance(objective, VSMC):
        found = gradients(of_vsmc(model, batch, objective, seed), parameters)
    else:
        draws = guide_draws(model, batch, objective.num_particles, seed)
        found = gradients(DEFINITIONS[name](model, batch, draws), parameters)
    return [batch.weight * each + prior for each, prior in zip(found, priors, strict=True)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model_name", MODELS)
def test_every_parameter_has_the_gradient_of_the_definition(model_name, objective):
    model, batch = made(model_name)
    without = WITHOUT_GRADIENT.get(model_name, set())
    named = dict(model.named_parameters())
    named = {name: named[name] for name in named if named[name].requires_grad}
    assert set(dict(model.named_parameters())) - set(named) <= without
    torch.manual_seed(5)
    loss = OBJECTIVES[objective](model, model.guide)(batch)
    found = dict(zip(named, gradients(-loss, named.values()), strict=True))
    expected = dict(zip(named, defined(model, batch, objective, seed=5), strict=True))
    for name, gradient in found.items():
        scale = max(1.0, float(expected[name].abs().max())) if gradient.numel() else 1.0
        torch.testing.assert_close(
            gradient,
            expected[name],
            rtol=0,
            atol=1e-6 * scale,
            msg=lambda text, n=name: f"{n}: {text}",
        )
        assert not gradient.numel() or gradient.any() == (name not in without), name


# ------------------------------------------------------------------ unbiased in expectation


@pytest.mark.parametrize(
    ("gradient", "num_particles"),
    [("dreg", 4), ("stl", 1)],  # that of more particles is biased, see its documentation
    ids=["dreg", "stl"],
)
@pytest.mark.parametrize(
    ("model_name", "num_seeds"),
    [  # enough to see half of the bias that scores with the parameters of q have
        pytest.param("LowRankRNN, encoder", 150, marks=pytest.mark.slow),
        ("LFADS, inferred inputs", 20),
    ],
)
def test_estimators_without_the_score_of_q_are_unbiased(
    model_name, num_seeds, gradient, num_particles
):
    model, batch = made(model_name)
    batch = copies_of(batch, 60)  # independent draws side by side
    parameters = [p for p in model.parameters() if p.requires_grad and p.numel()]

    def flat(objective: Objective, seed: int) -> Tensor:
        torch.manual_seed(seed)
        loss = objective(model, model.guide)(batch)
        return torch.cat([part.flatten() for part in gradients(loss, parameters)])

    plain, other = IWELBO(num_particles), IWELBO(num_particles, gradient)
    differences = torch.stack([flat(other, seed) - flat(plain, seed) for seed in range(num_seeds)])
    z = differences.mean(0) / (differences.std(0) / len(differences) ** 0.5 + 1e-9)
    assert z.abs().max() < 5, z
    assert (differences.std(0) > 1e-6).any()  # they are two estimators


# ------------------------------------------------------------------ nothing cached without a graph


def test_values_cached_without_a_gradient_are_not_used_where_one_is_wanted():
    model, batch = made("LowRankRNN, encoder")
    with model.hoisting():
        with torch.no_grad():
            model.decay()
        assert model.decay().requires_grad
        with torch.no_grad():
            assert not model.decay().requires_grad
    encoding = model.proposal.encode(model, batch)
    with torch.no_grad():
        encoding.at(0, is_first=False)
    assert encoding.at(0, is_first=False).shift.requires_grad


@pytest.mark.parametrize(
    "model_name", ["LowRankRNN, encoder", "NodeSAE, process noise", "LFADS, inferred inputs"]
)
def test_a_path_drawn_without_a_gradient_is_scored_with_one(model_name):
    model, batch = made(model_name)
    q = poutine.trace(model.guide).get_trace(batch).nodes[model.path_site]["fn"]
    with torch.no_grad():
        path = q.rsample()
        unrecorded = q.log_prob(path)
    log_q = q.log_prob(path)
    assert log_q.requires_grad and not unrecorded.requires_grad
    torch.testing.assert_close(log_q.detach(), unrecorded)


def test_a_rollout_of_frozen_weights_is_not_used_for_thawed_ones():
    weight, drawn, inputs = torch.ones(2, requires_grad=True), torch.ones(3), torch.ones(1, 1, 1)
    with_gradient = torch.ones(3, requires_grad=True) * drawn
    cache = RolloutCache()
    with frozen([weight]):
        cache.keep(with_gradient, (drawn,), inputs, [weight])
        assert cache.take((drawn,), inputs, [weight]) is with_gradient
        cache.keep(with_gradient, (drawn,), inputs, [weight])
    assert cache.take((drawn,), inputs, [weight]) is None
