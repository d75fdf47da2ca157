"""Guides that work out where a trial started, when dynamics without noise carry the first state
through all of it: q(s | x) of the start site s, from::

    L(s) = log p(s) + sum_e log p(x_e | s)

over the observations e that the encoder may see. An encoder tells s in one go, and its error grows
along the path with the system's Lyapunov exponents; the trial itself says s far more exactly.
`LaplaceStart` climbs to the mode of L, `MixtureStart` covers all of its mass.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.distributions.masked import Masked
from pyrodyn.models.rollout_cache import WeightSnapshot
from pyrodyn.models.state_space import Distribution, StateSpaceModel


class _Solved(NamedTuple):
    """What was solved last; a batch is often drawn from several times.

    Attributes:
        batch: the trials.
        weights: of the model.
        law: q(s).
    """

    batch: Batch
    weights: WeightSnapshot
    law: Distribution


class StartGuide(ABC):
    """Abstract guide of the first state, solved for per batch; it has no parameters.

    Args:
        model: a fitted model whose only latent is its start: `NodeSAE` and `RnnSAE` without process
            noise, LFADS without inferred inputs.

    Raises:
        ValueError: for a model that draws more than its start.
    """

    def __init__(self, model: StateSpaceModel) -> None:
        if (
            not isinstance(model, StateSpaceModel)
            or model.initial_condition_site is None
            or model.path_site
        ):
            raise ValueError(
                f"{type(self).__name__} solves for a first state that decides the whole path; this"
                f" {type(model).__name__} draws more than that (use its own guide, or"
                " `particle_smoother`)"
            )
        self.model = model
        self._solved: _Solved | None = None

    def __call__(self, batch: Batch) -> None:
        """Draw the start site."""
        with self.model.trials(batch):
            pyro.sample(self.model.initial_condition_site, self.law(batch))

    def law(self, batch: Batch) -> Distribution:
        """q(s) of every trial, of event shape ``(dim,)``."""
        weights, last = (*self.model.parameters(), *self.model.buffers()), self._solved
        if last is None or not _same_view(last.batch, batch) or not last.weights.is_of(weights):
            with torch.no_grad(), self.model.hoisting():
                law = self._solve(batch, batch.horizon - self.model.first_bin)
            last = self._solved = _Solved(batch, WeightSnapshot(weights), law)
        return last.law

    @abstractmethod
    def _solve(self, batch: Batch, num_bins: int) -> Distribution:
        """q(s), given so many of the bins that the model generates."""

    def _guess(self, batch: Batch) -> Distribution:
        """What the model's own guide says of s."""
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
        law = Masked(model.emission(states), visible, model.observation.filler)
        return law.log_prob(x).flatten(-2)


def _same_view(one: Batch, other: Batch) -> bool:
    """Whether two batches show an encoder the very same tensors."""
    fields = (one.seen, other.seen), (one.visible, other.visible), (one.inputs, other.inputs)
    same = all(its is others for its, others in fields)
    return same and (one.horizon, one.gain) == (other.horizon, other.gain)
