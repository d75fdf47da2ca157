"""Exact inference in linear-Gaussian state-space models, by the Kalman recursions.

* `kalman_filter`: p(z_t | x_{1:t}) of every bin, and the log evidence itself. The objective
  `pyrodyn.infer.Kalman` maximises it.
* `kalman_smoother`: means and covariances of p(z_t | x_{1:T}), and exact draws of whole latent
  trajectories.

They serve every model that states its matrices by `StateSpaceModel.linear_gaussian`: a
`LinearDynamics` with a Gaussian observation, and a `LowRankRNN` with ``activation="identity"``.
Where they serve, nothing else is needed; `pyrodyn.infer.smc` serves the other models, and both give
the same on these::

    >>> from pyrodyn.data import simulate
    >>> from pyrodyn.infer import kalman_filter
    >>> from pyrodyn.models import LowRankRNN
    >>> recording = simulate("lorenz", num_trials=8, num_bins=20, observation="gaussian")
    >>> model = LowRankRNN.for_recording(recording, latent_dim=3, activation="identity")
    >>> filtered = kalman_filter(model, model.trials_of(recording).batch())
    >>> filtered.log_evidence.sum(0).shape  # per trial, in nats
    torch.Size([8])
"""
