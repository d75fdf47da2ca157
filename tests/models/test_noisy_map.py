"""A map of one's own with Gaussian noise: the densities, and what follows from them."""

import numpy as np
import torch
from torch import nn

import pyrodyn
from pyrodyn.data import recording
from pyrodyn.infer import ELBO, GTF, VSMC, check_guide, particle_filter
from pyrodyn.models.noisy_map import NoisyMap


class Squashed(NoisyMap):
    """tanh(W z)."""

    def __init__(
        self,
        num_neurons,
        *,
        input_dim=0,
        latent_dim=2,
        noise="full",
        observation="gaussian",
        proposal="optimal",
        encoder_bins=5,
    ):
        super().__init__({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        self.W = nn.Parameter(torch.randn(latent_dim, latent_dim))

    def mean_step(self, z, inputs):
        return torch.tanh(z @ self.W.mT)


def test_a_map_alone_makes_a_model():
    x = np.random.default_rng(0).normal(size=(4, 6, 3))
    data = recording(signal=x, bin_width=0.02)
    model = Squashed.for_recording(data, seed=0).double()
    batch = model.trials_of(data).batch()
    check_guide(model, model.guide, batch).require()
    for objective in (ELBO(), VSMC(5), GTF(0.3)):
        model.zero_grad()
        objective(model, model.guide)(batch).backward()
        assert model.W.grad.abs().max() > 0
    tree = pyrodyn.to_datatree(model.float(), data, num_draws=3, method="smoother")
    assert tree["posterior/z"].shape == (1, 3, 4, 6, 2)


@torch.no_grad()
def test_with_a_constant_map_bins_are_independent():
    """Then the evidence of the optimal proposal does not depend on its draws."""
    x = np.random.default_rng(0).normal(size=(4, 6, 3))
    data = recording(signal=x, bin_width=0.02)
    model = Squashed.for_recording(data, seed=0).double()
    model.W.zero_()
    model.start_mean.fill_(0.5)
    batch = model.trials_of(data).batch()
    C, d, r, _ = model.linear_emission(batch)
    evidence = particle_filter(model, batch, 3).log_evidence
    start, noise = (each.matrix for each in model.process_noise())
    for t in range(6):
        mean = d + C @ model.start_mean if t == 0 else d
        covariance = C @ (start if t == 0 else noise) @ C.mT + torch.diag(r)
        exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(batch.x[:, t])
        torch.testing.assert_close(evidence[t], exact)
