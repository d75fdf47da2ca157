"""Probability pieces that Pyro lacks: paths as one variable, counts and amplitudes by log mean."""

from pyrodyn.distributions.amplitudes import MeanGamma, ZeroInflatedGamma
from pyrodyn.distributions.autoregressive import Autoregressive
from pyrodyn.distributions.counts import LogPoisson, NegativeBinomialMean, ZeroInflatedLogPoisson
from pyrodyn.distributions.paths import StatePath

__all__ = [
    "Autoregressive",
    "LogPoisson",
    "MeanGamma",
    "NegativeBinomialMean",
    "StatePath",
    "ZeroInflatedGamma",
    "ZeroInflatedLogPoisson",
]
