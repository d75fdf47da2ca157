"""The check that loss and gradient of every training step are finite.

On the CPU the answer is there before the weights change. The host would have to wait for a GPU in
every step: there the optimiser itself leaves out the update of a step that is not finite, and the
host reads the answer when it has enqueued the next step.
"""

import torch
from torch import Tensor


class FiniteCheck[Step]:
    """Reports steps that are not finite."""

    def __init__(self) -> None:
        self._pending: tuple[Step, Tensor, torch.cuda.Event] | None = None

    def add(self, step: Step, is_finite: Tensor, optimizer: torch.optim.Optimizer) -> Step | None:
        """Add a step before its update.

        Args:
            step: identifies it.
            is_finite: whether it is finite, of shape ``()``.
            optimizer: a fused optimiser, which on a GPU skips the update if it is not.

        Returns:
            The step that is known not to be finite: on the CPU this one, on a GPU the one before.
        """
        if not is_finite.is_cuda:
            return None if is_finite else step
        # Read by fused optimisers, as from `torch.amp.GradScaler`.
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        failed = self.last()
        answer, event = is_finite.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record()
        self._pending = step, answer, event
        return failed

    def last(self) -> Step | None:
        """The last step of a GPU if it was not finite and has not been reported; waits for it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        step, answer, event = pending
        event.synchronize()
        return None if answer else step
