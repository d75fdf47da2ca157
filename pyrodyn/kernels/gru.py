"""Gated recurrent units, forward and backward by hand::

    r_t = sigmoid(W_r x_t + b_r + U_r h_{t-1} + c_r)
    s_t = sigmoid(W_s x_t + b_s + U_s h_{t-1} + c_s)
    n_t = tanh(W_n x_t + b_n + r_t * p_t),       p_t = U_n h_{t-1} + c_n
    h_t = (1 - s_t) n_t + s_t h_{t-1}

Source: Cho et al. 2014, in the form of `torch.nn.GRU` (the reset gate acts after the recurrent
product, so that all gates share one product).

`gru_step` and `reference_gru` are the definition in plain torch. Autograd would record a dozen
nodes per bin and allocate memory for each. Here a bin is two products and four elementwise
operations on preallocated memory, and its backward step one product and three of them, by two
means:

Gates lie side by side in the order n, r, s, p. The gates that a bin's input drives (n, r and s) are
then one window of a row, those that the state before it drives (r, s and p) another, and both
products add into place.

Gradients in closed form. With d_h the gradient of h_t, that of the row is d_h times::

    N = (1 - s) (1 - n^2)        of n (before the tanh or sigmoid, as are all of these)
    R = N p r (1 - r)            of r
    S = (h_{t-1} - n) s (1 - s)  of s
    P = N r                      of p

These factors hold no gradient and are computed for a block of bins at a time, and so are the
gradients of the weights. Within a block only the gradient of h_{t-1} is sequential: s * d_h, and
what U returns from the gradients of r, s and p.

`roll_gru` rolls one GRU over known inputs; `pyrodyn.kernels.closed_loop` couples two of them.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrodyn.kernels.blocks import blocks
from pyrodyn.kernels.double_backward import differentiable_gradients
from pyrodyn.kernels.layout import by_columns

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


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
        """The weights of a one-layer `torch.nn.GRU`; with ``"_reverse"`` those of its backward
        direction.
        """
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        return cls(*(getattr(gru, name + suffix) for name in names))


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


def reference_gru(
    inputs: Float[Tensor, "time batch input"],
    initial: Float[Tensor, "batch dim"],
    *weights: Tensor,
) -> Float[Tensor, "time batch dim"]:
    """`roll_gru` in plain torch, from the fields of `GRUWeights`."""
    W, U, b, c = weights
    states = [initial]
    for drive in inputs @ W.mT + b:
        states.append(gru_step(drive, states[-1] @ U.mT + c, states[-1]))
    return torch.stack(states[1:])


def roll_gru(
    inputs: Float[Tensor, "time batch input"],
    initial: Float[Tensor, "batch dim"],
    weights: GRUWeights,
) -> Float[Tensor, "time batch dim"]:
    """States h_1 ... h_T of a GRU.

    Args:
        inputs: x_1 ... x_T, at least one.
        initial: h_0.
        weights: see `GRUWeights`.
    """
    states: Tensor = _Roll.apply(inputs, initial, *weights)
    return states


def n_first(weight: Float[Tensor, "gates ..."]) -> Float[Tensor, "gates ..."]:
    """Rows r, s, n in the order n, r, s."""
    r, s, n = weight.chunk(3)
    return torch.cat([n, r, s])


def n_last(gradient: Float[Tensor, "gates ..."]) -> Float[Tensor, "gates ..."]:
    """The inverse of `n_first`."""
    n, r, s = gradient.chunk(3)
    return torch.cat([r, s, n])


class GRUTape(NamedTuple):
    """What the backward pass needs.

    Attributes:
        states: h_0 ... h_T.
        gates: n, r, s, p of every bin, one tensor per block.
    """

    states: Float[Tensor, "time_and_initial batch dim"]
    gates: list[Float[Tensor, "time batch four_dims"]]


class ForwardGRU:
    """The forward pass of a GRU, block by block and bin by bin.

    Args:
        weights: its weights.
        initial: h_0.
        num_bins: T.

    Attributes:
        tape: filled bin by bin.
    """

    def __init__(
        self, weights: GRUWeights, initial: Float[Tensor, "batch dim"], num_bins: int
    ) -> None:
        self.batch, self.dim = initial.shape
        self.tape = GRUTape(initial.new_empty(num_bins + 1, self.batch, self.dim), [])
        self._states = self.tape.states.unbind(0)
        self._states[0].copy_(initial)
        self._recurrent = weights.recurrent.t().contiguous()
        self._constant = torch.cat([n_first(weights.bias), torch.zeros_like(initial[0])])
        self._constant[self.dim :] += weights.recurrent_bias

    def begin_block(self, block: slice) -> Float[Tensor, "time batch gates"]:
        """Begin a block of bins.

        Returns:
            The memory to which the caller adds the drives of its bins (rows n, r, s), all at once
            or bin by bin before each `step`.
        """
        dim, num_bins = self.dim, block.stop - block.start
        gates = self._constant.expand(num_bins, self.batch, 4 * dim).contiguous()
        self.tape.gates.append(gates)
        by_bin = zip(
            self._states[block],
            self._states[block.start + 1 : block.stop + 1],
            gates[..., dim:].unbind(0),
            gates[..., dim : 3 * dim].unbind(0),
            *(gate.unbind(0) for gate in gates.chunk(4, -1)),
            strict=True,
        )
        self._bins = iter(by_bin)
        return gates[..., : 3 * dim]

    def step(self) -> Float[Tensor, "batch dim"]:
        """The state after the next bin of the block."""
        before, after, products, r_and_s, n, r, s, p = next(self._bins)
        products.addmm_(before, self._recurrent)
        r_and_s.sigmoid_()
        n.addcmul_(r, p).tanh_()
        return torch.lerp(n, before, s, out=after)


class BackwardGRU:
    """The backward pass of a GRU, which accumulates the gradients of its own weights.

    Args:
        tape: of the forward pass.
        weight: U.

    Attributes:
        d_state: gradient of h_t for the bin that comes next; the caller adds to it in place what
            reaches h_t by other ways than h_{t+1}.
    """

    def __init__(self, tape: GRUTape, weight: Float[Tensor, "gates dim"]) -> None:
        self.tape = tape
        self._recurrent = weight
        _, self.batch, self.dim = tape.states.shape
        self.d_state = torch.zeros_like(tape.states[0])
        self._d_recurrent = torch.zeros_like(weight)
        self._d_constant = weight.new_zeros(4 * self.dim)
        length = max(len(gates) for gates in tape.gates)
        self._factors = weight.new_empty(length, self.batch, 4 * self.dim)
        self._part = weight.new_empty(length, self.batch, self.dim)
        self._ones = weight.new_ones(length * self.batch)

    def begin_block(self, number: int, block: slice) -> Float[Tensor, "time batch gates"]:
        """Begin a block of bins.

        Returns:
            The memory where the gradients of their drives (rows n, r, s) will stand.
        """
        num_bins, dim = block.stop - block.start, self.dim
        factors, part = self._factors[:num_bins], self._part[:num_bins]
        n, r, s, p = self.tape.gates[number].chunk(4, -1)
        N, R, S, P = factors.chunk(4, -1)
        _tanh_backward(torch.sub(1, s, out=part), n, grad_input=N)
        torch.mul(N, r, out=P)
        _sigmoid_backward(torch.mul(N, p, out=part), r, grad_input=R)
        torch.sub(self.tape.states[block], n, out=part)
        _sigmoid_backward(part, s, grad_input=S)
        by_bin = zip(
            factors.view(num_bins, self.batch, 4, dim).unbind(0),
            factors[..., dim:].unbind(0),
            s.unbind(0),
            strict=True,
        )
        self._bins = reversed(list(by_bin))
        return factors[..., : 3 * dim]

    def step(self) -> None:
        """Step back through the block's last bin not yet stepped through: `d_state` becomes the
        gradient of the state before it, but for what its drive passes on.
        """
        factors, d_products, s = next(self._bins)
        factors.mul_(self.d_state[:, None])
        self.d_state.mul_(s).addmm_(d_products, self._recurrent)

    def end_block(self, block: slice) -> None:
        """Add the block's part of the gradients of U, b and c."""
        rows = (block.stop - block.start) * self.batch
        d_gates = self._factors.view(-1, 4 * self.dim)[:rows]
        before = self.tape.states[block].view(rows, self.dim)
        self._d_recurrent.addmm_(d_gates[:, self.dim :].t(), before)
        self._d_constant.addmv_(d_gates.t(), self._ones[:rows])

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of U, b and c, after the step through the first bin."""
        dim = self.dim
        return self._d_recurrent, n_last(self._d_constant[: 3 * dim]), self._d_constant[dim:]


class _Roll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, initial: Tensor, *weights: Tensor) -> Tensor:
        w = GRUWeights(*weights)
        gru = ForwardGRU(w, initial, len(inputs))
        matrix = n_first(w.drive).t().contiguous()
        ctx.blocks = blocks(len(inputs), 4 * initial.numel())
        for block in ctx.blocks:
            for drive, x in zip(gru.begin_block(block), inputs[block], strict=True):
                drive.addmm_(x, matrix)
                gru.step()
        ctx.save_for_backward(inputs, initial, *weights)
        ctx.tape = gru.tape
        return gru.tape.states[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_states,) = grads
        given = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return differentiable_gradients(reference_gru, given, d_states)
        inputs, _, weight, recurrent, *_ = given
        gru = BackwardGRU(ctx.tape, recurrent)
        matrix = by_columns(n_first(weight))
        d_matrix = torch.zeros_like(matrix)  # by columns too
        d_inputs = inputs.new_empty(inputs.shape) if ctx.needs_input_grad[0] else None
        for number in reversed(range(len(ctx.blocks))):
            block = ctx.blocks[number]
            d_drives = gru.begin_block(number, block).flatten(0, 1)
            for d_state in reversed(d_states[block].unbind(0)):
                gru.d_state.add_(d_state)
                gru.step()
            gru.end_block(block)
            d_matrix.addmm_(d_drives.t(), inputs[block].flatten(0, 1))
            if d_inputs is not None:
                torch.mm(d_drives, matrix, out=d_inputs[block].view(len(d_drives), -1))
        return d_inputs, gru.d_state, n_last(d_matrix), *gru.gradients()
