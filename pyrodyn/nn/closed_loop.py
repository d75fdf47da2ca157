"""A controller in closed loop with a generator: the one roll whose inputs are not known
beforehand::

    c_t = GRU_con([e_t, f_{t-1}], c_{t-1})        controller; f = F g are the generator's factors
    (m_t, a_t) = V c_t + v                        what it says about the generator's input
    u_t = m_t + s_t eps_t,  s_t = exp(a_t) + s_0  the input drawn
    g_t = GRU_gen([u_t, i_t], g_{t-1})            generator; i are known inputs

Source: Pandarinath et al. 2018, Methods; GRUs as in `recurrence`. F is folded into the matrix that
feeds g_{t-1} back to the controller, so that a bin costs a few products of small matrices. The
gradient is written by hand, on the steps of `gru_steps`.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.nn.gru_steps import BackwardGRU, ForwardGRU, GRUTape, GRUWeights


class ClosedLoopWeights(NamedTuple):
    """Weights of the loop.

    Attributes:
        controller: the controller's, whose drive reads e_t alone.
        feedback: from generator states to the controller's gates,
            ``(3 controller, generator)``.
        readout: V, ``(2 input, controller)``: means, then log scales.
        readout_bias: v.
        generator: the generator's, whose drive reads i_t alone.
        inferred: from inferred inputs to the generator's gates, ``(3 generator, input)``.
    """

    controller: GRUWeights
    feedback: Float[Tensor, "controller_gates generator"]
    readout: Float[Tensor, "parameter controller"]
    readout_bias: Float[Tensor, " parameter"]
    generator: GRUWeights
    inferred: Float[Tensor, "generator_gates input"]


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
    encoded: Float[Tensor, "batch time encoder"],
    known: Float[Tensor, "batch time known"],
    noise: Float[Tensor, "time batch input"],
    controller_state: Float[Tensor, "batch controller"],
    generator_state: Float[Tensor, "batch generator"],
    weights: ClosedLoopWeights,
    scale_floor: float,
) -> ClosedLoopPath:
    """Draw inputs bin by bin while rolling controller and generator.

    Args:
        encoded: e.
        known: i, without columns where there are none.
        noise: eps.
        controller_state: c_0.
        generator_state: g_0.
        weights: see `ClosedLoopWeights`.
        scale_floor: s_0.
    """
    w = weights
    path = _ClosedLoop.apply(
        encoded,
        known,
        noise,
        controller_state,
        generator_state,
        scale_floor,
        *w.controller,
        w.feedback,
        w.readout,
        w.readout_bias,
        *w.generator,
        w.inferred,
    )
    return ClosedLoopPath(*path)


def _gathered(weights: tuple[Tensor, ...]) -> ClosedLoopWeights:
    """The weights from the flat list in which autograd passes them."""
    feedback, readout, readout_bias = weights[4:7]
    return ClosedLoopWeights(
        GRUWeights(*weights[:4]),
        feedback,
        readout,
        readout_bias,
        GRUWeights(*weights[7:11]),
        weights[11],
    )


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
        w = _gathered(weights)
        num_bins, _, input_dim = noise.shape
        controller = ForwardGRU(w.controller, controller_state, num_bins)
        generator = ForwardGRU(w.generator, generator_state, num_bins)
        from_encoder, feedback, readout, from_known, inferred = (
            matrix.t().contiguous()
            for matrix in (
                w.controller.drive,
                w.feedback,
                w.readout,
                w.generator.drive,
                w.inferred,
            )
        )
        u, mean, scale = (torch.empty_like(noise) for _ in range(3))
        for t in range(num_bins):
            torch.addmm(w.controller.bias, encoded[:, t], from_encoder, out=controller.drive)
            controller.drive.addmm_(generator.state, feedback)
            said = torch.addmm(w.readout_bias, controller.step(t), readout)
            mean[t] = said[:, :input_dim]
            torch.exp(said[:, input_dim:], out=scale[t]).add_(scale_floor)
            torch.addcmul(mean[t], scale[t], noise[t], out=u[t])
            torch.addmm(w.generator.bias, known[:, t], from_known, out=generator.drive)
            generator.drive.addmm_(u[t], inferred)
            generator.step(t)
        ctx.scale_floor = scale_floor
        ctx.save_for_backward(
            *controller.tape, *generator.tape, encoded, known, noise, u, scale, *weights
        )
        return u, mean, scale, generator.tape.states[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_u, grad_mean, grad_scale, grad_g = grads
        *taped, encoded, known, noise, u, scale = ctx.saved_tensors[:13]
        w = _gathered(ctx.saved_tensors[13:])
        needs_encoded, needs_known, needs_noise = ctx.needs_input_grad[:3]
        num_bins, _, input_dim = noise.shape
        controller = BackwardGRU(GRUTape(*taped[:4]), w.controller.recurrent)
        generator = BackwardGRU(GRUTape(*taped[4:]), w.generator.recurrent)
        c_after, g_before = controller.tape.states[1:], generator.tape.states[:-1]
        d_encoded = torch.empty_like(encoded) if needs_encoded else None
        d_known = torch.empty_like(known) if needs_known else None
        d_from_encoder, d_feedback, d_readout, d_from_known, d_inferred = (
            torch.zeros_like(matrix)
            for matrix in (
                w.controller.drive,
                w.feedback,
                w.readout,
                w.generator.drive,
                w.inferred,
            )
        )
        d_said = torch.cat([grad_mean, grad_scale], -1)
        d_c = torch.zeros_like(controller.tape.states[0])
        d_g = torch.zeros_like(generator.tape.states[0])
        for t in range(num_bins - 1, -1, -1):
            d_g = generator.step(t, d_g.add_(grad_g[t]))
            d_from_known.addmm_(generator.drive.t(), known[:, t])
            d_inferred.addmm_(generator.drive.t(), u[t])
            if d_known is not None:
                torch.mm(generator.drive, w.generator.drive, out=d_known[:, t])
            d_u = torch.addmm(grad_u[t], generator.drive, w.inferred)
            d_said[t, :, :input_dim] += d_u
            d_said[t, :, input_dim:].addcmul_(d_u, noise[t]).mul_(scale[t] - ctx.scale_floor)
            d_readout.addmm_(d_said[t].t(), c_after[t])
            d_c = controller.step(t, d_c.addmm_(d_said[t], w.readout))
            d_from_encoder.addmm_(controller.drive.t(), encoded[:, t])
            d_feedback.addmm_(controller.drive.t(), g_before[t])
            if d_encoded is not None:
                torch.mm(controller.drive, w.controller.drive, out=d_encoded[:, t])
            d_g.addmm_(controller.drive, w.feedback)
        # u = m + s eps: what reached the mean beyond the loss's own view of it is the gradient of
        # u.
        d_noise = (d_said[..., :input_dim] - grad_mean) * scale if needs_noise else None
        return (
            d_encoded,
            d_known,
            d_noise,
            d_c,
            d_g,
            None,
            d_from_encoder,
            *controller.gradients(),
            d_feedback,
            d_readout,
            d_said.sum((0, 1)),
            d_from_known,
            *generator.gradients(),
            d_inferred,
        )
