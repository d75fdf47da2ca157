"""Whether what a guide's draws depend on can be trained, and safely.

An optimiser holds the parameters of modules. A guide may draw from others, such as ``pyro.param``
in Pyro's global store or the weights of a module that a function closes over; and a fused optimiser
writes one number per entry of a parameter, past the end of memory that is smaller than its shape
(an expanded tensor). Each function returns sentences that name the parameters and the remedy.
"""

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyrodyn.infer.traces import Program, drawn_sites, module_of, runs_the_model
from pyrodyn.models.parameters import parameters_behind


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
    for name, module in modules_around(guide) if left else ():
        its = left & set(module.parameters())
        if its and not its & stored.keys():
            sentences.append(
                f"the guide draws by {name}, a {type(module).__name__} that fit does not train,"
                f" because it is no part of the guide; {_remedy(guide)}"
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


def _remedy(guide: Program) -> str:
    """How to make a module that a guide uses part of it."""
    if module_of(guide) is not None:
        return "keep it as an attribute, in an nn.ModuleList or in an nn.ModuleDict"
    if inspect.isfunction(guide) or isinstance(guide, functools.partial):
        return "pass the module itself as the guide, or one of its methods"
    return "make the guide's class a torch.nn.Module"


def modules_around(guide: Program) -> Iterator[tuple[str, nn.Module]]:
    """Modules that a guide uses without owning them, by the names it has for them."""
    function = getattr(guide, "__func__", guide)
    around: dict[str, Any] = {}
    if isinstance(guide, functools.partial):
        around = {"its function": guide.func, "its arguments": guide.args, **guide.keywords}
    elif inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        around = {**variables.globals, **variables.nonlocals}
    owner = getattr(guide, "__self__", guide)
    parts = owner.named_modules() if isinstance(owner, nn.Module) else [("", owner)]
    for path, part in parts:
        prefix = f"self.{path}." if path else "self."
        around |= {f"{prefix}{name}": value for name, value in _attributes(part).items()}
    for name, value in around.items():
        yield from _modules_in(name, value)


def _attributes(owner: Any) -> dict[str, Any]:
    """Of an object, without those by which torch holds submodules and parameters."""
    if inspect.isfunction(owner):
        return {}
    return {
        name: value
        for name, value in getattr(owner, "__dict__", {}).items()
        if name not in ("_modules", "_parameters", "_buffers")
    }


def _modules_in(name: str, value: Any, depth: int = 2) -> Iterator[tuple[str, nn.Module]]:
    """Modules that a variable holds: itself, the owner of a method, entries of lists and dicts."""
    owner: Any = getattr(value, "__self__", value)
    if isinstance(owner, nn.Module):
        yield name, owner
    elif depth and isinstance(value, list | tuple | dict):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from _modules_in(f"{name}[{key!r}]", entry, depth - 1)


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


def point_problems(guide: Program, trace: poutine.Trace) -> list[str]:
    """Parameters that the density of a guide's draws, which RWS trains by, does not depend on."""
    sites = (trace.nodes[name] for name in drawn_sites(trace))
    has_gradient = any(s["fn"].log_prob(s["value"].detach()).requires_grad for s in sites)
    if has_gradient or not any(p.requires_grad for p in parameters(guide).values()):
        return []
    return [
        f"RWS trains a guide by the density of its draws, and that of {type(guide).__name__} does"
        " not depend on its parameters (a point estimate); fit it by ELBO"
    ]


def renewed_parameters(before: Mapping[str, Tensor], guide: Program) -> list[str]:
    """Parameters that runs of the guide replace by new ones.

    Args:
        before: the guide's parameters after its first run.
        guide: the guide after further runs.
    """
    after = parameters(guide)
    renewed = [name for name, p in before.items() if after.get(name) is not p]
    if not renewed:
        return []
    return [
        f"every run of the guide makes its parameters {', '.join(renewed)} anew, so that none is"
        " trained; make them once, in __init__"
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


def plain_tensors(model: Program, guide: Program) -> list[str]:
    """Tensors that a guide keeps as plain attributes, which are neither trained nor saved."""
    owner, of_model = module_of(guide), module_of(model)
    if owner is None or runs_the_model(guide):
        return []
    known = set() if of_model is None else set(of_model.modules())
    names = [
        f"{path}.{name}" if path else name
        for path, part in owner.named_modules()
        if part not in known
        for name, value in _attributes(part).items()
        if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad
        if not name.startswith("_")
    ]
    if not names:
        return []
    return [
        f"the guide keeps {', '.join(names)} as plain tensors, which are neither trained nor saved;"
        " make each an nn.Parameter, or for a constant call register_buffer"
    ]
