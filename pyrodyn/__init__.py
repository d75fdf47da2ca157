"""pyrodyn: latent neural dynamics as Pyro programs, their posteriors as ArviZ DataTrees."""

from importlib.metadata import version

import pyro

# Every parameter belongs to its module. Under Pyro's default a module's parameters also enter a
# global store, where two modules that share a name silently share (or lose) a parameter.
pyro.settings.set(module_local_params=True)

from pyrodyn import analysis, data, infer, models, posterior  # noqa: E402 (after the setting)
from pyrodyn.infer import fit  # noqa: E402
from pyrodyn.infer.training.saving import load, save  # noqa: E402
from pyrodyn.posterior import predict, to_datatree  # noqa: E402

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
