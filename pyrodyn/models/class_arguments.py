"""The arguments with which a class of models is built, for `help`, completion and errors."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

FROM_RECORDING = ("num_neurons", "input_dim")
"""Arguments that `LatentDynamics.for_recording` takes from the recording."""


def class_arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Arguments of a class by name, including those that its ``__init__`` passes on to a base class
    as ``**options``.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def with_class_arguments(method: Callable[..., Any], cls: type) -> Callable[..., Any]:
    """A copy of ``method`` whose signature lists the arguments of a class in place of its own
    variable keyword arguments.
    """

    @wraps(method)
    def copy(*args: Any, **options: Any) -> Any:
        return method(*args, **options)

    signature = inspect.signature(inspect.unwrap(method))
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {parameter.name for parameter in own}
    sizes = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for name, parameter in _sizes(cls).items()
        if name not in taken
    ]
    copy.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *sizes], return_annotation=cls.__name__
    )
    return copy


def _sizes(cls: type) -> dict[str, inspect.Parameter]:
    """Arguments for users to choose. What a base class requires is passed by the class itself."""
    own = inspect.signature(cls).parameters
    return {
        name: parameter
        for name, parameter in class_arguments(cls).items()
        if name not in FROM_RECORDING and (parameter.default is not parameter.empty or name in own)
    }


def check_arguments(cls: type, names: Iterable[str]) -> None:
    """Refuse arguments that `LatentDynamics.for_recording` cannot pass to a class.

    Raises:
        TypeError: for the first of them, with the nearest name of an argument.
    """
    arguments = class_arguments(cls)
    for name in names:
        if name in FROM_RECORDING:
            raise TypeError(
                f"{cls.__name__}.for_recording takes {name} from the recording; leave it out"
            )
        if name not in arguments:
            choices = list(_sizes(cls))
            nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.65)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(choices)}"
            raise TypeError(f"{cls.__name__} has no argument {name!r}; {hint}")
