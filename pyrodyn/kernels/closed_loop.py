"""A controller in closed loop with a generator: the one roll whose inputs are not known
beforehand::

    c_t = GRU_con([e_t, f_{t-1}], c_{t-1})        controller
    (m_t, a_t) = V c_t + v                        what it says about the generator's input
    u_t = m_t + s_t eps_t,  s_t = exp(a_t) + s_0  the input drawn
    g_t = GRU_gen([u_t, i_t], g_{t-1})            generator; i are known inputs
    f_t = F g_t                                   factors

Source: Pandarinath et al. 2018, Methods; GRUs as in `recurrence`. The gradient is written by hand,
on the steps of `gru_steps`.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.kernels.blocks import blocks
from pyrodyn.kernels.gru import (
    BackwardGRU,
    ForwardGRU,
    GRUWeights,
    driving,
    driving_gradient,
    from_half_states,
    on_half_states,
)
from pyrodyn.kernels.layout import by_columns


class ClosedLoopWeights(NamedTuple):
    """Weights of the loop.

    Attributes:
        controller: the controller's, whose drive reads e_t alone.
        feedback: from factors to the controller's gates, ``(3 controller, factor)``.
        readout: V, ``(2 input, controller)``: means, then log scales.
        readout_bias: v.
        generator: the generator's, whose drive reads i_t alone.
        inferred: from inferred inputs to the generator's gates, ``(3 generator, input)``.
        factors: F.
    """

    controller: GRUWeights
    feedback: Float[Tensor, "controller_gates factor"]
    readout: Float[Tensor, "parameter controller"]
    readout_bias: Float[Tensor, " parameter"]
    generator: GRUWeights
    inferred: Float[Tensor, "generator_gates input"]
    factors: Float[Tensor, "factor generator"]


class ClosedLoopPath(NamedTuple):
    """What a roll yields, time first but for the last state.

    Attributes:
        inputs: u, the inputs drawn.
        mean: m.
        scale: s.
        factors: f_1 ... f_T.
        last_state: g_T.
    """

    inputs: Float[Tensor, "time batch input"]
    mean: Float[Tensor, "time batch input"]
    scale: Float[Tensor, "time batch input"]
    factors: Float[Tensor, "time batch factor"]
    last_state: Float[Tensor, "batch generator"]


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
        w.factors,
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
        *weights[11:],
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
        num_bins, batch, input_dim = noise.shape
        # Both GRUs hand on k = (h + 1) / 2, so what reads it takes other matrices and biases.
        readout, from_readout = on_half_states(w.readout)
        readout_bias = w.readout_bias + from_readout
        factor_matrix, factor_bias = on_half_states(w.factors)
        controller = ForwardGRU(w.controller, controller_state, num_bins)
        generator = ForwardGRU(w.generator, generator_state, num_bins)
        from_encoder, feedback, from_known, inferred = (
            driving(matrix).t().contiguous()
            for matrix in (w.controller.drive, w.feedback, w.generator.drive, w.inferred)
        )
        readout, factor_matrix = by_columns(readout.t()), by_columns(factor_matrix.t())
        encoded, known = (inputs.transpose(0, 1).contiguous() for inputs in (encoded, known))
        u, mean, scale = (torch.empty_like(noise) for _ in range(3))
        factors = noise.new_empty(num_bins + 1, batch, len(w.factors))  # f_0 ... f_T
        torch.mm(generator_state, w.factors.t(), out=factors[0])
        has_known = known.shape[-1] > 0
        ctx.blocks = blocks(num_bins, 4 * batch * max(controller.dim, generator.dim))
        for block in ctx.blocks:
            drives, generator_drives = controller.enter(block), generator.enter(block)
            drives.flatten(0, 1).addmm_(encoded[block].flatten(0, 1), from_encoder)
            if has_known:
                generator_drives.flatten(0, 1).addmm_(known[block].flatten(0, 1), from_known)
            by_bin = zip(
                drives,
                generator_drives,
                *(field[block] for field in (noise, u, mean, scale)),
                factors[block],
                factors[block.start + 1 : block.stop + 1],
                strict=True,
            )
            for drive, generator_drive, eps, u_t, m, s, f_before, f in by_bin:
                drive.addmm_(f_before, feedback)
                said = torch.addmm(readout_bias, controller.step(), readout)
                m.copy_(said[:, :input_dim])
                torch.exp(said[:, input_dim:], out=s).add_(scale_floor)
                torch.addcmul(m, s, eps, out=u_t)
                generator_drive.addmm_(u_t, inferred)
                torch.addmm(factor_bias, generator.step(), factor_matrix, out=f)
        ctx.scale_floor = scale_floor
        ctx.tapes = controller.tape, generator.tape
        ctx.save_for_backward(encoded, known, noise, u, scale, factors, *weights)
        last_state = torch.add(-1, generator.half_states[-1], alpha=2)
        return u, mean, scale, factors[1:], last_state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of the closed loop don't support automatic differentiation themselves"
            )
        grad_u, grad_mean, grad_scale, grad_f, grad_last = grads
        encoded, known, noise, u, scale, factors, *weights = ctx.saved_tensors
        w = _gathered(tuple(weights))
        needs_encoded, needs_known, needs_noise = ctx.needs_input_grad[:3]
        input_dim = noise.shape[-1]
        controller_tape, generator_tape = ctx.tapes
        controller = BackwardGRU(controller_tape, w.controller.recurrent)
        generator = BackwardGRU(generator_tape, w.generator.recurrent)
        generator.d_half.add_(grad_last, alpha=2)
        readout, _ = on_half_states(w.readout)
        factor_matrix, _ = on_half_states(w.factors)
        from_encoder, feedback, from_known, inferred = map(
            driving, (w.controller.drive, w.feedback, w.generator.drive, w.inferred)
        )
        inferred = by_columns(inferred)
        d_encoded = torch.empty_like(encoded) if needs_encoded else None
        d_known = torch.empty_like(known) if needs_known else None
        d_from_encoder, d_feedback, d_readout, d_from_known, d_inferred = map(
            torch.zeros_like, (from_encoder, feedback, readout, from_known, inferred)
        )
        d_said = torch.cat([grad_mean, grad_scale], -1)
        d_factors = torch.cat([torch.zeros_like(grad_f[:1]), grad_f])
        slope = scale - ctx.scale_floor
        for number in reversed(range(len(ctx.blocks))):
            block = ctx.blocks[number]
            after = slice(block.start + 1, block.stop + 1)
            d_drives = controller.enter(number, block)
            d_generator_drives = generator.enter(number, block)
            by_bin = zip(
                d_drives,
                d_generator_drives,
                *(field[block] for field in (noise, slope, d_said, grad_u)),
                d_factors[block],
                d_factors[after],
                strict=True,
            )
            for d_drive, d_generator_drive, eps, s, d_said_t, d_u_t, d_f_before, d_f in reversed(
                list(by_bin)
            ):
                generator.d_half.addmm_(d_f, factor_matrix)
                generator.step()
                d_u = torch.addmm(d_u_t, d_generator_drive, inferred)
                d_said_t[:, :input_dim] += d_u
                d_said_t[:, input_dim:].addcmul_(d_u, eps).mul_(s)
                controller.d_half.addmm_(d_said_t, readout)
                controller.step()
                d_f_before.addmm_(d_drive, feedback)
            controller.leave(block)
            generator.leave(block)
            d_drives, d_generator_drives, said = (
                field.flatten(0, 1) for field in (d_drives, d_generator_drives, d_said[block])
            )
            d_from_encoder.addmm_(d_drives.t(), encoded[block].flatten(0, 1))
            d_from_known.addmm_(d_generator_drives.t(), known[block].flatten(0, 1))
            d_inferred.addmm_(d_generator_drives.t(), u[block].flatten(0, 1))
            d_feedback.addmm_(d_drives.t(), factors[block].flatten(0, 1))
            d_readout.addmm_(said.t(), controller_tape.half_states[after].flatten(0, 1))
            if d_encoded is not None:
                torch.mm(d_drives, from_encoder, out=d_encoded[block].flatten(0, 1))
            if d_known is not None:
                torch.mm(d_generator_drives, from_known, out=d_known[block].flatten(0, 1))
        # u = m + s eps: what reached the mean beyond the loss's own view of it is the gradient of
        # u.
        d_noise = (d_said[..., :input_dim] - grad_mean) * scale if needs_noise else None
        d_readout_bias = d_said.sum((0, 1))
        generator.d_half.addmm_(d_factors[0], factor_matrix)
        half_states, d_factors = generator_tape.half_states.flatten(0, 1), d_factors.flatten(0, 1)
        d_factor_matrix = from_half_states(d_factors.t() @ half_states, d_factors.sum(0))
        d_recurrent, d_bias, d_recurrent_bias = controller.gradients()
        return (
            None if d_encoded is None else d_encoded.transpose(0, 1),
            None if d_known is None else d_known.transpose(0, 1),
            d_noise,
            controller.d_half / 2,
            generator.d_half / 2,
            None,
            driving_gradient(d_from_encoder),
            d_recurrent,
            d_bias,
            d_recurrent_bias,
            driving_gradient(d_feedback),
            from_half_states(d_readout, d_readout_bias),
            d_readout_bias,
            driving_gradient(d_from_known),
            *generator.gradients(),
            driving_gradient(d_inferred),
            d_factor_matrix,
        )
