"""Spike counts in log-rate form::

    Poisson                x ~ Poisson(m),                          m = exp(log_rate)
    negative binomial      x ~ Poisson(m w), w ~ Gamma(1/phi, 1/phi)    var = m + phi m^2
    zero-inflated Poisson  x = 0 with probability pi, else x ~ Poisson(m)

The parameters are log rates, as networks output them, so that no logarithm of an exponential is
taken: values and gradients are finite for log rates within +-40, and a rate of exactly 0
(``log_rate = -inf``) has log probability 0 at a count of 0 and -inf elsewhere. Start with the
Poisson; the negative binomial is for counts more variable than their rate explains (phi -> 0 is the
Poisson), zero inflation for units that occasionally fall silent whatever their rate.

Parameters and values keep their own shapes and broadcast as late as possible: what depends on the
counts alone (log x!) is computed once per batch, not once per particle.

Source of the negative binomial's form: Lawless, Can. J. Statist. 15:209 (1987).
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

from pyrodyn.kernels.affine_poisson import ZERO_LOG_ZERO, largest_mean

MIN_LOG_DISPERSION = -30.0
"""Bound that keeps 1/phi finite; below it the log probabilities of 100 counts differ from those of
the Poisson by less than 1e-9 nats."""

NO_COUNT = 1e-12
"""Replaces a count of 0 where its logarithm is taken, relative to 1/phi where that is below 1. The
gradient contains NO_COUNT phi^2, which must not underflow in single precision."""

STIRLING_FROM = 16.0
"""From this argument on the error of Stirling's series with the terms below is under 1e-15."""

STIRLING_TERMS = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
"""B_2k / (2k (2k - 1)), Abramowitz & Stegun 6.1.41."""

TABLE_SIZE = 256
"""Log factorials of counts below it are tabulated."""

TABLE_FROM = 2**12
"""Number of counts from which the table is faster than computing log factorials."""


class LogPoisson(TorchDistribution):
    """Poisson by its log rate: log p(x) = x log_rate - exp(log_rate) - log x!.

    Args:
        log_rate: log expected count per bin, any shape.
        validate_args: check arguments and scored values; costs as much as the density.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_rate: Float[Tensor, "..."], validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, validate_args=validate_args)

    # Not functools.cached_property: a mean first computed under no_grad, by `sample` for instance,
    # must still carry a gradient afterwards.
    @lazy_property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected count per bin, computed once."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Equal to the mean."""
        return self.mean

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Counts, ``(*sample_shape, *batch_shape)``."""
        return torch.poisson(self.mean.expand(*sample_shape, *self.batch_shape))

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log probability in nats; ``value`` broadcasts against the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        # Detached: the gradient of the density is written by hand.
        density: Tensor = _LogPoissonDensity.apply(self.log_rate, self.mean.detach(), value)
        return density


class _LogPoissonDensity(torch.autograd.Function):
    """x a - exp(a) - log x! of a log rate a, with gradient x - exp(a): one pass over memory for
    each of these terms, where autograd would take two and keep every intermediate.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_rate: Tensor, mean: Tensor, value: Tensor) -> Tensor:
        product = (value * log_rate).nan_to_num_(*ZERO_LOG_ZERO)
        return product.sub_(mean).sub_(log_factorial(value))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        log_rate, mean, value = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            mean = log_rate.exp()
        # Finite where the mean overflows, so that a mask of 0 removes it.
        slope = (value - mean).clamp(min=-largest_mean(mean.dtype))
        d_log_rate = (grad * slope).sum_to_size(log_rate.shape)
        if not ctx.needs_input_grad[2]:
            return d_log_rate, None, None
        d_value = grad * (log_rate - torch.digamma(value + 1))
        return d_log_rate, None, d_value.sum_to_size(value.shape)


