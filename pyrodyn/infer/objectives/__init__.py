"""Objectives: the loss that a fit minimises.

All but `GTF` estimate, from a batch and in nats for the whole recording, a bound on the log
evidence log p(x) of the model, and differ in how tight it is and in what its gradient trains.

* `elbo`: `ELBO`, the evidence lower bound. Start here: the cheapest, works with every guide whose
  draws are reparameterised, and its KL terms can be annealed site by site.
* `importance_weighted`: `IWELBO`, K weighted draws per trial, tighter than the ELBO if the guide is
  too simple for the posterior. With large K train the guide by ``gradient="dreg"``. `RWS`,
  reweighted wake-sleep: for guides whose draws are not reparameterised, or that should cover all
  modes of the posterior.
* `vsmc`: `VSMC`, K particles that are resampled at every bin. For state-space models with noise at
  every bin, where the weights of whole trajectories degenerate.
* `smoothed_score`: `SmoothedScore`, the gradient of the evidence from smoothed trajectories. For
  noisy state-space models whose pathwise gradients grow with the number of bins.
* `kalman`: `Kalman`, the evidence itself, for linear-Gaussian models.
* `gtf`: `GTF`, generalised teacher forcing: not a bound but the prediction error of trajectories
  that are pulled to the data. For chaotic signals, where long free runs cannot be trained.
* `objective`: the interface they share.

`VSMC` and `SmoothedScore` draw from the model's own proposal, `Kalman` and `GTF` draw nothing; the
others accept any guide::

    from pyrodyn.data import simulate
    from pyrodyn.infer import IWELBO
    from pyrodyn.models import LowRankRNN

    recording = simulate("lorenz", num_trials=8, num_bins=20)
    model = LowRankRNN.for_recording(recording)
    loss = IWELBO(16, gradient="dreg")(model, model.guide)
    loss(model.trials_of(recording).batch()).backward()
"""
