"""Entries that are not scored have no weight, whatever their values."""

import pyro.distributions as dist
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyrodyn.distributions import masked as module
from pyrodyn.distributions.counts import (
    LogPoisson,
    NegativeBinomialMean,
    ZeroInflatedLogPoisson,
)
from pyrodyn.distributions.masked import Masked, zero_unless

KEPT = torch.tensor([[True, False, True], [False, True, True]])


@pytest.fixture(autouse=True, params=[0, module.BITMASK_FROM], ids=["bits", "choice"])
def worth_masking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, whatever the number of values."""
    monkeypatch.setattr(module, "BITMASK_FROM", request.param)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_are_kept_to_the_last_bit_and_others_zero(dtype: torch.dtype) -> None:
    values = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[:, ~KEPT] = torch.tensor([torch.inf, torch.nan], dtype=dtype)
    torch.testing.assert_close(
        zero_unless(KEPT, values), torch.where(KEPT, values, 0.0), rtol=0, atol=0
    )


def test_gradients_of_both_orders_with_broadcasting_and_under_vmap() -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def squares(x: torch.Tensor) -> torch.Tensor:
        return zero_unless(KEPT, x).square()

    assert gradcheck(squares, x)
    assert gradgradcheck(squares, x)
    many = torch.randn(5, 2, 3)
    torch.testing.assert_close(torch.vmap(lambda v: zero_unless(KEPT, v))(many), many * KEPT)


def test_no_gradient_comes_from_an_entry_left_out_that_overflows() -> None:
    x = torch.tensor([[1.0, 1e30, 2.0], [1e30, 0.5, 0.1]], requires_grad=True)
    torch.logsumexp(zero_unless(KEPT, x * 1e30), 0).sum().backward()
    assert x.grad is not None
    assert (x.grad[~KEPT] == 0).all()


@pytest.mark.parametrize(
    ("base", "filler", "unmeasured"),
    [
        (LogPoisson(torch.randn(4, 2, 3)), 0.0, torch.nan),
        (dist.Gamma(torch.rand(4, 2, 3) + 0.5, torch.ones(3)), 1.0, 0.0),
    ],
)
def test_density_is_that_of_the_scored_entries(
    base: dist.TorchDistribution, filler: float, unmeasured: float
) -> None:
    x = torch.tensor([[1.0, 3.0, 2.0], [4.0, 2.0, 1.0]])
    scored = Masked(base, KEPT, filler)
    expected = torch.where(KEPT, base.log_prob(x), 0.0)
    x[~KEPT] = unmeasured
    torch.testing.assert_close(scored.log_prob(x), expected)
    expanded = scored.expand([5, 4, 2, 3])
    torch.testing.assert_close(expanded.log_prob(x), expected.expand(5, 4, 2, 3))
    assert expanded.sample().shape == (5, 4, 2, 3)
    torch.testing.assert_close(scored.mean, base.mean)


@pytest.mark.parametrize(
    "distribution",
    [
        LogPoisson,
        lambda log_rate: ZeroInflatedLogPoisson(log_rate, torch.zeros(3)),
        lambda log_rate: NegativeBinomialMean(log_rate, torch.zeros(3)),
    ],
    ids=["poisson", "zero-inflated", "negative binomial"],
)
def test_a_mean_that_overflows_where_it_is_not_scored_has_no_gradient(distribution) -> None:
    """Through a parameter that all entries share, in single precision."""
    shared = torch.zeros((), requires_grad=True)
    log_rate = shared + torch.where(KEPT, 0.2, 800.0)
    log_prob = Masked(distribution(log_rate), KEPT, 0.0).log_prob(torch.ones(KEPT.shape))
    (found,) = torch.autograd.grad(log_prob.sum(), shared)
    kept = distribution(shared + torch.full(KEPT.shape, 0.2)).log_prob(torch.ones(KEPT.shape))
    (expected,) = torch.autograd.grad(kept[KEPT].sum(), shared)
    torch.testing.assert_close(found, expected)
