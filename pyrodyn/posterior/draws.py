"""Draws from a model's posterior and prior for the trials of a batch."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor, nn

from pyrodyn.data.batch import Batch
from pyrodyn.infer.importance.importance_sampling import (
    log_evidence,
    pareto_smoothed,
    weighted_particles,
)
from pyrodyn.infer.importance.path_pool import path_pool
from pyrodyn.infer.kalman.kalman_smoother import exact_paths
from pyrodyn.infer.mcmc.latents import mcmc_sample
from pyrodyn.infer.smc.particle_filter import FilterResult, particle_filter
from pyrodyn.infer.smc.particle_smoother import particle_smoother
from pyrodyn.infer.smc.resampling import effective_sample_size
from pyrodyn.infer.traces import (
    PARTICLES,
    Program,
    drawn_sites,
    is_local,
    latent_sites,
    observed_sites,
    paired_traces,
    traced,
    with_particles,
)
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.observations import Joint
from pyrodyn.models.state_space import StateSpaceModel
from pyrodyn.posterior.parameter_draws import at_each_draw, concatenated, joined_values
from pyrodyn.posterior.sites import (
    Draws,
    LogDensity,
    Values,
    deterministic_sites,
    entry_log_density,
    guide_log_density,
    local_value,
    model_log_density,
    values,
)


class GuideSampler:
    """Draws from a guide, replayed by the model in one vectorised run.

    Args:
        model: the model.
        guide: the guide.

    Attributes:
        shared: the first batch's draws of sites that all trials share.
    """

    def __init__(self, model: LatentDynamics, guide: Program) -> None:
        self.model, self.guide = model, guide
        self.shared: poutine.Trace | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, num_draws: int) -> Draws:
        """Draws for the trials of a batch."""
        guide = self.guide
        if self.shared is not None:
            guide = poutine.replay(guide, trace=self.shared)
        guide_trace, model_trace = paired_traces(self.model, guide, batch, num_draws)
        if self.shared is None:
            self.shared = _shared_part(guide_trace)
        latent = latent_sites(guide_trace)
        missing = [name for name in latent_sites(model_trace) if name not in latent]
        if missing:
            raise ValueError(
                f"the guide does not draw {', '.join(map(repr, missing))} of the model, whose"
                f" latent sites are {', '.join(map(repr, latent_sites(model_trace)))}"
            )
        shape = (num_draws, batch.num_trials)
        log_q = guide_log_density(guide_trace, model_trace, shape)
        return _draws_of(self.model, batch, model_trace, latent, shape, log_q)


class SingleDraws:
    """Draws of a guide one by one, each with its own values of the parameters that have priors.

    Args:
        model: the model.
        guide: the guide.
    """

    def __init__(self, model: LatentDynamics, guide: Program) -> None:
        self.model, self.guide = model, guide
        self._samplers: list[GuideSampler] = []

    def __call__(self, batch: Batch, num_draws: int) -> Draws:
        """Draws for the trials of a batch."""
        if not self._samplers:
            self._samplers = [GuideSampler(self.model, self.guide) for _ in range(num_draws)]
        return concatenated([sampler(batch, 1) for sampler in self._samplers])


@contextlib.contextmanager
def active_dropout(model: LatentDynamics) -> Iterator[None]:
    """Inside, the dropout layers of a model are in training mode, and nothing else is."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)


@torch.no_grad()
def importance_draws(
    model: LatentDynamics, guide: Program, batch: Batch, num_draws: int, num_particles: int
) -> Draws:
    """Draws from the guide, resampled by their Pareto-smoothed importance weights given what the
    encoder may see.
    """
    try:
        sites, log_weights = weighted_particles(model, guide, batch.as_seen(), num_particles)
    except ValueError as refusal:
        raise ValueError(f"{refusal}; or take method='guide'") from refusal
    smoothed = pareto_smoothed(log_weights)
    chosen = smoothed.resampled(num_draws)
    evidence, error = log_evidence(log_weights)
    resampled = {
        name: torch.take_along_dim(value, chosen.reshape(*chosen.shape, *[1] * (value.ndim - 2)), 0)
        for name, value in sites.items()
    }
    return replayed(
        model,
        batch,
        resampled,
        {
            "pareto_k": smoothed.pareto_k,
            "distinct_draws": torch.tensor([trial.unique().numel() for trial in chosen.T]),
            "effective_sample_size": effective_sample_size(smoothed.log_weights),
            "log_evidence": evidence,
            "log_evidence_error": error,
        },
    )


