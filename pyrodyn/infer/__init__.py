"""Objectives and `fit`."""

from pyrodyn.infer.fit import Fit, fit
from pyrodyn.infer.objectives import ELBO, Ramp
from pyrodyn.infer.schedule import NonFiniteLossError, Schedule

__all__ = ["ELBO", "Fit", "NonFiniteLossError", "Ramp", "Schedule", "fit"]
