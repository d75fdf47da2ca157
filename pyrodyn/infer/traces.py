"""Traces of a model and its guide, and the roles of their sites.

A site is local if it lies in the plate over trials, which is known by its name, `TRIALS`; any other
site is shared by all trials. A guide may draw auxiliary sites, from which it makes the
model's latent sites (as Pyro's automatic guides do).
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import Delta
from pyro.infer.autoguide import AutoCallable, AutoGuide
from pyro.poutine.guide import GuideMessenger
from torch import nn

from pyrodyn.data.batch import Batch
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.priors import Priors
from pyrodyn.models.rollout_cache import constant_weights

Program = Callable[[Batch], Any]
"""A model or a guide."""

TRIALS = "trials"
"""Name of the plate over trials, at dim -1 of every model and guide."""

PARTICLES = "particles"
"""Name of the plate over draws at dim -2, in which programs are run for several draws at once."""


def module_of(program: Program) -> nn.Module | None:
    """The module whose parameters a program has: itself, or the one that it is a method of."""
    owner = getattr(program, "__self__", program)
    return owner if isinstance(owner, nn.Module) else None


def priors_of(model: Program) -> Priors | None:
    """The priors on parameters of a model; None for a model without, or another program."""
    owner = module_of(model)
    return owner.priors if isinstance(owner, LatentDynamics) else None


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
        tied = vars(guide).get("recorded_trials")  # of a guide that a fit has prepared
        return program if tied is None else lambda batch: tied.checked(batch) and program(batch)
    if runs_the_model(guide):
        return guide
    return lambda batch: guide(batch.unobserved())


def _is_observation(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and bool(site["is_observed"])


def traced(program: Program, batch: Batch) -> poutine.Trace:
    """The trace of one run, in which parameters belong to their modules."""
    with local_parameters():
        return poutine.trace(program).get_trace(batch)


def paired_traces(
    model: Program, guide: Program, batch: Batch, num_particles: int
) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of the guide and of the model replayed on its draws; particles are plate dim -2."""
    model = with_particles(model, num_particles)
    with constant_weights():
        guide_trace = traced(with_particles(guide_program(guide), num_particles), batch)
        return guide_trace, traced(poutine.replay(model, trace=guide_trace), batch)


def with_particles(program: Program, num_particles: int) -> Program:
    """A program that draws each local site so many times at once, by a plate at dim -2."""
    if num_particles == 1:
        return program
    several: Program = pyro.plate(PARTICLES, num_particles, dim=-2)(program)
    return several


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
    """Whether a trace's site lies in the plate over trials."""
    return any(frame.name == TRIALS for frame in site["cond_indep_stack"])


def drawn_sites(trace: poutine.Trace) -> list[str]:
    """Names of the sites that a trace drew, auxiliary ones of a guide included."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not is_plate(site)
    ]


def observed_sites(trace: poutine.Trace) -> list[str]:
    """Names of observations and factors."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site["is_observed"]
        and not site["infer"].get("_deterministic", False)
    ]


def joint_sites(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> list[str]:
    """Names of the guide's sites that draw several trials at once, so that no trial has a density
    of its own: latent sites outside the plate over trials in which the model draws them, and
    auxiliary sites outside it, unless they have no more dims than the latent sites that all trials
    share and so may stand for these.
    """
    latent, sites = latent_sites(guide_trace), guide_trace.nodes
    without_plate = [
        name for name in latent if is_local(model_trace.nodes[name]) and not is_local(sites[name])
    ]
    shared = [name for name in latent if not is_local(model_trace.nodes[name])]
    auxiliary = [
        name
        for name in drawn_sites(guide_trace)
        if name not in latent and not is_local(sites[name])
    ]
    num_auxiliary, num_shared = (
        sum(sites[name]["value"].numel() for name in names) for names in (auxiliary, shared)
    )
    return [*without_plate, *(auxiliary if num_auxiliary > num_shared else [])]


def not_reparameterised(guide_trace: poutine.Trace) -> list[str]:
    """Names of drawn sites through which no gradient flows although their density depends on
    parameters that are trained.
    """
    sites = ((name, guide_trace.nodes[name]) for name in drawn_sites(guide_trace))
    return [
        name
        for name, site in sites
        if not site["fn"].has_rsample and site["fn"].log_prob(site["value"].detach()).requires_grad
    ]


def point_sites(guide_trace: poutine.Trace) -> list[str]:
    """Names of the drawn sites that a guide puts on one point, by a Delta without any auxiliary
    draw behind it (`AutoDelta` does): such a guide is a point estimate and its objective no bound.
    """
    sites = {name: guide_trace.nodes[name] for name in drawn_sites(guide_trace)}
    points = [name for name, site in sites.items() if _is_point(site["fn"])]
    latent = latent_sites(guide_trace)
    has_density = any(name not in latent and name not in points for name in sites)
    return [] if has_density else points


def _is_point(distribution: Any) -> bool:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, Delta)
