"""The Gaussian operations of a bin by hand, against their definitions and torch's densities."""

import pytest
import torch
from agreement import assert_agrees, combinations, normal
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrodyn.kernels.gaussian import (
    affine,
    draw_with_log_ratio,
    log_factor,
    reference_affine,
    reference_log_factor,
    reference_sample,
)


@pytest.mark.parametrize(
    ("shapes", "layout"),
    combinations(
        [
            ((4, 3), (), (3,)),
            ((4, 3), (3,), (3,)),
            ((), (), ()),
            ((), (3,), ()),
            ((4, 1), (3,), (3,)),
            ((1,), (4, 3), (1,)),
            ((3,), (1,), (4, 3)),
            ((1, 3), (4, 1), ()),
            ((3,), (), (4, 3)),
            ((4, 3), (3,), (4, 3)),
        ]
    ),
)
def test_an_affine_map_is_its_reference(shapes, layout):
    vectors, left, offset = shapes
    given = {
        "vectors": normal(*vectors, 2),
        "matrix": normal(*left, 2, 2),
        "offset": normal(*offset, 2, seed=1),
    }
    assert_agrees(affine, reference_affine, given, layout)


@pytest.mark.parametrize(
    ("shapes", "layout"),
    combinations(
        [
            ((4, 3), (3,), ()),
            ((3,), (), ()),
            ((), (), ()),
            ((1, 3), (1,), (3,)),
            ((4, 3), (3,), (3,)),
        ]
    ),
)
def test_a_factor_is_its_reference(shapes, layout):
    batch, shared, left = shapes
    given = {
        "z": normal(*batch, 2),
        "h": normal(*shared, 2, seed=1),
        "root": normal(*left, 2, 2),
        "constant": normal(*shared, seed=2),
    }

    def of_root(factor):  # whose J remains symmetric
        return lambda z, h, root, constant: factor(z, h, root @ root.mT, constant)

    assert_agrees(of_root(log_factor), of_root(reference_log_factor), given, layout)


@pytest.mark.parametrize(
    ("shapes", "layout"),
    combinations(
        [
            ((4, 3), (4, 3), (), ()),
            ((3,), (), (3,), (3,)),
            ((), (), (), ()),
            ((4, 3), (3,), (3,), ()),
        ]
    ),
)
def test_a_sample_is_its_reference(shapes, layout):
    batch, prior, left, prior_left = shapes
    given = {
        "noise": normal(*batch, 2),
        "mean": normal(*batch, 2, seed=1),
        "factor": normal(*left, 2, 2, seed=2),
        "prior_mean": normal(*prior, 2, seed=3),
        "prior_inverse": normal(*prior_left, 2, 2, seed=4),
        "half_log_det": normal(*left, seed=5),
        "prior_half_log_det": normal(*prior_left, seed=6),
    }
    assert_agrees(draw_with_log_ratio, reference_sample, given, layout, ("noise",))


def triangular(*left: int) -> Tensor:
    return normal(*left, 2, 2).tril(-1) + torch.diag_embed(0.5 + normal(*left, 2).abs())


@pytest.mark.parametrize("left", [(), (3,)])
def test_the_log_ratio_is_that_of_both_densities(left):
    noise, mean, prior_mean = (normal(4, 3, 2, seed=seed) for seed in range(3))
    L, prior_L = triangular(*left), triangular()
    log_dets = (each.diagonal(dim1=-2, dim2=-1).log().sum(-1) for each in (L, prior_L))
    z, log_ratio = draw_with_log_ratio(
        noise, mean, L, prior_mean, torch.linalg.inv(prior_L), *log_dets
    )
    torch.testing.assert_close(z, mean + (L @ noise[..., None])[..., 0])
    expected = MultivariateNormal(prior_mean, scale_tril=prior_L).log_prob(z)
    expected = expected - MultivariateNormal(mean, scale_tril=L).log_prob(z)
    torch.testing.assert_close(log_ratio, expected)


def test_a_factor_is_the_quadratic_form():
    z, h, root, c = normal(4, 3, 2), normal(3, 2), normal(2, 2), normal(3)
    J = root @ root.mT
    square = torch.einsum("...i,ij,...j->...", z, J, z)
    torch.testing.assert_close(log_factor(z, h, J, c), c + (z * h).sum(-1) - 0.5 * square)
