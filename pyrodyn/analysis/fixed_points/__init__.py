"""Fixed points of learned dynamics, by enumeration with a certificate or by search.

- `fixed_points`: the function `fixed_points`, which chooses between the two by the model.
- `certified`: enumeration for low-rank networks of piecewise-linear units (relu, leaky relu,
  clipped relu, hard tanh): all fixed points and cycles of period 2 and 3, a proof that there are no
  others, and the stability of points on kinks.
- `newton`: search from many states for all other dynamics: fixed points, and slow points where the
  speed has a minimum. It may miss points.

Both return a dataset of points, eigenvalues and stability. For a network with tanh units, compare
searches from several sets of starts; for a statement such as "there is no other attractor", fit a
network of piecewise-linear units.

    >>> import torch
    >>> from pyrodyn.analysis.fixed_points.fixed_points import fixed_points
    >>> from pyrodyn.models import Dynamics
    >>> halving = Dynamics(lambda z, i: z / 2, state_dim=2)
    >>> found = fixed_points(halving, region=([-1.0, -1.0], [1.0, 1.0]))
    >>> found["stability"].values.tolist(), found.attrs["complete"]
    (['stable'], 0)
"""
