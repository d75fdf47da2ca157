"""The steps of one gated recurrent unit, forward and back, on memory laid out beforehand::

    r_t = sigmoid(W_r x_t + b_r + U_r h_{t-1} + c_r)
    s_t = sigmoid(W_s x_t + b_s + U_s h_{t-1} + c_s)
    n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + c_n))
    h_t = (1 - s_t) n_t + s_t h_{t-1}

Autograd would record a dozen nodes per bin and give each its own fresh memory. Here a bin is two
products and four elementwise operations, and its way back one product and three. What makes that
possible:

A GRU of sigmoids alone. With ``tanh(y) = 2 sigmoid(2 y) - 1`` and ``k = (h + 1) / 2``::

    m_t = sigmoid(a_t + r_t * p_t),  a = 2 (W_n x + b_n),  p = 2 (U_n h + c_n),  n = 2 m - 1
    k_t = (1 - s_t) m_t + s_t k_{t-1}

so that states need no shifting, and no tanh, which costs a CPU five times as much as sigmoid. The
factors 2 go into the weights before a roll and into their gradients after it.

Gates side by side in the order a, r, s, p. What a bin's input drives, a, r and s, is then one
window of a row, and what the state before it drives, r, s and p, another; both products add into
place.

Gradients in closed form. With kappa the gradient of k_t, that of the row is kappa times::

    A = (1 - s) m (1 - m)        of a
    R = A p r (1 - r)            of r (before the sigmoid, as are all of these)
    S = (k_{t-1} - m) s (1 - s)  of s
    P = A r                      of p

which hold no gradient and are worked out for a block of bins at a time; so are the gradients of the
weights. Within a block only the gradient of k_{t-1} is sequential: s * kappa, and what comes back
through U from the gradients of r, s and p.

`recurrence` and `closed_loop` are loops over these steps.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class GRUWeights(NamedTuple):
    """Weights of a GRU, in the layout of `torch.nn.GRU`, or their gradients.

    Attributes:
        drive: W, ``(3 dim, input)``, gates in the order r, s, n.
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


def driving(weight: Float[Tensor, "gates ..."]) -> Float[Tensor, "gates ..."]:
    """Rows r, s, n of what drives a GRU as rows a, r, s of what drives its sigmoid form."""
    r, s, n = weight.chunk(3)
    return torch.cat([2 * n, r, s])


def driving_gradient(gradient: Float[Tensor, "gates ..."]) -> Float[Tensor, "gates ..."]:
    """From the gradient of `driving`'s result to that of its argument."""
    a, r, s = gradient.chunk(3)
    return torch.cat([r, s, 2 * a])


def recurrent(weight: Float[Tensor, "gates ..."]) -> Float[Tensor, "gates ..."]:
    """Rows r, s, n of what acts on h as rows r, s, p; its own transpose, so also the way back."""
    r, s, n = weight.chunk(3)
    return torch.cat([r, s, 2 * n])


def on_half_states(weight: Float[Tensor, "row dim"]) -> tuple[Tensor, Tensor]:
    """``weight @ h`` as ``matrix @ k + constant``, h = 2 k - 1."""
    return 2 * weight, -weight.sum(1)


def from_half_states(
    products: Float[Tensor, "row dim"], sums: Float[Tensor, " row"]
) -> Float[Tensor, "row dim"]:
    """``sum_t d_t h_t'`` from ``sum_t d_t k_t'`` and ``sum_t d_t``."""
    return torch.add(-sums[:, None], products, alpha=2)


class GRUTape(NamedTuple):
    """What the way back needs.

    Attributes:
        half_states: k_0 ... k_T.
        gates: m, r, s, p of every bin, a tensor per block.
    """

    half_states: Float[Tensor, "time_and_start batch dim"]
    gates: list[Float[Tensor, "time batch four_dims"]]

    def states(self) -> Float[Tensor, "time_and_start batch dim"]:
        """h_0 ... h_T."""
        return torch.add(self.half_states.new_tensor(-1.0), self.half_states, alpha=2)


