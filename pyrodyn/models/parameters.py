"""Parameters of Pyro programs: local to their modules, in Pyro's global parameter store, or drawn.

During pyrodyn's own inference (`local_parameters`) parameters belong to their modules alone and are
trained through ``module.parameters()``. Under Pyro's own engines (`pyro.infer.SVI`,
`pyro.poutine.lift`) the programs of a model register every parameter as `pyro.module` does, under a
name that is unique among existing models (`registered`), since these engines train registered
parameters only.

Where values are drawn for parameters, by their priors (`pyrodyn.models.priors`) or by
`pyro.poutine.lift`, a program runs on a copy of its module that has these values (`substituted`).
"""

import contextlib
import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyro
from pyro.nn.module import PyroModule, _Context
from pyro.params.param_store import param_with_module_name
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

_SETTING = "module_local_params"

_MARK = "unconstrained"
"""Attribute by which Pyro's engines find the tensor to train behind the value of a parameter."""

SHARED = ("record", "config")
"""Attributes that copies of a module share with it."""

_is_local = False


@contextlib.contextmanager
def local_parameters() -> Iterator[None]:
    """Context in which parameters belong to their modules and Pyro's parameter store is not used.

    It enables Pyro's setting ``module_local_params`` for its duration: under Pyro's default, two
    guides of the same class would share their parameters by name.
    """
    global _is_local
    if _is_local:
        yield
        return
    default = pyro.settings.get(_SETTING)
    pyro.settings.set(**{_SETTING: True})
    _Context.param_state = _EmptyState()
    _is_local = True
    try:
        yield
    finally:
        _is_local = False
        del _Context.param_state
        pyro.settings.set(**{_SETTING: default})


class _EmptyState:
    """The parameter state of a PyroModule that was created outside `local_parameters`.

    Pyro sets this state when it creates a module, but only if the setting is enabled at that time.
    """

    def __get__(self, context: Any, owner: type) -> Any:
        context.param_state = {"params": {}, "constraints": {}}
        return context.param_state


class _Registration(NamedTuple):
    """A model in Pyro's parameter store.

    Attributes:
        name: unique among existing models.
        parameters: the registered parameters by their full name in the store.
    """

    name: str
    parameters: dict[str, nn.Parameter]


_running: nn.Module | None = None
_registrations: weakref.WeakKeyDictionary[nn.Module, _Registration] = weakref.WeakKeyDictionary()


def registered(
    program: Callable[[Any, Any], None],
    drawn: Callable[[Any], Mapping[str, Tensor]],
) -> Callable[[Any, Any], None]:
    """Decorate a module's Pyro program such that it registers the module's parameters whenever
    Pyro's own engines run it, and runs on values drawn for parameters with priors.

    Args:
        program: a method ``program(module, batch)``.
        drawn: the sites of the parameters with priors, by name, of a module with ``priors``.
    """

    @functools.wraps(program)
    def run(module: nn.Module, batch: Any) -> None:
        global _running
        # A program may call the program of its base class, which must do nothing of this again.
        if module is _running:
            return program(module, batch)
        if isinstance(module, PyroModule):
            refuse_pyro_samples(module)
        registers = not _is_local and am_i_wrapped()
        if not registers and module.priors is None:
            return program(module, batch)
        ready = _as_registered(module) if registers else module
        if module.priors is not None:
            ready = substituted(ready, drawn(ready))
        outer, _running = _running, ready
        try:
            program(ready, batch)
        finally:
            _running = outer

    return run


def refuse_pyro_samples(module: nn.Module) -> None:
    """Refuse a `pyro.nn.PyroSample` in place of a parameter.

    Raises:
        ValueError: naming it.
    """
    for path, part in module.named_modules():
        for name in vars(part).get("_pyro_samples", {}):
            full_name = f"{path}.{name}" if path else name
            raise ValueError(
                f"{full_name!r} is a PyroSample, which would be drawn wherever it is read; give the"
                f" parameter a prior by priors={{{full_name!r}: ...}} in for_recording, or by"
                " set_priors"
            )


