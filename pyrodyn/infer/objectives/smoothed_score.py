"""The score of the evidence, from smoothed latent trajectories (Fisher's identity)::

    d log p(x) / d theta = E[ d log p(x, z) / d theta | x ],    z ~ p(z | x)

Trajectories are drawn by a particle filter and smoother and treated as data: the gradient is a sum
over bins, without backpropagation through time. VSMC's gradient is backpropagated through the
trial, may grow with every bin, and omits the contribution of resampling; this one converges to the
gradient of the evidence as the number of particles grows. If the process noise is small relative to
the posterior uncertainty of the trajectory, convergence is slow, as it is for EM: a bound with a
pathwise gradient does better then.

The proposal maximises log q of the same trajectories (a wake phase: q covers the posterior).
Parameters of the model that enter q are frozen meanwhile, so that the model maximises the evidence
only.

With a poor proposal few particles carry all the weight, and the gradient is far off: the fraction
of such trials is logged as ``poor_trials``, and a warning is issued once.

Sources: Poyiadjis, Doucet & Singh 2011 (the score by particles); Gu, Ghahramani & Turner 2015 (the
proposal).
"""

import warnings
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.frozen import frozen
from pyrodyn.infer.objectives.objective import Evaluation, Loss, Objective, check_own_guide
from pyrodyn.infer.smc.particle_filter import (
    FilterResult,
    SequentialMonteCarlo,
    check_alive,
    filtered_by,
)
from pyrodyn.infer.smc.particle_smoother import SmoothedPaths, particle_smoother
from pyrodyn.infer.smc.resampling import scheme_named
from pyrodyn.infer.traces import Program, traced
from pyrodyn.models.parameters import local_parameters, parameters_behind
from pyrodyn.models.state_space import StateSpaceModel

FEWEST_EFFECTIVE = 5.0
"""Effective particles, the mean over a trial's bins, below which its score is unreliable; a tenth
of the particles where that is fewer.
"""


class SmoothedScore(Objective):
    """The evidence as a particle filter estimates it, maximised by its score.

    Trajectories are drawn by backward simulation, or by ancestral tracing where the latent path by
    itself is not a Markov chain (LFADS); then the early bins of long trials rest on few particles.

    Args:
        num_particles: of the filter.
        num_draws: smoothed trajectories per trial.
        resampling: a name in `pyrodyn.infer.smc.resampling.RESAMPLING`.

    Attributes:
        has_warned: whether a warning of a poor proposal was issued.
    """

    def __init__(
        self, num_particles: int, num_draws: int = 4, resampling: str = "systematic"
    ) -> None:
        super().__init__(num_particles)
        check_integer(1, num_draws=num_draws)
        scheme_named(resampling)
        self.num_draws, self.resampling = num_draws, resampling
        self.has_warned = False

    def describe(self) -> dict[str, Any]:
        """The settings, for a model's card."""
        return {
            "name": "SmoothedScore",
            "num_particles": self.num_particles,
            "num_draws": self.num_draws,
            "resampling": self.resampling,
        }

    def loss(self, model: Program, guide: Program) -> "SmoothedScoreLoss":
        """The loss of a state-space model and its own guide.

        Raises:
            ValueError: for a guide that is not the model's own: replace ``model.proposal`` instead.
        """
        return SmoothedScoreLoss(self, check_own_guide(self, model, guide), guide)


