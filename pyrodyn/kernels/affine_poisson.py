"""Poisson counts of a population with an affine readout, forward and backward by hand::

    y = C z + d                                linear predictors, one per neuron
    m = exp(y)  or  softplus(y)                mean counts, by the link
    log p(x | z) = sum_n w_n (x_n log m_n - m_n - log x_n!)

with weights w, 0 for neurons that are not scored. `reference_affine_poisson` is the definition in
plain torch. Autograd would keep half a dozen tensors ``(particle, trial, neuron)`` of every bin and
read each of them again in the backward pass. Here value and slope d log p / d y are computed
together, while what they share is still in the cache, and only the slope is kept.
"""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pyrodyn.kernels.double_backward import differentiable_gradients

LINKS = ("exp", "softplus")

FAR = 40.0
"""At y = FAR, e^-y is below the rounding of 1 in double precision and e^y is finite in single."""


def softplus_and_log(y: Float[Tensor, "*left"]) -> tuple[Tensor, Tensor]:
    """Log(1 + e^y) and its logarithm, accurate for every y.

    Softplus exceeds y and tends to it for large y; its logarithm is below y and tends to it for
    y far below 0. A maximum and a minimum with y therefore select the limits.
    """
    mean = torch.maximum(y.clamp(-FAR, FAR).exp().log1p(), y)
    return mean, torch.minimum(mean.log(), y)


ZERO_LOG_ZERO = (0.0, math.inf, -math.inf)
"""For `torch.nan_to_num` of x log m: a mean of exactly 0 expects a count of 0. A NaN among the
factors is lost there, but not in the density, which it also enters by the mean."""


def largest_mean(dtype: torch.dtype) -> float:
    """Bound on a mean count, at which its products with slopes and with weights of 0 are finite."""
    return math.sqrt(torch.finfo(dtype).max)


def affine_poisson_log_prob(
    z: Float[Tensor, "*left latent"],
    loading: Float[Tensor, "neuron latent"],
    offset: Float[Tensor, "*shared neuron"],
    x: Float[Tensor, "*seen neuron"],
    weight: Float[Tensor, "*seen neuron"],
    link: str,
) -> Float[Tensor, "*left"]:
    """Log p(x | z), summed over neurons.

    Args:
        z: latent vectors.
        loading: C.
        offset: d, broadcasting against the neurons of ``z``.
        x: counts, broadcasting likewise; finite also where the weight is 0.
        weight: w. Neither w nor x is given a gradient.
        link: ``"exp"`` or ``"softplus"``.
    """
    log_prob: Tensor = _AffinePoisson.apply(z, loading, offset, x, weight, link)
    return log_prob


def reference_affine_poisson(
    z: Float[Tensor, "*left latent"],
    loading: Float[Tensor, "neuron latent"],
    offset: Float[Tensor, "*shared neuron"],
    x: Float[Tensor, "*seen neuron"],
    weight: Float[Tensor, "*seen neuron"],
    link: str,
) -> Float[Tensor, "*left"]:
    """`affine_poisson_log_prob` in plain torch."""
    y = z @ loading.mT + offset
    if link == "softplus":
        mean, log_mean = softplus_and_log(y)
    else:
        beyond = (y - math.log(largest_mean(y.dtype))).clamp(min=0).detach()
        mean, log_mean = (y - beyond).exp(), y
    expected = (x * log_mean).nan_to_num(*ZERO_LOG_ZERO)
    return (weight * (expected - mean - torch.lgamma(x + 1))).sum(-1)


