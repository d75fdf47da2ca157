"""Counts of a population by hand, against `LogPoisson` and autograd."""

import pytest
import torch

from pyrodyn.distributions.counts import LogPoisson
from pyrodyn.kernels.affine_poisson import (
    LINKS,
    affine_poisson_log_prob,
    softplus_and_log,
)


def population(is_shifted: bool) -> tuple[torch.Tensor, ...]:
    """z, C, d, x and w, with entries that do not count."""
    torch.manual_seed(0)
    z, loading = torch.randn(4, 3, 2).double(), torch.randn(5, 2).double()
    offset = torch.randn(3, 5).double() if is_shifted else torch.randn(5).double()
    x = torch.poisson(torch.full((3, 5), 1.0)).double()
    weight = 1.7 * (torch.rand(3, 5) < 0.6).double()
    for each in (z, loading, offset):
        each.requires_grad_()
    return z, loading, offset, x, weight


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("link", LINKS)
def test_it_is_the_weighted_sum_over_neurons(link, is_shifted):
    z, loading, offset, x, weight = population(is_shifted)
    y = z @ loading.T + offset
    log_rate = y if link == "exp" else torch.log(torch.nn.functional.softplus(y))
    expected = (weight * LogPoisson(log_rate).log_prob(x)).sum(-1)
    found = affine_poisson_log_prob(z, loading, offset, x, weight, link)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("link", LINKS)
def test_its_gradients_are_those_of_autograd(link, is_shifted):
    *given, x, weight = population(is_shifted)

    def log_prob(*each: torch.Tensor) -> torch.Tensor:
        return affine_poisson_log_prob(*each, x, weight, link)

    assert torch.autograd.gradcheck(log_prob, given)
    assert torch.autograd.gradgradcheck(log_prob, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_and_its_logarithm_keep_their_digits(dtype):
    y = torch.tensor([-100.0, -50.0, -30.0, -5.0, 0.0, 5.0, 39.0, 41.0, 200.0], dtype=dtype)
    mean, log_mean = softplus_and_log(y)
    exact = torch.where(y > 0, y + torch.log1p(torch.exp(-y.abs())), torch.log1p(torch.exp(y)))
    torch.testing.assert_close(mean, exact, atol=1e-17, rtol=1e-6)
    expected = torch.where(y < -40, y, torch.log(exact.clamp_min(1e-30)))
    torch.testing.assert_close(log_mean, expected)


def test_slopes_are_finite_far_from_zero():
    loading, x = torch.ones(1, 1), torch.tensor([[3.0]])
    for far in (-200.0, 200.0):
        z = torch.full((1, 1), far, requires_grad=True)
        affine_poisson_log_prob(
            z, loading, torch.zeros(1), x, torch.ones(1, 1), "softplus"
        ).backward()
        expected = 3.0 if far < 0 else 3.0 / far - 1
        torch.testing.assert_close(z.grad, torch.full((1, 1), expected))


@pytest.mark.parametrize("link", LINKS)
def test_a_rate_of_zero_expects_no_count(link):
    z, loading = torch.randn(4, 2, requires_grad=True), torch.randn(3, 2)
    offset, weight = torch.tensor([0.3, -torch.inf, 0.1]), torch.ones(3)
    found = affine_poisson_log_prob(z, loading, offset, torch.tensor([2.0, 0, 1]), weight, link)
    others = (loading[::2], offset[::2], torch.tensor([2.0, 1.0]), weight[::2])
    expected = affine_poisson_log_prob(z, *others, link)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), z)[0])
    one = affine_poisson_log_prob(z, loading, offset, torch.tensor([2.0, 1, 1]), weight, link)
    assert (one == -torch.inf).all()
