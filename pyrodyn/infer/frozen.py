"""Parameters that are constants for a while, and which ones a value depends on."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor


@contextlib.contextmanager
def frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """What is worked out inside does not lead back to these parameters."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def parameters_behind(value: Tensor) -> set[Tensor]:
    """The leaves of the graph that autograd has recorded of a value, itself if it is one."""
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
