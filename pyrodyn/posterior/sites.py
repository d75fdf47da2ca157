"""What traces of a model and a guide hold: values and log densities of sites, per draw and trial.

A site inside the plate over trials is local, every other one is shared by all trials. Values of
local sites are ``(draw, trial, *event)``, those of shared sites ``(draw, *event)``, where a plate
of the user's own counts as an event dim.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyrodyn.data.schema import Block
from pyrodyn.infer.traces import (
    drawn_sites,
    is_local,
    joint_sites,
    observed_sites,
    point_sites,
)
from pyrodyn.models.latent_dynamics import LatentDynamics


class LogDensity(NamedTuple):
    """Log density of some sites of a trace.

    Attributes:
        local: that of the local sites, ``(draw, trial)``.
        shared: that of the shared sites, ``(draw,)``; None if there are none.
    """

    local: Tensor
    shared: Tensor | None


class Values(NamedTuple):
    """Values of some sites of a trace by name.

    Attributes:
        local: ``(draw, trial, *event)``.
        shared: ``(draw, *event)``.
    """

    local: dict[str, Tensor]
    shared: dict[str, Tensor]


class Draws(NamedTuple):
    """Draws of a posterior.

    Attributes:
        sites: latent and deterministic sites, local and shared.
        predictive: ``x`` drawn from the observation model, ``(draw, trial, time, neuron)``.
        log_likelihood: ``x``, log p(x | latents) over scored entries, ``(draw, trial)``; where
            counts and a signal are observed, also that of each, and that of every observed site of
            a user's own.
        log_p: log p(x, latents).
        log_q: log q(latents | x); None for draws that were not made by a guide with a density.
        diagnostics: what the method reports about itself, ``(trial,)`` or ``(trial, time)``.
        entries: log p(x | latents) of every entry, given which were measured, ``(draw, trial, time,
            neuron)``.
        log_parameters: log density of each parameter with a prior, ``(draw,)``; part of log_p.
    """

    sites: Values
    predictive: Tensor
    log_likelihood: dict[str, Tensor]
    log_p: LogDensity
    log_q: LogDensity | None
    diagnostics: dict[str, Tensor]
    entries: Callable[[Tensor], Tensor]
    log_parameters: dict[str, Tensor]


def values(trace: poutine.Trace, names: list[str], shape: tuple[int, int]) -> Values:
    """Detached values of sites, with the dims of draws and trials made explicit.

    Raises:
        ValueError: for a deterministic site whose event dims are unknown.
    """
    found = Values({}, {})
    for name in names:
        site = trace.nodes[name]
        if is_local(site):
            found.local[name] = local_value(name, site, shape)
        else:
            found.shared[name] = _shared_value(site, shape[0])
    return found


def local_value(name: str, site: Mapping[str, Any], shape: tuple[int, int]) -> Tensor:
    """A local site's value: a single draw comes without its dim, and `pyro.deterministic` takes all
    dims for event dims unless it is given ``event_dim``.
    """
    value: Tensor = site["value"].detach()
    event_dim = site["fn"].event_dim
    if _is_deterministic(site) and event_dim == value.ndim:
        batch_dim = next((d for d in (2, 1) if value.shape[:d] == shape[-d:]), None)
        if batch_dim is None:
            raise ValueError(
                f"the deterministic site {name!r} lies in the plate over trials and has the shape"
                f" {tuple(value.shape)}: give pyro.deterministic its event_dim"
            )
        event_dim = value.ndim - batch_dim
    return value.expand(*shape, *value.shape[value.ndim - event_dim :])


def _shared_value(site: Mapping[str, Any], num_draws: int) -> Tensor:
    value: Tensor = site["value"].detach()
    event_dim = site["fn"].event_dim
    if _is_deterministic(site) and value.shape[:2] == (num_draws, 1):
        event_dim = min(event_dim, value.ndim - 2)
    batch = value.shape[: value.ndim - event_dim]
    if len(batch) == 2 and batch[1] == 1:
        # The plate over draws at dim -2 leaves a dim of size 1 in the place of the trials.
        value = value.squeeze(1)
    elif len(batch) < 2:
        value = value[None]
    return value.expand(num_draws, *value.shape[1:])


def model_log_density(
    trace: poutine.Trace, latent: list[str], shape: tuple[int, int]
) -> LogDensity:
    """Log p(x, latents), without the factors by which a model weights its parameters."""
    observed = [
        name for name in observed_sites(trace) if name not in latent and is_local(trace.nodes[name])
    ]
    return _log_density(trace, [*latent, *observed], shape)


def guide_log_density(
    guide_trace: poutine.Trace, model_trace: poutine.Trace, shape: tuple[int, int]
) -> LogDensity | None:
    """Log q(latents | x): None for a point estimate, which has no density, and NaN for a guide that
    draws the local sites of all trials jointly, which has none per trial.
    """
    names = drawn_sites(guide_trace)
    if point_sites(guide_trace) == names:
        return None
    if joint_sites(guide_trace, model_trace):
        return LogDensity(torch.full(shape, torch.nan), None)
    return _log_density(guide_trace, [*names, *observed_sites(guide_trace)], shape)


def _log_density(trace: poutine.Trace, names: list[str], shape: tuple[int, int]) -> LogDensity:
    trace.compute_log_prob()
    local = torch.zeros(shape)
    shared = None
    for name in names:
        term: Tensor = trace.nodes[name]["log_prob"].detach()
        if is_local(trace.nodes[name]):
            local = local.to(term) + term
        else:
            term = term.expand(shape[0], *(term.shape[-1:] or (1,))).sum(-1)
            shared = term if shared is None else shared + term
    return LogDensity(local.expand(shape), shared)


def entry_log_density(site: Mapping[str, Any], scored: Tensor, shape: tuple[int, int]) -> Tensor:
    """Log density of every entry of the site ``x``, ``(draw, trial, time, neuron)``, NaN where
    nothing was measured.

    Args:
        site: of a trace of the model.
        scored: which entries were measured, ``(trial, time, neuron)``.
        shape: number of draws and trials.

    Raises:
        ValueError: for an observation model whose entries are not independent given the latents.
    """
    event = site["value"].shape[-2:]
    base = getattr(site["fn"], "base_dist", None)
    if base is None or tuple(base.batch_shape[-2:]) != tuple(event):
        raise ValueError(
            f"the entries of x are not independent in this {type(site['fn']).__name__}, so that"
            " they have no log likelihoods of their own; take log_likelihood='trial'"
        )
    entries: Tensor = (base.log_prob(site["value"]) * site["scale"]).detach()
    return entries.expand(*shape, *event).masked_fill(~scored, torch.nan)


def deterministic_sites(trace: poutine.Trace) -> list[str]:
    """Names of the deterministic sites of a trace."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and _is_deterministic(site)
    ]


