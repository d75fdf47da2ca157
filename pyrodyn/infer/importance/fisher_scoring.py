"""Fisher scoring: approximate Newton steps on the marginal likelihood, with the empirical Fisher
information as curvature::

    g_n = d log p(x_n) / d theta = E[d log p(x_n, z_n) / d theta | x_n]        Fisher's identity
    F = sum_n g_n g_n'
    theta <- theta + (F + lambda diag F)^-1 sum_n g_n

A step gains at most about one nat per trial, so its gain can be estimated from the same draws.
Expectations are means over posterior draws from `path_pool`, so no guide and no bound is involved.
A step uses all trials at once and scales parameters by their information: a few steps reach what
gradient ascent on a bound does not.

Importance weights of the same draws estimate the gain of a step, without another pool::

    log p'(x_n) - log p(x_n) = log E[p'(x_n, z_n) / p(x_n, z_n) | x_n]

The damping lambda starts at that of the previous step and is lowered or raised while the estimated
gain rises, among steps that keep the effective sample size of the draws above one half. With few
draws steps are short: the variance of a trial's score adds to F.

In a deterministic model only the initial state is drawn, and the trajectory follows the
parameters. With process noise the whole trajectory is drawn, and steps are small, as those of EM
are: set small process noise aside first (`without_noise`).

Sources: Louis 1982 (the score from complete data); Berndt, Hall, Hall & Hausman 1974 (F from
scores); Marquardt 1963 (damping); Geyer & Thompson 1992 (the gain).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.importance.path_pool import MOST_ENTRIES, path_pool
from pyrodyn.infer.smc.resampling import effective_sample_size
from pyrodyn.infer.traces import is_local, observed_sites, traced
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.parameters import parameters_behind

LEAST_EFFECTIVE = 0.5
"""Smallest effective fraction of the draws at which the gain of a step is trusted."""

RATIO = 10**0.5
"""Ratio of successive dampings that are tried."""

LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e4
"""Range of dampings: smaller ones change nothing, and no step is taken beyond the largest."""


class ScoringStep(NamedTuple):
    """A step of `fisher_scoring`, with estimates from its pool.

    Attributes:
        log_evidence: log p(x) per trial before the step, in nats.
        log_evidence_error: its standard error.
        gain: estimated gain of the log evidence, plus the log density of the parameters if the
            model has one, in nats per trial; slightly optimistic, since the same draws gave the
            step.
        effective_fraction: effective sample size of the draws under the new parameters, as a
            fraction of their number.
        damping: lambda.
    """

    log_evidence: Float[Tensor, " trial"]
    log_evidence_error: Float[Tensor, " trial"]
    gain: float
    effective_fraction: float
    damping: float


def fisher_scoring(
    model: LatentDynamics | Fit[LatentDynamics],
    batch: Batch,
    num_steps: int = 5,
    *,
    num_draws: int = 16,
    num_particles: int = 100_000,
) -> list[ScoringStep]:
    """Maximise the evidence of a batch, plus the log density of the parameters if there is one,
    over all trainable parameters of the generative program.

    Parameters change in place after each step; those of the guide do not.

    Args:
        model: a fitted model of few latent dims, or its `Fit`, whose posterior a pool can
            represent.
        batch: all training trials, all with the same known inputs.
        num_steps: largest number of steps; it ends earlier when no step has a positive gain.
        num_draws: posterior draws per trial, for its score.
        num_particles: trajectories in the pool of every step.

    Raises:
        ValueError: for too few steps or draws, a model without trainable parameters or with priors
            on some, and whatever `path_pool` refuses.
        ArithmeticError: if all trajectories of a pool diverge; the parameters are then those after
            the last step.
    """
    check_integer(1, num_steps=num_steps)
    check_integer(2, num_draws=num_draws)
    steps: list[ScoringStep] = []
    damping = 1.0
    if isinstance(model, Fit):
        model = model.model
    if model.priors is not None:
        raise ValueError(
            f"Fisher scoring maximises over parameters, and {', '.join(model.priors.cards)} have"
            " priors: pass model.at(), without them, or fit by another objective"
        )
    with model.evaluating():
        while len(steps) < num_steps:
            pooled = path_pool(model, batch, num_draws, num_particles=num_particles)
            evidence = (pooled.log_evidence, pooled.log_evidence_error)
            draws = _Draws(model, batch, pooled.sites)
            best = draws.best_step(damping)
            if best is None:
                break
            draws.put(best.weights)
            damping = best.damping
            steps.append(ScoringStep(*evidence, best.gain, best.effective_fraction, damping))
    return steps


class _Candidate(NamedTuple):
    """A step that is tried.

    Attributes:
        weights: parameters after it.
        gain, effective_fraction, damping: as of a `ScoringStep`.
    """

    weights: Float[Tensor, " weight"]
    gain: float
    effective_fraction: float
    damping: float

    @property
    def is_reliable(self) -> bool:
        """Whether its gain can be trusted."""
        return self.effective_fraction >= LEAST_EFFECTIVE

    def is_better_than(self, other: "_Candidate") -> bool:
        """By the gain if both are reliable, otherwise by the effective fraction of the draws."""
        if self.is_reliable and other.is_reliable:
            return self.gain > other.gain
        return self.effective_fraction >= other.effective_fraction


class _Joint(NamedTuple):
    """Log densities of draws.

    Attributes:
        local: log p(x_n, z_n), the terms that depend on the parameters.
        shared: log density of the parameters, 0 for a model without one.
    """

    local: Float[Tensor, "draw trial"]
    shared: Float[Tensor, ""]


class _Draws:
    """Posterior draws of every trial, and their densities under given parameters.

    Args:
        model: the model.
        batch: the trials.
        sites: the draws of its latent sites, ``(draw, trial, *event)``.

    Attributes:
        parameters: those that the density of draws, data or parameters depends on.
        scores: g_n.
        slope: the sum of all g_n and the gradient of the log density of the parameters.
    """

    def __init__(self, model: LatentDynamics, batch: Batch, sites: dict[str, Tensor]) -> None:
        self.model, self.batch, self.sites = model, batch.replace(weight=1.0), sites
        first = self._traced(slice(0, 1))
        first.compute_log_prob()
        densities = {name: first.nodes[name]["log_prob"] for name in observed_sites(first)}
        # Others, such as a kernel density of initial states, may cost more than all the rest.
        self.dependent = {name for name, density in densities.items() if density.requires_grad}
        behind = {p for name in self.dependent for p in parameters_behind(densities[name])}
        self.parameters = [p for p in model.parameters() if p in behind]
        if not self.parameters:
            raise ValueError(
                "the generative program has no trainable parameter: set requires_grad of those that"
                " should be fitted"
            )
        self.scores = torch.stack(
            [
                self._gradient(self._joint(slice(n, n + 1)).local.mean())
                for n in range(batch.num_trials)
            ]
        )
        self.slope = self.scores.sum(0) + self._gradient(self._joint(slice(0, 1)).shared)

    def best_step(self, damping: float) -> _Candidate | None:
        """The step of the largest gain, starting from a damping; None if no gain is positive."""
        start = _flattened(self.parameters).detach()
        before = self._joint_of_all()
        try:
            best = self._tried(damping, start, before)
            for ratio in (1 / RATIO, RATIO):
                while LEAST_DAMPING <= best.damping * ratio <= MOST_DAMPING:
                    other = self._tried(best.damping * ratio, start, before)
                    if not other.is_better_than(best):
                        break
                    best = other
        finally:
            self.put(start)
        return best if best.is_reliable and best.gain > 0 else None

    @torch.no_grad()
    def put(self, weights: Float[Tensor, " weight"]) -> None:
        """Set the model's parameters."""
        sizes = [p.numel() for p in self.parameters]
        for parameter, part in zip(self.parameters, weights.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))

    def _tried(self, damping: float, start: Float[Tensor, " weight"], before: _Joint) -> _Candidate:
        weights = start + self._step(damping).to(start)
        self.put(weights)
        after = self._joint_of_all()
        log_ratio = after.local - before.local
        log_ratio = torch.where(log_ratio.isfinite(), log_ratio, -torch.inf)
        num_draws, num_trials = log_ratio.shape
        gain = (log_ratio.logsumexp(0) - math.log(num_draws)).sum() + after.shared - before.shared
        # NaN if all draws of a trial have weight 0.
        fraction = effective_sample_size(log_ratio).nan_to_num(nan=0.0).mean() / num_draws
        return _Candidate(weights, float(gain) / num_trials, float(fraction), damping)

    def _step(self, damping: float) -> Float[Tensor, " weight"]:
        """(F + lambda diag F)^-1 times the slope, each parameter in units of its own information,
        solved in the space of trials, of which there may be fewer than parameters.
        """
        unit = self.scores.square().sum(0).rsqrt()
        unit = torch.where(unit.isfinite(), unit, 0.0)  # no information, no change
        scaled, slope = self.scores * unit, self.slope * unit
        gram = scaled @ scaled.T
        gram.diagonal().add_(damping)
        return unit * (slope - scaled.T @ torch.linalg.solve(gram, scaled @ slope)) / damping

    def _gradient(self, value: Float[Tensor, ""]) -> Float[Tensor, " weight"]:
        """With respect to all parameters as one vector, in double precision."""
        if not value.requires_grad:
            return value.new_zeros(sum(p.numel() for p in self.parameters), dtype=torch.float64)
        parts = torch.autograd.grad(value, self.parameters, materialize_grads=True)
        return _flattened(parts).double()

    @torch.no_grad()
    def _joint_of_all(self) -> _Joint:
        """Of all trials, in chunks."""
        batch, num_draws = self.batch, len(next(iter(self.sites.values())))
        size = max(1, MOST_ENTRIES // (num_draws * batch.num_bins * batch.seen.shape[-1]))
        parts = [
            self._joint(slice(start, start + size)) for start in range(0, batch.num_trials, size)
        ]
        return _Joint(torch.cat([part.local for part in parts], 1), parts[0].shared)

    def _joint(self, trials: slice) -> _Joint:
        trace = self._traced(trials)
        trace.compute_log_prob(lambda name, site: name in self.dependent)
        local: list[Tensor] = []
        shared = [self.batch.seen.new_zeros(())]
        for name in self.dependent:
            density = trace.nodes[name]["log_prob"]
            (local if is_local(trace.nodes[name]) else shared).append(density)
        return _Joint(torch.stack(local).sum(0), torch.stack([s.mean() for s in shared]).sum())

    def _traced(self, trials: slice) -> poutine.Trace:
        given = {name: value[:, trials] for name, value in self.sites.items()}
        num_draws = len(next(iter(given.values())))
        draws = pyro.plate("draws", num_draws, dim=-2)
        program = poutine.condition(draws(self.model.model), data=given)
        return traced(program, self.batch.take(trials))


def _flattened(tensors: Sequence[Tensor]) -> Float[Tensor, " weight"]:
    return torch.cat([tensor.flatten() for tensor in tensors])
