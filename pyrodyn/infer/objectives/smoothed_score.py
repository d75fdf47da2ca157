"""The score of the evidence, from smoothed paths (Fisher's identity)::

    d log p(x) / d theta = E[ d log p(x, z) / d theta | x ],    z ~ p(z | x)

Paths come from a particle filter and smoother and are as given as data are: every bin has its own
share of the gradient, and none goes back through a trial. VSMC's gradient does, may grow with every
bin on the way, and leaves out what the choice of survivors contributes; this one tends to that of
the evidence itself as particles grow in number. Where process noise is small beside what the data
leave open of a path, its steps are small too, as those of EM are: a bound that is differentiated
along its paths does better there.

The proposal climbs log q of the same paths (a wake phase: q covers the posterior). Parameters of
the model that enter q are held meanwhile, so that the model climbs the evidence alone.

Sources: Poyiadjis, Doucet & Singh 2011 (the score by particles); Gu, Ghahramani & Turner 2015 (the
proposal).
"""

from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.frozen import frozen, parameters_behind
from pyrodyn.infer.objectives.objective import Evaluation, Loss, Objective, check_own_guide
from pyrodyn.infer.smc.particle_filter import FilterResult, particle_filter
from pyrodyn.infer.smc.particle_smoother import SmoothedPaths, particle_smoother
from pyrodyn.infer.smc.resampling import scheme_named
from pyrodyn.infer.traces import Program
from pyrodyn.models.state_space import StateSpaceModel


class SmoothedScore(Objective):
    """The evidence as a particle filter estimates it, climbed by its score.

    Paths are drawn by backward simulation, or along their ancestors where the path alone is no
    Markov chain (LFADS), which tells early bins of long trials by few particles.

    Args:
        num_particles: of the filter.
        num_draws: smoothed paths per trial.
        resampling: a name in `pyrodyn.infer.smc.resampling.RESAMPLING`.
    """

    def __init__(
        self, num_particles: int, num_draws: int = 4, resampling: str = "systematic"
    ) -> None:
        super().__init__(num_particles)
        check_integer(1, num_draws=num_draws)
        scheme_named(resampling)
        self.num_draws, self.resampling = num_draws, resampling

    def describe(self) -> dict[str, Any]:
        """What a card says of this objective."""
        return {
            "name": "SmoothedScore",
            "num_particles": self.num_particles,
            "num_draws": self.num_draws,
            "resampling": self.resampling,
        }

    def __call__(self, model: Program, guide: Program) -> "SmoothedScoreLoss":
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
    def state_space(self) -> StateSpaceModel:
        """The model."""
        assert isinstance(self.model, StateSpaceModel)
        return self.model

    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative evidence; shown is the mean share of particles that count (``ess``)."""
        model, objective = self.state_space, self.objective
        with torch.no_grad():
            filtered = particle_filter(
                model, batch, objective.num_particles, resampling=objective.resampling
            )
            share = filtered.effective_sample_size.mean(0) / objective.num_particles
        loss = -batch.weight * filtered.log_evidence.sum()
        if torch.is_grad_enabled():
            surrogate = self._surrogate(batch, filtered)
            loss = loss - (surrogate - surrogate.detach())
        priors = model.weight_priors()
        return Evaluation(
            loss=loss - sum(priors.values()),
            logged={"ess": batch.weight * share.sum()},
            factors=tuple(priors),
        )

    def _surrogate(self, batch: Batch, filtered: FilterResult) -> Float[Tensor, ""]:
        """Mean log p(x, z) + log q(z) of smoothed paths, each with the parameters that it moves."""
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
        if of_model.issuperset(p for p in model.parameters() if p.requires_grad):
            return log_p  # the guide has none of its own
        with frozen(of_model):
            return log_p + self._log_density(model.guide, drawn, batch)

    def _log_density(
        self, program: Program, drawn: SmoothedPaths, batch: Batch
    ) -> Float[Tensor, ""]:
        """Of the path, and of the data where a program has them, for the whole recording, mean over
        draws.
        """
        model, num_draws = self.state_space, self.objective.num_draws
        given = {model.path_site: drawn.paths, model.initial_condition_site: drawn.starts}
        given = {name: value for name, value in given.items() if name is not None}
        program = poutine.condition(pyro.plate("draws", num_draws, dim=-2)(program), data=given)
        trace = poutine.trace(program).get_trace(batch)
        names = [name for name in (*given, "x") if name in trace]
        trace.compute_log_prob(lambda name, site: name in names)
        return torch.stack([trace.nodes[name]["log_prob_sum"] for name in names]).sum() / num_draws
