"""Scores of a fit, the dynamics that it learned, and pictures of both."""

from pyrodyn.analysis.decoding import decode
from pyrodyn.analysis.figures import plot_factors, plot_inferred_inputs, plot_rates
from pyrodyn.analysis.fixed_points import fixed_points
from pyrodyn.analysis.free_run import free_run
from pyrodyn.analysis.psth import condition_psth, psth_r2, smooth
from pyrodyn.analysis.scores import (
    bits_per_spike,
    latent_r2,
    rate_r2,
    recording_bits_per_spike,
)

__all__ = [
    "bits_per_spike",
    "condition_psth",
    "decode",
    "fixed_points",
    "free_run",
    "latent_r2",
    "plot_factors",
    "plot_inferred_inputs",
    "plot_rates",
    "psth_r2",
    "rate_r2",
    "recording_bits_per_spike",
    "smooth",
]
