"""Second derivatives of functions whose gradient is written by hand: autograd differentiates their
plain-torch reference instead.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable_gradients(
    reference: Callable[..., Any],
    arguments: Sequence[Tensor | None],
    upstream: Tensor | tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of a function, themselves differentiable.

    Args:
        reference: the function in plain torch.
        arguments: its tensors, or None in place of one.
        upstream: the gradient of its result, or of its results.

    Returns:
        One gradient per argument, None for those that require none.
    """
    requires = [tensor is not None and tensor.requires_grad for tensor in arguments]
    wanted = [tensor for tensor in arguments if tensor is not None and tensor.requires_grad]
    result = reference(*arguments)
    results = (result,) if isinstance(result, Tensor) else tuple(result)
    upstreams = (upstream,) if isinstance(upstream, Tensor) else upstream
    # Autograd refuses results that depend on none of the wanted arguments.
    depends = [each.requires_grad for each in results]
    results, upstreams = (tuple(itertools.compress(each, depends)) for each in (results, upstreams))
    if not results:
        gradients = iter([torch.zeros_like(tensor) for tensor in wanted])
    else:
        gradients = iter(
            torch.autograd.grad(
                results, wanted, upstreams, create_graph=True, materialize_grads=True
            )
        )
    return tuple(next(gradients) if required else None for required in requires)
