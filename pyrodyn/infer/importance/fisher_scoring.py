"""Fisher scoring: Newton's steps up the evidence itself, the information of the trials for
curvature::

    g_n = d log p(x_n) / d theta = E[d log p(x_n, z_n) / d theta | x_n]        Fisher's identity
    F = sum_n g_n g_n'
    theta <- theta + (F + lambda diag F)^-1 sum_n g_n

so that a step gains no more than about a nat per trial, which keeps it where it can be told.
Expectations are means over draws of the posterior from a pool of the model's own paths
(`pyrodyn.infer.importance.path_pool`), so that no guide stands between the weights and the data. A
step looks at all trials at once and knows which weights matter, so a few of them go where
gradients of a bound had come to rest.

The same draws tell by importance weights what a step gains, without another pool::

    log p'(x_n) - log p(x_n) = log E[p'(x_n, z_n) / p(x_n, z_n) | x_n]

The damping lambda is that of the step before, or less or more where this gains more, among steps
under which most draws still count. Few draws make steps short: what differs between draws of one
trial adds to its score's square, and so to F.

Where a path follows from its first state alone, that state is all that is drawn, and a step bends
the path along with its weights. With process noise a path is drawn as a whole, and steps are as
small as that noise allows (as those of EM are): leave noise out first, where it is small.

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
from pyrodyn.infer.frozen import parameters_behind
from pyrodyn.infer.importance.path_pool import MOST_ENTRIES, path_pool
from pyrodyn.infer.smc.resampling import effective_sample_size
from pyrodyn.infer.traces import is_local, observed_sites
from pyrodyn.models.latent_dynamics import LatentDynamics

LEAST_SHARE = 0.5
"""Of draws that must still count under a step's weights."""

RATIO = 10**0.5
"""Between one damping and the next."""

LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e4
"""Less changes no step; where a step is too long with more, there is none."""


class ScoringStep(NamedTuple):
    """A step of `fisher_scoring`, as the pool that it was made from tells it.

    Attributes:
        log_evidence: log p(x) per trial before the step, in nats.
        log_evidence_error: its standard error.
        gain: what the step adds to it on average, and to the log density of weights where the model
            has one, in nats per trial, by the same draws, which think a little too well of it.
        effective_share: of the draws, that count under the new weights.
        damping: lambda.
    """

    log_evidence: Float[Tensor, " trial"]
    log_evidence_error: Float[Tensor, " trial"]
    gain: float
    effective_share: float
    damping: float


def fisher_scoring(
    model: LatentDynamics,
    batch: Batch,
    num_steps: int = 5,
    *,
    num_draws: int = 16,
    num_particles: int = 100_000,
) -> list[ScoringStep]:
    """Climb the evidence of what a batch scores, and the log density of weights where the model has
    one, by all weights of the generative program that ask for a gradient.

    The weights change in place, after each step; the guide's do not.

    Args:
        model: a fitted model of few latent dims, which a pool can tell the posterior of.
        batch: all training trials, all with the same known inputs.
        num_steps: at most as many; fewer where no step gains anything that its draws can tell.
        num_draws: of every trial's posterior, for its score.
        num_particles: paths in the pool of every step.

    Raises:
        ValueError: for too few steps or draws, a model without weights that ask for a gradient, and
            whatever `path_pool` refuses.
        ArithmeticError: for a trial that no path explains, all having run off; the weights are
            those after the last step.
    """
    check_integer(1, num_steps=num_steps)
    check_integer(2, num_draws=num_draws)
    steps: list[ScoringStep] = []
    damping = 1.0
    with model.evaluating():
        while len(steps) < num_steps:
            pooled = path_pool(model, batch, num_draws, num_particles=num_particles)
            told = (pooled.log_evidence, pooled.log_evidence_error)
            draws = _Draws(model, batch, pooled.sites)
            best = draws.best_step(damping)
            if best is None:
                break
            draws.put(best.weights)
            damping = best.damping
            steps.append(ScoringStep(*told, best.gain, best.effective_share, damping))
    return steps


class _Candidate(NamedTuple):
    """A step that is looked at.

    Attributes:
        weights: where it leads.
        gain, effective_share, damping: as of a `ScoringStep`.
    """

    weights: Float[Tensor, " weight"]
    gain: float
    effective_share: float
    damping: float

    @property
    def is_told(self) -> bool:
        """Whether enough draws count."""
        return self.effective_share >= LEAST_SHARE

    def is_better_than(self, other: "_Candidate") -> bool:
        """Whether it gains more, by draws of which enough count; where they do of neither, whether
        more do.
        """
        if self.is_told and other.is_told:
            return self.gain > other.gain
        return self.effective_share >= other.effective_share


