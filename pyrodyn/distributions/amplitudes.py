"""Positive amplitudes, such as deconvolved calcium events, by mean and shape.

    MeanGamma(eta, k):                 mean m = e^eta, concentration k, rate k/m, variance m^2/k
    ZeroInflatedGamma(eta, k, g):      exactly 0 with probability sigmoid(g), else MeanGamma(eta, k)

The zero-inflated density is taken with respect to a point mass at 0 plus Lebesgue measure (as in
Zhu et al. 2022, Nat. Neurosci. 25:1724). Values and gradients stay finite at x = 0.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional

LARGEST_LOG_MEAN = 40.0
"""Log means are capped here, so that no product of mean and shape overflows in float32."""


class MeanGamma(TorchDistribution):
    """Gamma by mean and shape.

    Args:
        log_mean: eta.
        concentration: k.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_mean": constraints.real,
        "concentration": constraints.positive,
    }
    support = constraints.nonnegative

    def __init__(
        self,
        log_mean: Float[Tensor, "*batch"],
        concentration: Float[Tensor, "*small"],
        validate_args: bool | None = None,
    ) -> None:
        self.log_mean, self.concentration = broadcast_all(
            log_mean.clamp(-LARGEST_LOG_MEAN, LARGEST_LOG_MEAN), concentration
        )
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """e^eta."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """m^2 / k."""
        return (2 * self.log_mean).exp() / self.concentration

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "MeanGamma":
        """The same law over a larger batch."""
        return MeanGamma(self.log_mean.expand(batch_shape), self.concentration.expand(batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Float[Tensor, "*all"]:
        """Draw amplitudes."""
        k = self.concentration
        unit = torch.distributions.Gamma(k, k, validate_args=False).sample(sample_shape)
        return unit * self.mean

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*all"]:
        """K log(k/m) + (k - 1) log x - k x/m - log Gamma(k)."""
        k = self.concentration
        log_rate = k.log() - self.log_mean
        tiny = torch.finfo(value.dtype).tiny
        return (
            k * log_rate
            + (k - 1) * value.clamp_min(tiny).log()
            - value * log_rate.exp()
            - torch.lgamma(k)
        )


class ZeroInflatedGamma(TorchDistribution):
    """Gamma amplitudes with exact zeros.

    Args:
        log_mean: eta of the amplitudes that are not zero.
        concentration: k.
        gate_logits: g; a bin is zero with probability sigmoid(g).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"gate_logits": constraints.real}
    support = constraints.nonnegative

    def __init__(
        self,
        log_mean: Float[Tensor, "*batch"],
        concentration: Float[Tensor, "*small"],
        gate_logits: Float[Tensor, "*also_small"],
        validate_args: bool | None = None,
    ) -> None:
        log_mean, concentration, self.gate_logits = broadcast_all(
            log_mean, concentration, gate_logits
        )
        self.base = MeanGamma(log_mean, concentration, validate_args)
        super().__init__(log_mean.shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """(1 - sigmoid(g)) e^eta."""
        return torch.sigmoid(-self.gate_logits) * self.base.mean

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Variance of the mixture."""
        open_ = torch.sigmoid(-self.gate_logits)
        return open_ * (self.base.variance + (1 - open_) * self.base.mean**2)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "ZeroInflatedGamma":
        """The same law over a larger batch."""
        return ZeroInflatedGamma(
            self.base.log_mean.expand(batch_shape),
            self.base.concentration.expand(batch_shape),
            self.gate_logits.expand(batch_shape),
        )

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Float[Tensor, "*all"]:
        """Draw amplitudes and exact zeros."""
        amplitudes = self.base.sample(sample_shape)
        is_open = torch.bernoulli(torch.sigmoid(-self.gate_logits).expand(amplitudes.shape))
        return amplitudes * is_open

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*all"]:
        """Log sigmoid(g) at 0, log sigmoid(-g) + log Gamma density elsewhere."""
        positive = value > 0
        # A harmless value where x = 0: the branch not taken must not send NaN back.
        amplitude = self.base.log_prob(torch.where(positive, value, torch.ones_like(value)))
        open_ = functional.logsigmoid(-self.gate_logits) + amplitude
        return torch.where(positive, open_, functional.logsigmoid(self.gate_logits))
