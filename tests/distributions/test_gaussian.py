"""Covariances in all the forms that densities need."""

import pytest
import scipy.stats
import torch

from pyrodyn.distributions.gaussian import Covariance, SharedNormal, SharedStudentT


def test_a_covariance_is_that_of_its_precision():
    torch.manual_seed(0)
    root = torch.randn(4, 3, 3).double()
    precision = root @ root.mT + torch.eye(3)
    found = Covariance.of_precision(precision)
    C = torch.linalg.inv(precision)
    torch.testing.assert_close(found.matrix, C)
    torch.testing.assert_close(found.factor @ found.factor.mT, C)
    torch.testing.assert_close(found.inverse, torch.linalg.inv(found.factor))
    torch.testing.assert_close(found.half_log_det, 0.5 * torch.linalg.slogdet(C).logabsdet)


def test_a_matrix_that_is_no_precision_makes_no_numbers():
    given = torch.stack([torch.eye(2), -torch.eye(2), torch.full((2, 2), torch.nan)])
    found = Covariance.of_precision(given)
    for field in (found.factor, found.inverse, found.precision, found.matrix):
        torch.testing.assert_close(field[0], torch.eye(2))
        assert not field[1:].diagonal(dim1=-2, dim2=-1).isfinite().any()
    assert found.half_log_det[0] == 0
    assert found.half_log_det[1:].isnan().all()


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_densities_agree_with_scipy(dim):
    torch.manual_seed(0)
    factor = (torch.randn(dim, dim).tril(-1) + torch.diag(0.5 + torch.rand(dim))).double()
    mean, value = torch.randn(dim).double(), torch.randn(4, dim).double()
    covariance = Covariance.of_factor(factor)
    C = (factor @ factor.mT).numpy()
    normal = scipy.stats.multivariate_normal(mean.numpy(), C).logpdf(value.numpy())
    found = SharedNormal(mean, covariance).log_prob(value)
    torch.testing.assert_close(found, torch.as_tensor(normal))
    for df in (1.5, 4.0, 30.0):
        student = scipy.stats.multivariate_t(mean.numpy(), C, df).logpdf(value.numpy())
        found = SharedStudentT(mean, covariance, df).log_prob(value)
        torch.testing.assert_close(found, torch.as_tensor(student))


def test_standard_deviations_are_those_of_the_covariance():
    factor = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    mean, covariance = torch.zeros(3, 2), Covariance.of_factor(factor)
    marginal = (factor @ factor.mT).diagonal().sqrt().expand(3, 2)
    torch.testing.assert_close(SharedNormal(mean, covariance).stddev, marginal)
    student = scipy.stats.t(df=4.0).std() * marginal
    torch.testing.assert_close(SharedStudentT(mean, covariance, 4.0).stddev, student)
    assert SharedStudentT(mean, covariance, 1.5).stddev.isinf().all()
