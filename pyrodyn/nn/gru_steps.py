"""The steps of one gated recurrent unit, forward and back, on memory laid out beforehand::

    d_t = W x_t + b,  p_t = U h_{t-1} + c              drive and product, gates in the order r, s, n
    r_t = sigmoid(d_r + p_r),  s_t = sigmoid(d_s + p_s)
    n_t = tanh(d_n + r_t * p_n)
    h_t = (1 - s_t) n_t + s_t h_{t-1}

Autograd would record a dozen nodes per bin and give each its own fresh memory. Here one bin's
drive, product and their gradients live in small buffers that stay in the cache, and only what the
way back needs is kept of every bin (`GRUTape`). `recurrence` and `closed_loop` are loops over these
steps.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class GRUWeights(NamedTuple):
    """Weights of a GRU, in the layout of `torch.nn.GRU`, or their gradients.

    Attributes:
        drive: W, ``(3 dim, input)``.
        recurrent: U, ``(3 dim, dim)``.
        bias: b, ``(3 dim,)``.
        recurrent_bias: c, ``(3 dim,)``.
    """

    drive: Float[Tensor, "gates input"]
    recurrent: Float[Tensor, "gates dim"]
    bias: Float[Tensor, " gates"]
    recurrent_bias: Float[Tensor, " gates"]

    @classmethod
    def of(cls, gru: nn.GRU, suffix: str = "") -> "GRUWeights":
        """The weights of a one-layer `torch.nn.GRU`, or with ``"_reverse"`` of its way back."""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        return cls(*(getattr(gru, name + suffix) for name in names))


class GRUTape(NamedTuple):
    """What the way back needs of every bin.

    Attributes:
        states: h_0 ... h_T.
        gates: r and s side by side.
        candidates: n.
        products: p_n.
    """

    states: Float[Tensor, "time_and_start batch dim"]
    gates: Float[Tensor, "time batch two_dims"]
    candidates: Float[Tensor, "time batch dim"]
    products: Float[Tensor, "time batch dim"]


class ForwardGRU:
    """A GRU on its way forward.

    Args:
        weights: its weights.
        initial: h_0.
        num_bins: T.

    Attributes:
        tape: filled bin by bin.
        drive: the buffer in which the caller puts d_t before it calls `step`.
    """

    def __init__(
        self, weights: GRUWeights, initial: Float[Tensor, "batch dim"], num_bins: int
    ) -> None:
        batch, self.dim = initial.shape
        self.tape = GRUTape(
            states=initial.new_empty(num_bins + 1, batch, self.dim),
            gates=initial.new_empty(num_bins, batch, 2 * self.dim),
            candidates=initial.new_empty(num_bins, batch, self.dim),
            products=initial.new_empty(num_bins, batch, self.dim),
        )
        self.tape.states[0] = initial
        self.state = self.tape.states[0]
        self.drive = initial.new_empty(batch, 3 * self.dim)
        self._product = initial.new_empty(batch, 3 * self.dim)
        self._recurrent = weights.recurrent.t().contiguous()
        self._recurrent_bias = weights.recurrent_bias

    def step(self, t: int) -> Float[Tensor, "batch dim"]:
        """h_{t+1} from the drive of bin t and h_t (bins counted from 0)."""
        dim, tape, drive, product = self.dim, self.tape, self.drive, self._product
        gates, n = tape.gates[t], tape.candidates[t]
        torch.addmm(self._recurrent_bias, self.state, self._recurrent, out=product)
        torch.add(drive[:, : 2 * dim], product[:, : 2 * dim], out=gates).sigmoid_()
        p_n = tape.products[t].copy_(product[:, 2 * dim :])
        torch.addcmul(drive[:, 2 * dim :], gates[:, :dim], p_n, out=n)
        # tanh(y) = 2 sigmoid(2 y) - 1, which CPUs compute several times faster than tanh.
        n.mul_(2).sigmoid_().mul_(2).sub_(1)
        self.state = torch.lerp(n, self.state, gates[:, dim:], out=tape.states[t + 1])
        return self.state


class BackwardGRU:
    """A GRU on its way back; gradients of its own weights gather as it goes.

    Args:
        tape: of the way forward.
        recurrent: U.

    Attributes:
        drive: gradient of d_t, of the bin last stepped through.
    """

    def __init__(self, tape: GRUTape, recurrent: Float[Tensor, "gates dim"]) -> None:
        self.tape, self._recurrent = tape, recurrent
        _, batch, self.dim = tape.candidates.shape
        self.drive = recurrent.new_empty(batch, 3 * self.dim)
        self._product = recurrent.new_empty(batch, 3 * self.dim)
        self._d_recurrent = torch.zeros_like(recurrent)
        self._sum_of_drives = recurrent.new_zeros(batch, 3 * self.dim)
        self._sum_of_products = recurrent.new_zeros(batch, self.dim)

    def step(self, t: int, d_state: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The gradient of h_t from that of h_{t+1}, but for what the drive passes on."""
        dim, tape, drive, product = self.dim, self.tape, self.drive, self._product
        n, before = tape.candidates[t], tape.states[t]
        r, s = tape.gates[t, :, :dim], tape.gates[t, :, dim:]
        d_before = d_state * s
        d_n = drive[:, 2 * dim :]
        _tanh_backward(d_state - d_before, n, grad_input=d_n)
        _sigmoid_backward(d_state * (before - n), s, grad_input=drive[:, dim : 2 * dim])
        _sigmoid_backward(d_n * tape.products[t], r, grad_input=drive[:, :dim])
        product[:, : 2 * dim] = drive[:, : 2 * dim]
        d_p_n = torch.mul(d_n, r, out=product[:, 2 * dim :])
        self._d_recurrent.addmm_(product.t(), before)
        self._sum_of_drives += drive
        self._sum_of_products += d_p_n
        return d_before.addmm_(product, self._recurrent)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of U, b and c, once every bin has been stepped through."""
        d_bias = self._sum_of_drives.sum(0)
        d_recurrent_bias = torch.cat([d_bias[: 2 * self.dim], self._sum_of_products.sum(0)])
        return self._d_recurrent, d_bias, d_recurrent_bias
