"""Importance weighting: draws of the posterior, and its evidence, by weights.

* `importance_sampling`: draws of a guide, weighted per trial, with Pareto-smoothed tails and k-hat.
  For few latent dimensions and a guide that is already close.
* `path_pool`: trajectories from the prior, shared by all trials. Needs no guide; for two or three
  latent dimensions and sparse data.
* `fisher_scoring`: approximate Newton steps on the evidence, by draws from a pool. For the last
  steps of a fit.

Models with noise at every bin are better served by `pyrodyn.infer.smc`: weights of whole
trajectories degenerate with the number of bins. ::

    sample = importance_sample(model, model.guide, batch, num_particles=1000)
    sample.log_evidence, sample.smoothed.pareto_k                      # per trial; trust k < 0.7
"""