@torch.no_grad()
def smoother_draws(
    model: LatentDynamics, batch: Batch, num_draws: int, num_particles: int
) -> Draws:
    """Draws of the particle smoother given what the encoder may see."""
    if not isinstance(model, StateSpaceModel):
        raise ValueError(
            f"the particle smoother needs a StateSpaceModel; {type(model).__name__} is none"
        )
    refuse_shared(model, batch)
    given = batch.as_seen()
    filtered = particle_filter(model, given, num_particles)
    method = "ffbsi" if model.path_is_markov else "ancestral"
    initial, paths = particle_smoother(model, given, num_draws, method=method, filtered=filtered)
    sites = {} if initial is None else {str(model.initial_condition_site): initial}
    if model.path_site and paths.shape[-1]:
        sites[model.path_site] = paths
    reported = {
        "log_evidence": filtered.log_evidence.sum(0),
        "log_evidence_error": filtered.log_evidence_variance.sqrt(),
        "effective_sample_size": filtered.effective_sample_size.amin(0),
        "effective_sample_size_by_bin": filtered.effective_sample_size.T,
    }
    if method == "ancestral":  # backward simulation draws initial states anew
        roots = _roots(filtered).T
        survivors = torch.tensor([trial.unique().numel() for trial in roots])
        reported["first_particles_with_descendants"] = survivors
    return replayed(model, batch, sites, reported)


@torch.no_grad()
def exact_draws(model: LatentDynamics, batch: Batch, num_draws: int) -> Draws:
    """Draws from the exact posterior of a linear-Gaussian model given what the encoder may see."""
    drawn = exact_paths(model, batch.as_seen(), num_draws)
    assert isinstance(model, StateSpaceModel)
    refuse_shared(model, batch)
    evidence = drawn.log_evidence
    return replayed(
        model,
        batch,
        {str(model.path_site): drawn.paths},
        {"log_evidence": evidence, "log_evidence_error": torch.zeros_like(evidence)},
    )


@torch.no_grad()
def pool_draws(model: LatentDynamics, batch: Batch, num_draws: int, num_particles: int) -> Draws:
    """Draws from a pool of the model's own trajectories given what the encoder may see."""
    refuse_shared(model, batch)
    pooled = path_pool(model, batch.as_seen(), num_draws, num_particles=num_particles)
    return replayed(
        model,
        batch,
        pooled.sites,
        {
            "pareto_k": pooled.pareto_k,
            "effective_sample_size": pooled.effective_sample_size,
            "log_evidence": pooled.log_evidence,
            "log_evidence_error": pooled.log_evidence_error,
        },
    )


@torch.no_grad()
def mcmc_draws(
    model: LatentDynamics,
    guide: Program,
    batch: Batch,
    num_draws: int,
    num_chains: int,
    num_warmup: int,
) -> Draws:
    """Draws of Hamiltonian Monte Carlo given what the encoder may see, one chain after another."""
    sampled = mcmc_sample(
        model, guide, batch, num_draws // num_chains, num_chains=num_chains, num_warmup=num_warmup
    )
    sites = {name: value.flatten(0, 1) for name, value in sampled.sites.items()}
    reported = {name: value for name, value in sampled._asdict().items() if name != "sites"}
    return replayed(model, batch, sites, reported)


@torch.no_grad()
def replayed(
    model: LatentDynamics,
    batch: Batch,
    sites: dict[str, Tensor],
    diagnostics: dict[str, Tensor] | None = None,
) -> Draws:
    """The model conditioned on latent sites that were drawn elsewhere.

    Args:
        model: the model.
        batch: the trials.
        sites: every latent site: a local one ``(draw, trial, *event)``, a shared one with the dims
            ``(draw, 1, *event)`` that it has under a plate over draws at dim -2.
        diagnostics: what the method reports about itself.

    Raises:
        ValueError: when the model has latent sites that are not given.
    """
    if model.priors is not None:
        _refuse([name for name in model.priors.cards if name not in sites])
        parameters = {name: sites[name][:, 0] for name in model.priors.cards}
        others = {name: value for name, value in sites.items() if name not in parameters}
        return at_each_draw(
            model,
            parameters,
            lambda at, i: replayed(at, batch, {n: v[i : i + 1] for n, v in others.items()}),
        )._replace(diagnostics=diagnostics or {})
    num_draws = len(next(iter(sites.values())))
    shape = (num_draws, batch.num_trials)
    draws = pyro.plate(PARTICLES, num_draws, dim=-2)
    trace = traced(poutine.condition(draws(model), data=sites), batch)
    _refuse(latent_sites(trace))
    return _draws_of(model, batch, trace, list(sites), shape, None, diagnostics)


@torch.no_grad()
def prior_draws(
    model: LatentDynamics, batch: Batch, num_draws: int, shared: dict[str, Tensor]
) -> tuple[Values, Tensor]:
    """Draws of every latent and deterministic site, and of ``x``, from the prior.

    Args:
        model: the model.
        batch: the trials.
        num_draws: draws per trial.
        shared: values of the sites that all trials share, as of the first batch: read, and filled
            when empty.
    """
    if model.priors is not None:
        return _prior_draws_one_by_one(model, batch, num_draws, shared)
    program = with_particles(model, num_draws)
    trace = traced(poutine.condition(program, data=shared), batch.unobserved())
    given = list(shared)
    for name in latent_sites(trace):
        if not is_local(trace.nodes[name]):
            shared[name] = trace.nodes[name]["value"]
    shape = (num_draws, batch.num_trials)
    names = [*given, *latent_sites(trace), *deterministic_sites(trace)]
    sites = values(trace, [name for name in dict.fromkeys(names) if name != "x"], shape)
    return sites, local_value("x", trace.nodes["x"], shape)


