"""Model + recording -> ArviZ `DataTree`; predictive checks for neural data."""

from pyrodyn.posterior.checks import fano_factor, for_ppc
from pyrodyn.posterior.predict import predict
from pyrodyn.posterior.tree import to_datatree

__all__ = ["fano_factor", "for_ppc", "predict", "to_datatree"]
