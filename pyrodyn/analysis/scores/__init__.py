"""Scores: how well rates, latents, behaviour and attractors agree with data or truth.

- `rates`: bits per spike of held-out neurons (co-smoothing) or forecast bins, for recordings; the
  R2 of rates, for simulations, whose rates are known. `entry_mask` selects the scored entries.
- `psth`: smoothed spikes and condition averages, as baselines, and the R2 of condition-averaged
  rates. For recordings with repeated conditions.
- `baselines`: the same scores of plain predictions (condition average, templates, Poisson GLM,
  principal components, linear dynamical system; ridge regression for signals), to print beside a
  model's. For recordings with held-out neurons or channels.
- `decoding`: ridge regression from rates or latents to behaviour, with the penalty chosen on the
  training trials. For recordings with behaviour.
- `alignment`: the R2 between inferred and true latents in both directions, maps between their
  coordinates, and subspace angles. For simulations, and to compare two fits.
- `attractors`: distances between long series that need not be in phase, `d_stsp` over state space
  and `d_h` over frequencies, with trivial baselines. For free runs of a model.

Bits per spike of the neurons that an encoder has read reward overfitting: score held-out neurons.

    >>> import numpy as np
    >>> from pyrodyn.analysis.scores.rates import bits_per_spike
    >>> counts = np.array([[[0], [2]]])  # (trial, time, neuron)
    >>> round(bits_per_spike(np.array([[[0.0], [2.0]]]), counts, null=[1.0]), 6)
    1.0
"""
