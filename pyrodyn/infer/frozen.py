"""Freezing of parameters, and which parameters a value depends on."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor


@contextlib.contextmanager
def frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Values computed inside have no gradient with respect to these parameters."""
    thawed = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


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