class SmoothedScoreLoss(Loss):
    """Negative log of a filter's evidence estimate, whose gradient is the smoothed score."""

    objective: SmoothedScore

    def __init__(self, objective: SmoothedScore, model: StateSpaceModel, guide: Program) -> None:
        super().__init__(model, guide)
        self.objective = objective

    @property
    def _fewest(self) -> float:
        return min(FEWEST_EFFECTIVE, 0.1 * self.objective.num_particles)

    @property
    def state_space(self) -> StateSpaceModel:
        """The model."""
        assert isinstance(self.model, StateSpaceModel)
        return self.model

    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative log evidence. Logged are ``ess``, the mean effective sample size as a fraction
        of the particles, and ``poor_trials``, the fraction of trials with fewer effective particles
        than `FEWEST_EFFECTIVE`.
        """
        model, objective = self.state_space, self.objective
        with torch.no_grad():
            filtered = self._filtered(batch)
            effective = _effective_particles(filtered)
            is_poor = effective < self._fewest
        loss = -batch.weight * filtered.log_evidence.sum()
        if torch.is_grad_enabled():
            self._warn_if_poor(effective)
            surrogate = self._surrogate(batch, filtered)
            loss = loss - (surrogate - surrogate.detach())
        priors = model.weight_priors()
        return Evaluation(
            loss=loss - sum(priors.values()),
            logged={
                "ess": batch.weight * (effective / objective.num_particles).sum(),
                "poor_trials": batch.weight * is_poor.to(effective.dtype).sum(),
            },
            factors=tuple(priors),
        )

    @local_parameters()
    def _filtered(self, batch: Batch) -> FilterResult:
        """Checked on the CPU; a GPU would have to be waited for, and `fit` checks the loss."""
        objective = self.objective
        algorithm = SequentialMonteCarlo(
            self.state_space, objective.num_particles, objective.resampling, 0.5
        )
        if not batch.seen.is_cuda:
            self.state_space.check_batch(batch)
        filtered = filtered_by(algorithm, batch)
        if not batch.seen.is_cuda:
            check_alive(filtered.log_evidence, batch.trial, self.state_space.first_bin)
        return filtered

    def _warn_if_poor(self, effective: Float[Tensor, " trial"]) -> None:
        """Warn, once, if the proposal is so poor that the gradient is unreliable in most trials; on
        a GPU, which the host would have to wait for, ``poor_trials`` alone shows it.
        """
        if self.objective.has_warned or effective.is_cuda:
            return
        median = float(effective.median())
        if median >= self._fewest:
            return
        self.objective.has_warned = True
        warnings.warn(
            f"SmoothedScore: half the trials have at most {median:.1f} effective particles of"
            f" {self.objective.num_particles}, so its gradient is unreliable; take a better"
            " proposal (train the guide by RWS or VSMC first), or more particles",
            stacklevel=4,
        )

    def _surrogate(self, batch: Batch, filtered: FilterResult) -> Float[Tensor, ""]:
        """Mean of log p(x, z) + log q(z) over smoothed trajectories, each a function of the
        parameters that it trains.
        """
        model = self.state_space
        drawn = particle_smoother(
            model,
            batch,
            self.objective.num_draws,
            method="ffbsi" if model.path_is_markov else "ancestral",
            filtered=filtered,
        )
        log_p = self._log_density(model.model, drawn, batch)
        of_model = parameters_behind(log_p)
        if of_model.issuperset(p for p in model.parameters() if p.requires_grad and p.is_leaf):
            return log_p  # the guide has no parameters of its own
        values = {name: p.detach() for name, p in model.named_parameters() if not p.is_leaf}
        fixed = model.at(values) if values else model
        with frozen(of_model):
            return log_p + self._log_density(fixed.guide, drawn, batch)

    def _log_density(
        self, program: Program, drawn: SmoothedPaths, batch: Batch
    ) -> Float[Tensor, ""]:
        """Of the trajectories, and of the data if the program has them, for the whole recording,
        mean over draws.
        """
        model, num_draws = self.state_space, self.objective.num_draws
        given = {model.path_site: drawn.paths, model.initial_condition_site: drawn.starts}
        given = {name: value for name, value in given.items() if name is not None}
        program = poutine.condition(pyro.plate("draws", num_draws, dim=-2)(program), data=given)
        trace = traced(program, batch)
        names = [name for name in (*given, "x") if name in trace]
        trace.compute_log_prob(lambda name, site: name in names)
        return torch.stack([trace.nodes[name]["log_prob_sum"] for name in names]).sum() / num_draws


def _effective_particles(filtered: FilterResult) -> Float[Tensor, " trial"]:
    """Effective sample size after a bin was seen, mean over bins."""
    last = filtered.log_weights[-1].exp().square().sum(0).reciprocal()
    # Recorded are the sizes on entering a bin, with the lookahead if any; the first is uniform.
    return torch.cat([filtered.effective_sample_size[1:], last[None]]).mean(0)
