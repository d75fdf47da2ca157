"""Counts of a population by hand, against their definition and `LogPoisson`."""

import pytest
import torch
from agreement import assert_agrees, combinations, normal

from pyrodyn.distributions.counts import LogPoisson
from pyrodyn.kernels.affine_poisson import (
    LINKS,
    affine_poisson_log_prob,
    reference_affine_poisson,
    softplus_and_log,
)

SHAPES = {
    "one trial": ((1,), (), (1,)),
    "no left dims": ((), (), ()),
    "no row": ((0,), (), (0,)),
    "particles": ((4, 3), (), (3,)),
    "an offset per trial": ((4, 3), (3,), (3,)),
}
"""Left dims of the latents, of the offset and of the counts."""


def case(
    latents: tuple[int, ...], offset: tuple[int, ...], counts: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "z": normal(*latents, 2),
        "loading": normal(5, 2),
        "offset": normal(*offset, 5, seed=1),
        "x": torch.poisson(torch.ones(*counts, 5)).double(),
        "weight": 1.7 * (torch.rand(*counts, 5) < 0.6).double(),
    }


@pytest.mark.parametrize(("shape", "layout"), combinations(SHAPES))
@pytest.mark.parametrize("link", LINKS)
def test_the_kernel_is_its_reference(link, shape, layout):
    assert_agrees(
        lambda *given: affine_poisson_log_prob(*given, link),
        lambda *given: reference_affine_poisson(*given, link),
        case(*SHAPES[shape]),
        layout,
        without_gradient=("x", "weight"),
    )


@pytest.mark.parametrize("link", LINKS)
def test_it_is_the_weighted_sum_over_neurons(link):
    z, loading, offset, x, weight = case((4, 3), (3,), (3,)).values()
    y = z @ loading.T + offset
    log_rate = y if link == "exp" else torch.log(torch.nn.functional.softplus(y))
    expected = (weight * LogPoisson(log_rate).log_prob(x)).sum(-1)
    found = affine_poisson_log_prob(z, loading, offset, x, weight, link)
    torch.testing.assert_close(found, expected)


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


@pytest.mark.parametrize("link", LINKS)
def test_a_mean_that_overflows_where_it_is_not_scored_leaves_no_trace(link):
    """In single precision exp(200) is infinite: a neuron of weight 0, a particle of weight 0."""
    z, loading = torch.randn(4, 2, requires_grad=True), torch.randn(3, 2)
    offset, weight = torch.tensor([0.3, 200.0, 0.1]), torch.tensor([1.0, 0.0, 1.0])
    counts = torch.tensor([2.0, 0.0, 1.0])
    found = affine_poisson_log_prob(z, loading, offset, counts, weight, link)
    others = (loading[::2], offset[::2], counts[::2], weight[::2])
    expected = affine_poisson_log_prob(z, *others, link)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), z)[0])
    far = torch.tensor([[0.1, 0.2], [200.0, 0.0]], requires_grad=True)
    one = affine_poisson_log_prob(far, torch.ones(1, 2), torch.zeros(1), *torch.ones(2, 1), link)
    (gradient,) = torch.autograd.grad(one.logsumexp(0), far)
    assert gradient[0].any()
    assert torch.equal(gradient[1], torch.zeros(2))
