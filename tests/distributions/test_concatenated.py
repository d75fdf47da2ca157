"""Concatenated distributions: every entry follows that of its own columns."""

import pyro.distributions as dist
import pytest
import torch

from pyrodyn.distributions import Concatenated, LogPoisson

NUM_TRIALS, NUM_NEURONS, NUM_CHANNELS = 5, 3, 2


def parts(*left):
    generator = torch.Generator().manual_seed(0)
    log_rate = torch.randn(*left, NUM_TRIALS, NUM_NEURONS, generator=generator)
    mean = torch.randn(*left, NUM_TRIALS, NUM_CHANNELS, generator=generator)
    scale = torch.tensor([0.5, 2.0])
    return LogPoisson(log_rate), dist.Normal(mean, scale)


@pytest.mark.parametrize("left", [(), (4,), (2, 4)])
def test_densities_are_those_of_the_parts_alone(left):
    counts, signal = parts(*left)
    together = Concatenated([counts, signal])
    assert together.batch_shape == (*left, NUM_TRIALS, NUM_NEURONS + NUM_CHANNELS)
    assert together.event_shape == ()
    x, y = counts.sample()[(0,) * len(left)], signal.sample()[(0,) * len(left)]
    found = together.log_prob(torch.cat([x, y], -1))
    assert torch.equal(found, torch.cat([counts.log_prob(x), signal.log_prob(y)], -1))
    for moment in ("mean", "variance"):
        expected = torch.cat([getattr(counts, moment), getattr(signal, moment)], -1)
        assert torch.equal(getattr(together, moment), expected)


def test_draws_are_those_of_the_parts():
    torch.manual_seed(0)
    together, num_draws = Concatenated(parts()), 20_000
    drawn = together.sample((num_draws,))
    assert drawn.shape == (num_draws, NUM_TRIALS, NUM_NEURONS + NUM_CHANNELS)
    assert not drawn.requires_grad
    assert (drawn[..., :NUM_NEURONS] % 1 == 0).all()
    z = (drawn.mean(0) - together.mean) / (together.variance / num_draws).sqrt()
    # 25 independent z-scores: their largest stays below 4.5 but once in 6000 times.
    assert z.abs().max() < 4.5


def test_more_particles_and_masks():
    together = Concatenated(parts())
    scored = torch.rand(together.batch_shape, generator=torch.Generator().manual_seed(1)) < 0.5
    x = together.sample()
    expected = torch.where(scored, together.log_prob(x), 0.0).sum((-2, -1))
    site = together.expand((7, *together.batch_shape)).mask(scored).to_event(2)
    assert site.sample().shape == (7, NUM_TRIALS, NUM_NEURONS + NUM_CHANNELS)
    torch.testing.assert_close(site.log_prob(x), expected.expand(7))
