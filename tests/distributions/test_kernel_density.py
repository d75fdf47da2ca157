"""Kernel densities against Pyro's own mixture, and their samples."""

import pyro.distributions as dist
import pytest
import torch

from pyrodyn.distributions import KernelDensity, kernel_density

DIM = 3


def near(num_points=50, width=0.3, dtype=torch.double):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(num_points, DIM, generator=generator, dtype=dtype)
    return KernelDensity(points, width * torch.tensor([1.0, 0.5, 2.0], dtype=dtype))


@pytest.mark.parametrize("left", [(), (4,), (2, 4)])
def test_its_density_is_that_of_a_mixture(left, monkeypatch):
    """Also when computed in several parts."""
    monkeypatch.setattr(kernel_density, "DISTANCES_AT_ONCE", 150)
    base = near()
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(50, dtype=torch.double)),
        dist.Normal(base.points, base.width).to_event(1),
    )
    value = mixture.sample(left).requires_grad_()
    found = base.expand(left).log_prob(value)
    assert found.shape == left
    torch.testing.assert_close(found, mixture.log_prob(value))
    (gradient,) = torch.autograd.grad(found.sum(), value)
    (expected,) = torch.autograd.grad(mixture.log_prob(value).sum(), value)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(base.mean, mixture.mean)
    torch.testing.assert_close(base.variance, mixture.variance)


def test_narrow_kernels_keep_their_digits():
    exact = near(width=1e-3)
    value = exact.sample((100,))
    single = KernelDensity(exact.points.float() + 10, exact.width.float())
    moved = (single.points.double() - 10 - exact.points).abs().max()
    assert moved < 1e-6
    found = single.log_prob((value + 10).float())
    torch.testing.assert_close(found.double(), exact.log_prob(value), atol=0.02, rtol=0)


def test_draws_lie_near_points():
    torch.manual_seed(0)
    base, num_draws = near(num_points=3, width=0.05), 30_000
    drawn = base.expand((2,)).rsample((num_draws // 2,)).reshape(num_draws, DIM)
    distance = (drawn[:, None] - base.points) / base.width
    closest = distance.square().sum(-1).argmin(1)
    share = torch.bincount(closest) / num_draws
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.015, rtol=0)
    left = distance[torch.arange(num_draws), closest]
    assert (left.mean(0).abs() < 5 * num_draws**-0.5).all()
    torch.testing.assert_close(left.std(0), torch.ones_like(left[0]), atol=0.02, rtol=0)
