"""Distributions concatenated along the last batch dim::

    p(x) = p_1(x_1, ..., x_n) p_2(x_{n+1}, ...) ...     one distribution per block of columns

so that spikes and a field potential are one site, whose entries are masked, scored and sampled as
those of any other.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints


class Concatenated(TorchDistribution):
    """Independent distributions over consecutive columns.

    Args:
        parts: distributions without event dims, whose batch shapes agree but for the last dim.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Sequence[TorchDistributionMixin]) -> None:
        self.parts = tuple(parts)
        self._sizes = [part.batch_shape[-1] for part in parts]
        left = parts[0].batch_shape[:-1]
        super().__init__(torch.Size((*left, sum(self._sizes))), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The values that the entries may take."""
        return constraints.cat([part.support for part in self.parts], -1, self._sizes)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected entries."""
        return self._concatenate(lambda part: part.mean)

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Variances of the entries."""
        return self._concatenate(lambda part: part.variance)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Entries, ``(*sample_shape, *batch_shape)``."""
        return self._concatenate(lambda part: part.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density of every entry in nats; ``value`` broadcasts against the batch shape."""
        columns = value.split(self._sizes, -1)
        return torch.cat(
            [part.log_prob(own) for part, own in zip(self.parts, columns, strict=True)], -1
        )

    def _concatenate(self, field_of: Callable[[Any], Tensor]) -> Tensor:
        return torch.cat([field_of(part) for part in self.parts], -1)
