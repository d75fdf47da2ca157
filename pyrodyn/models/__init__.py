"""The zoo: one file per model, each a generative program with its default guide."""

from pyrodyn.models.base import LatentDynamics
from pyrodyn.models.files import MODELS, load, save
from pyrodyn.models.lfads import LFADS
from pyrodyn.models.observations import OBSERVATIONS

__all__ = ["LFADS", "MODELS", "OBSERVATIONS", "LatentDynamics", "load", "save"]
