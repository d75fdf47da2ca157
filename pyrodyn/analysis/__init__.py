"""Scores of a fit and pictures of what it inferred."""

from pyrodyn.analysis.decoding import decode
from pyrodyn.analysis.figures import plot_factors, plot_inferred_inputs, plot_rates
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
    "latent_r2",
    "plot_factors",
    "plot_inferred_inputs",
    "plot_rates",
    "psth_r2",
    "rate_r2",
    "recording_bits_per_spike",
    "smooth",
]
