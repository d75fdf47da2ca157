"""Whether a guide draws the sites of its model, with their shapes, plates and supports.

The functions ``..._problems`` return sentences that name the site and the remedy, for
`pyrodyn.infer.check_guide`; `check_sites` and `check_reparameterised` raise the first of those that
would make an objective wrong, for a model and a guide that no `fit` has checked.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import constraints

from pyrodyn.infer.traces import (
    PARTICLES,
    TRIALS,
    drawn_sites,
    is_local,
    joint_sites,
    latent_sites,
    not_reparameterised,
    observed_sites,
)

PLATE = f"inside `with pyro.plate({TRIALS!r}, batch.num_trials, dim=-1):`"

PROBES = (-10.0, -1.0, -0.5, 0.3, 0.5, 1.5, 10.0)
"""Numbers by which two supports are compared."""

Site = Mapping[str, Any]


def matching_problems(latent: Mapping[str, Site], trace: poutine.Trace) -> list[str]:
    """Sites that only one of model and guide has, and sites that the guide does not draw but
    observes.
    """
    drawn, auxiliary = latent_sites(trace), set(drawn_sites(trace)) - set(latent_sites(trace))
    observed = observed_sites(trace)
    missing = [name for name in latent if name not in [*drawn, *observed]]
    extra = [name for name in drawn if name not in latent]
    known = f"the model's latent sites are {', '.join(latent)}" if latent else "it has none"
    problems = [
        f"the guide observes {name!r} (obs=), but a guide draws: leave obs= out, or for a fixed"
        " value draw from a Delta"
        for name in latent
        if name in observed
    ]
    if "x" in [*drawn, *observed]:
        problems.append(
            f"the guide has the site 'x', the model's observations; a guide draws latent sites"
            f" alone ({known})"
        )
    extra = [name for name in extra if name != "x"]
    for name in list(missing):
        per_bin = [other for other in extra if re.fullmatch(rf"{name}_?\d+", other)]
        if per_bin:
            shape = tuple(latent[name]["fn"].event_shape)
            problems.append(
                f"the guide draws {per_bin[0]!r}, which is no site of this model: all bins of the"
                f" latent path are the one site {name!r} of event shape {shape}; draw them by one"
                " pyro.sample, or mark sites per bin infer={'is_auxiliary': True} and add"
                f" {name!r} as a Delta of their stack"
            )
            missing.remove(name)
            extra = [other for other in extra if other not in per_bin]
        elif name in auxiliary:
            problems.append(
                f"site {name!r} is marked as auxiliary in the guide, but is a latent site of the"
                " model; leave the mark out"
            )
            missing.remove(name)
    for name in extra:
        problem = f"the guide draws {name!r}, which is no site of this model ({known})"
        close = difflib.get_close_matches(name, missing, 1, 0.5)
        if close:
            problems.append(f"{problem}; rename it {close[0]!r}")
            missing.remove(close[0])
        else:
            problems.append(
                f"{problem}; remove it, or mark it infer={{'is_auxiliary': True}} if latent sites"
                " are made from it"
            )
    shared = [name for name in missing if not is_local(latent[name])]
    if shared:
        names = ", ".join(map(repr, shared))
        problems.append(
            f"the guide does not draw {names} ({known}), which all trials share; add a pyro.sample"
            " for each outside the plate over trials, or for parameters with priors call"
            " model.sample_parameters()"
        )
        missing = [name for name in missing if name not in shared]
    if missing:
        names = ", ".join(map(repr, missing))
        problems.append(
            f"the guide does not draw {names} ({known}), which would come from the prior; add a"
            f" pyro.sample for each, {PLATE}"
        )
    return problems


def shape_problems(name: str, wanted: Site, site: Site, num_trials: int) -> list[str]:
    """What is wrong with plates and event shape of a site that both have.

    Args:
        name: of the site.
        wanted: the model's site.
        site: the guide's.
        num_trials: that the guide was run on.
    """
    event, needed = tuple(site["fn"].event_shape), tuple(wanted["fn"].event_shape)
    if not is_local(wanted):
        problems = []
        if is_local(site):
            problems.append(
                f"site {name!r} is drawn for every trial, but in the model all trials share it;"
                f" draw it outside the plate {TRIALS!r}"
            )
    elif event == (num_trials, *needed):
        return [
            f"site {name!r} is one joint distribution over all {num_trials} trials (event shape"
            f" {event}); draw it with event shape {needed}, by .to_event({len(needed)}), {PLATE}"
        ]
    else:
        problems = _plate_problems(name, site, num_trials)
    if event != needed:
        problems.append(
            f"site {name!r} has event shape {event} in the guide and {needed} in the model; give"
            f" the distribution that shape and call .to_event({len(needed)})"
        )
    return problems


def _plate_problems(name: str, site: Site, num_trials: int) -> list[str]:
    frames = {frame.name: frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES}
    other = [frame for frame in frames.values() if frame.name != TRIALS]
    if TRIALS not in frames:
        where = f"lies in the plate {other[0].name!r}" if other else "lies in no plate"
        return [
            f"site {name!r} {where}, so that trials have no densities of their own; draw it {PLATE}"
        ]
    trials = frames[TRIALS]
    if trials.dim != -1:
        return [f"the guide's plate {TRIALS!r} is at dim {trials.dim}; declare it with dim=-1"]
    if trials.size != num_trials:
        return [
            f"the guide's plate {TRIALS!r} has {trials.size} trials for a batch of {num_trials};"
            " declare it with batch.num_trials"
        ]
    return [
        f"site {name!r} lies in the plate {frame.name!r}; only the plate over trials is batched,"
        " so make that dim part of the event by .to_event"
        for frame in other
    ]


def density_problems(name: str, wanted: Site, site: Site, num_trials: int) -> list[str]:
    """What is wrong with batch shape, support and precision of a site whose plates fit."""
    q, p = site["fn"], wanted["fn"]
    shape, problems = tuple(q.batch_shape), []
    if is_local(wanted):
        if shape != (num_trials,):
            problems.append(
                f"site {name!r} has batch shape {shape} in the guide; it must be {(num_trials,)},"
                f" one distribution per trial, {PLATE}"
            )
    elif shape != tuple(p.batch_shape):
        problems.append(
            f"site {name!r}, which all trials share, has batch shape {shape} in the guide and"
            f" {tuple(p.batch_shape)} in the model; draw it in the same plates"
        )
    if not isinstance(q, Delta) and not _same_support(q, p):
        problems.append(
            f"site {name!r} is drawn from {kind_of(q)}, whose support is not that of the model's"
            f" {kind_of(p)}; choose a distribution of the same support, or transform it"
        )
    if site["value"].dtype != wanted["value"].dtype:
        problems.append(
            f"site {name!r} is drawn as {site['value'].dtype}, the model's as"
            f" {wanted['value'].dtype}; convert the guide to that precision"
        )
    return problems


def weight_problems(latent: Mapping[str, Site], trace: poutine.Trace, weight: float) -> list[str]:
    """Scales and masks that a guide gives its draws, which no bound takes into account.

    Args:
        latent: the model's latent sites.
        trace: of the guide.
        weight: of a trial of the batch, the scale that a plate over the whole recording gives.
    """
    problems = []
    for name in drawn_sites(trace):
        site, wanted = trace.nodes[name], latent.get(name)
        known = [1.0, weight] if wanted is None else [1.0, weight, float(wanted["scale"])]
        scale = torch.as_tensor(site["scale"], dtype=torch.double)
        if not any(bool((scale / value - 1).abs().max() < 1e-6) for value in known):
            problems.append(
                f"site {name!r} is scaled by {scale.flatten()[0]:.3g} in the guide (by"
                " poutine.scale or the size of a plate), which no bound takes into account; leave"
                f" it out, and weight a site's KL by ELBO(beta={{{name!r}: ...}})"
            )
        mask = site["mask"]
        if mask is not None and (wanted is None or wanted["mask"] is None):
            if bool(torch.as_tensor(mask).all()):
                continue
            problems.append(
                f"site {name!r} is masked in the guide and not in the model, which leaves draws"
                " without a density; leave the mask out, hidden entries are 0 in batch.seen"
            )
    return problems


def joint_problems(drawn: poutine.Trace, model_trace: poutine.Trace) -> list[str]:
    """Draws of several trials at once, where each trial needs importance weights of its own."""
    return [
        f"the guide draws all trials jointly, in {name!r} outside the plate {TRIALS!r}, so that no"
        " trial has importance weights of its own: draw every trial inside the plate (AutoNormal"
        " does), or train by ELBO"
        for name in joint_sites(drawn, model_trace)[:1]
    ]


def gradient_problems(trace: poutine.Trace, objective: str) -> list[str]:
    """Draws through which an objective has no gradient; under ``no_grad`` there are none."""
    return [
        f"site {name!r} is drawn from {kind_of(trace.nodes[name]['fn'])}, which has no"
        f" reparameterised draws (has_rsample is False), so that {objective} cannot train it; fit"
        " by RWS, or choose a distribution that has them"
        for name in not_reparameterised(trace)
    ]


def check_reparameterised(trace: poutine.Trace, objective: str) -> None:
    """Refuse draws that would need the score of q.

    Raises:
        ValueError: naming the first such site.
    """
    for problem in gradient_problems(trace, objective):
        raise ValueError(problem)


def check_sites(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Refuse a guide whose latent sites do not fit the model's.

    Args:
        guide_trace: a run of the guide.
        model_trace: the model, replayed on it.

    Raises:
        ValueError: naming the first such site.
    """
    nodes, latent = model_trace.nodes, latent_sites(model_trace)
    for name in [*latent, *observed_sites(model_trace)]:
        for frame in nodes[name]["cond_indep_stack"]:
            if frame.name == TRIALS and frame.dim != -1:
                raise ValueError(
                    f"the model's plate {TRIALS!r} is at dim {frame.dim} of site {name!r}; declare"
                    " it with dim=-1"
                )
    drawn = latent_sites(guide_trace)
    observed = [name for name in observed_sites(guide_trace) if name in nodes]
    if observed or any(name not in latent for name in drawn):
        raise ValueError(matching_problems({name: nodes[name] for name in latent}, guide_trace)[0])
    for name in drawn:
        site, wanted = guide_trace.nodes[name], nodes[name]
        sizes = [frame.size for frame in wanted["cond_indep_stack"] if frame.name == TRIALS]
        has_plate = any(frame.name != PARTICLES for frame in site["cond_indep_stack"])
        if sizes and not has_plate and site["fn"].event_shape == wanted["fn"].event_shape:
            continue  # `joint_sites` finds it where it matters; the ELBO is right
        for problem in shape_problems(name, wanted, site, sizes[0] if sizes else 1):
            raise ValueError(problem)


def _same_support(q: Any, p: Any) -> bool:
    """Whether two distributions have the same support, as far as numbers can show."""
    try:
        one, other = _entry_support(q), _entry_support(p)
    except (NotImplementedError, AttributeError):  # of which one is not known
        return True
    if one.event_dim or other.event_dim:
        return one.event_dim == other.event_dim and type(one) is type(other)
    probes = torch.tensor(PROBES)
    try:
        return bool((_holds(one, probes) == _holds(other, probes)).all())
    except RuntimeError:  # bounds per entry
        return True


def _entry_support(distribution: Any) -> constraints.Constraint:
    """Of a single entry."""
    support = distribution.support
    while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def _holds(support: constraints.Constraint, probes: Tensor) -> Tensor:
    return torch.stack([support.check(probe).all() for probe in probes])


def kind_of(distribution: Any) -> str:
    """Name of a distribution's class, without what reshapes or masks it."""
    base = distribution
    while type(base).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        base = base.base_dist
    return type(base).__name__