class ForwardGRU:
    """A GRU on its way forward.

    Args:
        weights: its weights.
        initial: h_0.
        num_bins: T.

    Attributes:
        tape: filled as it goes.
        half_states: k_0 ... k_T, bin by bin.
    """

    def __init__(
        self, weights: GRUWeights, initial: Float[Tensor, "batch dim"], num_bins: int
    ) -> None:
        self.batch, self.dim = initial.shape
        self.tape = GRUTape(initial.new_empty(num_bins + 1, self.batch, self.dim), [])
        self.half_states = self.tape.half_states.unbind(0)
        self.half_states[0].copy_(initial).add_(1).mul_(0.5)
        matrix, constant = on_half_states(recurrent(weights.recurrent))
        self._recurrent = matrix.t().contiguous()
        self._constant = torch.cat([driving(weights.bias), torch.zeros_like(initial[0])])
        self._constant[self.dim :] += constant + recurrent(weights.recurrent_bias)

    def enter(self, block: slice) -> Float[Tensor, "time batch gates"]:
        """Begin a block of bins: the place to which the caller adds their drives (rows a, r, s),
        all at once or bin by bin before each `step`.
        """
        dim, num_bins = self.dim, block.stop - block.start
        gates = self._constant.expand(num_bins, self.batch, 4 * dim).contiguous()
        self.tape.gates.append(gates)
        by_bin = zip(
            self.half_states[block],
            self.half_states[block.start + 1 : block.stop + 1],
            gates[..., dim:].unbind(0),
            gates[..., dim : 3 * dim].unbind(0),
            *(gate.unbind(0) for gate in gates.chunk(4, -1)),
            strict=True,
        )
        self._bins = iter(by_bin)
        return gates[..., : 3 * dim]

    def step(self) -> Float[Tensor, "batch dim"]:
        """The next bin of the block, its k."""
        before, after, products, r_and_s, m, r, s, p = next(self._bins)
        products.addmm_(before, self._recurrent)
        r_and_s.sigmoid_()
        m.addcmul_(r, p).sigmoid_()
        return torch.lerp(m, before, s, out=after)


class BackwardGRU:
    """A GRU on its way back; gradients of its own weights gather as it goes.

    Args:
        tape: of the way forward.
        weight: U.

    Attributes:
        d_half: gradient of k_t for the bin that comes next; the caller adds to it in place what
            reaches k_t from elsewhere, twice what reaches h_t.
    """

    def __init__(self, tape: GRUTape, weight: Float[Tensor, "gates dim"]) -> None:
        self.tape = tape
        self._recurrent, _ = on_half_states(recurrent(weight))
        _, self.batch, self.dim = tape.half_states.shape
        self.d_half = torch.zeros_like(tape.half_states[0])
        self._d_recurrent = torch.zeros_like(weight)
        self._d_constant = weight.new_zeros(4 * self.dim)
        length = max(len(gates) for gates in tape.gates)
        self._slopes = weight.new_empty(length, self.batch, 4 * self.dim)
        self._part = weight.new_empty(length, self.batch, self.dim)
        self._ones = weight.new_ones(length * self.batch)

    def enter(self, number: int, block: slice) -> Float[Tensor, "time batch gates"]:
        """Begin a block of bins.

        Returns:
            Where the gradients of their drives (rows a, r, s) will stand.
        """
        num_bins, dim = block.stop - block.start, self.dim
        slopes, part = self._slopes[:num_bins], self._part[:num_bins]
        m, r, s, p = self.tape.gates[number].chunk(4, -1)
        A, R, S, P = slopes.chunk(4, -1)
        _sigmoid_backward(torch.sub(1, s, out=part), m, grad_input=A)
        torch.mul(A, r, out=P)
        _sigmoid_backward(torch.mul(A, p, out=part), r, grad_input=R)
        torch.sub(self.tape.half_states[block], m, out=part)
        _sigmoid_backward(part, s, grad_input=S)
        by_bin = zip(
            slopes.view(num_bins, self.batch, 4, dim).unbind(0),
            slopes[..., dim:].unbind(0),
            s.unbind(0),
            strict=True,
        )
        self._bins = reversed(list(by_bin))
        return slopes[..., : 3 * dim]

    def step(self) -> None:
        """The gradient of k before the last bin of the block not yet stepped through, but for what
        its drive passes on.
        """
        slopes, d_products, s = next(self._bins)
        slopes.mul_(self.d_half[:, None])
        self.d_half.mul_(s).addmm_(d_products, self._recurrent)

    def leave(self, block: slice) -> None:
        """End a block: its share of the gradients of U, b and c."""
        rows = (block.stop - block.start) * self.batch
        d_gates = self._slopes.view(-1, 4 * self.dim)[:rows]
        before = self.tape.half_states[block].view(rows, self.dim)
        self._d_recurrent.addmm_(d_gates[:, self.dim :].t(), before)
        self._d_constant.addmv_(d_gates.t(), self._ones[:rows])

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of U, b and c, once every bin has been stepped through."""
        d_driven, d_products = self._d_constant[: 3 * self.dim], self._d_constant[self.dim :]
        d_recurrent = from_half_states(self._d_recurrent, d_products)
        return recurrent(d_recurrent), driving_gradient(d_driven), recurrent(d_products)
