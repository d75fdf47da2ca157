"""Objectives, sequential Monte Carlo and `fit`."""

from pyrodyn.infer.fit import Fit, fit
from pyrodyn.infer.importance import ImportanceSample, importance_sample
from pyrodyn.infer.importance_weighted import IWELBO, RWS
from pyrodyn.infer.laplace import LaplaceStart
from pyrodyn.infer.mixture_start import MixtureStart
from pyrodyn.infer.objectives import ELBO, Objective, Ramp
from pyrodyn.infer.online import Stream, filter_bin
from pyrodyn.infer.particles import Filtered, SequentialMonteCarlo, particle_filter
from pyrodyn.infer.pool import Pooled, path_pool
from pyrodyn.infer.resampling import RESAMPLING
from pyrodyn.infer.schedule import FallingNoise, GrowingHorizon, NonFiniteLossError, Schedule
from pyrodyn.infer.scoring import ScoringStep, fisher_scoring
from pyrodyn.infer.smoothed_score import SmoothedScore
from pyrodyn.infer.smoothing import particle_smoother
from pyrodyn.infer.vsmc import VSMC

__all__ = [
    "ELBO",
    "IWELBO",
    "RESAMPLING",
    "RWS",
    "VSMC",
    "FallingNoise",
    "Filtered",
    "Fit",
    "GrowingHorizon",
    "ImportanceSample",
    "LaplaceStart",
    "MixtureStart",
    "NonFiniteLossError",
    "Objective",
    "Pooled",
    "Ramp",
    "Schedule",
    "ScoringStep",
    "SequentialMonteCarlo",
    "SmoothedScore",
    "Stream",
    "filter_bin",
    "fisher_scoring",
    "fit",
    "importance_sample",
    "particle_filter",
    "particle_smoother",
    "path_pool",
]
