"""Gated recurrent units, rolled over time::

    r_t = sigmoid(W_r x_t + b_r + U_r h_{t-1} + c_r)
    s_t = sigmoid(W_s x_t + b_s + U_s h_{t-1} + c_s)
    n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + c_n))
    h_t = (1 - s_t) n_t + s_t h_{t-1}

Source: Cho et al. 2014, in the form of `torch.nn.GRU` (the reset gate acts after the recurrent
product, so that all gates share one product). Weights live in `torch.nn.GRU`, whose fused kernels
roll every path with known inputs. h_t is a convex combination of h_{t-1} and n_t in (-1, 1), so a
first state clipped to [-c, c], c >= 1, bounds the whole path.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
    if inputs.shape[-1] == 0:
        inputs = initial.new_zeros(*left, num_bins, gru.input_size)
    flat = inputs.reshape(-1, num_bins, gru.input_size)
    states, _ = gru(flat, initial.reshape(1, -1, gru.hidden_size))
    return states.reshape(*left, num_bins, gru.hidden_size)


def gru_step(
    drive: Float[Tensor, "*batch gates"],
    product: Float[Tensor, "*batch gates"],
    state: Float[Tensor, "*batch dim"],
) -> Float[Tensor, "*batch dim"]:
    """One bin, from ``drive = W x + b`` and ``product = U h + c`` (gates in the order r, s, n)."""
    dim = state.shape[-1]
    r, s = torch.sigmoid(drive[..., : 2 * dim] + product[..., : 2 * dim]).chunk(2, -1)
    n = torch.tanh(torch.addcmul(drive[..., 2 * dim :], r, product[..., 2 * dim :]))
    return torch.lerp(n, state, s)
