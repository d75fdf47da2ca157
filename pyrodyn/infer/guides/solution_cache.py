"""The last solutions of a guide that is solved per batch: a batch is often drawn from several
times, and `check_guide` runs a guide on a copy of the first batch and on half of it.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.models.rollout_cache import WeightSnapshot


class _Key(NamedTuple):
    """What a solution depends on.

    Attributes:
        batch: the trials.
        versions: of the tensors that an encoder reads of them.
        weights: of model and guide.
    """

    batch: Batch
    versions: tuple[int, ...]
    weights: WeightSnapshot

    @classmethod
    def of(cls, batch: Batch, weights: Iterable[Tensor]) -> "_Key":
        return cls(batch, tuple(view._version for view in _views(batch)), WeightSnapshot(weights))

    def fits(self, batch: Batch, weights: Iterable[Tensor]) -> bool:
        """Whether an encoder sees the same values under the same weights."""
        pairs = zip(_views(self.batch), _views(batch), self.versions, strict=True)
        scalars = [(each.horizon, each.gain) for each in (self.batch, batch)]
        return (
            scalars[0] == scalars[1]
            and self.weights.is_of(weights)
            and all(then._version == v and _is_same(now, then) for then, now, v in pairs)
        )


class SolutionCache[Solution]:
    """Solves a batch, unless it is one of the last two."""

    def __init__(self) -> None:
        self._last: deque[tuple[_Key, Solution]] = deque(maxlen=2)

    def of(
        self, batch: Batch, weights: Iterable[Tensor], solve: Callable[[], Solution]
    ) -> Solution:
        """The solution of a batch: one of the last, or that of ``solve``."""
        weights = tuple(weights)
        for key, solution in self._last:
            if key.fits(batch, weights):
                return solution
        solution = solve()
        self._last.append((_Key.of(batch, weights), solution))
        return solution


def _views(batch: Batch) -> tuple[Tensor, ...]:
    return batch.seen, batch.visible, batch.inputs


def _is_same(now: Tensor, then: Tensor) -> bool:
    """Whether two tensors are the same memory, or have the same values."""
    if now.is_set_to(then):
        return True
    kinds = [(each.dtype, each.device) for each in (now, then)]
    return kinds[0] == kinds[1] and torch.equal(now, then)
