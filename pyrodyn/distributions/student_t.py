"""Student-t distributions that are made without a copy from the host.

`torch.distributions.StudentT` copies a constant to the device of its parameters each time that one
is made, and waits for a GPU meanwhile.
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.distribution import Distribution
from torch.distributions.utils import broadcast_all


class StudentT(dist.StudentT):
    """Student-t per entry, see `torch.distributions.StudentT`.

    Args:
        df: degrees of freedom, above 0.
        loc: location.
        scale: scale, above 0.
    """

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.df, self.loc, self.scale = broadcast_all(df, loc, scale)
        half = torch.full_like(self.df, 0.5)
        # A chi-squared distribution with df degrees of freedom.
        self._chi2 = torch.distributions.Gamma(half * self.df, half, validate_args=False)
        Distribution.__init__(self, self.df.size(), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "StudentT":
        """The same distribution for more entries."""
        return StudentT(*(each.expand(batch_shape) for each in (self.df, self.loc, self.scale)))
