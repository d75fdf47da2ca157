"""The VSMC bound of a low-rank network resampled at every bin, forward and backward by hand.

For counts, the draws of the proposal are weighted::

    a_k ~ W_{t-1}                                       ancestors
    m_k = a z + n phi(m z + d_t)                        at z = z_{t-1} of a_k: mean of the step
    z_k = A_t m_k + c_t + L_t eps_k                     draw from the proposal
    log w_k = log p(x_t | z_k) + (|eps_k|^2 - |R (z_k - m_k)|^2) / 2 + log det L_t R
    bound = sum_t log (1/K sum_k w_k),                  d bound / d log w_k = W_k

With the optimal proposal of a linear-Gaussian observation the weights do not depend on the draws,
and particles are resampled before they are drawn::

    m_k = a z + n phi(m z + d_t)                        at all z_{t-1}
    log w_k = constant_t + (m_k - s_t)' v_t - (m_k - s_t)' M_t (m_k - s_t) / 2
    a_k ~ W_t,  z_k = A_t m_{a_k} + c_t + L_t eps_k

The reference is `pyrodyn.infer.smc.SequentialMonteCarlo` recorded by autograd, which draws the same
random numbers in the same order. Autograd records some sixty small tensors per bin, whose overhead
is several times their arithmetic. Here a bin consists of the lines above, on states ``(dim, trial,
particle)`` (see `pyrodyn.kernels.low_rank`; ``(trial, dim, particle)`` where every trial has a
matrix of its own), and the gradients of the weights are accumulated in place.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pyrodyn.kernels.low_rank import LowRankSteps
from pyrodyn.kernels.low_rank_weights import (
    GaussianWeighting,
    GaussianWeights,
    PoissonWeighting,
    PoissonWeights,
)

Resample = Callable[[Float[Tensor, "particle trial"]], Int[Tensor, "particle trial"]]
"""Draws ancestors from log weights."""


class NetworkSteps(NamedTuple):
    """The step of the network and the proposal of every bin, q(z_t | m_t) = N(A m_t + c, L L').

    Attributes:
        first_mean: prior mean of z_1, ``(trial, dim)``.
        drive: d of every bin, ``(trial, time, unit)``; None without inputs.
        m: from latents to units, ``(unit, dim)``.
        n: from units to latents, ``(dim, unit)``.
        threshold: h, None for units without one.
        decay: a.
        gain: A, ``(trial, time, dim, dim)``; None for the transition itself, without a shift.
        shift: c, ``(trial, time, dim)``.
        factor: L, ``(trial, time, dim, dim)``.
    """

    first_mean: Tensor
    drive: Tensor | None
    m: Tensor
    n: Tensor
    threshold: Tensor | None
    decay: Tensor
    gain: Tensor | None
    shift: Tensor | None
    factor: Tensor


def low_rank_vsmc(
    steps: NetworkSteps,
    weights: GaussianWeights | PoissonWeights,
    activation: str,
    num_particles: int,
    resample: Resample,
) -> tuple[Float[Tensor, " trial"], Float[Tensor, " trial"]]:
    """The bound of every trial, and the effective sample size before resampling, averaged over
    bins.

    Args:
        steps: of the network and its proposal.
        weights: of the particles.
        activation: of the units, a name in `pyrodyn.kernels.activations.ACTIVATIONS`.
        num_particles: K, above 1.
        resample: applied at every bin.
    """
    setting = _Setting(num_particles, resample, activation, weights)
    differentiable = weights[:3] if isinstance(weights, GaussianWeights) else weights[:4]
    bound, effective_sample_size = _Bound.apply(setting, *steps, *differentiable)
    return bound, effective_sample_size


class _Setting(NamedTuple):
    """What a run needs beside the tensors with a gradient."""

    num_particles: int
    resample: Resample
    activation: str
    weights: GaussianWeights | PoissonWeights


class _Bound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        setting: _Setting,
        first_mean: Tensor,
        drive: Tensor | None,
        m: Tensor,
        n: Tensor,
        threshold: Tensor | None,
        decay: Tensor,
        gain: Tensor,
        shift: Tensor,
        factor: Tensor,
        *differentiable: Tensor,
    ) -> tuple[Tensor, Tensor]:
        num_trials, num_bins, dim = shift.shape
        shape = (dim, num_trials, setting.num_particles)
        steps = LowRankSteps(m, n, threshold, decay, setting.activation)
        weighting: Any
        if isinstance(setting.weights, GaussianWeights):
            weighting = GaussianWeighting(setting.weights, *differentiable)
        else:
            weighting = PoissonWeighting(setting.weights, *differentiable)
        drives = [None] * num_bins if drive is None else by_bin(drive)
        gains, shifts, factors = gain.unbind(1), shift[..., None].unbind(1), factor.unbind(1)
        first_row = setting.num_particles * torch.arange(num_trials, device=shift.device)[:, None]

        def ancestors(log_w: Tensor) -> Tensor:
            return (setting.resample(log_w.t()).t() + first_row).flatten()

        tape, all_log_w = _Tape(any(ctx.needs_input_grad)), []
        log_w = shift
        before = shift.new_empty(0)
        for t in range(num_bins):
            rows, kept = None, None
            if t == 0:
                mean = first_mean.t()[..., None].expand(shape)
            else:
                if not weighting.is_exact:
                    rows = ancestors(log_w)
                    before = select(before, rows)
                mean, kept = steps.forward(before, drives[t - 1])
            mean = mean.transpose(0, 1)
            if weighting.is_exact:
                log_w = weighting.forward(t, mean, tape.is_recording)
                if t > 0:
                    rows = ancestors(log_w)
                    mean = select(mean.transpose(0, 1), rows).transpose(0, 1)
            noise = draw_noise(setting.num_particles, shift[:, t])
            z = torch.baddbmm(torch.baddbmm(shifts[t], gains[t], mean), factors[t], noise)
            before = z.transpose(0, 1).contiguous()
            if not weighting.is_exact:
                drawn = before.transpose(0, 1)
                log_w = weighting.forward(t, mean, tape.is_recording, drawn, noise)
            all_log_w.append(log_w)
            tape.record(kept, rows, mean, noise, before)
        log_w = torch.stack(all_log_w, 1)
        weights = torch.softmax(log_w, -1)
        evidence = log_w.logsumexp(-1).sum(1) - num_bins * math.log(setting.num_particles)
        ess = weights.square().sum(-1).reciprocal_()
        if not weighting.is_exact:  # before resampling: equal weights at first, and not the last
            ess = functional.pad(ess[:, :-1], (1, 0), value=setting.num_particles)
        ess = ess.mean(1)
        ctx.tape, ctx.steps, ctx.weighting = tape, steps, weighting
        ctx.save_for_backward(drive, gain, weights)
        ctx.mark_non_differentiable(ess)
        return evidence, ess

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the VSMC bound of a low-rank network has no second derivative: its gradient is"
                " written by hand; leave out create_graph=True, or take an ess_threshold below 1"
            )
        drive, gain, weights = ctx.saved_tensors
        steps, weighting, tape = ctx.steps, ctx.weighting, ctx.tape
        steps.reset_gradients()
        weighting.reset_gradients()
        gains, d_log_w = gain.unbind(1), (weights * grads[0][:, None, None]).unbind(1)
        num_bins = len(gains)
        d_drive = None if drive is None else torch.zeros_like(drive)
        d_z, all_d_z = torch.zeros_like(tape.noise[-1]), []
        for t in range(num_bins - 1, -1, -1):
            if weighting.is_exact:
                d_mean = torch.bmm(gains[t].mT, d_z)
                d_mean = scatter(d_mean.transpose(0, 1), tape.rows[t]).transpose(0, 1)
                d_mean = weighting.backward(t, d_log_w[t], d_mean)
            else:
                drawn = tape.z[t].transpose(0, 1)
                d_z, d_mean = weighting.backward(t, d_log_w[t], d_z, drawn)
                d_mean.baddbmm_(gains[t].mT, d_z)
            all_d_z.append(d_z)
            if t == 0:
                break
            d_before, d_currents = steps.backward(tape.kept[t], d_mean.transpose(0, 1))
            if d_drive is not None:
                d_drive[:, t - 1] = d_currents.sum(2).t()
            if not weighting.is_exact:
                d_before = scatter(d_before, tape.rows[t])
            d_z = d_before.transpose(0, 1)
        d_draws = torch.stack(all_d_z[::-1], 1)
        return (
            None,
            d_mean.sum(2),
            d_drive,
            *steps.gradients(),
            d_draws @ torch.stack(tape.mean, 1).mT,
            d_draws.sum(3),
            d_draws @ torch.stack(tape.noise, 1).mT,
            *weighting.gradients(),
            grads[0][:, None].expand(-1, num_bins),
        )


def by_bin(drive: Float[Tensor, "trial time unit"]) -> tuple[Float[Tensor, "unit trial 1"], ...]:
    """The drive of every bin, units first."""
    return drive.permute(1, 2, 0)[..., None].unbind(0)


def draw_noise(
    num_particles: int, like: Float[Tensor, "trial dim"]
) -> Float[Tensor, "trial dim particle"]:
    """Standard normals, in the order in which `SequentialMonteCarlo` draws them, so that both draw
    the same.
    """
    shape = (num_particles, *like.shape)
    noise = torch.randn(shape, dtype=like.dtype, device=like.device)
    return noise.permute(1, 2, 0).contiguous()


def select(
    values: Float[Tensor, "dim trial particle"], rows: Int[Tensor, " row"]
) -> Float[Tensor, "dim trial particle"]:
    """Values of ancestors, from their indices among all trials and particles."""
    return values.flatten(1).index_select(1, rows).view(values.shape)


def scatter(
    gradient: Float[Tensor, "dim trial particle"], rows: Int[Tensor, " row"] | None
) -> Float[Tensor, "dim trial particle"]:
    """The gradient of values from that of those selected."""
    if rows is None:
        return gradient
    flat = gradient.flatten(1)
    return torch.zeros_like(flat).index_add_(1, rows, flat).view(gradient.shape)


class _Tape:
    """What the backward pass needs of every bin.

    Args:
        is_recording: False where no gradient is wanted.
    """

    def __init__(self, is_recording: bool) -> None:
        self.is_recording = is_recording
        self.kept: list[Any] = []
        self.rows: list[Tensor | None] = []
        self.mean: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.z: list[Tensor] = []

    def record(
        self,
        kept: Any,
        rows: Tensor | None,
        mean: Tensor,
        noise: Tensor,
        z: Tensor,
    ) -> None:
        """Append one bin."""
        if self.is_recording:
            self.kept.append(kept)
            self.rows.append(rows)
            self.mean.append(mean)
            self.noise.append(noise)
            self.z.append(z)
