"""pyrodyn: latent neural dynamics as Pyro programs, their posteriors as ArviZ DataTrees."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrodyn import analysis, data, infer, models, posterior
    from pyrodyn.infer import fit, recommended
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
    "recommended",
    "save",
    "to_datatree",
]

ROOMS = ("analysis", "data", "infer", "models", "posterior")
MODULE_OF = {
    "fit": "pyrodyn.infer",
    "recommended": "pyrodyn.infer",
    "load": "pyrodyn.infer.training.saving",
    "save": "pyrodyn.infer.training.saving",
    "predict": "pyrodyn.posterior",
    "to_datatree": "pyrodyn.posterior",
}


def __getattr__(name: str) -> Any:
    """Import a room, or the module of a function, when it is first used: torch, Pyro and matplotlib
    take seconds, which `pyrodyn --help` need not wait for.
    """
    if name in ROOMS:
        return import_module(f"pyrodyn.{name}")
    if name in MODULE_OF:
        return getattr(import_module(MODULE_OF[name]), name)
    raise AttributeError(f"module 'pyrodyn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
