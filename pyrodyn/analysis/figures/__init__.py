"""Figures of fits and dynamics. Each function returns a matplotlib figure without showing it.

- `recordings`: one trial with its inferred rates, factors, inferred inputs. For a fit.
- `conditions`: PSTHs of data and model, and latent trajectories by condition. For a fit.
- `histories`: losses over the epochs of a fit.
- `portraits`: phase portraits with trajectories and fixed points, eigenvalues, Lyapunov exponents,
  power spectra, attractors. For dynamics; fixed points on kinks, whose adjoining linear regions
  differ in stability, have a marker of their own.

    >>> from pyrodyn import data
    >>> from pyrodyn.analysis.dynamics import known_dynamics
    >>> from pyrodyn.analysis.figures.portraits import phase_portrait
    >>> figure = phase_portrait(known_dynamics("lorenz"), data.trajectory("lorenz", 500, 0.02))
    >>> figure.savefig("portrait.png")  # doctest: +SKIP
"""
