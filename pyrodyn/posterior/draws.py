"""Draws from a model's posterior and prior for some trials, every array ``(draw, trial,
*event)``.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import Block
from pyrodyn.infer.importance.importance_sampling import log_evidence, pareto_smoothed
from pyrodyn.infer.importance.path_pool import path_pool
from pyrodyn.infer.smc.particle_filter import FilterResult, particle_filter
from pyrodyn.infer.smc.particle_smoother import particle_smoother
from pyrodyn.infer.smc.resampling import effective_sample_size
from pyrodyn.infer.traces import Program, drawn_sites, latent_sites, paired_traces
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.observations import Joint
from pyrodyn.models.state_space import StateSpaceModel


class Draws(NamedTuple):
    """Draws of a posterior.

    Attributes:
        sites: latent and deterministic sites by name, ``(draw, trial, *event)``.
        predictive: ``x`` drawn from the observation model.
        log_likelihood: ``x``, log p(x | latents) over scored entries, ``(draw, trial)``; where
            counts and a signal are observed, also that of either.
        log_p: log p(x, latents), ``(draw, trial)``.
        log_q: log q(latents | x), ``(draw, trial)``; NaN for a guide that draws all trials jointly
            and so has no density per trial, None for draws that no guide made.
        diagnostics: what the method tells of itself, ``(trial,)`` or ``(trial, time)``.
    """

    sites: dict[str, Tensor]
    predictive: Tensor
    log_likelihood: dict[str, Tensor]
    log_p: Tensor
    log_q: Tensor | None
    diagnostics: dict[str, Tensor]


METHODS = ("guide", "importance", "smoother", "pool")


def drawing_by(
    method: str, model: LatentDynamics, guide: Program | None, num_particles: int
) -> Callable[[Batch, int], Draws]:
    """How draws for the trials of a batch are made, so many of each.

    Raises:
        ValueError: for an unknown method, or too few particles.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; it is one of {', '.join(METHODS)}")
    check_integer(2, num_particles=num_particles)

    def draw(batch: Batch, num_draws: int) -> Draws:
        match method:
            case "guide":
                return posterior_draws(model, guide or model.guide, batch, num_draws)
            case "importance":
                return importance_draws(
                    model, guide or model.guide, batch, num_draws, num_particles
                )
            case "smoother":
                return smoother_draws(model, batch, num_draws, num_particles)
            case _:
                return pool_draws(model, batch, num_draws, num_particles)

    return draw


@torch.no_grad()
def posterior_draws(model: LatentDynamics, guide: Program, batch: Batch, num_draws: int) -> Draws:
    """Draw from the guide and replay the model, all draws in one vectorised run."""
    guide_trace, model_trace = paired_traces(model, guide, batch, num_draws)
    shape = (num_draws, batch.num_trials)
    return _of_trace(
        model,
        batch,
        model_trace,
        latent_sites(guide_trace),
        shape,
        log_q=_log_prob(guide_trace, drawn_sites(guide_trace), shape),
    )


