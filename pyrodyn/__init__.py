"""pyrodyn: latent neural dynamics as Pyro programs, their posteriors as ArviZ DataTrees."""

from importlib.metadata import version

from pyrodyn import analysis, data, infer, models, posterior
from pyrodyn.infer import fit
from pyrodyn.infer.training.saving import load, save
from pyrodyn.posterior import predict, to_datatree

__version__ = version("pyrodyn")

__all__ = [
    "__version__",
    "analysis",
    "data",
    "fit",
    "infer",
    "load",
    "models",
    "posterior",
    "predict",
    "save",
    "to_datatree",
]
