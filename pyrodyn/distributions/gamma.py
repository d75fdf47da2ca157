"""Gamma distributions of non-negative amplitudes, such as calcium events::

    gamma                 x ~ Gamma(k, k / m)            mean m, var = m^2 / k
    zero-inflated gamma   x = 0 with probability pi, else x ~ Gamma(k, k / m)

Deconvolved calcium traces are exactly 0 in most frames and skewed elsewhere, which the second
models (Wei et al. 2020, arXiv 2006.03737; here without their shift of the nonzero part). Its
density is with respect to a point mass at 0 plus Lebesgue measure, so that the log densities of
zeros and of other values can be added.

The log density of a gamma at x = 0 is infinite or undefined, and unmeasured entries may be filled
with 0. A zero is therefore scored as the smallest normal float, whose log density and gradients are
finite, so that a mask can remove them.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Gamma, constraints
from torch.distributions.utils import lazy_property
from torch.nn import functional

from pyrodyn.distributions.counts import stirling_remainder


class MeanGamma(TorchDistribution):
    """Gamma by mean m and concentration k.

    With t = log(x / m), log p(x) = k (t - e^t) + k log k - log Gamma(k) - log x. Where e^t would
    overflow (t above 71 in single precision) its tangent stands for it: value and gradient stay
    finite and of the right sign.

    Args:
        log_mean: log m, any shape.
        concentration: k > 0, broadcast against ``log_mean`` (one per neuron, say).
        validate_args: check arguments and scored values; costs as much as the density.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_mean": constraints.real,
        "concentration": constraints.positive,
    }
    support = constraints.nonnegative
    has_rsample = True

    def __init__(
        self,
        log_mean: Float[Tensor, "..."],
        concentration: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        self.log_mean, self.concentration = log_mean, concentration
        shape = torch.broadcast_shapes(log_mean.shape, concentration.shape)
        super().__init__(shape, validate_args=validate_args)

    @lazy_property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected amplitude m, computed once."""
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Equal to m^2 / k."""
        return self.mean**2 / self.concentration

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Amplitudes > 0, ``(*sample_shape, *batch_shape)``, differentiable in both parameters."""
        k = self.concentration.expand(self.batch_shape)
        relative = Gamma(k, k, validate_args=False).rsample(torch.Size(sample_shape))
        drawn = self.mean * relative
        return drawn.clamp(min=torch.finfo(drawn.dtype).tiny)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density; ``value`` broadcasts against the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        k = self.concentration
        log_value = value.clamp(min=torch.finfo(value.dtype).tiny).log()
        t = log_value - self.log_mean
        # k log k - k - log Gamma(k), which cancels for large k; the leading terms of Stirling's
        # series are subtracted analytically.
        normaliser = 0.5 * (k / (2 * math.pi)).log() - stirling_remainder(k)
        # Far out e^t continues along its tangent, so that it and its gradient stay finite.
        near = t.clamp(max=0.8 * math.log(torch.finfo(t.dtype).max))
        beyond = near.exp() * (t - near)
        return k * (t - near.expm1() - beyond) + normaliser - log_value


class ZeroInflatedGamma(TorchDistribution):
    """Exactly 0 with probability pi = sigmoid(gate_logits), else gamma.

    The density is with respect to a point mass at 0 plus Lebesgue measure::

        log p(0) = log pi
        log p(x) = log(1 - pi) + log Gamma(x; k, k / m)    for x > 0

    The parameters broadcast against each other.

    Args:
        log_mean: log m, the mean of the nonzero part.
        concentration: k > 0 of the nonzero part.
        gate_logits: logit of pi, the probability of 0.
        validate_args: check arguments and scored values; costs as much as the density.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_mean": constraints.real,
        "concentration": constraints.positive,
        "gate_logits": constraints.real,
    }
    support = constraints.nonnegative

    def __init__(
        self,
        log_mean: Float[Tensor, "..."],
        concentration: Float[Tensor, "..."],
        gate_logits: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        self.log_mean, self.concentration = log_mean, concentration
        self.gate_logits = gate_logits
        self.nonzero = MeanGamma(log_mean, concentration, validate_args=False)
        shape = torch.broadcast_shapes(self.nonzero.batch_shape, gate_logits.shape)
        super().__init__(shape, validate_args=validate_args)

    @lazy_property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected amplitude, zeros included: (1 - pi) m, computed once."""
        return torch.sigmoid(-self.gate_logits) * self.nonzero.mean

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Equal to (1 - pi) m^2 (1/k + pi)."""
        relative = self.concentration.reciprocal() + torch.sigmoid(self.gate_logits)
        return self.mean * self.nonzero.mean * relative

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Exact zeros and amplitudes > 0, ``(*sample_shape, *batch_shape)``."""
        amplitude = self.nonzero.expand(self.batch_shape).sample(torch.Size(sample_shape))
        is_nonzero = torch.sigmoid(-self.gate_logits).expand(amplitude.shape)
        return amplitude * torch.bernoulli(is_nonzero)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density with respect to the mixed measure; ``value`` broadcasts."""
        if self._validate_args:
            self._validate_sample(value)
        zero = functional.logsigmoid(self.gate_logits)
        nonzero = functional.logsigmoid(-self.gate_logits) + self.nonzero.log_prob(value)
        return torch.where(value == 0, zero, nonzero)
