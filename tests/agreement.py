"""Kernels compared with their references in plain torch: values, gradients, second derivatives."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def strided(tensor: Tensor) -> Tensor:
    """The same values, every other number of a larger tensor."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values in column-major order."""
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def expanded(tensor: Tensor) -> Tensor:
    """The first row in place of every row, without memory of its own."""
    return tensor[:1].expand_as(tensor) if tensor.ndim else tensor


LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "strided": strided,
    "transposed": transposed,
    "expanded": expanded,
}


def combinations(shapes: Iterable[Any]) -> list[tuple[Any, str]]:
    """Every shape in contiguous memory, and the last, most general one in the other layouts."""
    shapes = list(shapes)
    others = [(shapes[-1], layout) for layout in LAYOUTS if layout != "contiguous"]
    return [(shape, "contiguous") for shape in shapes] + others


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Standard normal numbers in double precision, times ``scale``."""
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape) + sum(shape))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_agrees(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: dict[str, Tensor | None],
    layout: str = "contiguous",
    without_gradient: tuple[str, ...] = (),
    twice: bool = True,
) -> None:
    """Compare values, the gradients of all arguments and of each alone, and second derivatives.

    Args:
        kernel: a function of the arguments, whose result is a tensor or a tuple of them.
        reference: the same function in plain torch.
        arguments: by name, in order; None for one that is left out.
        layout: how they lie in memory, a name in `LAYOUTS`.
        without_gradient: names of arguments that have none.
        twice: whether the kernel offers second derivatives.
    """
    names = [name for name, tensor in arguments.items() if tensor is not None]
    names = [name for name in names if name not in without_gradient]

    def gradients(function: Callable[..., Any], wanted: list[str]) -> tuple[list[Tensor], ...]:
        leaves = {
            name: None if tensor is None else tensor.clone().requires_grad_(name in wanted)
            for name, tensor in arguments.items()
        }
        result = function(
            *(None if leaf is None else LAYOUTS[layout](leaf) for leaf in leaves.values())
        )
        results = [result] if isinstance(result, Tensor) else list(result)
        loss = torch.zeros((), dtype=torch.float64)
        for seed, one in enumerate(results):
            loss = loss + (normal(*one.shape, seed=seed) * (one + one.square())).sum()
        of = [leaves[name] for name in wanted]
        if not loss.requires_grad:  # depends on none of them
            zeros = [torch.zeros_like(leaf) for leaf in of]
            return results, zeros, zeros if twice else []
        first = torch.autograd.grad(loss, of, create_graph=twice, materialize_grads=True)
        second: tuple[Tensor, ...] = ()
        if twice:
            penalty = sum(gradient.square().sum() for gradient in first)
            second = tuple(torch.zeros_like(leaf) for leaf in of)
            if penalty.requires_grad:
                second = torch.autograd.grad(penalty, of, materialize_grads=True)
        return results, list(first), list(second)

    for wanted in (names, *([name] for name in names)):
        ours, theirs = gradients(kernel, wanted), gradients(reference, wanted)
        for what, one, other in zip(("value", "gradient", "second"), ours, theirs, strict=True):
            assert len(one) == len(other), (what, wanted)
            for position, (a, b) in enumerate(zip(one, other, strict=True)):
                message = f"{what} {position} of {wanted}: {{}}".format
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=message)
