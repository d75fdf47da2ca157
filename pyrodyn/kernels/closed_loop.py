"""A controller in closed loop with a generator, whose inputs are not known beforehand::

    c_t = GRU_con([e_t, f_{t-1}], c_{t-1})        controller
    (m_t, a_t) = V c_t + v                        mean and log scale of the generator's input
    u_t = m_t + s_t eps_t,  s_t = exp(a_t) + s_0  inferred input, sampled
    g_t = GRU_gen([u_t, i_t], g_{t-1})            generator; i are known inputs
    f_t = F g_t                                   factors

Source: Pandarinath et al. 2018, Methods. The GRUs and their backward pass are those of
`pyrodyn.kernels.gru`; `reference_closed_loop` is the definition in plain torch. There is no second
derivative.
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
    gru_step,
    n_first,
    n_last,
)
from pyrodyn.kernels.layout import by_columns


class ClosedLoopWeights(NamedTuple):
    """Weights of the loop.

    Attributes:
        controller: weights of the controller; its drive reads e_t alone.
        feedback: from factors to the controller's gates, ``(3 controller, factor)``.
        readout: V, ``(2 input, controller)``: means, then log scales.
        readout_bias: v.
        generator: weights of the generator; its drive reads i_t alone.
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

    def flat(self) -> tuple[Tensor, ...]:
        """All tensors in one tuple."""
        return (
            *self.controller,
            *(self.feedback, self.readout, self.readout_bias),
            *self.generator,
            *(self.inferred, self.factors),
        )

    @classmethod
    def of_flat(cls, flat: tuple[Tensor, ...]) -> "ClosedLoopWeights":
        """The inverse of `flat`."""
        feedback, readout, readout_bias = flat[4:7]
        controller, generator = GRUWeights(*flat[:4]), GRUWeights(*flat[7:11])
        return cls(controller, feedback, readout, readout_bias, generator, *flat[11:])