@torch.no_grad()
def importance_draws(
    model: LatentDynamics, guide: Program, batch: Batch, num_draws: int, num_particles: int
) -> Draws:
    """Draw more from the guide and keep draws by their Pareto-smoothed weights, which count what
    the encoder may see.
    """
    guide_trace, model_trace = paired_traces(model, guide, batch.as_seen(), num_particles)
    shape = (num_particles, batch.num_trials)
    _check_rates(model, _value(model_trace.nodes["rates"], shape), batch)
    log_q = _log_prob(guide_trace, drawn_sites(guide_trace), shape)
    if log_q.isnan().any():
        raise ValueError(
            "this guide draws all trials jointly, so no trial has importance weights of its own"
        )
    latent = latent_sites(guide_trace)
    log_weights = _log_prob(model_trace, [*latent, "x"], shape) - log_q
    smoothed = pareto_smoothed(log_weights)
    chosen = smoothed.resampled(num_draws)
    evidence, error = log_evidence(log_weights)

    def kept(values: Tensor) -> Tensor:
        return torch.take_along_dim(
            values, chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2)), 0
        )

    return _replayed(
        model,
        batch,
        {name: kept(_value(model_trace.nodes[name], shape)) for name in latent},
        log_q=kept(log_q),
        diagnostics={
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
    """Draw paths by the particle smoother, given what the encoder may see, and replay the model on
    them.
    """
    if not isinstance(model, StateSpaceModel):
        raise ValueError(
            f"the particle smoother needs a StateSpaceModel; {type(model).__name__} is none"
        )
    given = batch.as_seen()
    filtered = particle_filter(model, given, num_particles)
    method = "ffbsi" if model.path_is_markov else "ancestral"
    starts, paths = particle_smoother(model, given, num_draws, method=method, filtered=filtered)
    values = {} if starts is None else {str(model.initial_condition_site): starts}
    if model.path_site and paths.shape[-1]:
        values[model.path_site] = paths
    eves = _eves(filtered).T
    num_first = torch.tensor([trial.unique().numel() for trial in eves])
    return _replayed(
        model,
        batch,
        values,
        log_q=None,
        diagnostics={
            "log_evidence": filtered.log_evidence.sum(0),
            "log_evidence_error": filtered.log_evidence_variance.sqrt(),
            "effective_sample_size_by_bin": filtered.effective_sample_size.T,
            "first_particles_with_descendants": num_first,
        },
    )


@torch.no_grad()
def pool_draws(model: LatentDynamics, batch: Batch, num_draws: int, num_particles: int) -> Draws:
    """Draw paths from a pool of the model's own, given what the encoder may see, and replay the
    model on them.
    """
    pooled = path_pool(model, batch.as_seen(), num_draws, num_particles=num_particles)
    return _replayed(
        model,
        batch,
        pooled.sites,
        log_q=None,
        diagnostics={
            "pareto_k": pooled.pareto_k,
            "effective_sample_size": pooled.effective_sample_size,
            "log_evidence": pooled.log_evidence,
            "log_evidence_error": pooled.log_evidence_error,
        },
    )


def _replayed(
    model: LatentDynamics,
    batch: Batch,
    latents: dict[str, Tensor],
    *,
    log_q: Tensor | None,
    diagnostics: dict[str, Tensor],
) -> Draws:
    """The model on latents ``(draw, trial, *event)`` that were drawn elsewhere."""
    num_draws = len(next(iter(latents.values())))
    particles = pyro.plate("particles", num_draws, dim=-2)
    trace = poutine.trace(particles(poutine.condition(model, data=latents))).get_trace(batch)
    shape = (num_draws, batch.num_trials)
    return _of_trace(model, batch, trace, list(latents), shape, log_q, diagnostics)


def _of_trace(
    model: LatentDynamics,
    batch: Batch,
    trace: poutine.Trace,
    latent: list[str],
    shape: tuple[int, int],
    log_q: Tensor | None,
    diagnostics: dict[str, Tensor] | None = None,
) -> Draws:
    """What a trace of the model says of its latents."""
    _check_rates(model, _value(trace.nodes["rates"], shape), batch)
    log_p = _log_prob(trace, [*latent, "x"], shape)
    x = trace.nodes["x"]
    sites = [*latent, *_deterministic_sites(trace)]
    return Draws(
        sites={name: _value(trace.nodes[name], shape) for name in sites},
        predictive=x["fn"].sample().expand(*shape, *x["fn"].event_shape),
        log_likelihood=_log_likelihood(model, x, shape),
        log_p=log_p,
        log_q=log_q,
        diagnostics=diagnostics or {},
    )


def _log_prob(trace: poutine.Trace, names: list[str], shape: tuple[int, int]) -> Tensor:
    """Of some sites together, per draw and trial; NaN where one has no density per trial."""
    trace.compute_log_prob()
    terms = [trace.nodes[name]["log_prob"] for name in names]
    if any(term.shape[-1:] != shape[-1:] for term in terms):
        return torch.full(shape, torch.nan)
    return torch.stack([term.expand(shape) for term in terms]).sum(0)


def by_block[Array: (Tensor, NDArray[Any])](
    site: str, dims: tuple[str, ...], values: Array, observed: tuple[Block, ...]
) -> Iterator[tuple[str, tuple[str, ...], Array]]:
    """A site as the variables that a user knows it by: name, event dims and values of each.

    What lies along neurons is parted where counts and a signal are observed; the rest stays whole.
    """
    if dims[-1:] != ("neuron",):
        yield site, dims, values
        return
    for block in observed:
        name = {"x": block.x, "rates": block.rates}[site]
        yield name, (*dims[:-1], block.unit), values[..., block.columns]


def _check_rates(
    model: LatentDynamics, rates: Float[Tensor, "draw trial time neuron"], batch: Batch
) -> None:
    """Refuse paths that have run off.

    Raises:
        ArithmeticError: naming the first bin where rates are not finite, and its trial.
    """
    is_off = ~rates.isfinite().all(-1).all(0)
    if is_off.any():
        t = int(is_off.any(0).nonzero()[0])
        trial = int(batch.trial[is_off[:, t].nonzero()[0]])
        raise ArithmeticError(
            f"the rates of trial {trial} are not finite at bin {t + model.first_bin}: the dynamics"
            " run off to infinity from where the posterior puts them (fit longer, or with a lower"
            " learning_rate; for a neural ODE also with more substeps)"
        )


def _log_likelihood(
    model: LatentDynamics, x: Mapping[str, Any], shape: tuple[int, int]
) -> dict[str, Tensor]:
    """Log p(x | latents) from the site x, in all and of either where counts and a signal are
    observed.
    """
    parts = {}
    if isinstance(model.observation, Joint):
        entries = x["fn"].base_dist.log_prob(x["value"]) * x["scale"]
        for block in model.observation.blocks:
            parts[block.x] = entries[..., block.columns].sum((-2, -1)).expand(shape)
    return {**parts, "x": x["log_prob"].expand(shape)}


def _eves(filtered: FilterResult) -> Tensor:
    """Which of the first particles the last ones descend from, ``(particle, trial)``."""
    eves = filtered.ancestors[-1]
    for ancestors in filtered.ancestors[:-1].flip(0):
        eves = ancestors.gather(0, eves)
    return eves


@torch.no_grad()
def prior_draws(model: LatentDynamics, batch: Batch, num_draws: int) -> dict[str, Tensor]:
    """Draw every site of the model, ``x`` included, from the prior."""
    particles = pyro.plate("particles", num_draws, dim=-2)
    trace = poutine.trace(particles(model)).get_trace(batch.unobserved())
    sites = [*latent_sites(trace), *_deterministic_sites(trace)]
    return {name: _value(trace.nodes[name], (num_draws, batch.num_trials)) for name in sites}


def _deterministic_sites(trace: poutine.Trace) -> list[str]:
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["infer"].get("_deterministic", False)
    ]


def _value(site: Mapping[str, Any], shape: tuple[int, int]) -> Tensor:
    """A site's value with draw and trial dims made explicit: a single draw comes without the
    former.
    """
    value: Tensor = site["value"]
    event_shape = value.shape[value.ndim - site["fn"].event_dim :]
    return value.expand(*shape, *event_shape)
