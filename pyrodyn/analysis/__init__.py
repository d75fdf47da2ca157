"""Analysis of fits and of learned dynamics: scores, fixed points, Lyapunov exponents, figures.

Contents, and when to use which:

- `scores`: agreement of inferred rates, latents and decoded behaviour with data or truth, and of
  two attractors with each other; and, without a truth, signs of dynamics that are not there
  (`scores.extraneous`). Start here to judge a fit.
- `fixed_points`: where the dynamics of a model vanish. `fixed_points.fixed_points` enumerates all
  fixed points of piecewise-linear low-rank networks with a certificate and searches those of all
  other dynamics.
- `dynamics`: the dynamics of a model (`dynamics_of`) or of a known system (`known_dynamics`) in
  double precision, and the states that a model visits on a recording (`visited_states`). All
  analyses of dynamics take either, or the model itself.
- `lyapunov`: growth rates of perturbations. Positive exponents show chaos, which fixed points
  cannot.
- `free_run`: simulation from a fitted model, with its process noise.
- `spectra`: power spectra, timescales and dimension of any signal.
- `figures`: plots of all of these.

An example, the fixed points of a known system::

    >>> from pyrodyn import analysis, data
    >>> lorenz = analysis.known_dynamics("lorenz")
    >>> states = data.trajectory("lorenz", 500, 0.02)
    >>> points = analysis.fixed_points(lorenz, starts=states)
    >>> points["stability"].values.tolist()
    ['saddle', 'saddle', 'saddle']
    >>> figure = analysis.phase_portrait(lorenz, states, points)
"""

from pyrodyn.analysis.dynamics import dynamics_of, known_dynamics, visited_states
from pyrodyn.analysis.figures.conditions import plot_latents, plot_psths
from pyrodyn.analysis.figures.histories import plot_losses
from pyrodyn.analysis.figures.portraits import (
    Plane,
    phase_portrait,
    plot_attractors,
    plot_eigenvalues,
    plot_lyapunov,
    plot_spectra,
)
from pyrodyn.analysis.figures.predictions import latents_of
from pyrodyn.analysis.figures.recordings import plot_factors, plot_inferred_inputs, plot_rates
from pyrodyn.analysis.fixed_points.fixed_points import fixed_points
from pyrodyn.analysis.free_run import free_run
from pyrodyn.analysis.lyapunov import kaplan_yorke, lyapunov_spectrum
from pyrodyn.analysis.scores.alignment import Alignment, align, latent_r2, subspace_angles
from pyrodyn.analysis.scores.attractors import attractor_baselines, d_h, d_stsp
from pyrodyn.analysis.scores.baselines import baselines
from pyrodyn.analysis.scores.decoding import decode
from pyrodyn.analysis.scores.extraneous import (
    cycle_consistency,
    few_shot_co_smoothing,
    input_leakage,
    readout_null_fraction,
    steering_gap,
)
from pyrodyn.analysis.scores.prediction import prediction_scores
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
    "baselines",
    "bits_per_spike",
    "condition_psth",
    "cycle_consistency",
    "d_h",
    "d_stsp",
    "decode",
    "dynamics_of",
    "few_shot_co_smoothing",
    "fixed_points",
    "free_run",
    "input_leakage",
    "kaplan_yorke",
    "known_dynamics",
    "latent_r2",
    "latents_of",
    "lyapunov_spectrum",
    "participation_ratio",
    "phase_portrait",
    "plot_attractors",
    "plot_eigenvalues",
    "plot_factors",
    "plot_inferred_inputs",
    "plot_latents",
    "plot_losses",
    "plot_lyapunov",
    "plot_psths",
    "plot_rates",
    "plot_spectra",
    "power_spectrum",
    "prediction_scores",
    "psth_r2",
    "rate_r2",
    "readout_null_fraction",
    "recording_bits_per_spike",
    "smooth",
    "steering_gap",
    "subspace_angles",
    "timescales",
    "visited_states",
]
