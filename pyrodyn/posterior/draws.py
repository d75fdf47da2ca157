"""Draws from a model's posterior and prior for some trials, every array ``(draw, trial,
*event)``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.traces import Program, drawn_sites, latent_sites, paired_traces
from pyrodyn.models.base import LatentDynamics


class Draws(NamedTuple):
    """Draws of a posterior.

    Attributes:
        sites: latent and deterministic sites by name, ``(draw, trial, *event)``.
        predictive: ``x`` drawn from the observation model.
        log_likelihood: log p(x | latents) over scored entries, ``(draw, trial)``.
        log_p: log p(x, latents), ``(draw, trial)``.
        log_q: log q(latents | x), ``(draw, trial)``; NaN for a guide that draws all trials jointly
            and so has no density per trial.
    """

    sites: dict[str, Tensor]
    predictive: Tensor
    log_likelihood: Tensor
    log_p: Tensor
    log_q: Tensor


@torch.no_grad()
def posterior_draws(model: LatentDynamics, guide: Program, batch: Batch, num_draws: int) -> Draws:
    """Draw from the guide and replay the model, all draws in one vectorised run."""
    guide_trace, model_trace = paired_traces(model, guide, batch, num_draws)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    shape = (num_draws, batch.num_trials)
    latent = latent_sites(guide_trace)

    def total(trace: poutine.Trace, names: list[str]) -> Tensor:
        terms = [trace.nodes[name]["log_prob"] for name in names]
        if any(term.shape[-1:] != shape[-1:] for term in terms):
            return torch.full(shape, torch.nan)
        return torch.stack([term.expand(shape) for term in terms]).sum(0)

    x = model_trace.nodes["x"]
    sites = [*latent, *_deterministic_sites(model_trace)]
    return Draws(
        sites={name: _value(model_trace.nodes[name], shape) for name in sites},
        predictive=x["fn"].sample(),
        log_likelihood=x["log_prob"].expand(shape),
        log_p=total(model_trace, [*latent, "x"]),
        log_q=total(guide_trace, drawn_sites(guide_trace)),
    )


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
