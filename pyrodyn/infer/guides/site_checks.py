"""Whether a guide draws the sites of its model, with their shapes, plates and supports.

Each function returns sentences that name the site and the remedy.
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

from pyrodyn.data.batch import Batch
from pyrodyn.infer.objectives.importance_weighted import IWELBO, RWS
from pyrodyn.infer.objectives.objective import Objective
from pyrodyn.infer.traces import Program, drawn_sites, latent_sites

PLATE = "inside `with pyro.plate('trials', batch.num_trials, dim=-1):`"

PROBES = (-10.0, -1.0, -0.5, 0.3, 0.5, 1.5, 10.0)
"""Numbers by which two supports are compared."""

Site = Mapping[str, Any]


def matching_problems(latent: Mapping[str, Site], trace: poutine.Trace) -> list[str]:
    """Sites that only one of model and guide has."""
    drawn, auxiliary = latent_sites(trace), set(drawn_sites(trace)) - set(latent_sites(trace))
    missing = [name for name in latent if name not in drawn]
    extra = [name for name in drawn if name not in latent]
    known = f"the model's latent sites are {', '.join(latent)}" if latent else "it has none"
    problems = []
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
    if missing:
        names = ", ".join(map(repr, missing))
        problems.append(
            f"the guide does not draw {names} ({known}), which would come from the prior; add a"
            f" pyro.sample for each, {PLATE}"
        )
    return problems


def site_problems(name: str, wanted: Site, site: Site, batch: Batch) -> list[str]:
    """What is wrong with a site that both have."""
    q, p = site["fn"], wanted["fn"]
    B = batch.num_trials
    is_local = any(frame.name == "trials" for frame in wanted["cond_indep_stack"])
    event, needed = tuple(q.event_shape), tuple(p.event_shape)
    if is_local and event == (B, *needed):
        return [
            f"site {name!r} is one joint distribution over all {B} trials (event shape {event});"
            f" draw it with event shape {needed}, by .to_event({len(needed)}), {PLATE}"
        ]
    problems = []
    if is_local:
        problems += _plate_problems(name, site, B)
    if event != needed:
        problems.append(
            f"site {name!r} has event shape {event} in the guide and {needed} in the model; give"
            f" the distribution that shape and call .to_event({len(needed)})"
        )
    shape = tuple(q.batch_shape)
    if not problems and is_local and shape != (B,):
        problems.append(
            f"site {name!r} has batch shape {shape} in the guide; it must be {(B,)}, one"
            f" distribution per trial, {PLATE}"
        )
    if not problems and not is_local and shape != tuple(p.batch_shape):
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


def _plate_problems(name: str, site: Site, num_trials: int) -> list[str]:
    frames = {frame.name: frame for frame in site["cond_indep_stack"]}
    other = [frame for frame in frames.values() if frame.name != "trials"]
    if "trials" not in frames:
        where = f"lies in the plate {other[0].name!r}" if other else "lies in no plate"
        return [
            f"site {name!r} {where}, so that trials have no densities of their own; draw it {PLATE}"
        ]
    trials = frames["trials"]
    if trials.dim != -1:
        return [f"the guide's plate 'trials' is at dim {trials.dim}; declare it with dim=-1"]
    if trials.size != num_trials:
        return [
            f"the guide's plate 'trials' has {trials.size} trials for a batch of {num_trials};"
            " declare it with batch.num_trials"
        ]
    return [
        f"site {name!r} lies in the plate {frame.name!r}; only the plate over trials is batched,"
        " so make that dim part of the event by .to_event"
        for frame in other
    ]


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


def joint_problems(
    guide: Program,
    trace: poutine.Trace,
    objective: Objective | None,
    batch: Batch,
    num_trials: int | None,
) -> list[str]:
    """Auxiliary draws that all trials share, where trials must be independent."""
    local = {
        name: any(frame.name == "trials" for frame in trace.nodes[name]["cond_indep_stack"])
        for name in drawn_sites(trace)
    }
    latent = latent_sites(trace)
    shared = [name for name in local if name not in latent and not local[name]]
    if not shared or not any(local[name] for name in latent):
        return []
    kind = type(guide).__name__
    if num_trials is not None and num_trials > batch.num_trials:
        return [
            f"{kind} draws all trials jointly (site {shared[0]!r}) and so cannot be trained on"
            f" minibatches; set batch_size={num_trials}, all trials"
        ]
    if isinstance(objective, IWELBO | RWS):
        return [
            f"{kind} draws all trials jointly (site {shared[0]!r}), so that no trial has importance"
            f" weights of its own, which {type(objective).__name__} needs; fit it by ELBO"
        ]
    return []