def _prior_draws_one_by_one(
    model: LatentDynamics, batch: Batch, num_draws: int, shared: dict[str, Tensor]
) -> tuple[Values, Tensor]:
    """`prior_draws` of a model whose parameters have priors."""
    assert model.priors is not None
    for name, (_, prior) in model.priors.pairs(model).items():
        if name not in shared:
            shared[name] = prior.expand(torch.Size((num_draws,))).sample()
    parameters = {name: shared[name] for name in model.priors.cards}
    parts, others = [], []
    for i in range(num_draws):
        own = {name: shared[name][i] for name in shared if name not in parameters}
        at = model.at({name: value[i] for name, value in parameters.items()})
        parts.append(prior_draws(at, batch, 1, own))
        others.append(own)
    for name in others[0]:
        shared[name] = torch.stack([own[name] for own in others])
    values, x = zip(*parts, strict=True)
    joined = joined_values(values)
    return Values(joined.local, {**parameters, **joined.shared}), torch.cat(x)


def _draws_of(
    model: LatentDynamics,
    batch: Batch,
    trace: poutine.Trace,
    latent: list[str],
    shape: tuple[int, int],
    log_q: LogDensity | None,
    diagnostics: dict[str, Tensor] | None = None,
) -> Draws:
    """The draws that a trace of the model holds."""
    sites = values(trace, [*latent, *deterministic_sites(trace)], shape)
    _check_rates(model, sites.local["rates"], batch)
    log_p = model_log_density(trace, latent, shape)
    x = trace.nodes["x"]
    return Draws(
        sites=sites,
        predictive=x["fn"].sample().expand(*shape, *x["fn"].event_shape),
        log_likelihood=_log_likelihood(model, trace, latent, shape),
        log_p=log_p,
        log_q=log_q,
        diagnostics=diagnostics or {},
        entries=functools.partial(entry_log_density, x, shape=shape),
        log_parameters={
            name: trace.nodes[name]["log_prob"].detach().expand(shape[0])
            for name in (model.priors.cards if model.priors else ())
        },
    )


def refuse_shared(model: LatentDynamics, batch: Batch) -> None:
    """Refuse sites that all trials share, for a method that draws trial by trial."""
    trace = traced(model, batch.take(slice(0, 1)).unobserved())
    _refuse([name for name in latent_sites(trace) if not is_local(trace.nodes[name])])


def _refuse(undrawn: list[str]) -> None:
    if undrawn:
        raise ValueError(
            f"this method does not draw {', '.join(map(repr, undrawn))} of the model: take"
            " method='guide', with a guide that does"
        )


def _shared_part(trace: poutine.Trace) -> poutine.Trace:
    """The sites of a guide's trace that all trials share."""
    part = poutine.Trace()
    for name in drawn_sites(trace):
        if not is_local(trace.nodes[name]):
            part.nodes[name] = trace.nodes[name]
    return part


def _check_rates(
    model: LatentDynamics, rates: Float[Tensor, "draw trial time neuron"], batch: Batch
) -> None:
    """Refuse trajectories that diverge.

    Raises:
        ArithmeticError: naming the first bin where rates are not finite, and its trial.
    """
    is_off = ~rates.isfinite().all(-1).all(0)
    if is_off.any():
        t = int(is_off.any(0).nonzero()[0])
        trial = int(batch.trial[is_off[:, t].nonzero()[0]])
        raise ArithmeticError(
            f"the rates of trial {trial} are not finite at bin {t + model.first_bin}: the dynamics"
            " diverge from where the posterior puts them (fit longer, or with a lower"
            " learning_rate; for a neural ODE also with more substeps)"
        )


def _log_likelihood(
    model: LatentDynamics, trace: poutine.Trace, latent: list[str], shape: tuple[int, int]
) -> dict[str, Tensor]:
    """Log p(x | latents): of all that is observed, of counts and signal where there are both, and
    of observed sites of a user's own.
    """
    parts = {}
    x: Mapping[str, Any] = trace.nodes["x"]
    if isinstance(model.observation, Joint):
        entries = x["fn"].base_dist.log_prob(x["value"]) * x["scale"]
        for block in model.observation.blocks:
            parts[block.x] = entries[..., block.columns].sum((-2, -1)).expand(shape)
    for name in observed_sites(trace):
        site = trace.nodes[name]
        is_factor = isinstance(site["fn"], Unit)
        if name != "x" and name not in latent and is_local(site) and not is_factor:
            parts[name] = site["log_prob"].detach().expand(shape)
    return {**parts, "x": x["log_prob"].expand(shape)}


def _roots(filtered: FilterResult) -> Tensor:
    """The initial particle from which each of the last ones descends, ``(particle, trial)``."""
    roots = filtered.ancestors[-1]
    for ancestors in filtered.ancestors[:-1].flip(0):
        roots = ancestors.gather(0, roots)
    return roots
