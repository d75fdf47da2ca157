"""Counts in terms of unbounded predictors: stable for any log rate, with finite gradients.

    LogPoisson(eta):             log p(x) = x eta - e^eta - log x!
    NegativeBinomialMean(eta, log d):   mean m = e^eta, variance m + d m^2
    ZeroInflatedLogPoisson(eta, g):     0 with probability sigmoid(g), else Poisson(e^eta)

``log x!`` is taken of the observations as they are given, never of a copy per particle.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional

LARGEST_LOG_RATE = 60.0
"""Log rates are capped here, where e^eta is 1e26: far above any rate, far below overflow in
float32."""


def _log_factorial(value: Tensor) -> Tensor:
    return torch.lgamma(value + 1)


class LogPoisson(TorchDistribution):
    """Poisson in log-rate form.

    Args:
        log_rate: eta, log expected count per bin.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(
        self, log_rate: Float[Tensor, "*batch"], validate_args: bool | None = None
    ) -> None:
        self.log_rate = log_rate.clamp(max=LARGEST_LOG_RATE)
        self._rate: Tensor | None = None
        super().__init__(log_rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """Expected count; the one exponential that density, mean and draws share."""
        if self._rate is None:
            self._rate = self.log_rate.exp()
        return self._rate

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Equal to the mean."""
        return self.mean

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "LogPoisson":
        """The same law over a larger batch."""
        return LogPoisson(self.log_rate.expand(batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Float[Tensor, "*all"]:
        """Draw counts."""
        return torch.poisson(self.mean.expand(torch.Size(sample_shape) + self.batch_shape))

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*all"]:
        """X eta - e^eta - log x!."""
        return value * self.log_rate - self.mean - _log_factorial(value)


class NegativeBinomialMean(TorchDistribution):
    """Negative binomial by mean and dispersion: a Poisson whose rate is gamma distributed.

    With size r = 1/d:  log p(x) = log Gamma(x + r) - log Gamma(r) - log x! + x log(m/(m + r)) - r
    log(1 + m/r).

    Args:
        log_mean: eta.
        log_dispersion: log d; the variance is m + d m^2, and d -> 0 is the Poisson.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_mean": constraints.real,
        "log_dispersion": constraints.real,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self,
        log_mean: Float[Tensor, "*batch"],
        log_dispersion: Float[Tensor, "*small"],
        validate_args: bool | None = None,
    ) -> None:
        self.log_mean = log_mean.clamp(max=LARGEST_LOG_RATE)
        # Beyond d = e^-10 the law is a Poisson to float32, and lgamma(x + r) - lgamma(r) would
        # cancel.
        self.log_dispersion = log_dispersion.clamp(-10, 10)
        shape = torch.broadcast_shapes(log_mean.shape, log_dispersion.shape)
        super().__init__(shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """e^eta."""
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """M + d m^2."""
        return self.mean + self.log_dispersion.exp() * self.mean**2

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "NegativeBinomialMean":
        """The same law over a larger batch."""
        return NegativeBinomialMean(self.log_mean.expand(batch_shape), self.log_dispersion)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Float[Tensor, "*all"]:
        """Draw counts: a gamma rate, then a Poisson count."""
        shape = torch.Size(sample_shape) + self.batch_shape
        size = (-self.log_dispersion).exp()
        gamma = torch.distributions.Gamma(size, size).expand(self.batch_shape)
        return torch.poisson((self.mean * gamma.sample(torch.Size(sample_shape))).expand(shape))

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*all"]:
        """Log probability of counts, through log-odds m/r so that neither end overflows."""
        size = (-self.log_dispersion).exp()
        log_odds = self.log_mean + self.log_dispersion
        return (
            torch.lgamma(value + size)
            - torch.lgamma(size)
            - _log_factorial(value)
            + value * functional.logsigmoid(log_odds)
            - size * functional.softplus(log_odds)
        )


class ZeroInflatedLogPoisson(TorchDistribution):
    """Poisson with extra zeros.

    Args:
        log_rate: eta of the Poisson part.
        gate_logits: g; a bin is an extra zero with probability sigmoid(g).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"gate_logits": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(
        self,
        log_rate: Float[Tensor, "*batch"],
        gate_logits: Float[Tensor, "*small"],
        validate_args: bool | None = None,
    ) -> None:
        log_rate, self.gate_logits = broadcast_all(log_rate, gate_logits)
        self.base = LogPoisson(log_rate, validate_args)
        super().__init__(log_rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """(1 - sigmoid(g)) e^eta."""
        return torch.sigmoid(-self.gate_logits) * self.base.mean

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Variance of the mixture."""
        open_ = torch.sigmoid(-self.gate_logits)
        return open_ * self.base.mean * (1 + (1 - open_) * self.base.mean)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "ZeroInflatedLogPoisson":
        """The same law over a larger batch."""
        return ZeroInflatedLogPoisson(
            self.base.log_rate.expand(batch_shape), self.gate_logits.expand(batch_shape)
        )

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Float[Tensor, "*all"]:
        """Draw counts."""
        counts = self.base.sample(sample_shape)
        return counts * torch.bernoulli(torch.sigmoid(-self.gate_logits).expand(counts.shape))

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*all"]:
        """Log of the mixture."""
        open_ = functional.logsigmoid(-self.gate_logits) + self.base.log_prob(value)
        shut = functional.logsigmoid(self.gate_logits)
        return torch.where(value == 0, torch.logaddexp(shut, open_), open_)
