"""First-order autoregressive processes with Gaussian or Student-t increments::

    u_1 ~ D(0, s / sqrt(1 - alpha^2))        the stationary distribution
    u_t ~ D(alpha u_{t-1}, s)                D = Normal or StudentT(df), per dimension

alpha = 0 is white noise. The prior of LFADS' inferred inputs (Pandarinath et al. 2018, Methods);
heavy tails let a few large inputs stand out.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn import functional

from pyrodyn.distributions.paths import StatePath
from pyrodyn.distributions.student_t import StudentT


class Autoregressive(StatePath):
    """Distribution of the process over ``num_bins`` bins.

    Args:
        alpha: coefficients in [0, 1), one per dimension.
        scale: s, the scale of the increments.
        num_bins: number of bins.
        df: degrees of freedom of Student-t increments; None for Gaussian ones.
        previous: u_0, ``(*batch, dim)``, a known value from which the process continues; None to
            start from the stationary distribution.
        batch_shape: left dims over which paths are independent; ignored if ``previous`` is given,
            whose left dims they then are.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        alpha: Float[Tensor, " dim"],
        scale: Float[Tensor, " dim"],
        num_bins: int,
        *,
        df: Float[Tensor, " dim"] | None = None,
        previous: Float[Tensor, "*batch dim"] | None = None,
        batch_shape: Sequence[int] = (),
    ) -> None:
        self.alpha, self.scale, self.num_bins = alpha, scale, num_bins
        self.df, self.previous = df, previous
        batch_shape = torch.Size(batch_shape) if previous is None else previous.shape[:-1]
        event_shape = torch.Size((num_bins, alpha.shape[0]))
        super().__init__(batch_shape, event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Autoregressive":
        """The same distribution over more independent paths."""
        previous = self.previous
        if previous is not None:
            previous = previous.expand(*batch_shape, previous.shape[-1])
        return Autoregressive(
            self.alpha,
            self.scale,
            self.num_bins,
            df=self.df,
            previous=previous,
            batch_shape=batch_shape,
        )

    def continue_from(self, last: Float[Tensor, "*batch dim"], num_bins: int) -> "Autoregressive":
        """The distribution of the next ``num_bins`` bins given the last value."""
        return Autoregressive(self.alpha, self.scale, num_bins, df=self.df, previous=last)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*all time dim"]:
        """Sample all increments e at once and filter them: u_t = sum_k alpha^k e_{t-k}.

        With S the shift by one bin, the sum is a product of few factors,
        sum_{k < 2^m} (alpha S)^k = prod_{j < m} (1 + (alpha S)^(2^j)).
        """
        means = self.scale.new_zeros(self.num_bins, len(self.scale))
        if self.previous is not None:
            decayed = (self.alpha * self.previous)[..., None, :]
            means = torch.cat([decayed, means[1:].expand(*self.batch_shape, -1, -1)], -2)
        increments = self._increments(means, self._scales())
        path = increments.expand(self.path_shape(torch.Size(sample_shape))).rsample()
        lag, decay = 1, self.alpha
        while lag < self.num_bins:
            path = path + decay * functional.pad(path[..., :-lag, :], (0, 0, lag, 0))
            lag, decay = 2 * lag, decay**2
        return path

    def log_prob_steps(self, path: Float[Tensor, "*path time dim"]) -> Float[Tensor, "*all time"]:
        """Log p(u_t | u_{t-1}), all bins at once."""
        left = torch.broadcast_shapes(path.shape[:-2], self.batch_shape)
        path = path.expand(*left, *self.event_shape)
        first = torch.zeros_like(self.scale) if self.previous is None else self.previous
        before = torch.cat([first.expand(*left, -1)[..., None, :], path[..., :-1, :]], -2)
        return self._increments(self.alpha * before, self._scales()).log_prob(path).sum(-1)

    def _scales(self) -> Float[Tensor, "time dim"]:
        """Scale of every increment; the first is that of the stationary distribution unless u_0 is
        given.
        """
        later = self.scale.expand(self.num_bins, -1)
        if self.previous is not None:
            return later
        stationary = self.scale / ((1 - self.alpha) * (1 + self.alpha)).sqrt()
        return torch.cat([stationary[None], later[1:]])

    def _increments(
        self, mean: Float[Tensor, "*all dim"], scale: Float[Tensor, "time dim"]
    ) -> TorchDistributionMixin:
        if self.df is None:
            return Normal(mean, scale, validate_args=False)
        return StudentT(self.df, mean, scale)
