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
from pyro.infer.autoguide import AutoCallable, AutoGuide
from pyro.poutine.guide import GuideMessenger
from torch import nn

from pyrodyn.data.batch import Batch
from pyrodyn.models.parameters import local_parameters

Program = Callable[[Batch], Any]
"""A model or a guide."""

TRIALS = "trials"
"""Name of the plate over trials, at dim -1 of every model and guide."""


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
    guide = guide_program(guide)
    if num_particles > 1:
        particles = pyro.plate("particles", num_particles, dim=-2)
        model, guide = particles(model), particles(guide)
    guide_trace = traced(guide, batch)
    model_trace = traced(poutine.replay(model, trace=guide_trace), batch)
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


def check_sites(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Refuse a guide whose latent sites do not fit the model's.

    Args:
        guide_trace: a run of the guide.
        model_trace: the model, replayed on it.

    Raises:
        ValueError: naming the first such site.
    """
    for trace in (model_trace, guide_trace):
        for name in [*drawn_sites(trace), *observed_sites(trace)]:
            for frame in trace.nodes[name]["cond_indep_stack"]:
                if frame.name == TRIALS and frame.dim != -1:
                    raise ValueError(
                        f"the plate {TRIALS!r} lies at dim {frame.dim} of site {name!r}; it must"
                        " lie at dim=-1"
                    )
    for name in latent_sites(guide_trace):
        if name not in model_trace:
            known = ", ".join(latent_sites(model_trace))
            raise ValueError(
                f"the guide draws {name!r}, which is no site of this model; its latent sites are"
                f" {known}"
            )
        q, p = guide_trace.nodes[name], model_trace.nodes[name]
        shapes = [tuple(site["fn"].event_shape) for site in (q, p)]
        plates = [frame.name for frame in q["cond_indep_stack"] if frame.dim == -1]
        if is_local(p) and not is_local(q) and plates:
            raise ValueError(
                f"the guide draws {name!r} in the plate {plates[0]!r}, the model in {TRIALS!r}, and"
                " the plate over trials is known by its name: take"
                f" pyro.plate({TRIALS!r}, batch.num_trials, dim=-1) in the guide"
            )
        if is_local(q) and not is_local(p):
            raise ValueError(
                f"the guide draws {name!r} inside the plate {TRIALS!r}, but the model has one value"
                " for all trials: draw it outside the plate"
            )
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the guide draws {name!r} with event shape {shapes[0]}, the model with"
                f" {shapes[1]}: draw every trial by itself with the model's event shape"
            )


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


def check_reparameterised(guide_trace: poutine.Trace, objective: str) -> None:
    """Refuse draws that would need the score of q; under ``no_grad`` none does.

    Raises:
        ValueError: naming the site.
    """
    names = not_reparameterised(guide_trace)
    if names:
        family = type(guide_trace.nodes[names[0]]["fn"]).__name__
        raise ValueError(
            f"the guide's draws of {names[0]!r} ({family}) are not reparameterised (has_rsample is"
            f" False), so that {objective} has no gradient through them: take RWS, which needs"
            " none, or a distribution with rsample"
        )
