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
is several times their arithmetic. Here a bin consists of the lines above, on rows ``(trial,
particle)``, and the gradients of the weights are accumulated in place.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pyrodyn.kernels.affine_poisson import AffinePoissonSteps
from pyrodyn.kernels.gaussian import half_sum
from pyrodyn.kernels.low_rank import LowRankSteps

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
        gain: A, ``(trial, time, dim, dim)``.
        shift: c, ``(trial, time, dim)``.
        factor: L, ``(trial, time, dim, dim)``.
    """

    first_mean: Tensor
    drive: Tensor | None
    m: Tensor
    n: Tensor
    threshold: Tensor | None
    decay: Tensor
    gain: Tensor
    shift: Tensor
    factor: Tensor


class GaussianWeights(NamedTuple):
    """The weights of an optimal proposal, which are quadratic in the means of the steps.

    Attributes:
        slope: v, ``(trial, time, dim)``.
        curvature: M, ``(trial, time, dim, dim)``.
        constant: ``(trial, time)``.
        centre: s, ``(trial, time, dim)``; has no gradient.
    """

    slope: Tensor
    curvature: Tensor
    constant: Tensor
    centre: Tensor


class PoissonWeights(NamedTuple):
    """The weights of counts with an affine readout of z.

    Attributes:
        loading: ``(neuron, dim)``.
        offset: ``(neuron,)`` or ``(trial, time, neuron)``.
        whitening: R of the first and of later bins, ``(2, dim, dim)``.
        constant: the same for all particles of a bin, ``(trial, time)``.
        x: counts, ``(trial, time, neuron)``; have no gradient.
        weight: weight of every count, 0 where it is not scored; has no gradient.
        link: of the mean, see `pyrodyn.kernels.affine_poisson`.
    """

    loading: Tensor
    offset: Tensor
    whitening: Tensor
    constant: Tensor
    x: Tensor
    weight: Tensor
    link: str


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
        shape = (num_trials, setting.num_particles, dim)
        steps = LowRankSteps(m, n, threshold, decay, setting.activation)
        weighting: Any
        if isinstance(setting.weights, GaussianWeights):
            weighting = _GaussianWeighting(setting.weights, *differentiable)
        else:
            weighting = _PoissonWeighting(setting.weights, *differentiable)
        drives = [None] * num_bins if drive is None else drive[:, None].unbind(2)
        gains, shifts, factors = gain.mT.unbind(1), shift[:, None].unbind(2), factor.mT.unbind(1)
        first_row = setting.num_particles * torch.arange(num_trials, device=shift.device)[:, None]

        def ancestors(log_w: Tensor) -> Tensor:
            return (setting.resample(log_w.t()).t() + first_row).flatten()

        tape, all_log_w = _Tape(any(ctx.needs_input_grad)), []
        z = log_w = shift
        for t in range(num_bins):
            rows, kept = None, None
            if t == 0:
                before = mean = first_mean[:, None].expand(shape)
            else:
                before = z
                if not weighting.is_exact:
                    rows = ancestors(log_w)
                    before = z.view(-1, dim).index_select(0, rows).view(shape)
                mean, kept = steps.forward(before, drives[t - 1])
            if weighting.is_exact:
                log_w = weighting.forward(t, mean, tape.is_recording)
                if t > 0:
                    rows = ancestors(log_w)
                    mean = mean.view(-1, dim).index_select(0, rows).view(shape)
            # In the order in which `SequentialMonteCarlo` draws, so that both draw the same.
            noise = torch.randn(shape[1], num_trials, dim, dtype=shift.dtype, device=shift.device)
            noise = noise.transpose(0, 1).contiguous()
            z = torch.baddbmm(torch.baddbmm(shifts[t], mean, gains[t]), noise, factors[t])
            if not weighting.is_exact:
                log_w = weighting.forward(t, mean, tape.is_recording, z, noise)
            all_log_w.append(log_w)
            tape.record(before, kept, rows, mean, noise, z)
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
        d_z, all_d_z = torch.zeros_like(tape.z[-1]), []
        for t in range(num_bins - 1, -1, -1):
            if weighting.is_exact:
                d_mean = _scatter(torch.bmm(d_z, gains[t]), tape.rows[t])
                d_mean = weighting.backward(t, d_log_w[t], d_mean)
            else:
                d_z, d_mean = weighting.backward(t, d_log_w[t], d_z, tape.z[t])
                d_mean.baddbmm_(d_z, gains[t])
            all_d_z.append(d_z)
            if t == 0:
                break
            d_z, d_currents = steps.backward(tape.before[t], tape.kept[t], d_mean)
            if d_drive is not None:
                d_drive[:, t - 1] = d_currents.view(*d_z.shape[:2], -1).sum(1)
            if not weighting.is_exact:
                d_z = _scatter(d_z, tape.rows[t])
        d_draws = torch.stack(all_d_z[::-1], 1)
        return (
            None,
            d_mean.sum(1),
            d_drive,
            *steps.gradients(),
            d_draws.mT @ torch.stack(tape.mean, 1),
            d_draws.sum(2),
            d_draws.mT @ torch.stack(tape.noise, 1),
            *weighting.gradients(),
            grads[0][:, None].expand(-1, num_bins),
        )


def _scatter(
    gradient: Float[Tensor, "trial particle dim"], rows: Int[Tensor, " row"] | None
) -> Float[Tensor, "trial particle dim"]:
    """Gradients of selected rows, added up at the rows from which they were selected."""
    if rows is None:
        return gradient
    flat = gradient.view(len(rows), -1)
    return torch.zeros_like(flat).index_add_(0, rows, flat).view(gradient.shape)


class _Tape:
    """What the backward pass needs of every bin.

    Args:
        is_recording: False where no gradient is wanted.
    """

    def __init__(self, is_recording: bool) -> None:
        self.is_recording = is_recording
        self.before: list[Tensor] = []
        self.kept: list[Any] = []
        self.rows: list[Tensor | None] = []
        self.mean: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.z: list[Tensor] = []

    def record(
        self,
        before: Tensor,
        kept: Any,
        rows: Tensor | None,
        mean: Tensor,
        noise: Tensor,
        z: Tensor,
    ) -> None:
        """Append one bin."""
        if self.is_recording:
            self.before.append(before)
            self.kept.append(kept)
            self.rows.append(rows)
            self.mean.append(mean)
            self.noise.append(noise)
            self.z.append(z)


class _GaussianWeighting:
    """Weights of an optimal proposal, from the means of the network's steps."""

    is_exact = True

    def __init__(
        self, fixed: GaussianWeights, slope: Tensor, curvature: Tensor, constant: Tensor
    ) -> None:
        self._centres = fixed.centre[:, None].unbind(2)
        self._slopes, self._curvatures = slope[:, None].unbind(2), curvature.unbind(1)
        self._constants = constant[:, None].unbind(2)
        self._tape: list[tuple[Tensor, Tensor]] = []

    def reset_gradients(self) -> None:
        """Set the accumulated gradients to 0."""
        self._weighted: list[Tensor] = []

    def forward(self, t: int, mean: Tensor, is_recording: bool) -> Tensor:
        """Log w."""
        slope, deviation = self._slopes[t], mean - self._centres[t]
        # M is symmetric.
        gradient = torch.baddbmm(slope, deviation, self._curvatures[t], alpha=-1)
        if is_recording:
            self._tape.append((deviation, gradient))
        return half_sum(deviation * (gradient + slope)).add_(self._constants[t])

    def backward(self, t: int, d_log_w: Tensor, d_mean: Tensor) -> Tensor:
        """The gradient of the means: that of the weights added to ``d_mean``."""
        deviation, gradient = self._tape[t]
        each = d_log_w[..., None]
        self._weighted.append(each * deviation)
        return torch.addcmul(d_mean, each, gradient)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of slope and curvature."""
        weighted = torch.stack(self._weighted[::-1], 1)
        deviation = torch.stack([deviation for deviation, _ in self._tape], 1)
        return weighted.sum(2), (weighted.mT @ deviation).mul_(-0.5)


class _PoissonWeighting:
    """Weights of counts, from draws of the proposal."""

    is_exact = False

    def __init__(
        self,
        fixed: PoissonWeights,
        loading: Tensor,
        offset: Tensor,
        whitening: Tensor,
        constant: Tensor,
    ) -> None:
        self._weighted_x, self._weight = (
            each[:, None].unbind(2) for each in (fixed.weight * fixed.x, fixed.weight)
        )
        self._counts = AffinePoissonSteps(loading, fixed.link)
        is_shared = offset.ndim == 1
        self._offsets = [offset] * len(self._weight) if is_shared else offset[:, None].unbind(2)
        self._whitening, self._constants = whitening, constant[:, None].unbind(2)
        self._transposed = whitening.mT.contiguous()
        self._tape: list[Any] = []
        self._offset = offset

    def reset_gradients(self) -> None:
        """Set the accumulated gradients to 0."""
        self._counts.reset_gradients()
        self._d_offset = torch.zeros_like(self._offset)
        self._d_whitened: list[Tensor] = []

    def forward(self, t: int, mean: Tensor, is_recording: bool, z: Tensor, noise: Tensor) -> Tensor:
        """Log w."""
        weighted_x, weight = self._weighted_x[t], self._weight[t]
        log_p, slope = self._counts.forward(z, self._offsets[t], weighted_x, weight, is_recording)
        deviation = z - mean
        whitened = deviation @ self._transposed[min(t, 1)]
        half_squares = half_sum(noise.square().addcmul_(whitened, whitened, value=-1))
        if is_recording:
            self._tape.append((slope, deviation, whitened))
        return log_p.add_(half_squares).add_(self._constants[t])

    def backward(self, t: int, d_log_w: Tensor, d_z: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the draws, that of the weights added to ``d_z``, and of the means."""
        slope, _, whitened = self._tape[t]
        d_offset = self._counts.offset_gradient(slope, d_log_w, self._offsets[t])
        if self._d_offset.ndim == 1:
            self._d_offset += d_offset
        else:
            self._d_offset[:, t] = d_offset[:, 0]
        d_whitened = d_log_w[..., None] * whitened
        self._d_whitened.append(d_whitened)
        d_mean = d_whitened @ self._whitening[min(t, 1)]
        return self._counts.backward(z, slope, d_log_w).add_(d_z).sub_(d_mean), d_mean

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of loading, offset and whitening."""
        d_whitened = torch.stack(self._d_whitened[::-1])
        deviation = torch.stack([deviation for _, deviation, _ in self._tape])
        per_bin = -d_whitened.flatten(1, 2).mT @ deviation.flatten(1, 2)
        d_whitening = torch.stack([per_bin[0], per_bin[1:].sum(0)])
        return self._counts.gradient(), self._d_offset, d_whitening
