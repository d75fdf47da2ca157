"""Gated recurrent units, rolled over time::

    r_t = sigmoid(W_r x_t + b_r + U_r h_{t-1} + c_r)
    s_t = sigmoid(W_s x_t + b_s + U_s h_{t-1} + c_s)
    n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + c_n))
    h_t = (1 - s_t) n_t + s_t h_{t-1}

Source: Cho et al. 2014, in the form of `torch.nn.GRU` (the reset gate acts after the recurrent
product, so that all gates share one product). Weights live in `torch.nn.GRU`. A GPU rolls them by
cuDNN; on a CPU the loop below needs three to four fifths of the time of `torch.nn.GRU`, the less
the smaller it is. h_t is a convex combination of h_{t-1} and n_t in (-1, 1), so a first state
clipped to [-c, c], c >= 1, bounds the whole path.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrodyn.kernels.blocks import blocks
from pyrodyn.kernels.double_backward import recorded_gradients
from pyrodyn.kernels.gru import (
    BackwardGRU,
    ForwardGRU,
    GRUWeights,
    driving,
    driving_gradient,
)
from pyrodyn.kernels.layout import by_columns


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
        states = _rolled(flat.transpose(0, 1).contiguous(), first, gru).transpose(0, 1)
    return states.reshape(*left, num_bins, gru.hidden_size)


def roll_both_ways(
    gru: nn.GRU, inputs: Float[Tensor, "batch time input"]
) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"]]:
    """Roll a bidirectional one-layer, batch-first GRU from zero, forward and backward.

    Returns:
        Forward states, whose last is that of the last bin, and backward states, whose last is that
        of the first; both in the order of the bins.
    """
    if inputs.is_cuda:
        nothing = inputs.new_zeros(2, len(inputs), gru.hidden_size)
        forward, backward = _by_cudnn(gru, inputs, nothing)
        return forward, backward
    zeros = inputs.new_zeros(len(inputs), gru.hidden_size)
    by_time = inputs.transpose(0, 1).contiguous()
    forward = _rolled(by_time, zeros, gru)
    backward = _rolled(by_time.flip(0), zeros, gru, "_reverse").flip(0)
    return forward.transpose(0, 1), backward.transpose(0, 1)


def _by_cudnn(
    gru: nn.GRU, inputs: Float[Tensor, "row time input"], first: Float[Tensor, "way row dim"]
) -> tuple[Float[Tensor, "row time dim"], ...]:
    """States of every direction.

    Always as if in training, which without dropout changes nothing: else cuDNN has no gradient.
    """
    weights = [weight for way in gru.all_weights for weight in way]
    both = len(first) == 2
    states, _ = torch.gru(inputs, first, weights, True, 1, 0.0, True, both, True)
    return tuple(states.chunk(len(first), -1))


def _rolled(
    inputs: Float[Tensor, "time batch input"],
    initial: Float[Tensor, "batch dim"],
    gru: nn.GRU,
    suffix: str = "",
) -> Float[Tensor, "time batch dim"]:
    states: Tensor = _Roll.apply(inputs, initial, *GRUWeights.of(gru, suffix))
    return states


class _Roll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, initial: Tensor, *weights: Tensor) -> Tensor:
        w = GRUWeights(*weights)
        gru = ForwardGRU(w, initial, len(inputs))
        matrix = driving(w.drive).t().contiguous()
        ctx.blocks = blocks(len(inputs), 4 * initial.numel())
        for block in ctx.blocks:
            for drive, x in zip(gru.enter(block), inputs[block], strict=True):
                drive.addmm_(x, matrix)
                gru.step()
        ctx.save_for_backward(inputs, initial, *weights)
        ctx.tape = gru.tape
        return gru.tape.states()[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_states,) = grads
        given = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: let autograd record it
            return recorded_gradients(_recorded_roll, given, d_states)
        inputs, _, weight, recurrent, *_ = given
        gru = BackwardGRU(ctx.tape, recurrent)
        matrix = by_columns(driving(weight))
        d_matrix = torch.zeros_like(matrix)  # by columns too
        d_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
        for number in reversed(range(len(ctx.blocks))):
            block = ctx.blocks[number]
            d_drives = gru.enter(number, block).flatten(0, 1)
            for d_state in reversed(d_states[block].unbind(0)):
                gru.d_half.add_(d_state, alpha=2)
                gru.step()
            gru.leave(block)
            d_matrix.addmm_(d_drives.t(), inputs[block].flatten(0, 1))
            if d_inputs is not None:
                torch.mm(d_drives, matrix, out=d_inputs[block].view(len(d_drives), -1))
        d_recurrent, d_bias, d_recurrent_bias = gru.gradients()
        d_initial = gru.d_half / 2
        d_weight = driving_gradient(d_matrix)
        return d_inputs, d_initial, d_weight, d_recurrent, d_bias, d_recurrent_bias


def _recorded_roll(inputs: Tensor, initial: Tensor, *weights: Tensor) -> Tensor:
    """The roll as autograd records it."""
    states, _ = torch.gru(
        inputs, initial[None], weights, True, 1, 0.0, False, False, False
    )  # biases, one layer, no dropout, not training, one way, time first
    return states


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


def gru_jacobian(
    drive: Float[Tensor, "*batch gates"],
    product: Float[Tensor, "*batch gates"],
    state: Float[Tensor, "*batch dim"],
    recurrent: Float[Tensor, "gates dim"],
) -> Float[Tensor, "*batch dim dim"]:
    """The derivative of `gru_step` by the state that ``product = U h + c`` is of::

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