class ClosedLoopPath(NamedTuple):
    """The result of a roll, time first but for the last state.

    Attributes:
        inputs: u, the sampled inputs.
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
    """Sample inputs bin by bin while rolling controller and generator.

    Args:
        encoded: e.
        known: i; no columns for no known inputs.
        noise: eps.
        controller_state: c_0.
        generator_state: g_0.
        weights: see `ClosedLoopWeights`.
        scale_floor: s_0.
    """
    states = (controller_state, generator_state)
    path = _ClosedLoop.apply(encoded, known, noise, *states, scale_floor, *weights.flat())
    return ClosedLoopPath(*path)


def reference_closed_loop(
    encoded: Float[Tensor, "batch time encoder"],
    known: Float[Tensor, "batch time known"],
    noise: Float[Tensor, "time batch input"],
    c: Float[Tensor, "batch controller"],
    g: Float[Tensor, "batch generator"],
    weights: ClosedLoopWeights,
    scale_floor: float,
) -> ClosedLoopPath:
    """`roll_closed_loop` in plain torch."""
    w, path = weights, []
    for t, eps in enumerate(noise):
        drive = encoded[:, t] @ w.controller.drive.mT + g @ w.factors.mT @ w.feedback.mT
        product = c @ w.controller.recurrent.mT + w.controller.recurrent_bias
        c = gru_step(drive + w.controller.bias, product, c)
        mean, log_scale = (c @ w.readout.mT + w.readout_bias).chunk(2, -1)
        scale = log_scale.exp() + scale_floor
        u = mean + scale * eps
        drive = known[:, t] @ w.generator.drive.mT + u @ w.inferred.mT
        product = g @ w.generator.recurrent.mT + w.generator.recurrent_bias
        g = gru_step(drive + w.generator.bias, product, g)
        path.append((u, mean, scale, g @ w.factors.mT))
    u, mean, scale, factors = (torch.stack(field) for field in zip(*path, strict=True))
    return ClosedLoopPath(u, mean, scale, factors, last_state=g)


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
        w = ClosedLoopWeights.of_flat(weights)
        num_bins, batch, input_dim = noise.shape
        controller = ForwardGRU(w.controller, controller_state, num_bins)
        generator = ForwardGRU(w.generator, generator_state, num_bins)
        from_encoder, feedback, from_known, inferred = (
            n_first(matrix).t().contiguous()
            for matrix in (w.controller.drive, w.feedback, w.generator.drive, w.inferred)
        )
        readout, factor_matrix = by_columns(w.readout.t()), by_columns(w.factors.t())
        encoded, known = (inputs.transpose(0, 1).contiguous() for inputs in (encoded, known))
        u, mean, scale = (noise.new_empty(noise.shape) for _ in range(3))
        factors = noise.new_empty(num_bins + 1, batch, len(w.factors))  # f_0 ... f_T
        torch.mm(generator_state, factor_matrix, out=factors[0])
        has_known = known.shape[-1] > 0
        ctx.blocks = blocks(num_bins, 4 * batch * max(controller.dim, generator.dim))
        for block in ctx.blocks:
            drives, generator_drives = controller.begin_block(block), generator.begin_block(block)
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
                parameters = torch.addmm(w.readout_bias, controller.step(), readout)
                m.copy_(parameters[:, :input_dim])
                torch.exp(parameters[:, input_dim:], out=s).add_(scale_floor)
                torch.addcmul(m, s, eps, out=u_t)
                generator_drive.addmm_(u_t, inferred)
                torch.mm(generator.step(), factor_matrix, out=f)
        ctx.scale_floor = scale_floor
        ctx.tapes = controller.tape, generator.tape
        ctx.save_for_backward(encoded, known, noise, u, scale, factors, *weights)
        return u, mean, scale, factors[1:], generator.tape.states[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of the closed loop don't support automatic differentiation themselves"
            )
        grad_u, grad_mean, grad_scale, grad_f, grad_last = grads
        encoded, known, noise, u, scale, factors, *weights = ctx.saved_tensors
        w = ClosedLoopWeights.of_flat(tuple(weights))
        needs_encoded, needs_known, needs_noise = ctx.needs_input_grad[:3]
        input_dim = noise.shape[-1]
        controller_tape, generator_tape = ctx.tapes
        controller = BackwardGRU(controller_tape, w.controller.recurrent)
        generator = BackwardGRU(generator_tape, w.generator.recurrent)
        generator.d_state.add_(grad_last)
        from_encoder, feedback, from_known, inferred = map(
            n_first, (w.controller.drive, w.feedback, w.generator.drive, w.inferred)
        )
        inferred = by_columns(inferred)
        d_encoded = torch.empty_like(encoded) if needs_encoded else None
        d_known = torch.empty_like(known) if needs_known else None
        d_from_encoder, d_feedback, d_readout, d_from_known, d_inferred = map(
            torch.zeros_like, (from_encoder, feedback, w.readout, from_known, inferred)
        )
        d_parameters = torch.cat([grad_mean, grad_scale], -1)
        d_factors = torch.cat([torch.zeros_like(grad_f[:1]), grad_f])
        slope = scale - ctx.scale_floor
        for number in reversed(range(len(ctx.blocks))):
            block = ctx.blocks[number]
            after = slice(block.start + 1, block.stop + 1)
            d_drives = controller.begin_block(number, block)
            d_generator_drives = generator.begin_block(number, block)
            by_bin = zip(
                d_drives,
                d_generator_drives,
                *(field[block] for field in (noise, slope, d_parameters, grad_u)),
                d_factors[block],
                d_factors[after],
                strict=True,
            )
            for d_drive, d_generator_drive, eps, s, d_of_bin, d_u_t, d_f_before, d_f in reversed(
                list(by_bin)
            ):
                generator.d_state.addmm_(d_f, w.factors)
                generator.step()
                d_u = torch.addmm(d_u_t, d_generator_drive, inferred)
                d_of_bin[:, :input_dim] += d_u
                d_of_bin[:, input_dim:].addcmul_(d_u, eps).mul_(s)
                controller.d_state.addmm_(d_of_bin, w.readout)
                controller.step()
                d_f_before.addmm_(d_drive, feedback)
            controller.end_block(block)
            generator.end_block(block)
            d_drives, d_generator_drives, d_outputs = (
                field.flatten(0, 1) for field in (d_drives, d_generator_drives, d_parameters[block])
            )
            d_from_encoder.addmm_(d_drives.t(), encoded[block].flatten(0, 1))
            d_from_known.addmm_(d_generator_drives.t(), known[block].flatten(0, 1))
            d_inferred.addmm_(d_generator_drives.t(), u[block].flatten(0, 1))
            d_feedback.addmm_(d_drives.t(), factors[block].flatten(0, 1))
            d_readout.addmm_(d_outputs.t(), controller_tape.states[after].flatten(0, 1))
            if d_encoded is not None:
                torch.mm(d_drives, from_encoder, out=d_encoded[block].flatten(0, 1))
            if d_known is not None:
                torch.mm(d_generator_drives, from_known, out=d_known[block].flatten(0, 1))
        # u = m + s eps: of the gradient of m, all but the loss's own part is the gradient of u.
        d_noise = (d_parameters[..., :input_dim] - grad_mean) * scale if needs_noise else None
        generator.d_state.addmm_(d_factors[0], w.factors)
        d_factor_matrix = d_factors.flatten(0, 1).t() @ generator_tape.states.flatten(0, 1)
        return (
            None if d_encoded is None else d_encoded.transpose(0, 1),
            None if d_known is None else d_known.transpose(0, 1),
            d_noise,
            controller.d_state,
            generator.d_state,
            None,
            n_last(d_from_encoder),
            *controller.gradients(),
            n_last(d_feedback),
            d_readout,
            d_parameters.sum((0, 1)),
            n_last(d_from_known),
            *generator.gradients(),
            n_last(d_inferred),
            d_factor_matrix,
        )
