"""A cache for the rollout of a guide, which the model needs again.

A guide that rolls the dynamics computes the path on which the model is then replayed. The cached
rollout is reused if the drawn tensors are the same objects, the known inputs lie at the same memory
and the weights have the same values; otherwise the model computes it itself. On a GPU, within
`constant_weights`, weights that are the same objects have the same values: to compare these, the
host would have to wait.
"""

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class WeightSnapshot:
    """The values of weights at one time, and which of them were frozen.

    Values, because torch's version counters miss fused optimisers and ``.data``.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._values = tuple(
            weight.detach().clone().requires_grad_(weight.requires_grad) for weight in weights
        )

    def is_of(self, weights: Iterable[Tensor]) -> bool:
        """Whether weights have these values."""
        now = tuple(weights)
        kinds = [[(w.dtype, w.device, w.requires_grad) for w in of] for of in (now, self._values)]
        if kinds[0] != kinds[1]:
            return False
        same = [(w == v).all() for w, v in zip(now, self._values, strict=True)]
        return bool(torch.stack(same).all())  # at once: every answer synchronises with a GPU


_period: ContextVar[object | None] = ContextVar("_period", default=None)
"""Identifies the `constant_weights` in progress."""


@contextlib.contextmanager
def constant_weights() -> Iterator[None]:
    """A context in which no weight changes."""
    token = _period.set(object())
    try:
        yield
    finally:
        _period.reset(token)


class _ConstantWeights:
    """Weights during one `constant_weights`."""

    def __init__(self, weights: Iterable[Tensor], period: object) -> None:
        self._weights = [(weight, weight.requires_grad) for weight in weights]
        self._period = period

    def is_of(self, weights: Iterable[Tensor]) -> bool:
        """Whether weights are these, frozen or not as then, and have not changed since."""
        pairs = zip(weights, self._weights, strict=True)
        return _period.get() is self._period and all(
            now is then and now.requires_grad == required for now, (then, required) in pairs
        )


class _Entry(NamedTuple):
    value: Tensor
    drawn: tuple[Tensor, ...]
    inputs: Tensor
    input_version: int
    weights: WeightSnapshot | _ConstantWeights


class RolloutCache:
    """Holds one tensor that was computed along the guide's last draw."""

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def keep(
        self,
        value: Tensor,
        drawn: tuple[Tensor, ...],
        inputs: Float[Tensor, "trial time input"],
        weights: Iterable[Tensor],
    ) -> None:
        """Cache a value computed from a draw and known inputs by some weights."""
        period, weights = _period.get(), list(weights)
        is_compared = period is None or not value.is_cuda
        kept = WeightSnapshot(weights) if is_compared else _ConstantWeights(weights, period)
        self._entry = _Entry(value, drawn, inputs, inputs._version, kept)

    def take(
        self,
        drawn: tuple[Tensor | None, ...],
        inputs: Float[Tensor, "trial time input"],
        weights: Iterable[Tensor],
    ) -> Tensor | None:
        """The cached value, once, if it was computed from these tensors by these weights; else, or
        if it lacks a gradient that is needed now, None.
        """
        entry, self._entry = self._entry, None
        if entry is None or (torch.is_grad_enabled() and not entry.value.requires_grad):
            return None
        is_same_draw = all(a is b for a, b in zip(entry.drawn, drawn, strict=True))
        # Views of a batch's inputs are new objects every time; their memory is the same.
        are_same_inputs = inputs.is_set_to(entry.inputs) and inputs._version == entry.input_version
        is_same = is_same_draw and are_same_inputs and entry.weights.is_of(weights)
        return entry.value if is_same else None

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts empty: the cached value belongs to the graph of this instance."""
        return {"_entry": None}
