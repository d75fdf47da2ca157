"""Objectives, sequential Monte Carlo, exact inference and `fit`."""

from pyrodyn.infer.guides.check_guide import GuideError, GuideReport, check_guide
from pyrodyn.infer.guides.flow import FlowStart
from pyrodyn.infer.guides.laplace import LaplaceStart
from pyrodyn.infer.guides.mixture import MixtureStart
from pyrodyn.infer.guides.refined import RefinedGuide
from pyrodyn.infer.importance.fisher_scoring import ScoringStep, fisher_scoring
from pyrodyn.infer.importance.importance_sampling import ImportanceSample, importance_sample
from pyrodyn.infer.importance.path_pool import PathPool, path_pool
from pyrodyn.infer.kalman.kalman_filter import KalmanResult, kalman_filter
from pyrodyn.infer.kalman.kalman_smoother import SmootherResult, exact_paths, kalman_smoother
from pyrodyn.infer.marginal import marginal
from pyrodyn.infer.mcmc import MCMCSample, mcmc_sample
from pyrodyn.infer.objectives.elbo import ELBO
from pyrodyn.infer.objectives.gtf import GTF, AdaptiveForcing
from pyrodyn.infer.objectives.importance_weighted import IWELBO, RWS
from pyrodyn.infer.objectives.kalman import Kalman
from pyrodyn.infer.objectives.objective import Objective, Ramp
from pyrodyn.infer.objectives.smoothed_score import SmoothedScore
from pyrodyn.infer.objectives.vsmc import VSMC
from pyrodyn.infer.smc.online import Stream, filter_bin
from pyrodyn.infer.smc.particle_filter import FilterResult, SequentialMonteCarlo, particle_filter
from pyrodyn.infer.smc.particle_smoother import particle_smoother
from pyrodyn.infer.smc.resampling import RESAMPLING
from pyrodyn.infer.training.diagnostics import FitWarning
from pyrodyn.infer.training.fit import fit
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.infer.training.recommended import Recipe, recommended
from pyrodyn.infer.training.schedule import (
    GrowingHorizon,
    NoiseAnnealing,
    NonFiniteLossError,
    Schedule,
)

__all__ = [
    "ELBO",
    "GTF",
    "IWELBO",
    "RESAMPLING",
    "RWS",
    "VSMC",
    "AdaptiveForcing",
    "FilterResult",
    "Fit",
    "FitWarning",
    "FlowStart",
    "GrowingHorizon",
    "GuideError",
    "GuideReport",
    "ImportanceSample",
    "Kalman",
    "KalmanResult",
    "LaplaceStart",
    "MCMCSample",
    "MixtureStart",
    "NoiseAnnealing",
    "NonFiniteLossError",
    "Objective",
    "PathPool",
    "Ramp",
    "Recipe",
    "RefinedGuide",
    "Schedule",
    "ScoringStep",
    "SequentialMonteCarlo",
    "SmoothedScore",
    "SmootherResult",
    "Stream",
    "check_guide",
    "exact_paths",
    "filter_bin",
    "fisher_scoring",
    "fit",
    "importance_sample",
    "kalman_filter",
    "kalman_smoother",
    "marginal",
    "mcmc_sample",
    "particle_filter",
    "particle_smoother",
    "path_pool",
    "recommended",
]
