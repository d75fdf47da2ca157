"""Deterministic modules that models are built from; no Pyro, no randomness beyond initial weights.

============  =====================================================================================
`recurrence`  rolls of `torch.nn.GRU` in one or both directions, and the Jacobian of a step
`cells`       recurrent dynamics as maps from one bin to the next: GRU, vanilla RNN, residual maps
`fields`      MLP vector fields of neural ODEs
`solvers`     `Flow`, the map over one bin of a vector field by an explicit or adaptive solver, and
              `solver_check`, which measures its error
============  =====================================================================================

A cell and a `Flow` have the same interface: called with a state and an input they return the next
state, and ``roll`` returns the states of all bins. Take a `Flow` if the continuous-time vector
field is of interest (its fixed points and phase portrait), a cell as the discrete-time comparison::

    >>> import torch
    >>> from pyrodyn.nn.fields import MLPField
    >>> from pyrodyn.nn.solvers import Flow
    >>> flow = Flow(MLPField(state_dim=3), solver="rk4")
    >>> states = flow.roll(torch.randn(5, 3), torch.zeros(5, 20, 0))  # no inputs
    >>> states.shape
    torch.Size([5, 20, 3])
"""
