"""Guides that solve for the initial condition s of every trial, for models whose dynamics are
deterministic given s: q(s | x) from the log joint density::

    L(s) = log p(s) + sum_e log p(x_e | s)

over the observations e that the encoder may see. An encoder's estimate of s has an error that grows
along the trajectory with the Lyapunov exponents; optimising s per trial is far more exact.
`LaplaceStart` is a Gaussian at the mode of L, `MixtureStart` covers all of its mass.
"""

from abc import ABC, abstractmethod

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.distributions.masked import Masked
from pyrodyn.infer.guides.solution_cache import SolutionCache
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.state_space import Distribution, StateSpaceModel


class StartGuide(ABC):
    """Abstract guide of the initial condition, solved per batch; it has no parameters.

    Args:
        model: a fitted model, or its `Fit`, whose only latent is its initial condition: `NodeSAE`
            and `RnnSAE` without process noise, LFADS without inferred inputs.

    Raises:
        ValueError: for a model with other latent sites.
    """

    def __init__(self, model: StateSpaceModel | Fit[StateSpaceModel]) -> None:
        if isinstance(model, Fit):
            model = model.model
        if isinstance(model, LatentDynamics):
            model.require_latents(type(self).__name__)
        if (
            not isinstance(model, StateSpaceModel)
            or model.initial_condition_site is None
            or model.path_site
        ):
            raise ValueError(
                f"{type(self).__name__} solves for an initial condition that determines the"
                f" whole trajectory; this {type(model).__name__} has other latents too (use its own"
                " guide, or `particle_smoother`)"
            )
        self.model = model
        self._solutions: SolutionCache[Distribution] = SolutionCache()

    def __call__(self, batch: Batch) -> None:
        """Draw the initial condition."""
        with self.model.trials(batch):
            pyro.sample(self.model.initial_condition_site, self.distribution(batch))

    def distribution(self, batch: Batch) -> Distribution:
        """q(s) of every trial, of event shape ``(dim,)``."""
        weights = (*self.model.parameters(), *self.model.buffers())
        return self._solutions.of(batch, weights, lambda: self._solved(batch))

    @torch.no_grad()
    def _solved(self, batch: Batch) -> Distribution:
        with self.model.hoisting():
            return self._solve(batch, batch.horizon - self.model.first_bin)

    @abstractmethod
    def _solve(self, batch: Batch, num_bins: int) -> Distribution:
        """q(s), given the first ``num_bins`` bins that the model generates."""

    def _guess(self, batch: Batch) -> Distribution:
        """q(s) of the model's own guide."""
        return self.model.proposal.initial_condition(
            self.model, self.model.proposal.encode(self.model, batch)
        )

    def _terms(
        self, start: Float[Tensor, "*left trial dim"], batch: Batch, num_bins: int
    ) -> Float[Tensor, "*left trial entry"]:
        """Log p(x_e | s) of the entries that the encoder may see, 0 for others."""
        model = self.model
        bins = slice(model.first_bin, model.first_bin + num_bins)
        visible, x = batch.visible[:, bins], batch.seen[:, bins] / batch.gain
        nothing = start.new_zeros(*start.shape[:-1], num_bins, 0)
        states = model.states(start, nothing, model.known_inputs(batch)[:, :num_bins])
        emission = Masked(model.emission(states), visible, model.observation.filler)
        return emission.log_prob(x).flatten(-2)
