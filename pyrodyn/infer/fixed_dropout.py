"""The same dropout masks in several runs of a program.

Under dropout a guide is another distribution in every run. If one run draws and a later one scores
those draws, both must use the same masks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyrodyn.data.batch import Batch
from pyrodyn.infer.traces import Program


class FixedDropout(TorchFunctionMode):
    """A program whose later runs use the dropout masks of its first.

    Args:
        program: a model or guide.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self._masks: list[Tensor] = []
        self._num_used = 0

    def __call__(self, batch: Batch) -> Any:
        """Run the program."""
        self._num_used = 0
        with self:
            return self.program(batch)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Dropout by a stored mask; any other function unchanged."""
        if func is functional.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return values
        masks, number = self._masks, self._num_used
        self._num_used += 1
        if number == len(masks) or masks[number].shape != values.shape:
            masks[number:] = [torch.dropout(torch.ones_like(values), p, train=True)]
        return values * masks[number]
