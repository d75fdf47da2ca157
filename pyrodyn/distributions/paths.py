"""Latent paths as single random variables.

A path z_{1:T} of a process has density::

    p(z_{1:T}) = prod_t p(z_t | z_{<t})

and is one Pyro site with event shape ``(time, dim)``. Drawing a path rolls the chain bin by bin;
scoring a given path needs no roll, because every conditional is known at once. A hundred per-step
sites would cost more than the whole training step around them.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class StatePath(TorchDistribution):
    """Abstract density of a path, event shape ``(time, dim)``.

    A subclass draws by ``rsample`` and scores by `log_prob_steps`; both hold for any left batch
    dims.
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    @abstractmethod
    def log_prob_steps(
        self, path: Float[Tensor, "*batch time dim"]
    ) -> Float[Tensor, "*batch time"]:
        """Log p(z_t | z_{<t}) of every bin t, right for any path, not only for the last one
        drawn.
        """

    def log_prob(self, value: Float[Tensor, "*path time dim"]) -> Float[Tensor, "*batch"]:
        """Log p(z_{1:T}), the sum of `log_prob_steps` over bins."""
        return self.log_prob_steps(value).sum(-1)

    def path_shape(self, sample_shape: torch.Size) -> torch.Size:
        """Shape of ``sample_shape`` paths: sample, batch, time, dim."""
        return torch.Size(sample_shape) + self.batch_shape + self.event_shape