class AffinePoissonSteps:
    """Densities of one population, whose backward passes accumulate the gradient of its loading.

    Args:
        loading: C.
        link: see `affine_poisson_log_prob`.
    """

    def __init__(self, loading: Float[Tensor, "neuron latent"], link: str) -> None:
        self.link = link
        self._transposed = loading.t().contiguous()

    def reset_gradients(self) -> None:
        """Set the accumulated gradient to 0, before each backward pass."""
        self._d_transposed = torch.zeros_like(self._transposed)

    def forward(
        self,
        z: Float[Tensor, "*left latent"],
        offset: Float[Tensor, "*shared neuron"],
        weighted_x: Float[Tensor, "*seen neuron"],
        weight: Float[Tensor, "*seen neuron"],
        keeps: bool,
    ) -> tuple[Float[Tensor, "*left"], Float[Tensor, "row neuron"] | None]:
        """The log density without the factorials, and its slope d log p / d y if ``keeps``.

        Args:
            z: latent vectors.
            offset: d.
            weighted_x: w x.
            weight: w.
            keeps: whether a backward pass may follow.
        """
        rows = z.reshape(-1, z.shape[-1])
        shape = (*z.shape[:-1], self._transposed.shape[1])
        if offset.ndim == 1:
            y = torch.addmm(offset, rows, self._transposed).view(shape)
        else:
            y = (rows @ self._transposed).view(shape).add_(offset)
        if self.link == "softplus":
            odds = y.clamp(-FAR, FAR).exp_()
            mean = torch.log1p(odds)
            torch.maximum(mean, y, out=mean)
            log_mean = torch.log(mean)
            torch.minimum(log_mean, y, out=log_mean)
        else:
            # Of which a mean that overflows where nothing is scored, or of a particle that no data
            # support, leaves no NaN.
            mean, log_mean = y.exp().clamp_(max=largest_mean(y.dtype)), y
        expected = log_mean.mul_(weighted_x).nan_to_num_(*ZERO_LOG_ZERO)
        log_prob = expected.addcmul_(weight, mean, value=-1).sum(-1)
        if not keeps:
            return log_prob, None
        if self.link == "softplus":
            # d m / d y = e^y / (1 + e^y), and d log m / d y is that divided by m.
            slope = torch.div(weighted_x, mean).sub_(weight).mul_(odds).div_(odds.add_(1))
        else:
            slope = torch.addcmul(weighted_x, weight, mean, value=-1)
        return log_prob, slope.reshape(len(rows), shape[-1])

    def backward(
        self,
        z: Float[Tensor, "*left latent"],
        slope: Float[Tensor, "row neuron"],
        d_log_prob: Float[Tensor, "*left"],
    ) -> Float[Tensor, "*left latent"]:
        """The gradient of z."""
        each = d_log_prob.reshape(-1, 1)
        # Neurons are the last dim of every product: see `pyrodyn.kernels.low_rank`.
        self._d_transposed.addmm_((each * z.reshape(-1, z.shape[-1])).t(), slope)
        return functional.linear(slope, self._transposed).mul_(each).view(z.shape)

    def offset_gradient(
        self,
        slope: Float[Tensor, "row neuron"],
        d_log_prob: Float[Tensor, "*left"],
        offset: Float[Tensor, "*shared neuron"],
    ) -> Float[Tensor, "*shared neuron"]:
        """The gradient of d."""
        each = d_log_prob.reshape(-1, 1)
        if offset.ndim == 1:
            return (each.t() @ slope)[0]
        d_y = (each * slope).view(*d_log_prob.shape, slope.shape[1])
        return d_y.sum_to_size(offset.shape)

    def gradient(self) -> Float[Tensor, "neuron latent"]:
        """The gradient of C, after the backward pass of every density."""
        return self._d_transposed.t()


class _AffinePoisson(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        loading: Tensor,
        offset: Tensor,
        x: Tensor,
        weight: Tensor,
        link: str,
    ) -> Tensor:
        ctx.counts = AffinePoissonSteps(loading, link)
        keeps = any(ctx.needs_input_grad)
        log_prob, ctx.slope = ctx.counts.forward(z, offset, weight * x, weight, keeps)
        ctx.save_for_backward(z, loading, offset, x, weight)
        return log_prob - (weight * torch.lgamma(x + 1)).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_log_prob,) = grads
        given = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            log_prob = partial(reference_affine_poisson, link=ctx.counts.link)
            return *differentiable_gradients(log_prob, given, d_log_prob), None
        z, _, offset, *_ = given
        ctx.counts.reset_gradients()
        d_z = ctx.counts.backward(z, ctx.slope, d_log_prob)
        d_offset = ctx.counts.offset_gradient(ctx.slope, d_log_prob, offset)
        return d_z, ctx.counts.gradient(), d_offset, None, None, None
