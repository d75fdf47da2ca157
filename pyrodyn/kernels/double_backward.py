"""Second derivatives of functions whose gradient is written by hand: autograd records them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def recorded_gradients(
    function: Callable[..., Any],
    given: Sequence[Tensor | None],
    upstream: Tensor | tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of a function with respect to what it was given, themselves differentiable.

    Args:
        function: as autograd sees it.
        given: its tensors; None where it was given none.
        upstream: the gradient of its result, or of its results.

    Returns:
        One per tensor, None where none is wanted.
    """
    asked = [tensor is not None and tensor.requires_grad for tensor in given]
    wanted = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
    found = iter(
        torch.autograd.grad(
            function(*given), wanted, upstream, create_graph=True, materialize_grads=True
        )
    )
    return tuple(next(found) if is_asked else None for is_asked in asked)
