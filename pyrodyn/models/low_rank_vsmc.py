"""The VSMC bound of a low-rank network, forward and back by hand::

    a_k ~ W_{t-1}                                       ancestors
    m_k = a z + n phi(m z + d_t)                        at z = z_{t-1} of a_k: the model's mean
    z_k = A_t m_k + c_t + L_t eps_k                     the proposal's draw
    log w_k = log p(x_t | z_k) + (|eps_k|^2 - |R (z_k - m_k)|^2) / 2 + log det L_t R
    bound = sum_t log (1/K sum_k w_k),                  d bound / d log w_k = W_k, the weights

and where the proposal is exact, so that weights do not depend on draws, at all z_{t-1}::

    m_k = a z + n phi(m z + d_t)
    log w_k = constant_t + (m_k - s_t)' v_t - (m_k - s_t)' M_t (m_k - s_t) / 2
    a_k ~ W_t,  z_k = A_t m_{a_k} + c_t + L_t eps_k

This is `SequentialMonteCarlo` resampled at every bin, for those models whose bin consists of these
lines. Autograd would record some sixty small tensors of every bin, whose handling takes several
times what their arithmetic does. Here a bin is these lines alone, on rows ``(trial, particle)``,
and the gradients of weights add up in place.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pyrodyn.infer.smc.particle_filter import Observed
from pyrodyn.infer.smc.resampling import Scheme
from pyrodyn.kernels.affine_poisson import AffinePoissonSteps
from pyrodyn.kernels.gaussian import half_sum
from pyrodyn.kernels.low_rank import LowRankSteps
from pyrodyn.models.low_rank_rnn import STEP, LowRankRNN
from pyrodyn.models.observations import Poisson
from pyrodyn.models.proposals import EncoderFactor, OptimalFactor
from pyrodyn.models.state_space import StateSpaceModel


class Bound(NamedTuple):
    """What a run finds.

    Attributes:
        log_evidence: the bound, per trial.
        effective_sample_size: of the weights before resampling, the mean over bins.
    """

    log_evidence: Float[Tensor, " trial"]
    effective_sample_size: Float[Tensor, " trial"]


def low_rank_bound(
    model: StateSpaceModel, observed: Observed, num_particles: int, scheme: Scheme
) -> Bound | None:
    """The bound of what is observed; None for a model or data not made of the lines above.

    Args:
        model: with its proposal.
        observed: whole trials.
        num_particles: K, above 1.
        scheme: a classical one, applied at every bin.
    """
    if not isinstance(model, LowRankRNN) or model.is_full_rank or model.noise_df is not None:
        return None
    bypassed = (*STEP, "emission", "log_likelihood", "mean_step", "currents", "activate")
    if not model.has_own(*bypassed, of=LowRankRNN):
        return None
    encoding, proposal = observed.encoding, type(model.proposal)
    counts = isinstance(model.observation, Poisson) and model.readout_from != "rates"
    is_exact = proposal is OptimalFactor and encoding.is_exact
    if not is_exact and not (proposal is EncoderFactor and counts):
        return None
    first, later = encoding.first, encoding.later
    shape = encoding.h.shape[:2]

    def of_all_bins(one: Tensor, other: Tensor, event_dims: int) -> Tensor:
        """A field of the first and of later bins, ``(trial, time, ...)``."""
        event = one.shape[one.ndim - event_dims :]
        one, other = one.expand(shape[0], 1, *event), other.expand(*shape, *event)
        return torch.cat([one, other[:, 1:]], 1)

    v = model.filtered(observed.inputs)
    start = model.initial(None, observed.inputs[:, 0])
    moves = (
        start.mean,
        functional.linear(v, model.input_weights) if v.shape[-1] else None,
        model.m,
        model.n,
        model.step_threshold(),
        model.decay(),
        of_all_bins(first.gain, later.gain, 2),
        of_all_bins(first.shift, later.shift, 1),
        of_all_bins(first.covariance.factor, later.covariance.factor, 2),
    )
    fixed = _Fixed(num_particles, scheme, model.activation, (), None, (), ())
    if is_exact:
        fixed = fixed._replace(centre=later.centre[:, None].unbind(2))
        pull = of_all_bins(first.pull, later.pull, 1)
        curvature = of_all_bins(first.curvature, later.curvature, 2)
        constant = of_all_bins(first.constant, later.constant, 0)
        return Bound(*_Bound.apply(fixed, *moves, pull, curvature, constant))
    weight = observed.scored.to(observed.x.dtype) * observed.scored_weight
    x = torch.where(observed.scored, observed.x, model.observation.filler)
    weighed, weights = ((each[:, None]).unbind(2) for each in (weight * x, weight))
    fixed = fixed._replace(link=model.rate_link(), weighed=weighed, weight=weights)
    noises = model.process_noise()
    first_ratio, later_ratio = (
        posterior.covariance.half_log_det - noise.half_log_det
        for posterior, noise in zip((first, later), noises, strict=True)
    )
    constant = of_all_bins(first_ratio, later_ratio, 0) - (weight * torch.lgamma(x + 1)).sum(-1)
    whitening = torch.stack([noise.inverse for noise in noises])
    return Bound(*_Bound.apply(fixed, *moves, *model.affine_readout(v), whitening, constant))


class _Fixed(NamedTuple):
    """What a run needs beside tensors with a gradient.

    Attributes:
        num_particles: K.
        scheme: of resampling.
        kind: the activation.
        centre: s of every bin, ``(trial, 1, dim)``, where the proposal is exact.
        link: of the counts; None where the proposal is exact.
        weighed: w x of every bin, ``(trial, 1, neuron)``.
        weight: w.
    """

    num_particles: int
    scheme: Scheme
    kind: str
    centre: tuple[Tensor, ...]
    link: str | None
    weighed: tuple[Tensor, ...]
    weight: tuple[Tensor, ...]


class _Bound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fixed: _Fixed,
        first_mean: Tensor,
        drive: Tensor | None,
        m: Tensor,
        n: Tensor,
        threshold: Tensor | None,
        decay: Tensor,
        gain: Tensor,
        shift: Tensor,
        factor: Tensor,
        *weighing: Tensor,
    ) -> tuple[Tensor, Tensor]:
        num_trials, num_bins, dim = shift.shape
        shape = (num_trials, fixed.num_particles, dim)
        steps = LowRankSteps(m, n, threshold, decay, fixed.kind)
        weighs: Any = (_Exact if fixed.link is None else _Counted)(fixed, *weighing)
        drives = [None] * num_bins if drive is None else drive[:, None].unbind(2)
        gains, shifts, factors = gain.mT.unbind(1), shift[:, None].unbind(2), factor.mT.unbind(1)
        home = fixed.num_particles * torch.arange(num_trials, device=shift.device)[:, None]

        def ancestors(log_w: Tensor) -> Tensor:
            return (fixed.scheme(log_w.t()).ancestors.t() + home).flatten()

        tape, all_log_w = _Tape(any(ctx.needs_input_grad)), []
        z = log_w = shift
        for t in range(num_bins):
            rows, kept = None, None
            if t == 0:
                before = mean = first_mean[:, None].expand(shape)
            else:
                before = z
                if not weighs.is_exact:
                    rows = ancestors(log_w)
                    before = z.view(-1, dim).index_select(0, rows).view(shape)
                mean, kept = steps.forward(before, drives[t - 1])
            if weighs.is_exact:
                log_w = weighs.forward(t, mean, tape.keeps)
                if t > 0:
                    rows = ancestors(log_w)
                    mean = mean.view(-1, dim).index_select(0, rows).view(shape)
            # In the order in which `SequentialMonteCarlo` draws, so that both draw the same.
            noise = torch.randn(shape[1], num_trials, dim, dtype=shift.dtype, device=shift.device)
            noise = noise.transpose(0, 1).contiguous()
            z = torch.baddbmm(torch.baddbmm(shifts[t], mean, gains[t]), noise, factors[t])
            if not weighs.is_exact:
                log_w = weighs.forward(t, mean, tape.keeps, z, noise)
            all_log_w.append(log_w)
            tape.keep(before, kept, rows, mean, noise, z)
        log_w = torch.stack(all_log_w, 1)
        weights = torch.softmax(log_w, -1)
        evidence = log_w.logsumexp(-1).sum(1) - num_bins * math.log(fixed.num_particles)
        ess = weights.square().sum(-1).reciprocal_()
        if not weighs.is_exact:  # before resampling: all alike at first, and not the last
            ess = functional.pad(ess[:, :-1], (1, 0), value=fixed.num_particles)
        ess = ess.mean(1)
        ctx.tape, ctx.steps, ctx.weighs = tape, steps, weighs
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
        steps, weighs, tape = ctx.steps, ctx.weighs, ctx.tape
        steps.reset_gradients()
        weighs.reset_gradients()
        gains, d_log_w = gain.unbind(1), (weights * grads[0][:, None, None]).unbind(1)
        num_bins = len(gains)
        d_drive = None if drive is None else torch.zeros_like(drive)
        d_z, all_d_z = torch.zeros_like(tape.z[-1]), []
        for t in range(num_bins - 1, -1, -1):
            if weighs.is_exact:
                d_mean = _spread(torch.bmm(d_z, gains[t]), tape.rows[t])
                d_mean = weighs.backward(t, d_log_w[t], d_mean)
            else:
                d_z, d_mean = weighs.backward(t, d_log_w[t], d_z, tape.z[t])
                d_mean.baddbmm_(d_z, gains[t])
            all_d_z.append(d_z)
            if t == 0:
                break
            d_z, d_currents = steps.backward(tape.before[t], tape.kept[t], d_mean)
            if d_drive is not None:
                d_drive[:, t - 1] = d_currents.view(*d_z.shape[:2], -1).sum(1)
            if not weighs.is_exact:
                d_z = _spread(d_z, tape.rows[t])
        d_draws = torch.stack(all_d_z[::-1], 1)
        return (
            None,
            d_mean.sum(1),
            d_drive,
            *steps.gradients(),
            d_draws.mT @ torch.stack(tape.mean, 1),
            d_draws.sum(2),
            d_draws.mT @ torch.stack(tape.noise, 1),
            *weighs.gradients(),
            grads[0][:, None].expand(-1, num_bins),
        )


def _spread(
    gradient: Float[Tensor, "trial particle dim"], rows: Int[Tensor, " row"] | None
) -> Float[Tensor, "trial particle dim"]:
    """Gradients of picked rows, back where these were picked."""
    if rows is None:
        return gradient
    flat = gradient.view(len(rows), -1)
    return torch.zeros_like(flat).index_add_(0, rows, flat).view(gradient.shape)


class _Tape:
    """What the way back needs of every bin, in lists."""

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps
        self.before: list[Tensor] = []
        self.kept: list[Any] = []
        self.rows: list[Tensor | None] = []
        self.mean: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.z: list[Tensor] = []

    def keep(self, *of_bin: Any) -> None:
        """One bin's, in the order above."""
        if self.keeps:
            before, kept, rows, mean, noise, z = of_bin
            self.before.append(before)
            self.kept.append(kept)
            self.rows.append(rows)
            self.mean.append(mean)
            self.noise.append(noise)
            self.z.append(z)


