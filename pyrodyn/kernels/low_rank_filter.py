"""The particle filter of a low-rank network, all bins in one loop.

The steps of a bin are those of `pyrodyn.kernels.low_rank_vsmc`, but a trial is resampled only where
its effective sample size is low, particles keep their weights otherwise, and nothing is recorded
for a gradient. The reference is `pyrodyn.infer.smc.SequentialMonteCarlo`, which draws the same
random numbers in the same order; what is saved is the overhead of distributions, states and masks,
most of the time for a few trials, and passes over memory, most of it for many.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrodyn.kernels.low_rank import LowRankSteps
from pyrodyn.kernels.low_rank_vsmc import NetworkSteps, Resample, by_bin, draw_noise, select
from pyrodyn.kernels.low_rank_weights import (
    GaussianWeighting,
    GaussianWeights,
    PoissonWeighting,
    PoissonWeights,
)


class FilteredBins(NamedTuple):
    """All particles of all bins.

    Attributes:
        z: each bin as it was drawn.
        ancestors: index of every particle's ancestor at the bin before.
        log_weights: log W_t given x_{1:t}, normalised.
        effective_sample_size: of the weights before resampling.
        resampled: which trials were resampled.
        log_evidence: estimates of log p(x_t | x_{<t}).
        origin: index of the particle of the first bin from which each of the last descends.
    """

    z: Float[Tensor, "time dim trial particle"]
    ancestors: Int[Tensor, "time trial particle"]
    log_weights: Float[Tensor, "time trial particle"]
    effective_sample_size: Float[Tensor, "time trial"]
    resampled: Bool[Tensor, "time trial"]
    log_evidence: Float[Tensor, "time trial"]
    origin: Int[Tensor, "trial particle"]


@torch.no_grad()
def low_rank_filter(
    steps: NetworkSteps,
    weights: GaussianWeights | PoissonWeights,
    activation: str,
    num_particles: int,
    resample: Resample,
    ess_threshold: float,
) -> FilteredBins:
    """Filter all trials.

    Args:
        steps: of the network and its proposal; without a gain, the proposal is the transition.
        weights: of the particles: of the means of the steps if they are quadratic and the steps
            have a gain (the optimal proposal), otherwise of the draws.
        activation: of the units, a name in `pyrodyn.kernels.activations.ACTIVATIONS`.
        num_particles: K.
        resample: draws ancestors, from weights that are equal afterwards.
        ess_threshold: a trial is resampled when its effective sample size is below this fraction of
            K; 1 resamples at every bin, 0 never.
    """
    num_trials, num_bins, dim, _ = steps.factor.shape
    like = steps.first_mean
    shape, per_particle = (dim, num_trials, num_particles), (num_trials, num_particles)
    network = LowRankSteps(*steps[2:6], activation)
    weighting: Any
    if isinstance(weights, GaussianWeights):
        weighting = GaussianWeighting(weights, *weights[:3])
    else:
        weighting = PoissonWeighting(weights, *weights[:4])
    is_quadratic = isinstance(weights, GaussianWeights)
    by_mean = is_quadratic and steps.gain is not None
    drives = [None] * num_bins if steps.drive is None else by_bin(steps.drive)
    proposals = None
    if steps.gain is not None and steps.shift is not None:
        shifts = steps.shift[..., None].unbind(1)
        proposals = list(zip(shifts, steps.gain.unbind(1), strict=True))

    may_resample = num_particles > 1 and ess_threshold > 0
    identity = torch.arange(num_particles, device=like.device).expand(per_particle)
    first_row = num_particles * torch.arange(num_trials, device=like.device)[:, None]
    equal = -math.log(num_particles)
    paths = like.new_empty(num_bins, *shape)
    weighted = like.new_empty(num_bins, *per_particle)
    ancestors = identity.expand(num_bins, *per_particle).contiguous()
    due = torch.zeros(num_bins, num_trials, dtype=torch.bool, device=like.device)
    bins = zip(
        *(each.unbind(0) for each in (paths, weighted, ancestors, due, due[..., None])),
        steps.factor.unbind(1),
        strict=True,
    )
    origin, z = identity.reshape(-1), paths[0]
    log_w = like.new_full(per_particle, equal)
    mean = steps.first_mean.t()[..., None].expand(shape)
    for t, (path, weighted_t, ancestors_t, due_t, is_due, factor) in enumerate(bins):
        if by_mean:
            if t:
                mean = network.predict(z, drives[t - 1])
            log_p = weighting.forward(t, mean.transpose(0, 1), False)
            log_w = torch.add(log_w, log_p, out=weighted_t)
        inherited, log_w = (mean if by_mean else z), log_w.log_softmax(1)
        if t and may_resample:
            if ess_threshold == 1:
                due_t.fill_(True)
            else:
                # The inverse of the effective sample size is the squared length of the weights.
                length = torch.linalg.vector_norm(log_w.exp(), dim=1)
                torch.gt(length, (ess_threshold * num_particles) ** -0.5, out=due_t)
            torch.where(is_due, resample(log_w.t()).t(), identity, out=ancestors_t)
            rows = (ancestors_t + first_row).view(-1)
            origin = origin.index_select(0, rows)
            inherited = select(inherited, rows)
            log_w.masked_fill_(is_due, equal)
        if by_mean:
            mean = inherited
        elif t:
            mean = network.predict(inherited, drives[t - 1])
        by_trial, noise = mean.transpose(0, 1), draw_noise(num_particles, like)
        proposed = by_trial
        if proposals is not None:
            shift, gain = proposals[t]
            proposed = torch.baddbmm(shift, gain, by_trial)
        drawn = torch.baddbmm(proposed, factor, noise)
        z = path.copy_(drawn.transpose(0, 1))
        if not by_mean:
            if is_quadratic:
                log_p = weighting.forward(t, drawn, False)
            else:
                log_p = weighting.forward(t, by_trial, False, z.transpose(0, 1), noise)
            log_w = torch.add(log_w, log_p, out=weighted_t)
    log_weights = weighted.log_softmax(-1)
    ess = log_weights.exp().square_().sum(-1).reciprocal_()
    if by_mean:  # weighted before resampling
        log_weights.masked_fill_(due[..., None], equal)
    else:  # equal weights at first, and not the last
        ess = torch.cat([ess.new_full((1, num_trials), num_particles), ess[:-1]])
    return FilteredBins(
        paths, ancestors, log_weights, ess, due, weighted.logsumexp(-1), origin.view(per_particle)
    )
