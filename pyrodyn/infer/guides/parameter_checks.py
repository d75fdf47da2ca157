"""Whether what a guide's draws depend on can be trained, and safely.

An optimiser holds the parameters of modules. A guide may draw from others, such as ``pyro.param``
in Pyro's global store or the weights of a module that a function closes over; and a fused optimiser
writes one number per entry of a parameter, past the end of memory that is smaller than its shape
(an expanded tensor). Each function returns sentences that name the parameters and the remedy.
"""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyrodyn.infer.frozen import parameters_behind
from pyrodyn.infer.guides.site_checks import kind_of
from pyrodyn.infer.objectives.elbo import ELBO
from pyrodyn.infer.objectives.importance_weighted import IWELBO, RWS
from pyrodyn.infer.objectives.objective import Objective
from pyrodyn.infer.traces import (
    Program,
    drawn_sites,
    module_of,
    not_reparameterised,
    runs_the_model,
)


def _leaves(trace: poutine.Trace) -> set[Tensor]:
    """All leaf tensors that need a gradient behind the draws of a guide and their densities."""
    drawn = drawn_sites(trace)
    trace.compute_log_prob(lambda name, site: name in drawn)
    found = set()
    for name in drawn:
        for value in (trace.nodes[name]["value"], trace.nodes[name]["log_prob"]):
            found |= parameters_behind(value)
    return found


def untrained_parameters(model: Program, guide: Program, trace: poutine.Trace) -> list[str]:
    """Parameters that the guide's draws depend on and neither model nor guide brings."""
    left = _leaves(trace) - {*parameters(model).values(), *parameters(guide).values()}
    sentences = []
    stored: dict[Tensor, str] = {}
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            behind = left & parameters_behind(site["value"])
            stored |= dict.fromkeys(behind, name)
    if stored:
        names = ", ".join(sorted(set(stored.values())))
        sentences.append(
            f"pyro.param keeps {names} in Pyro's global store, where fit does not train them; make"
            " the guide a torch.nn.Module with an nn.Parameter (or a PyroModule with a PyroParam)"
            " for each"
        )
    for name, module in _modules_around(guide):
        its = left & set(module.parameters())
        if its and not its & stored.keys():
            sentences.append(
                f"the guide draws by {name}, a {type(module).__name__} that fit does not train,"
                " because it is no part of the guide; pass the module itself as the guide, or one"
                " of its methods"
            )
            left = left - its
    left = left - stored.keys()
    if left:
        shapes = ", ".join(sorted(str(tuple(leaf.shape)) for leaf in left))
        sentences.append(
            f"the guide's draws depend on tensors of shape {shapes} that need a gradient but are"
            " no parameters of the guide, so that fit does not train them; make the guide a"
            " torch.nn.Module that holds them as nn.Parameter"
        )
    return sentences


def _modules_around(guide: Program) -> Iterator[tuple[str, nn.Module]]:
    """Modules that a function uses without owning them, by the names it has for them."""
    function = getattr(guide, "__func__", guide)
    if not inspect.isfunction(function):
        return
    around = inspect.getclosurevars(function)
    for name, value in {**around.globals, **around.nonlocals}.items():
        owner: Any = getattr(value, "__self__", value)
        if isinstance(owner, nn.Module):
            yield name, owner


def _overlapping(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of parameters that share memory, with themselves (expanded tensors) or with others."""
    spans, found = [], []
    for name, parameter in named:
        if nn.parameter.is_lazy(parameter) or not parameter.numel():
            continue
        strides = zip(parameter.shape, parameter.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in strides)
        if extent < parameter.numel():
            found.append(name)
        start = parameter.data_ptr()
        spans.append((start, start + extent * parameter.element_size(), name))
    end, last = 0, ""
    for start, its_end, name in sorted(spans):
        if start < end:
            found += [name for name in (last, name) if name not in found]
        if its_end > end:
            end, last = its_end, name
    return found


def gradient_problems(
    guide: Program, trace: poutine.Trace, objective: Objective | None
) -> list[str]:
    """Draws, or densities, without the gradient by which an objective trains a guide."""
    if isinstance(objective, RWS):
        sites = (trace.nodes[name] for name in drawn_sites(trace))
        has_gradient = any(s["fn"].log_prob(s["value"].detach()).requires_grad for s in sites)
        if has_gradient or not any(p.requires_grad for p in parameters(guide).values()):
            return []
        return [
            f"RWS trains a guide by the density of its draws, and that of {type(guide).__name__}"
            " does not depend on its parameters (a point estimate); fit it by ELBO"
        ]
    if not isinstance(objective, ELBO | IWELBO):
        return []
    return [
        f"site {name!r} is drawn from {kind_of(trace.nodes[name]['fn'])}, which has no"
        f" reparameterised draws (has_rsample is False), so that {type(objective).__name__} cannot"
        " train it; fit by RWS, or choose a distribution that has them"
        for name in not_reparameterised(trace)
    ]


def parameters(program: Program) -> dict[str, Tensor]:
    """Of the module that a program is, or is a method of."""
    owner = module_of(program)
    return {} if owner is None else dict(owner.named_parameters())


def memory_problems(model: Program, guide: Program) -> list[str]:
    """Parameters of the guide that are not built, or have no memory of their own."""
    own = parameters(guide)
    problems = []
    lazy = [name for name, parameter in own.items() if nn.parameter.is_lazy(parameter)]
    if lazy:
        problems.append(
            f"the guide's first run has not built its parameters {', '.join(lazy)}; run every lazy"
            " layer in each call, or remove it"
        )
    of_model = {f"model.{name}": p for name, p in parameters(model).items()}
    known = set(of_model.values())
    named = [*of_model.items(), *((n, p) for n, p in own.items() if p not in known)]
    sharing = [name for name in _overlapping(named) if name in own]
    if sharing:
        problems.append(
            f"the guide's parameters {', '.join(sharing)} share memory, with themselves (expanded"
            " tensors) or with other parameters, which an optimiser would corrupt; make each"
            " from tensor.clone()"
        )
    return problems


def idle_parameters(model: Program, guide: Program, trace: poutine.Trace) -> list[str]:
    """Parameters of the guide that no draw depends on."""
    if runs_the_model(guide):
        return []
    used = _leaves(trace) | set(parameters(model).values())
    idle = [
        name
        for name, parameter in parameters(guide).items()
        if parameter.requires_grad and parameter not in used
    ]
    if not idle:
        return []
    names = ", ".join(idle)
    return [f"no draw of the guide depends on its parameters {names}; they stay as they are"]
