"""Latent paths as single random variables.

A path z_{1:T} of a process has density::

    p(z_{1:T}) = prod_t p(z_t | z_{<t})

and is one Pyro site with event shape ``(time, dim)``. Sampling rolls the process bin by bin;
scoring a given path needs no roll, because all conditionals can be evaluated at once. A hundred
per-step sites would cost more than the whole training step around them.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class LastDraw:
    """What a distribution computed along its last draw and needs again to score that draw."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Any, bool] | None = None

    def keep(self, drawn: Float[Tensor, "*all time dim"], value: Any) -> None:
        """Keep a value for this very tensor."""
        self._kept = drawn, value, torch.is_grad_enabled()

    def recall(self, path: Float[Tensor, "*path time dim"]) -> Any:
        """The value kept for this very tensor; None for any other, and for a draw made under
        ``no_grad`` where a gradient is wanted now.
        """
        if self._kept is None:
            return None
        drawn, value, has_gradient = self._kept
        return value if path is drawn and has_gradient >= torch.is_grad_enabled() else None


class StatePath(TorchDistribution):
    """Abstract density of a path, event shape ``(time, dim)``.

    A subclass samples by ``rsample`` and scores by `log_prob_steps`; both support any left batch
    dims.
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    @abstractmethod
    def log_prob_steps(
        self, path: Float[Tensor, "*batch time dim"]
    ) -> Float[Tensor, "*batch time"]:
        """Log p(z_t | z_{<t}) of every bin t, for any path and not only for the last sample."""

    def log_prob(self, value: Float[Tensor, "*path time dim"]) -> Float[Tensor, "*batch"]:
        """Log p(z_{1:T}), the sum of `log_prob_steps` over bins."""
        return self.log_prob_steps(value).sum(-1)

    def path_shape(self, sample_shape: torch.Size) -> torch.Size:
        """Shape of ``sample_shape`` paths: sample, batch, time, dim."""
        return torch.Size(sample_shape) + self.batch_shape + self.event_shape
