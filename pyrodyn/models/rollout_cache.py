"""What a guide works out along its draw and the model needs again.

A guide that rolls dynamics meets the very path that the model is then replayed on. Recognised by
the identity of the drawn tensors, by the memory of the known inputs and by the weights' values, it
is taken up instead of worked out twice; anything else is worked out anew.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class WeightSnapshot:
    """Values of weights at one moment, and which of them were frozen.

    Values, because torch's counters of changes miss fused optimisers and ``.data``.
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
        return bool(torch.stack(same).all())  # at once: a GPU waits for every answer


class _Kept(NamedTuple):
    value: Tensor
    drawn: tuple[Tensor, ...]
    inputs: Tensor
    input_version: int
    weights: WeightSnapshot


class RolloutCache:
    """Room for one tensor that belongs to the guide's last draw."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def keep(
        self,
        value: Tensor,
        drawn: tuple[Tensor, ...],
        inputs: Float[Tensor, "trial time input"],
        weights: Iterable[Tensor],
    ) -> None:
        """Keep what was worked out of a draw and known inputs by some weights."""
        self._kept = _Kept(value, drawn, inputs, inputs._version, WeightSnapshot(weights))

    def take(
        self,
        drawn: tuple[Tensor | None, ...],
        inputs: Float[Tensor, "trial time input"],
        weights: Iterable[Tensor],
    ) -> Tensor | None:
        """What was kept of these very tensors, once; None if it was kept of anything else, or
        without the gradient that is wanted now.
        """
        kept, self._kept = self._kept, None
        if kept is None or (torch.is_grad_enabled() and not kept.value.requires_grad):
            return None
        is_same_draw = all(a is b for a, b in zip(kept.drawn, drawn, strict=True))
        # Views of a batch's inputs are new tensors every time: what counts is where they look.
        is_same_drive = inputs.is_set_to(kept.inputs) and inputs._version == kept.input_version
        is_same = is_same_draw and is_same_drive and kept.weights.is_of(weights)
        return kept.value if is_same else None

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts empty: what is kept hangs on the graph of this instance's last draw."""
        return {"_kept": None}
