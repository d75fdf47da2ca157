"""Traces of model and guide, and which of their sites are what."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoCallable, AutoGuide
from pyro.poutine.guide import GuideMessenger
from torch import nn

from pyrodyn.data.batch import Batch

Program = Callable[[Batch], Any]
"""A model or a guide."""


def module_of(program: Program) -> nn.Module | None:
    """The module whose parameters a program has: itself, or the one that it is a method of."""
    owner = getattr(program, "__self__", program)
    return owner if isinstance(owner, nn.Module) else None


def runs_the_model(guide: Program) -> bool:
    """Whether a guide is one of Pyro's that run the model themselves, to learn its sites."""
    automatic = (AutoGuide, GuideMessenger, EasyGuide)
    return isinstance(guide, automatic) and not isinstance(guide, AutoCallable)


def guide_program(guide: Program) -> Program:
    """A guide as objectives and posteriors run it.

    It is given no observations but those that the encoder may see, ``batch.seen``: held-out
    neurons must not inform their own prediction. Guides of Pyro that run the model itself are
    given them, for the model needs them, and of those that replay the whole model only what they
    draw counts as theirs.
    """
    if isinstance(guide, GuideMessenger):
        program: Program = poutine.block(guide, hide_fn=_is_observation)
        return program
    if runs_the_model(guide):
        return guide
    return lambda batch: guide(batch.unobserved())


def _is_observation(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and bool(site["is_observed"])


def paired_traces(
    model: Program, guide: Program, batch: Batch, num_particles: int
) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of the guide and of the model replayed on its draws; particles are plate dim -2."""
    guide = guide_program(guide)
    if num_particles > 1:
        particles = pyro.plate("particles", num_particles, dim=-2)
        model, guide = particles(model), particles(guide)
    guide_trace = poutine.trace(guide).get_trace(batch)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
    return guide_trace, model_trace


def latent_sites(guide_trace: poutine.Trace) -> list[str]:
    """Names of the model's latent sites that a guide drew."""
    return [
        name
        for name in drawn_sites(guide_trace)
        if not guide_trace.nodes[name]["infer"].get("is_auxiliary", False)
    ]


def is_plate(site: Mapping[str, Any]) -> bool:
    """Whether a trace's site is a plate's subsample."""
    return type(site["fn"]).__name__ == "_Subsample"


def is_local(site: Mapping[str, Any]) -> bool:
    """Whether a trace's site lies in a plate at dim -1, the trials."""
    return any(frame.dim == -1 for frame in site["cond_indep_stack"])


def drawn_sites(trace: poutine.Trace) -> list[str]:
    """Names of the sites that a trace drew, an automatic guide's auxiliary ones included."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not is_plate(site)
    ]


def observed_sites(trace: poutine.Trace) -> list[str]:
    """Observations and factors."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site["is_observed"]
        and not site["infer"].get("_deterministic", False)
    ]
