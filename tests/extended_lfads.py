"""An LFADS with sites of a user's own, and a guide for it."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyrodyn.models import LFADS


class Extended(LFADS):
    """An LFADS with a scalar and a plate of sites that all trials share, and sites of its own."""

    def model(self, batch):
        pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3, dim=-1):
            pyro.sample("gain", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        super().model(batch)

    def initial_condition(self):
        # Called inside the plate over trials.
        extra = pyro.sample("own/extra", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * extra)
        pyro.sample("reaction_time", dist.Normal(extra, 1.0), obs=torch.ones(()))
        return super().initial_condition()


class FollowsTheta(nn.Module):
    """A guide whose local sites equal the shared one, up to 1e-3."""

    def forward(self, batch):
        theta = pyro.sample("theta", dist.Normal(2.0, 0.5))
        with pyro.plate("groups", 3, dim=-1):
            pyro.sample("gain", dist.Normal(torch.ones(2), 0.1).to_event(1))
        with pyro.plate("trials", batch.num_trials, dim=-1):
            mean = theta[..., None].expand(*theta.shape, 4)
            pyro.sample("g0", dist.Normal(mean, 1e-3).to_event(1))
            pyro.sample("own/extra", dist.Normal(theta, 1e-3))
