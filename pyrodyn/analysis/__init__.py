"""Scores of a fit, the dynamics that it learned, and pictures of both."""

from pyrodyn.analysis.dynamics import dynamics_of, known_dynamics, visited_states
from pyrodyn.analysis.figures.portraits import (
    Plane,
    phase_portrait,
    plot_attractors,
    plot_eigenvalues,
    plot_lyapunov,
    plot_spectra,
)
from pyrodyn.analysis.figures.recordings import plot_factors, plot_inferred_inputs, plot_rates
from pyrodyn.analysis.fixed_points.fixed_points import fixed_points
from pyrodyn.analysis.free_run import free_run
from pyrodyn.analysis.lyapunov import kaplan_yorke, lyapunov_spectrum
from pyrodyn.analysis.scores.alignment import Alignment, align, latent_r2, subspace_angles
from pyrodyn.analysis.scores.attractors import attractor_baselines, d_h, d_stsp
from pyrodyn.analysis.scores.decoding import decode
from pyrodyn.analysis.scores.psth import condition_psth, psth_r2, smooth
from pyrodyn.analysis.scores.rates import (
    bits_per_spike,
    rate_r2,
    recording_bits_per_spike,
)
from pyrodyn.analysis.spectra import participation_ratio, power_spectrum, timescales

__all__ = [
    "Alignment",
    "Plane",
    "align",
    "attractor_baselines",
    "bits_per_spike",
    "condition_psth",
    "d_h",
    "d_stsp",
    "decode",
    "dynamics_of",
    "fixed_points",
    "free_run",
    "kaplan_yorke",
    "known_dynamics",
    "latent_r2",
    "lyapunov_spectrum",
    "participation_ratio",
    "phase_portrait",
    "plot_attractors",
    "plot_eigenvalues",
    "plot_factors",
    "plot_inferred_inputs",
    "plot_lyapunov",
    "plot_rates",
    "plot_spectra",
    "power_spectrum",
    "psth_r2",
    "rate_r2",
    "recording_bits_per_spike",
    "smooth",
    "subspace_angles",
    "timescales",
    "visited_states",
]
