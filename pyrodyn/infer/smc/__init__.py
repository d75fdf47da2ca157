"""Sequential Monte Carlo: particles that follow the latent state through a trial.

* `particle_filter`: p(z_t | x_{1:t}) of every bin, and an unbiased estimate of the evidence. The
  file also holds the algorithm itself, `SequentialMonteCarlo`, which `VSMC` differentiates.
* `particle_smoother`: draws of whole latent trajectories given all bins: backward simulation where
  the latent path is a Markov chain, ancestral tracing elsewhere.
* `online`: the filter for data that arrive bin by bin.
* `resampling`: the five schemes. Systematic is the default; the unbiased gradient of VSMC needs
  multinomial, a differentiable one soft.

Use the smoother for the posterior of a trial, the filter for evidence and one-step predictions, and
`filter_bin` in a closed loop::

    filtered = particle_filter(model, batch, num_particles=256)
    log_evidence = filtered.log_evidence.sum(0)                        # per trial, in nats
    smoothed = particle_smoother(model, batch, num_draws=100, filtered=filtered)
"""
