"""Probability pieces that Pyro lacks: paths as one variable, counts and amplitudes by log mean,
laws near points, laws side by side.
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
