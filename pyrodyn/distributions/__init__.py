"""Distributions that Pyro lacks, as Pyro distributions: batch shapes broadcast, `expand` works, and
log densities are in nats.

============================  =====================================================================
`counts`                      spike counts by log rate: Poisson, negative binomial, zero-inflated
                              Poisson
`gamma`                       non-negative amplitudes by log mean: gamma, zero-inflated gamma
`paths`                       `StatePath`, base class of a latent path as one site ``(time, dim)``
`autoregressive`              AR(1) paths with Gaussian or Student-t increments, LFADS' input prior
`gaussian`                    Gaussian and Student-t vectors whose covariance is factorised once
`kernel_density`              a mixture of Gaussians around points, for empirical initial states
`masked`                      any distribution of which only some entries are scored
`affine`                      a triangular affine map per trial, to transform other distributions
`spline_flow`                 a neural spline flow given a context, for posteriors of any shape
`concatenated`                several distributions along the last dim, for counts beside a signal
============================  =====================================================================

For sparse or Poisson-like spikes take `LogPoisson`; for counts more variable than their rate,
`NegativeBinomialMean`; for deconvolved calcium, `ZeroInflatedGamma`::

    >>> import torch
    >>> from pyrodyn.distributions import LogPoisson
    >>> log_rate = torch.tensor([-1.0, 0.0, 1.0])
    >>> LogPoisson(log_rate).log_prob(torch.tensor([0.0, 1.0, 3.0])).sum()
    tensor(-2.8779)
"""

from pyrodyn.distributions.autoregressive import Autoregressive
from pyrodyn.distributions.concatenated import Concatenated
from pyrodyn.distributions.counts import LogPoisson, NegativeBinomialMean, ZeroInflatedLogPoisson
from pyrodyn.distributions.gamma import MeanGamma, ZeroInflatedGamma
from pyrodyn.distributions.kernel_density import KernelDensity
from pyrodyn.distributions.paths import StatePath

__all__ = [
    "Autoregressive",
    "Concatenated",
    "KernelDensity",
    "LogPoisson",
    "MeanGamma",
    "NegativeBinomialMean",
    "StatePath",
    "ZeroInflatedGamma",
    "ZeroInflatedLogPoisson",
]