class _Exact:
    """Weights of an exact proposal, from the means of the model's step.

    Args:
        fixed: of the run.
        pull, curvature, constant: see `Conditioned`.
    """

    is_exact = True

    def __init__(self, fixed: _Fixed, pull: Tensor, curvature: Tensor, constant: Tensor) -> None:
        self._centres = fixed.centre
        self._pulls, self._curvatures = pull[:, None].unbind(2), curvature.unbind(1)
        self._constants = constant[:, None].unbind(2)
        self._tape: list[tuple[Tensor, Tensor]] = []

    def reset_gradients(self) -> None:
        """Set the accumulated gradients to 0."""
        self._weighed: list[Tensor] = []

    def forward(self, t: int, mean: Tensor, keeps: bool) -> Tensor:
        """Log w."""
        pull, away = self._pulls[t], mean - self._centres[t]
        slope = torch.baddbmm(pull, away, self._curvatures[t], alpha=-1)  # M is symmetric
        if keeps:
            self._tape.append((away, slope))
        return half_sum(away * (slope + pull)).add_(self._constants[t])

    def backward(self, t: int, d_log_w: Tensor, d_mean: Tensor) -> Tensor:
        """All that reaches the means, from what does on another way."""
        away, slope = self._tape[t]
        each = d_log_w[..., None]
        self._weighed.append(each * away)
        return torch.addcmul(d_mean, each, slope)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of pull and curvature."""
        weighed = torch.stack(self._weighed[::-1], 1)
        away = torch.stack([away for away, _ in self._tape], 1)
        return weighed.sum(2), (weighed.mT @ away).mul_(-0.5)


class _Counted:
    """Weights of counts, from draws of the proposal.

    Args:
        fixed: of the run.
        loading, offset: C and d.
        whitening: R of the first and of later bins.
        constant: what a bin's weights have in common.
    """

    is_exact = False

    def __init__(
        self, fixed: _Fixed, loading: Tensor, offset: Tensor, whitening: Tensor, constant: Tensor
    ) -> None:
        self._fixed, self._counts = fixed, AffinePoissonSteps(loading, str(fixed.link))
        shared = offset.ndim == 1
        self._offsets = [offset] * len(fixed.weight) if shared else offset[:, None].unbind(2)
        self._whitening, self._constants = whitening, constant[:, None].unbind(2)
        self._transposed = whitening.mT.contiguous()
        self._tape: list[Any] = []
        self._offset = offset

    def reset_gradients(self) -> None:
        """Set the accumulated gradients to 0."""
        self._counts.reset_gradients()
        self._d_offset = torch.zeros_like(self._offset)
        self._d_whitened: list[Tensor] = []

    def forward(self, t: int, mean: Tensor, keeps: bool, z: Tensor, noise: Tensor) -> Tensor:
        """Log w."""
        weighed, weight = self._fixed.weighed[t], self._fixed.weight[t]
        log_p, slope = self._counts.forward(z, self._offsets[t], weighed, weight, keeps)
        away = z - mean
        whitened = away @ self._transposed[min(t, 1)]
        half_squares = half_sum(noise.square().addcmul_(whitened, whitened, value=-1))
        if keeps:
            self._tape.append((slope, away, whitened))
        return log_p.add_(half_squares).add_(self._constants[t])

    def backward(self, t: int, d_log_w: Tensor, d_z: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """All that reaches the draws, from what does on another way, and what reaches the means."""
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
        """Gradients of C, d and R."""
        d_whitened = torch.stack(self._d_whitened[::-1])
        away = torch.stack([away for _, away, _ in self._tape])
        per_bin = -d_whitened.flatten(1, 2).mT @ away.flatten(1, 2)
        d_whitening = torch.stack([per_bin[0], per_bin[1:].sum(0)])
        return self._counts.gradient(), self._d_offset, d_whitening