def substituted[Module: nn.Module](module: Module, values: Mapping[str, Tensor]) -> Module:
    """A copy of a module in which values take the place of parameters, without its priors.

    All other tensors, and submodules without such a parameter, are those of the module itself. A
    copy, because the distributions of a program's sites refer to it and are scored after the
    program has ended.

    Args:
        module: with an attribute ``priors``.
        values: by the names of their parameters.

    Raises:
        ValueError: for a value that does not expand to the shape of its parameter.
    """
    parameters = dict(module.named_parameters())
    new = {}
    for name, value in values.items():
        shaped = _shaped_as(parameters[name], value, name)
        if not shaped.requires_grad:  # a module is converted and saved by its parameters
            shaped = nn.Parameter(shaped, requires_grad=False)
        new[id(parameters[name])] = shaped
    copied: Any = _copied(module, new)
    copied.priors = None
    of_kind: Module = copied
    return of_kind


def _copied[Module: nn.Module](module: Module, new: Mapping[int, Tensor]) -> Module:
    """A copy with new tensors in place of those with these ids."""
    memo: dict[int, Any] = {
        id(part): part
        for part in module.modules()
        if part is not module and not any(id(p) in new for p in part.parameters())
    }
    kept = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    memo |= {id(vars(module)[name]): vars(module)[name] for name in SHARED if name in vars(module)}
    marks = [(p, getattr(p, _MARK)) for p in module.parameters() if hasattr(p, _MARK)]
    copied = copy.deepcopy(module, {**memo, **kept, **new})
    for parameter, mark in marks:  # which a copy removes and the running engine reads
        setattr(parameter, _MARK, mark)
    return copied


def _as_registered(module: nn.Module) -> nn.Module:
    """The module, or a copy with the values that `pyro.poutine.lift` draws for its parameters."""
    registration = _registrations.get(module)
    if registration is None:
        registration = _Registration(_free_name(type(module).__name__), {})
        _registrations[module] = registration
        weakref.finalize(module, _forget, registration.parameters)
    lifted = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.is_leaf:
            full_name = param_with_module_name(registration.name, name)
            value = _register(full_name, parameter, registration.parameters)
            if value is not parameter:
                lifted[id(parameter)] = _shaped_as(parameter, value, full_name)
    return _copied(module, lifted) if lifted else module


def _register(
    full_name: str, parameter: nn.Parameter, registered: dict[str, nn.Parameter]
) -> Tensor:
    """Register a parameter and return the value of its `pyro.param` site: the parameter itself,
    unless a handler replaces it.
    """
    store = pyro.get_param_store()
    if store.param_name(parameter) != full_name and full_name in store:
        stored = store[full_name].unconstrained()
        if stored is not parameter:
            if stored is not registered.get(full_name):
                raise ValueError(
                    f"Pyro's parameter store holds another tensor as {full_name!r}, the name"
                    " under which this model registers its parameter; call"
                    " pyro.clear_param_store() first, and keep weights by pyrodyn.save and"
                    " pyrodyn.load"
                )
            del store[full_name]  # the module's parameter was replaced
    if not parameter.is_contiguous():  # the store would copy it
        parameter.data = parameter.data.contiguous()
    registered[full_name] = parameter
    value: Tensor = pyro.param(full_name, parameter)
    return value


def _shaped_as(parameter: Tensor, value: Tensor, full_name: str) -> Tensor:
    """A lifted value, expanded to the shape of its parameter."""
    wanted = parameter.shape
    if value.ndim > len(wanted) or any(
        found not in (1, size)
        for found, size in zip(reversed(value.shape), reversed(wanted), strict=False)
    ):
        raise ValueError(
            f"the value drawn for the parameter {full_name!r} has the shape {tuple(value.shape)};"
            f" a model needs one value of the shape {tuple(wanted)}, so give a prior of that shape"
            " and run particles one by one (vectorize_particles=False, parallel=False)"
        )
    return value.expand(wanted)


def _free_name(wanted: str) -> str:
    """The name of a class, with a number if an existing model already has the name."""
    taken = {registration.name for registration in _registrations.values()}
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def _forget(parameters: dict[str, nn.Parameter]) -> None:
    """Remove the parameters of a deleted model from Pyro's store."""
    store = pyro.get_param_store()
    for full_name, parameter in parameters.items():
        if full_name in store and store[full_name].unconstrained() is parameter:
            del store[full_name]


def parameters_behind(value: Tensor) -> set[Tensor]:
    """The leaves of a value's autograd graph; the value itself if it is a leaf."""
    found, visited, pending = set(), set(), [value.grad_fn]
    if value.requires_grad and value.is_leaf:
        found.add(value)
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(leaf)
        pending.extend(before for before, _ in node.next_functions)
    return found