def event_dims(model: LatentDynamics, site: str, num_dims: int) -> tuple[str, ...]:
    """Names of the event dims of a site, or of a parameter with a prior: the model's, or ArviZ's
    default for those that it does not name.
    """
    dims = {**model.parameter_dims(), **model.site_dims}.get(site)
    if dims is not None and len(dims) == num_dims:
        return dims
    return tuple(f"{variable_name(site)}_dim_{i}" for i in range(num_dims))


def variable_name(site: str) -> str:
    """The name of a site as a variable: a slash separates groups in a DataTree."""
    return site.replace("/", "_")


def by_block[Array: (Tensor, NDArray[Any])](
    site: str, dims: tuple[str, ...], values: Array, observed: tuple[Block, ...]
) -> Iterator[tuple[str, tuple[str, ...], Array]]:
    """A site as the variables that a user knows it by: name, event dims and values of each.

    Sites along neurons are split where counts and a signal are observed; other sites stay whole.
    """
    if dims[-1:] != ("neuron",) or site not in ("x", "rates"):
        units = {"neuron": observed[0].unit}  # a parameter per channel of a signal, say
        yield variable_name(site), tuple(units.get(dim, dim) for dim in dims), values
        return
    for block in observed:
        name = {"x": block.x, "rates": block.rates}[site]
        yield name, (*dims[:-1], block.unit), values[..., block.columns]


def _is_deterministic(site: Mapping[str, Any]) -> bool:
    return bool(site["infer"].get("_deterministic", False))
