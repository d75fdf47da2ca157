"""Gated recurrent units over batches of any shape, and their Jacobian.

The equations, and the loop that a CPU runs, are in `pyrodyn.kernels.gru`; a GPU uses cuDNN. Weights
live in `torch.nn.GRU`. On a CPU the loop needs 60 to 80 % of the time of `torch.nn.GRU`, less for
smaller problems. h_t is a convex combination of h_{t-1} and of n_t in (-1, 1), so an initial state
clipped to [-c, c], c >= 1, bounds the whole trajectory.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrodyn.kernels.gru import GRUWeights, roll_gru


def roll(
    gru: nn.GRU,
    inputs: Float[Tensor, "*batch time input"],
    initial: Float[Tensor, "*batch dim"],
) -> Float[Tensor, "*batch time dim"]:
    """Roll a one-layer, batch-first GRU over known inputs.

    Args:
        gru: the weights; a GRU of input size 1 given inputs without columns reads zeros.
        inputs: x_1 ... x_T.
        initial: h_0.

    Returns:
        h_1 ... h_T.
    """
    left, num_bins = initial.shape[:-1], inputs.shape[-2]
    if num_bins == 0:
        return initial.new_zeros(*left, 0, gru.hidden_size)
    if inputs.shape[-1] == 0:
        inputs = initial.new_zeros(*left, num_bins, gru.input_size)
    flat = inputs.reshape(-1, num_bins, gru.input_size)
    first = initial.reshape(-1, gru.hidden_size)
    if inputs.is_cuda:
        (states,) = _by_cudnn(gru, flat, first[None])
    else:
        by_time = flat.transpose(0, 1).contiguous()
        states = roll_gru(by_time, first, GRUWeights.of(gru)).transpose(0, 1)
    return states.reshape(*left, num_bins, gru.hidden_size)


def roll_both_ways(
    gru: nn.GRU, inputs: Float[Tensor, "batch time input"]
) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"]]:
    """Roll a bidirectional one-layer, batch-first GRU from zero, forward and backward in time.

    Returns:
        The states of the forward direction, whose last one is that after the last bin, and those of
        the backward direction, whose last one is that at the first bin; both in the order of the
        bins.
    """
    if inputs.is_cuda:
        zeros = inputs.new_zeros(2, len(inputs), gru.hidden_size)
        forward, backward = _by_cudnn(gru, inputs, zeros)
        return forward, backward
    zeros = inputs.new_zeros(len(inputs), gru.hidden_size)
    by_time = inputs.transpose(0, 1).contiguous()
    forward = roll_gru(by_time, zeros, GRUWeights.of(gru))
    backward = roll_gru(by_time.flip(0), zeros, GRUWeights.of(gru, "_reverse")).flip(0)
    return forward.transpose(0, 1), backward.transpose(0, 1)


def _by_cudnn(
    gru: nn.GRU, inputs: Float[Tensor, "row time input"], first: Float[Tensor, "direction row dim"]
) -> tuple[Float[Tensor, "row time dim"], ...]:
    """States of every direction.

    Always in training mode, which without dropout changes nothing: in evaluation mode cuDNN has no
    gradient. Nor does it take an expanded initial state. In full single precision: by default cuDNN
    rounds products to 10 bits (TF32), which the matrix products of a closed loop are not, and both
    score the same densities.
    """
    weights = [weight for direction in gru.all_weights for weight in direction]
    is_bidirectional = len(first) == 2
    settings = (True, 1, 0.0, True, is_bidirectional, True)
    cudnn: Any = torch.backends.cudnn.rnn
    precision, cudnn.fp32_precision = cudnn.fp32_precision, "ieee"
    try:
        states, _ = torch.gru(inputs, first.contiguous(), weights, *settings)
    finally:
        cudnn.fp32_precision = precision
    return tuple(states.chunk(len(first), -1))


def gru_jacobian(
    drive: Float[Tensor, "*batch gates"],
    product: Float[Tensor, "*batch gates"],
    state: Float[Tensor, "*batch dim"],
    recurrent: Float[Tensor, "gates dim"],
) -> Float[Tensor, "*batch dim dim"]:
    """The derivative of `pyrodyn.kernels.gru.gru_step` by the state h, with ``product = U h + c``::

        dh_t / dh_{t-1} = diag(s) + diag((1 - s) (1 - n^2) r) U_n
                        + diag((1 - s) (1 - n^2) p_n r (1 - r)) U_r + diag((h - n) s (1 - s)) U_s

    Args:
        drive: W x + b.
        product: U h + c.
        state: h.
        recurrent: U.
    """
    dim = state.shape[-1]
    U_r, U_s, U_n = recurrent.chunk(3)
    p_n = product[..., 2 * dim :]
    r, s = torch.sigmoid(drive[..., : 2 * dim] + product[..., : 2 * dim]).chunk(2, -1)
    n = torch.tanh(torch.addcmul(drive[..., 2 * dim :], r, p_n))
    by_n = (1 - s) * (1 - n.square())
    J = (by_n * r)[..., None] * U_n
    J.addcmul_((by_n * p_n * r * (1 - r))[..., None], U_r)
    J.addcmul_(((state - n) * s * (1 - s))[..., None], U_s)
    J.diagonal(dim1=-2, dim2=-1).add_(s)
    return J
