"""Loops in which training spends its time, with forward and backward passes by hand.

Autograd records every elementary operation of every bin; for a few hundred bins of small tensors
that bookkeeping takes longer than the arithmetic. A kernel is one `torch.autograd.Function` over
all bins that works in preallocated memory. Beside each lies the same computation in plain torch, a
function ``reference_...``: it defines what the kernel computes, the tests compare values and
gradients with it, and second derivatives (``create_graph=True``) are those of the reference.

==================  ===============================================================================
`gru`               a gated recurrent unit over known inputs
`closed_loop`       controller and generator of LFADS, whose inputs are sampled bin by bin (no
                    second derivative)
`runge_kutta`       explicit Runge-Kutta steps of an MLP vector field
`low_rank`          one step of a low-rank recurrent network
`low_rank_vsmc`     its VSMC bound, all bins in one loop (no second derivative)
`low_rank_filter`   its particle filter (no derivative)
`low_rank_weights`  the weights of their particles
`activations`       the activations of its units
`affine_poisson`    log probability of a population's counts given latents
`gaussian`          affine maps, quadratic forms and proposals of short vectors
`double_backward`   second derivatives through a reference
`blocks`, `layout`  blocks of bins that fit the cache, memory layout of matrices
==================  ===============================================================================

Models and `pyrodyn.nn` call the kernels; start with those unless a loop is what you want to change.
The kernels import nothing else of pyrodyn::

    >>> import torch
    >>> from pyrodyn.kernels.gru import GRUWeights, reference_gru, roll_gru
    >>> weights = GRUWeights.of(torch.nn.GRU(2, 4))
    >>> inputs, initial = torch.randn(10, 3, 2), torch.zeros(3, 4)  # bins, trials, inputs
    >>> states = roll_gru(inputs, initial, weights)
    >>> torch.allclose(states, reference_gru(inputs, initial, *weights), atol=1e-6)
    True
"""
