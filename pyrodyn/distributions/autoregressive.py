"""First-order autoregressive paths with Gaussian or Student-t increments.

    u_1 ~ D(0, s / sqrt(1 - alpha^2))        the stationary spread
    u_t ~ D(alpha u_{t-1}, s)                D = Normal or StudentT(df), per dimension

alpha = 0 is white noise. The prior of LFADS' inferred inputs (Pandarinath et al. 2018, Methods);
heavy tails let a few large inputs stand out.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import Normal, StudentT
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrodyn.distributions.paths import StatePath


class Autoregressive(StatePath):
    """Law of a path of ``num_bins`` bins.

    Args:
        alpha: coefficients in [0, 1), one per dimension.
        scale: s, the scale of the increments.
        num_bins: length of the path.
        df: degrees of freedom of Student-t increments; None for Gaussian ones.
        previous: u_0, where the path goes on from a known value instead of starting from its
            stationary spread ``(*batch, dim)``.
        batch_shape: left dims over which paths are independent; those of ``previous`` where it is
            given.
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
        """The same law over more independent paths."""
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
        """The law of the next ``num_bins`` bins given the last value."""
        return Autoregressive(self.alpha, self.scale, num_bins, df=self.df, previous=last)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Float[Tensor, "*all time dim"]:
        """Draw bin by bin; the increments are drawn at once."""
        shape = self.path_shape(sample_shape)
        zero = torch.zeros_like(self.scale)
        noise = self._step(zero, torch.ones_like(zero)).expand(shape).rsample()
        mean, spread = self._start()
        path = [mean + spread * noise[..., 0, :]]
        for t in range(1, self.num_bins):
            path.append(self.alpha * path[-1] + self.scale * noise[..., t, :])
        return torch.stack(path, -2)

    def log_prob_steps(self, path: Float[Tensor, "*all time dim"]) -> Float[Tensor, "*all time"]:
        """Log p(u_t | u_{t-1}), all bins at once."""
        first = self._step(*self._start()).log_prob(path[..., 0, :])
        mean = self.alpha * path[..., :-1, :]
        later = self._step(mean, self.scale).log_prob(path[..., 1:, :])
        first = first.expand(*later.shape[:-2], first.shape[-1])
        return torch.cat([first[..., None, :], later], -2).sum(-1)

    def _start(self) -> tuple[Tensor, Tensor]:
        if self.previous is None:
            return torch.zeros_like(self.scale), self.scale / (1 - self.alpha**2).sqrt()
        return self.alpha * self.previous, self.scale

    def _step(self, mean: Tensor, scale: Tensor) -> TorchDistributionMixin:
        if self.df is None:
            return Normal(mean, scale, validate_args=False)
        return StudentT(self.df, mean, scale, validate_args=False)
