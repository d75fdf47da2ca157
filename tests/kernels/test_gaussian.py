"""Pieces of a Gaussian filter's bin by hand, against torch's densities and autograd."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyrodyn.kernels.gaussian import affine, draw_with_log_ratio, log_factor


def triangular(*left: int) -> torch.Tensor:
    return (torch.randn(*left, 2, 2).tril(-1) + torch.eye(2) * (0.5 + torch.rand(2))).double()


def wanted(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(
    ("vectors", "left", "offset"),
    [
        ((4, 3), (), (3,)),
        ((4, 3), (3,), (3,)),
        ((), (3,), ()),
        ((4, 1), (3,), (3,)),
        ((1,), (4, 3), (1,)),
        ((3,), (1,), (4, 3)),
        ((1, 3), (4, 1), ()),
    ],
)
def test_an_affine_map_and_its_gradients(vectors, left, offset):
    torch.manual_seed(0)
    given = wanted(torch.randn(*vectors, 2), torch.randn(*left, 2, 2), torch.randn(*offset, 2))
    v, M, b = given
    torch.testing.assert_close(affine(*given), (M @ v[..., None])[..., 0] + b)
    assert torch.autograd.gradcheck(affine, given)
    assert torch.autograd.gradgradcheck(affine, given)


@pytest.mark.parametrize("left", [(), (3,)])
def test_a_factor_and_its_gradients(left):
    torch.manual_seed(0)
    z, h, root, c = wanted(
        torch.randn(4, 3, 2), torch.randn(3, 2), torch.randn(*left, 2, 2), torch.randn(3)
    )

    def value(z: torch.Tensor, h: torch.Tensor, root: torch.Tensor, c: torch.Tensor):
        return log_factor(z, h, root @ root.mT, c)  # J stays symmetric

    J = root @ root.mT
    square = (z * (J @ z[..., None])[..., 0]).sum(-1)
    torch.testing.assert_close(value(z, h, root, c), c + (z * h).sum(-1) - 0.5 * square)
    assert torch.autograd.gradcheck(value, (z, h, root, c))
    assert torch.autograd.gradgradcheck(value, (z, h, root, c))


@pytest.mark.parametrize("left", [(), (3,)])
def test_a_draw_is_weighed_by_both_densities(left):
    torch.manual_seed(0)
    noise, mean, prior_mean = (torch.randn(4, 3, 2).double() for _ in range(3))
    L, prior_L = triangular(*left), triangular()

    def drawn(mean: torch.Tensor, L: torch.Tensor, prior_mean: torch.Tensor, prior_L: torch.Tensor):
        log_dets = (each.diagonal(dim1=-2, dim2=-1).log().sum(-1) for each in (L, prior_L))
        return draw_with_log_ratio(noise, mean, L, prior_mean, torch.linalg.inv(prior_L), *log_dets)

    z, log_ratio = drawn(mean, L, prior_mean, prior_L)
    torch.testing.assert_close(z, mean + (L @ noise[..., None])[..., 0])
    expected = MultivariateNormal(prior_mean, scale_tril=prior_L).log_prob(z)
    expected = expected - MultivariateNormal(mean, scale_tril=L).log_prob(z)
    torch.testing.assert_close(log_ratio, expected)
    given = wanted(mean, L, prior_mean, prior_L)
    assert torch.autograd.gradcheck(drawn, given)
    assert torch.autograd.gradgradcheck(drawn, given)
