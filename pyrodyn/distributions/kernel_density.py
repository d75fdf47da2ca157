"""Gaussian kernel density estimate: an equal mixture of Gaussians around points::

    p(z) = mean_k N(z; s_k, diag(h)^2)

It represents a distribution over a set of any shape, such as a curved sheet.

Source: Parzen 1962.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrodyn.distributions.gaussian import LOG_2PI

DISTANCES_AT_ONCE = 2**20
"""Number of distances computed at once."""

MIN_LOG_RATIO = -60.0
"""Smallest log ratio of a kernel's value to the largest one; smaller ones are raised to it, which
changes nothing in the sum, whereas exponentials of smaller numbers take several times as long.
"""


class KernelDensity(TorchDistribution):
    """An equal mixture of Gaussians of one width around points.

    Args:
        points: s_k.
        width: h, standard deviations of the kernels.
        batch_shape: left dims over which draws are independent.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        points: Float[Tensor, "point dim"],
        width: Float[Tensor, " dim"],
        batch_shape: Sequence[int] = (),
    ) -> None:
        self.points, self.width = points, width
        super().__init__(torch.Size(batch_shape), points.shape[1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "KernelDensity":
        """The same distribution for more independent draws."""
        return KernelDensity(self.points, self.width, batch_shape)

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """The mean of the points."""
        return self.points.mean(0).expand(*self.batch_shape, -1)

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """The variance of the points plus h^2, per dim."""
        variance = self.points.var(0, correction=0) + self.width.square()
        return variance.expand(*self.batch_shape, -1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*all dim"]:
        """Samples, differentiable in the points and in the width."""
        shape = (*sample_shape, *self.batch_shape)
        chosen = self.points[torch.randint(len(self.points), shape, device=self.points.device)]
        return chosen + self.width * torch.randn_like(chosen)

    def log_prob(self, value: Float[Tensor, "*value dim"]) -> Float[Tensor, "*all"]:
        """Log density in nats, at a cost proportional to the number of points."""
        # -|v - s|^2 / 2 as one matrix product; in double precision, since its terms, squared
        # distances in units of the width, are large and cancel.
        rows = (value / self.width).reshape(-1, value.shape[-1]).double()
        points = (self.points / self.width).double()
        left = torch.cat([rows, _half_square(rows), torch.ones_like(rows[:, :1])], -1)
        right = torch.cat([points, torch.ones_like(points[:, :1]), _half_square(points)], -1)
        parts = left.split(max(1, DISTANCES_AT_ONCE // len(points)))
        near = torch.cat([_log_sum((part @ right.mT).to(value)) for part in parts])
        near = near.view(value.shape[:-1])
        constant = self.width.log().sum() + 0.5 * LOG_2PI * len(self.width)
        log_prob = near - math.log(len(points)) - constant
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


def _half_square(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row 1"]:
    return -0.5 * rows.square().sum(-1, keepdim=True)


def _log_sum(logs: Float[Tensor, "row point"]) -> Float[Tensor, " row"]:
    largest = logs.amax(-1, keepdim=True).detach()
    return (logs - largest).clamp(min=MIN_LOG_RATIO).exp().sum(-1).log() + largest[:, 0]
