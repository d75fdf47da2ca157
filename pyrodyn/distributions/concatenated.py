"""Entries of several kinds in one vector: laws that lie side by side along the last batch dim::

    p(x) = p_1(x_1, ..., x_n) p_2(x_{n+1}, ...) ...     every entry by the law of its own columns

so that spikes and a field potential are one site, whose entries are masked, scored and drawn as
those of any other.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor


class Concatenated(TorchDistribution):
    """Independent laws side by side.

    Args:
        laws: with the same batch shape but for its last dim, along which they are joined, and
            without event dims.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, laws: Sequence[TorchDistributionMixin]) -> None:
        self.laws = tuple(laws)
        self._sizes = [law.batch_shape[-1] for law in laws]
        left = laws[0].batch_shape[:-1]
        super().__init__(torch.Size((*left, sum(self._sizes))), validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected entries."""
        return self._joined(lambda law: law.mean)

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Variances of the entries."""
        return self._joined(lambda law: law.variance)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Entries, ``(*sample_shape, *batch_shape)``."""
        return self._joined(lambda law: law.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density of every entry in nats; ``value`` broadcasts against the batch shape."""
        parts = value.split(self._sizes, -1)
        return torch.cat(
            [law.log_prob(part) for law, part in zip(self.laws, parts, strict=True)], -1
        )

    def _joined(self, part_of: Callable[[Any], Tensor]) -> Tensor:
        return torch.cat([part_of(law) for law in self.laws], -1)