def log_factorial(count: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Log x! = log Gamma(x + 1).

    For many small counts on a CPU it is read from a table, at a fifth of the cost.
    """
    if count.is_cuda or count.requires_grad or count.numel() < TABLE_FROM:
        return torch.lgamma(count + 1)
    integers = count.int()
    least, largest = integers.aminmax()
    has_fractions = any(integers.to(count.dtype).sub_(count).aminmax())
    if least < 0 or largest >= TABLE_SIZE or has_fractions:
        return torch.lgamma(count + 1)
    table = torch.lgamma(torch.arange(1, TABLE_SIZE + 1, dtype=count.dtype, device=count.device))
    return table.index_select(0, integers.flatten()).view(count.shape)


class NegativeBinomialMean(TorchDistribution):
    """Negative binomial by mean m and dispersion phi: variance m + phi m^2.

    With r = 1/phi, as for x -> 0 where x = 0::

        log p(x) = (x + r) log((x + r) / (m + r)) - x log(x / m)
                   + R(x + r) - R(r) - R(x) - log(1 + phi x) / 2 - log(2 pi x) / 2

    R is `stirling_remainder`. The leading terms of the log Gammas, which cancel, do not appear
    (Loader 2000, "Fast and accurate computation of binomial probabilities"), and the first line is
    evaluated as n y - (x + r) log(1 + n / (x + r) (e^y - 1)) with n = min(x, r) and y = log(m / x)
    if x < r, log(x / m) otherwise, which keeps its digits for large means and for every phi.

    Args:
        log_mean: log expected count per bin.
        log_dispersion: log phi, broadcast against ``log_mean`` (one per neuron, say).
        validate_args: check arguments and scored values; costs as much as the density.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_mean": constraints.real,
        "log_dispersion": constraints.real,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self,
        log_mean: Float[Tensor, "..."],
        log_dispersion: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        self.log_mean, self.log_dispersion = log_mean, log_dispersion
        shape = torch.broadcast_shapes(log_mean.shape, log_dispersion.shape)
        super().__init__(shape, validate_args=validate_args)

    @lazy_property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected count per bin, computed once."""
        return self.log_mean.exp().expand(self.batch_shape)

    @lazy_property
    def dispersion(self) -> Float[Tensor, "..."]:
        """Phi, in its own shape."""
        return self.log_dispersion.clamp(min=MIN_LOG_DISPERSION).exp()

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Equal to m + phi m^2."""
        return self.mean + self.dispersion * self.mean**2

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Counts, ``(*sample_shape, *batch_shape)``: Poisson with a gamma-distributed rate."""
        r = self.dispersion.reciprocal().expand(self.batch_shape)
        factor = Gamma(r, r, validate_args=False).sample(torch.Size(sample_shape))
        return torch.poisson(self.mean * factor)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log probability in nats; ``value`` broadcasts against the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        phi = self.dispersion
        r = phi.reciprocal()
        x = torch.where(value == 0, NO_COUNT * r.detach().clamp(1e-26, 1.0), value)
        total, is_below = value + r, x < r
        fewer = torch.where(is_below, x, r)
        sign = torch.where(is_below, 1.0, -1.0)
        of_counts = stirling_remainder(total) - stirling_remainder(r)
        of_counts = of_counts - 0.5 * torch.log1p(value * phi)
        of_factorial = stirling_remainder(x) + 0.5 * (2 * math.pi * x).log()
        of_counts = of_counts - torch.where(value == 0, 0.0, of_factorial)
        # From here on tensors are as large as the mean.
        y = torch.addcmul(-sign * x.log(), sign, self.log_mean)
        # Beyond what expm1 can represent, log(1 + w (e^y - 1)) continues with slope 1.
        largest = 0.95 * math.log(torch.finfo(y.dtype).max)
        near, beyond = y.clamp(max=largest), (y - largest).clamp(min=0)
        linear = (fewer * (value != 0) * near).nan_to_num(*ZERO_LOG_ZERO)
        curved = torch.log1p(fewer / total * near.expm1())
        log_prob = torch.addcmul(of_counts + linear, total, curved, value=-1)
        return torch.addcmul(log_prob, total - fewer, beyond, value=-1)


class ZeroInflatedLogPoisson(TorchDistribution):
    """Poisson that is silenced with probability pi = sigmoid(gate_logits)::

        log p(0) = log(pi + (1 - pi) exp(-m))
        log p(x) = log(1 - pi) + log Poisson(x; m)    for x > 0

    Args:
        log_rate: log expected count per bin while not silenced.
        gate_logits: logit of the probability of silence, broadcast against ``log_rate``.
        validate_args: check arguments and scored values; costs as much as the density.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_rate": constraints.real,
        "gate_logits": constraints.real,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self,
        log_rate: Float[Tensor, "..."],
        gate_logits: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        self.log_rate, self.gate_logits = log_rate, gate_logits
        self.firing = LogPoisson(log_rate, validate_args=False)
        shape = torch.broadcast_shapes(log_rate.shape, gate_logits.shape)
        super().__init__(shape, validate_args=validate_args)

    @lazy_property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected count per bin, (1 - pi) m, computed once."""
        return torch.sigmoid(-self.gate_logits) * self.firing.mean

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Equal to (1 - pi) m (1 + pi m)."""
        return self.mean * (1 + torch.sigmoid(self.gate_logits) * self.firing.mean)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Counts, ``(*sample_shape, *batch_shape)``."""
        shape = (*sample_shape, *self.batch_shape)
        counts = torch.poisson(self.firing.mean.expand(shape))
        return counts * torch.bernoulli(torch.sigmoid(-self.gate_logits).expand(shape))

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log probability in nats; ``value`` broadcasts against the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        # -m, with a gradient that a mask of 0 removes even if m overflows.
        not_firing = self.firing.log_prob(value.new_zeros(()))
        zero = torch.logaddexp(self.gate_logits, not_firing)
        positive = self.firing.log_prob(value)
        return torch.where(value == 0, zero, positive) - functional.softplus(self.gate_logits)


def stirling_remainder(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log Gamma(z) - [(z - 1/2) log z - z + log(2 pi) / 2] for z > 0, to working precision.

    It replaces log Gammas in differences whose leading terms cancel analytically.
    """
    # Each branch is evaluated within its own range only, so that both gradients are finite.
    small = z.clamp(max=STIRLING_FROM)
    leading = (small - 0.5) * small.log() - small + 0.5 * math.log(2 * math.pi)
    inverse = z.clamp(min=STIRLING_FROM).reciprocal()
    squared = inverse.square()
    series = torch.zeros_like(inverse)
    for term in reversed(STIRLING_TERMS):
        series = series * squared + term
    return torch.where(z > STIRLING_FROM, series * inverse, torch.lgamma(small) - leading)
