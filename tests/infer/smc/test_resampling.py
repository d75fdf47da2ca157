"""Resampling: unbiased numbers of offspring, the variance that each scheme promises, and no
offspring of particles without weight.
"""

import pytest
import torch
from torch import Tensor

from pyrodyn.infer.smc.resampling import (
    RESAMPLING,
    effective_sample_size,
    scheme_named,
)

CLASSICAL = [name for name in RESAMPLING if name != "soft"]
NUM_PARTICLES = 7


@pytest.fixture(params=list(RESAMPLING))
def scheme(request):
    return request.param


def uneven(num_trials: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(NUM_PARTICLES, num_trials, generator=generator)


def counts(scheme: str, log_weights: Tensor, num_repeats: int) -> Tensor:
    """Weighted offspring of each particle ``(repeat, particle)`` for one trial's weights."""
    torch.manual_seed(0)
    many = log_weights.expand(-1, num_repeats)
    ancestors, survivors = RESAMPLING[scheme](many)
    found = torch.zeros(num_repeats, len(log_weights))
    return found.scatter_add(1, ancestors.t(), survivors.exp().t().float())


def test_offspring_are_unbiased(scheme):
    log_weights = uneven()
    expected = NUM_PARTICLES * torch.softmax(log_weights[:, 0], 0)
    found = counts(scheme, log_weights, 20_000)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 4 * error + 1e-5).all()


def test_systematic_offspring_are_within_one():
    expected = NUM_PARTICLES * torch.softmax(uneven()[:, 0], 0)
    found = counts("systematic", uneven(), 1000)
    assert ((found - expected).abs() < 1).all()


def test_strata_are_drawn_independently():
    # The first and last of three strata hold another particle's boundary in their middle each: a
    # shared shift chooses one of the two outer particles, independent draws both in a quarter.
    log_weights = torch.tensor([1 / 6, 2 / 3, 1 / 6]).log()[:, None]
    outer = counts("systematic", log_weights, 4000)[:, [0, 2]]
    assert (outer.sum(1) == 1).all()
    outer = counts("stratified", log_weights, 4000)[:, [0, 2]]
    error = (0.25 * 0.75 / 4000) ** 0.5
    for first in (0, 1):
        for last in (0, 1):
            frequency = (outer == torch.tensor([first, last])).all(1).float().mean()
            assert abs(frequency - 0.25) < 4 * error


@pytest.mark.parametrize("tighter", ["systematic", "stratified", "residual"])
def test_every_scheme_varies_less_than_multinomial(tighter):
    variance = counts(tighter, uneven(), 5000).var(0).sum()
    assert variance < 0.8 * counts("multinomial", uneven(), 5000).var(0).sum()


def test_multinomial_offspring_have_the_multinomial_variance():
    weights = torch.softmax(uneven()[:, 0], 0)
    found = counts("multinomial", uneven(), 20_000).var(0)
    torch.testing.assert_close(found, NUM_PARTICLES * weights * (1 - weights), rtol=0.05, atol=0.01)


def test_residual_offspring_are_at_least_their_whole_part():
    expected = NUM_PARTICLES * torch.softmax(uneven()[:, 0], 0)
    assert (counts("residual", uneven(), 1000) >= expected.floor()).all()


@pytest.mark.parametrize("dead", [[0], [6], [0, 6], [0, 1, 2, 4, 5, 6]])
@pytest.mark.parametrize("classical", CLASSICAL)
def test_particles_without_weight_have_no_offspring(classical, dead):
    log_weights = uneven()
    log_weights[dead] = -torch.inf
    assert (counts(classical, log_weights, 2000)[:, dead] == 0).all()


@pytest.mark.parametrize("classical", CLASSICAL)
def test_rounding_of_many_particles_chooses_nothing_without_weight(classical):
    # In single precision a sum over so many rounds to well below 1.
    log_weights = torch.zeros(200_000, 2)
    log_weights[-1000:] = -torch.inf
    torch.manual_seed(0)
    assert RESAMPLING[classical](log_weights).ancestors.max() < 199_000


@pytest.mark.parametrize("equal", ["systematic", "stratified", "residual"])
def test_equal_weights_leave_every_particle_once(equal):
    torch.manual_seed(0)
    ancestors = RESAMPLING[equal](torch.full((64, 9), -3.0)).ancestors
    assert (ancestors.sort(0).values == torch.arange(64)[:, None]).all()


def test_trials_are_resampled_by_their_own_weights(scheme):
    torch.manual_seed(0)
    alone = torch.full((NUM_PARTICLES, 3), -torch.inf)
    alone[[0, 3, 6], [0, 1, 2]] = 0.0
    if scheme == "soft":
        ancestors, survivors = RESAMPLING[scheme](alone)
        assert (survivors[ancestors != torch.tensor([0, 3, 6])] == -torch.inf).all()
    else:
        assert (RESAMPLING[scheme](alone).ancestors == torch.tensor([0, 3, 6])).all()


def test_only_soft_weights_carry_a_gradient(scheme):
    log_weights = uneven().requires_grad_()
    survivors = RESAMPLING[scheme](log_weights).log_weights
    assert survivors.requires_grad is (scheme == "soft")


def test_soft_weights_that_underflow_have_a_gradient():
    log_weights = torch.tensor([[0.0], [-200.0], [-300.0], [-1.0]]).requires_grad_()
    torch.manual_seed(0)
    chosen = set()
    for _ in range(20):
        ancestors, survivors = RESAMPLING["soft"](log_weights)
        chosen |= set(ancestors[:, 0].tolist())
        (gradient,) = torch.autograd.grad(survivors.sum(), log_weights)
        assert torch.isfinite(survivors).all()
        assert torch.isfinite(gradient).all()
    assert chosen == {0, 1, 2, 3}  # those without weight too, by the uniform part


def test_effective_sample_size_of_known_weights():
    log_weights = torch.log(torch.tensor([[1.0, 1.0], [1.0, 0.0], [2.0, 0.0]]))
    torch.testing.assert_close(effective_sample_size(log_weights), torch.tensor([16 / 6, 1.0]))


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="'stratfied' is unknown; it is one of systematic"):
        scheme_named("stratfied")
