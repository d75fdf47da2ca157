"""Semi-amortised inference: from the encoder's posterior of every trial, gradient steps to that
trial's own. The draws s of each latent site are mapped affinely, per trial::

    s -> b + L s,       L lower triangular; for a path b_t and L_t of every bin

from the identity on, by ascent of the trial's ELBO given what the encoder may see. A diagonal
Gaussian over an initial state so becomes any Gaussian. Model and guide stay as they are. The
gradient, that of sticking the landing, has no noise where the posterior is reached.

Sources: Kim, Wiseman, Miller, Sontag & Rush 2018; Roeder, Wu & Duvenaud 2017 (the gradient).
"""

import torch
from pyro import poutine
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.frozen import frozen
from pyrodyn.infer.guides.mapped_sites import TrialMaps, real_draws
from pyrodyn.infer.guides.solution_cache import SolutionCache
from pyrodyn.infer.objectives.importance_weighted import weighted_draws
from pyrodyn.infer.traces import module_of, traced
from pyrodyn.infer.training.fitted import Fit, model_and_guide
from pyrodyn.models.latent_dynamics import LatentDynamics

LEARNING_RATE, NUM_DRAWS = 0.1, 16
"""Of the first step, falling linearly to 0, in standard deviations of so many draws."""


class RefinedGuide:
    """A guide that refines the encoder's posterior of every trial that it is given.

    Pass it to `predict`, `to_datatree` or `importance_sample` as ``guide=RefinedGuide(fitted)``.

    Args:
        model: a fitted model, or the `Fit` that `fit` returned, whose guide is then refined.
        num_steps: of Adam.

    Raises:
        ValueError: for anything else.
        GuideError: when called, for a guide that does not draw every site per trial as a real
            vector from a density of its own (Pyro's automatic guides do not).
    """

    def __init__(
        self, model: LatentDynamics | Fit[LatentDynamics], *, num_steps: int = 200
    ) -> None:
        check_integer(1, num_steps=num_steps)
        self.num_steps = num_steps
        self.model, guide = model_and_guide(model)
        if not isinstance(self.model, LatentDynamics):
            raise ValueError(
                "RefinedGuide refines the guide of a model or of the Fit that fit(...) returned; a"
                f" {type(model).__name__} is neither"
            )
        self.model.require_latents("RefinedGuide")
        self.guide = self.model.guide if guide is None else guide
        self._solutions: SolutionCache[TrialMaps] = SolutionCache()

    def __call__(self, batch: Batch) -> None:
        """Draw every latent site."""
        self.refined(batch)(batch)

    def refined(self, batch: Batch) -> TrialMaps:
        """The guide with the maps of these trials."""
        modules = dict.fromkeys([self.model, module_of(self.guide) or self.model])
        weights = [w for module in modules for w in (*module.parameters(), *module.buffers())]
        return self._solutions.of(batch, weights, lambda: self._solve(batch, weights))

    @torch.enable_grad()
    def _solve(self, batch: Batch, weights: list[Tensor]) -> TrialMaps:
        given = batch.replace(x=batch.seen / batch.gain, weight=1.0).as_seen()
        # The caller's effect handlers must not act on the steps.
        with poutine.block(), frozen(weights), self.model.evaluating():
            maps = TrialMaps(self.guide, real_draws(self.guide, given, NUM_DRAWS))
            optimizer = torch.optim.Adam(maps.parameters())
            for parameter in maps.parameters():  # a trial that diverges stays where it is
                parameter.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))
            for step in range(self.num_steps):
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / self.num_steps)
                optimizer.zero_grad()
                drawn = traced(maps, given)
                weighted = weighted_draws(self.model, drawn, maps.log_densities(drawn), given, 1)
                (-weighted.log_weights.sum()).backward()
                optimizer.step()
        return maps.requires_grad_(False)
