"""A controller in closed loop with a generator: the one roll whose inputs are not known
beforehand::

    c_t = GRU_con([e_t, f_{t-1}], c_{t-1})        controller; f = F g are the generator's factors
    (m_t, a_t) = V c_t + v                        what it says about the generator's input
    u_t = m_t + s_t eps_t,  s_t = exp(a_t) + s_0  the input drawn
    g_t = GRU_gen([u_t, i_t], g_{t-1})            generator; i are known inputs

Source: Pandarinath et al. 2018, Methods; GRUs as in `recurrence`. Everything that a bin needs of
the states before it comes from a few products: F is folded into the matrix that feeds g_{t-1} back
to the controller, and the contributions of encoder and known inputs are hoisted out by the caller.

Autograd would record some forty nodes per bin. The hand-written gradient below keeps the
elementwise work inside one backward loop on operands that fit the cache, and takes each weight's
gradient as one product over all bins.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class ClosedLoopWeights(NamedTuple):
    """Weights of the loop, each transposed to act from the right on rows of states.

    Attributes:
        controller: U of the controller, ``(controller, 3 controller)``.
        controller_bias: c of the controller.
        feedback: from generator states to the controller's gates, ``(generator, 3 controller)``.
        readout: V, ``(controller, 2 input)``: means, then log scales.
        readout_bias: v.
        drive: from inferred inputs to the generator's gates, ``(input, 3 generator)``.
        generator: U of the generator, ``(generator, 3 generator)``.
        generator_bias: c of the generator.
    """

    controller: Float[Tensor, "controller controller_gates"]
    controller_bias: Float[Tensor, " controller_gates"]
    feedback: Float[Tensor, "generator controller_gates"]
    readout: Float[Tensor, "controller parameter"]
    readout_bias: Float[Tensor, " parameter"]
    drive: Float[Tensor, "input generator_gates"]
    generator: Float[Tensor, "generator generator_gates"]
    generator_bias: Float[Tensor, " generator_gates"]


class ClosedLoopPath(NamedTuple):
    """What a roll yields, time first.

    Attributes:
        inputs: u, the inputs drawn.
        mean: m.
        scale: s.
        states: g_1 ... g_T.
    """

    inputs: Float[Tensor, "time batch input"]
    mean: Float[Tensor, "time batch input"]
    scale: Float[Tensor, "time batch input"]
    states: Float[Tensor, "time batch generator"]


def roll_closed_loop(
    encoded: Float[Tensor, "time batch controller_gates"],
    known: Float[Tensor, "time batch generator_gates"],
    noise: Float[Tensor, "time batch input"],
    controller_state: Float[Tensor, "batch controller"],
    generator_state: Float[Tensor, "batch generator"],
    weights: ClosedLoopWeights,
    scale_floor: float,
) -> ClosedLoopPath:
    """Draw inputs bin by bin while rolling controller and generator.

    Args:
        encoded: the encoder's part of the controller's drive, bias included.
        known: the known inputs' part of the generator's drive, bias included.
        noise: eps.
        controller_state: c_0.
        generator_state: g_0.
        weights: see `ClosedLoopWeights`.
        scale_floor: s_0.
    """
    path = _ClosedLoop.apply(
        encoded, known, noise, controller_state, generator_state, scale_floor, *weights
    )
    return ClosedLoopPath(*path)


class _GRUTape:
    """What the gradient of one GRU needs of every bin, and its step forward and back."""

    def __init__(self, initial: Tensor, num_bins: int) -> None:
        batch, dim = initial.shape
        self.dim = dim
        self.states = initial.new_empty(num_bins + 1, batch, dim)
        self.states[0] = initial
        self.gates = initial.new_empty(num_bins, batch, 2 * dim)
        self.candidates = initial.new_empty(num_bins, batch, dim)
        self.products_n = initial.new_empty(num_bins, batch, dim)

    def step(self, t: int, drive: Tensor, product: Tensor) -> Tensor:
        dim, gates, n = self.dim, self.gates[t], self.candidates[t]
        self.products_n[t] = product[:, 2 * dim :]
        torch.add(drive[:, : 2 * dim], product[:, : 2 * dim], out=gates).sigmoid_()
        torch.addcmul(drive[:, 2 * dim :], gates[:, :dim], product[:, 2 * dim :], out=n).tanh_()
        return torch.lerp(n, self.states[t], gates[:, dim:], out=self.states[t + 1])

    def start_back(self) -> None:
        num_bins, batch, dim = self.candidates.shape
        self.d_drive = self.states.new_empty(num_bins, batch, 3 * dim)
        self.d_product = self.states.new_empty(num_bins, batch, 3 * dim)

    def step_back(self, t: int, d_h: Tensor) -> Tensor:
        """Fill the gradients of bin t's drive and product; return what passes to h_{t-1} past the
        product.
        """
        dim, n = self.dim, self.candidates[t]
        r, s = self.gates[t, :, :dim], self.gates[t, :, dim:]
        d_drive, d_product = self.d_drive[t], self.d_product[t]
        d_kept = d_h * s
        d_n = d_drive[:, 2 * dim :]
        _tanh_backward(d_h - d_kept, n, grad_input=d_n)
        _sigmoid_backward(d_h * (self.states[t] - n), s, grad_input=d_drive[:, dim : 2 * dim])
        _sigmoid_backward(d_n * self.products_n[t], r, grad_input=d_drive[:, :dim])
        d_product[:, : 2 * dim] = d_drive[:, : 2 * dim]
        torch.mul(d_n, r, out=d_product[:, 2 * dim :])
        return d_kept


class _ClosedLoop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        encoded: Tensor,
        known: Tensor,
        noise: Tensor,
        controller_state: Tensor,
        generator_state: Tensor,
        scale_floor: float,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        w = ClosedLoopWeights(*weights)
        num_bins, _, input_dim = noise.shape
        controller, generator = (
            _GRUTape(state, num_bins) for state in (controller_state, generator_state)
        )
        u, mean, scale = (torch.empty_like(noise) for _ in range(3))
        c, g = controller_state, generator_state
        for t in range(num_bins):
            drive = torch.addmm(encoded[t], g, w.feedback)
            c = controller.step(t, drive, torch.addmm(w.controller_bias, c, w.controller))
            said = torch.addmm(w.readout_bias, c, w.readout)
            mean[t] = said[:, :input_dim]
            torch.exp(said[:, input_dim:], out=scale[t]).add_(scale_floor)
            torch.addcmul(mean[t], scale[t], noise[t], out=u[t])
            drive = torch.addmm(known[t], u[t], w.drive)
            g = generator.step(t, drive, torch.addmm(w.generator_bias, g, w.generator))
        ctx.scale_floor = scale_floor
        ctx.save_for_backward(
            *(
                tensor
                for tape in (controller, generator)
                for tensor in (tape.states, tape.gates, tape.candidates, tape.products_n)
            ),
            noise,
            u,
            scale,
            *weights,
        )
        return u, mean, scale, generator.states[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_u, grad_mean, grad_scale, grad_g = grads
        *taped, noise, u, scale = ctx.saved_tensors[:11]
        w = ClosedLoopWeights(*ctx.saved_tensors[11:])
        controller, generator = (_reopened(taped[:4]), _reopened(taped[4:]))
        num_bins, _, input_dim = noise.shape
        d_said = torch.cat([grad_mean, grad_scale], -1)
        back = ClosedLoopWeights(*(weight.t() if weight.ndim == 2 else weight for weight in w))
        d_c = torch.zeros_like(controller.states[0])
        d_g = torch.zeros_like(generator.states[0])
        for t in range(num_bins - 1, -1, -1):
            d_g = d_g + grad_g[t]
            d_g_before = generator.step_back(t, d_g)
            d_u = torch.addmm(grad_u[t], generator.d_drive[t], back.drive)
            d_g_before.addmm_(generator.d_product[t], back.generator)
            d_said[t, :, :input_dim] += d_u
            d_said[t, :, input_dim:].addcmul_(d_u, noise[t]).mul_(scale[t] - ctx.scale_floor)
            d_c = torch.addmm(d_c, d_said[t], back.readout)
            d_c_before = controller.step_back(t, d_c)
            d_c = d_c_before.addmm_(controller.d_product[t], back.controller)
            d_g = d_g_before.addmm_(controller.d_drive[t], back.feedback)

        def product(rows: Tensor, columns: Tensor) -> Tensor:
            return rows.flatten(0, 1).t() @ columns.flatten(0, 1)

        c_before, g_before = controller.states[:-1], generator.states[:-1]
        d_weights = ClosedLoopWeights(
            controller=product(c_before, controller.d_product),
            controller_bias=controller.d_product.sum((0, 1)),
            feedback=product(g_before, controller.d_drive),
            readout=product(controller.states[1:], d_said),
            readout_bias=d_said.sum((0, 1)),
            drive=product(u, generator.d_drive),
            generator=product(g_before, generator.d_product),
            generator_bias=generator.d_product.sum((0, 1)),
        )
        # u = m + s eps: what reached the mean beyond the loss's own view of it is the gradient of
        # u.
        d_noise = (d_said[..., :input_dim] - grad_mean) * scale if ctx.needs_input_grad[2] else None
        return controller.d_drive, generator.d_drive, d_noise, d_c, d_g, None, *d_weights


def _reopened(taped: list[Tensor]) -> _GRUTape:
    states, gates, candidates, products_n = taped
    tape = _GRUTape(states[0], 0)
    tape.states, tape.gates, tape.candidates, tape.products_n = (
        states,
        gates,
        candidates,
        products_n,
    )
    tape.start_back()
    return tape