class _Joint(NamedTuple):
    """Log densities of draws.

    Attributes:
        local: log p(x_n, z_n), as far as weights move it.
        shared: log p of the weights, 0 where the model has no such density.
    """

    local: Float[Tensor, "draw trial"]
    shared: Float[Tensor, ""]


class _Draws:
    """Draws of every trial's posterior, and what weights make of them.

    Args:
        model: the model.
        batch: the trials.
        sites: the draws of its latent sites, ``(draw, trial, *event)``.

    Attributes:
        parameters: those that move the density of draws, data or weights.
        scores: g_n.
        slope: the sum of all g_n and the gradient of the log density of the weights.
    """

    def __init__(self, model: LatentDynamics, batch: Batch, sites: dict[str, Tensor]) -> None:
        self.model, self.batch, self.sites = model, batch.replace(weight=1.0), sites
        first = self._traced(slice(0, 1))
        first.compute_log_prob()
        densities = {name: first.nodes[name]["log_prob"] for name in observed_sites(first)}
        # Others, such as the law of given first states, may take longer than all else.
        self.moving = {name for name, density in densities.items() if density.requires_grad}
        behind = {p for name in self.moving for p in parameters_behind(densities[name])}
        self.parameters = [p for p in model.parameters() if p in behind]
        if not self.parameters:
            raise ValueError(
                "no weight of the generative program asks for a gradient: set requires_grad of"
                " those that should move"
            )
        self.scores = torch.stack(
            [
                self._gradient(self._joint(slice(n, n + 1)).local.mean())
                for n in range(batch.num_trials)
            ]
        )
        self.slope = self.scores.sum(0) + self._gradient(self._joint(slice(0, 1)).shared)

    def best_step(self, damping: float) -> _Candidate | None:
        """The step that gains most, from a damping on; None where none gains anything."""
        start = _in_a_row(self.parameters).detach()
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
        return best if best.is_told and best.gain > 0 else None

    @torch.no_grad()
    def put(self, weights: Float[Tensor, " weight"]) -> None:
        """Give the model these weights."""
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
        # No number where no draw of a trial is left.
        share = effective_sample_size(log_ratio).nan_to_num(nan=0.0).mean() / num_draws
        return _Candidate(weights, float(gain) / num_trials, float(share), damping)

    def _step(self, damping: float) -> Float[Tensor, " weight"]:
        """(F + lambda diag F)^-1 times the slope, each weight in units of its own information,
        solved among trials, of which there may be fewer than weights.
        """
        unit = self.scores.square().sum(0).rsqrt()
        unit = torch.where(unit.isfinite(), unit, 0.0)  # what no trial tells of stays
        scaled, slope = self.scores * unit, self.slope * unit
        among = scaled @ scaled.T
        among.diagonal().add_(damping)
        return unit * (slope - scaled.T @ torch.linalg.solve(among, scaled @ slope)) / damping

    def _gradient(self, value: Float[Tensor, ""]) -> Float[Tensor, " weight"]:
        """With respect to all weights in a row, in double precision."""
        if not value.requires_grad:
            return value.new_zeros(sum(p.numel() for p in self.parameters), dtype=torch.float64)
        parts = torch.autograd.grad(value, self.parameters, materialize_grads=True)
        return _in_a_row(parts).double()

    @torch.no_grad()
    def _joint_of_all(self) -> _Joint:
        """Of all trials, in parts."""
        batch, num_draws = self.batch, len(next(iter(self.sites.values())))
        size = max(1, MOST_ENTRIES // (num_draws * batch.num_bins * batch.seen.shape[-1]))
        parts = [
            self._joint(slice(start, start + size)) for start in range(0, batch.num_trials, size)
        ]
        return _Joint(torch.cat([part.local for part in parts], 1), parts[0].shared)

    def _joint(self, trials: slice) -> _Joint:
        trace = self._traced(trials)
        trace.compute_log_prob(lambda name, site: name in self.moving)
        local: list[Tensor] = []
        shared = [self.batch.seen.new_zeros(())]
        for name in self.moving:
            density = trace.nodes[name]["log_prob"]
            (local if is_local(trace.nodes[name]) else shared).append(density)
        return _Joint(torch.stack(local).sum(0), torch.stack([s.mean() for s in shared]).sum())

    def _traced(self, trials: slice) -> poutine.Trace:
        given = {name: value[:, trials] for name, value in self.sites.items()}
        num_draws = len(next(iter(given.values())))
        draws = pyro.plate("draws", num_draws, dim=-2)
        program = poutine.condition(draws(self.model.model), data=given)
        return poutine.trace(program).get_trace(self.batch.take(trials))


def _in_a_row(tensors: Sequence[Tensor]) -> Float[Tensor, " weight"]:
    return torch.cat([tensor.flatten() for tensor in tensors])
