"""Counts against scipy, exact sums over the support, and their own samples."""

import itertools

import numpy as np
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch.overrides import TorchFunctionMode

from pyrodyn.distributions.counts import (
    LogPoisson,
    NegativeBinomialMean,
    ZeroInflatedLogPoisson,
    log_factorial,
    stirling_remainder,
)

SUPPORT = torch.arange(4000, dtype=torch.float64)
"""Beyond it no distribution below has mass that a float64 could show."""

DISTRIBUTIONS = {
    "poisson": LogPoisson,
    "negative_binomial": lambda rate: NegativeBinomialMean(rate, rate.new_tensor(-1.2)),
    "near_poisson": lambda rate: NegativeBinomialMean(rate, rate.new_tensor(-18.0)),
    "overdispersed": lambda rate: NegativeBinomialMean(rate, rate.new_tensor(0.7)),
    "zero_inflated": lambda rate: ZeroInflatedLogPoisson(rate, rate.new_tensor(-0.4)),
}


@pytest.fixture(params=DISTRIBUTIONS)
def family(request):
    return DISTRIBUTIONS[request.param]


@pytest.fixture(params=[-3.0, 0.2, 3.5])
def log_rate(request):
    return torch.tensor(request.param, dtype=torch.float64)


def test_mass_and_moments_add_up_over_the_support(family, log_rate):
    distribution = family(log_rate)
    mass = distribution.log_prob(SUPPORT).exp()
    mean = (mass * SUPPORT).sum()
    torch.testing.assert_close(mass.sum(), torch.ones_like(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(distribution.mean, mean, rtol=1e-9, atol=0)
    variance = (mass * (SUPPORT - mean) ** 2).sum()
    torch.testing.assert_close(distribution.variance, variance, rtol=1e-6, atol=0)


def test_samples_follow_the_density(family, log_rate):
    torch.manual_seed(0)
    num_draws = 40_000
    distribution = family(log_rate)
    draws = distribution.sample((num_draws,))
    assert draws.shape == (num_draws,)
    for count in range(4):
        expected = distribution.log_prob(torch.tensor(float(count), dtype=torch.float64)).exp()
        error = (expected * (1 - expected) / num_draws).sqrt()
        assert ((draws == count).double().mean() - expected).abs() < 4 * error + 1 / num_draws
    error = (distribution.variance / num_draws).sqrt()
    assert (draws.mean() - distribution.mean).abs() < 4 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_scipy(dtype):
    counts = torch.tensor([0.0, 1.0, 2.0, 7.0, 60.0], dtype=dtype)
    log_rate, log_dispersion, gate = (torch.tensor(v, dtype=dtype) for v in (1.3, -0.8, 0.6))
    x, rate, phi = counts.double().numpy(), np.exp(1.3), np.exp(-0.8)
    silent = 1 / (1 + np.exp(-0.6))
    poisson = scipy.stats.poisson.logpmf(x, rate)
    zero_inflated = np.where(
        x == 0,
        np.logaddexp(np.log(silent), np.log1p(-silent) + poisson),
        np.log1p(-silent) + poisson,
    )
    pairs = [
        (LogPoisson(log_rate), poisson),
        (
            NegativeBinomialMean(log_rate, log_dispersion),
            scipy.stats.nbinom.logpmf(x, 1 / phi, 1 / (1 + phi * rate)),
        ),
        (ZeroInflatedLogPoisson(log_rate, gate), zero_inflated),
    ]
    for distribution, expected in pairs:
        found = distribution.log_prob(counts)
        assert found.dtype == dtype
        np.testing.assert_allclose(
            found.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-11
        )


def test_negative_binomial_turns_into_poisson():
    counts = torch.tensor([0.0, 1.0, 5.0, 30.0], dtype=torch.float64)
    log_mean = torch.tensor(1.5, dtype=torch.float64)
    poisson = LogPoisson(log_mean).log_prob(counts)
    # The first-order term of the difference in phi: [x (x - 1) - 2 x m + m^2] / 2.
    mean = log_mean.exp()
    slope = (counts * (counts - 1) - 2 * counts * mean + mean**2) / 2
    for log_dispersion in (-9.5, -14.0, -20.0):
        phi = np.exp(log_dispersion)
        near = NegativeBinomialMean(log_mean, torch.tensor(log_dispersion, dtype=torch.float64))
        expected = poisson + phi * slope
        torch.testing.assert_close(
            near.log_prob(counts), expected, rtol=0, atol=2e4 * phi**2 + 1e-9
        )


@pytest.mark.parametrize("log_dispersion", np.linspace(-40, 10, 26))
def test_negative_binomial_keeps_its_digits_in_float32(log_dispersion):
    counts = torch.tensor([0.0, 1.0, 4.0, 25.0])
    log_mean = torch.tensor(0.5)
    single = NegativeBinomialMean(log_mean, torch.tensor(log_dispersion, dtype=torch.float32))
    if log_dispersion > -12:
        r = np.exp(-np.float64(np.float32(log_dispersion)))
        exact = scipy.stats.nbinom.logpmf(counts.double().numpy(), r, r / (r + np.exp(0.5)))
    else:
        exact = scipy.stats.poisson.logpmf(counts.double().numpy(), np.exp(0.5))
    # At phi = e^-12 and 25 counts the two differ by 1.6e-3 nats.
    np.testing.assert_allclose(single.log_prob(counts).double(), exact, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("log_dispersion", [-29.0, -27.0, -9.2, 0.0, 40.0])
def test_no_count_has_the_gradients_of_double_precision(log_dispersion):
    """In single precision, of a Poisson in all but name up to a dispersion beyond all reason."""
    found = []
    for dtype in (torch.float32, torch.float64):
        given = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (1.5, log_dispersion)]
        log_prob = NegativeBinomialMean(*given).log_prob(torch.zeros((), dtype=dtype))
        found.append([log_prob, *torch.autograd.grad(log_prob, given)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    mean, phi = np.exp(1.5), np.exp(log_dispersion)
    assert float(found[1][0].detach()) == pytest.approx(-np.log1p(mean * phi) / phi, abs=1e-9)


@pytest.mark.parametrize("log_dispersion", [-20.0, -9.2, -4.0, 0.0, 2.3, 9.2])
@pytest.mark.parametrize("mean", [3.0, 1e4])
def test_negative_binomial_keeps_its_digits_at_large_counts(mean, log_dispersion):
    log_mean = torch.tensor(np.log(mean), dtype=torch.float32)
    counts = torch.tensor([0.0, 1.0, 30.0, 5e3, 9.9e3, 1e4, 1.01e4, 3e4])
    found = NegativeBinomialMean(log_mean, torch.tensor(log_dispersion)).log_prob(counts)
    r = np.exp(-np.float64(log_dispersion))
    m = np.exp(log_mean.double().numpy())
    x = counts.double().numpy()
    exact = scipy.stats.nbinom.logpmf(x, r, r / (r + m))
    np.testing.assert_allclose(found.double(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_rate_of_zero_expects_no_count(name, dtype):
    rate = torch.tensor([-torch.inf, -torch.inf, -torch.inf, 0.5], dtype=dtype, requires_grad=True)
    counts = torch.tensor([0.0, 1.0, 7.0, 2.0], dtype=dtype)
    log_prob = DISTRIBUTIONS[name](rate).log_prob(counts)
    silent = torch.zeros((), dtype=dtype)
    torch.testing.assert_close(log_prob[0], silent)
    assert (log_prob[1:3] == -torch.inf).all()
    one = DISTRIBUTIONS[name](rate[3:].detach()).log_prob(counts[3:])
    torch.testing.assert_close(log_prob[3:], one)
    # The others' gradients do not suffer.
    (gradient,) = torch.autograd.grad(log_prob[[0, 3]].sum(), rate)
    assert gradient[0] == 0
    assert gradient[3].isfinite()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_what_is_no_number_remains_none(name):
    rate, counts = torch.tensor([torch.nan, 0.0, 0.0]), torch.tensor([0.0, torch.nan, 1.0])
    with pyro.validation_enabled(False):
        assert DISTRIBUTIONS[name](rate).log_prob(counts).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("log_dispersion", [-25.0, -3.0, 0.0, 4.0])
def test_negative_binomial_has_gradients_far_out(log_dispersion):
    phi = torch.tensor(log_dispersion)
    log_mean = torch.tensor([-100.0, -45.0, 30.0], requires_grad=True)
    counts = torch.tensor([[0.0], [1.0], [1e4]])
    log_prob = NegativeBinomialMean(log_mean, phi).log_prob(counts)
    found = torch.stack(
        [torch.autograd.grad(row.sum(), log_mean, retain_graph=True)[0] for row in log_prob]
    )
    mean = log_mean.detach().double().exp()
    expected = (counts - mean) / (1 + phi.double().exp() * mean)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_the_density():
    counts = torch.tensor([[0.0], [1.0], [3.0], [40.0]], dtype=torch.float64)
    log_rate = torch.tensor([-2.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([-3.0, 0.1, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: LogPoisson(a).log_prob(counts), (log_rate,))
    for family in (NegativeBinomialMean, ZeroInflatedLogPoisson):
        assert torch.autograd.gradcheck(
            lambda a, b, family=family: family(a, b).log_prob(counts), (log_rate, other)
        )


def test_poisson_can_be_differentiated_twice_and_by_its_counts():
    counts = torch.tensor([[0.3], [1.0], [3.7], [40.0]], dtype=torch.float64, requires_grad=True)
    log_rate = torch.tensor([-2.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)

    def density(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return LogPoisson(a, validate_args=False).log_prob(x)

    assert torch.autograd.gradcheck(density, (log_rate, counts))
    assert torch.autograd.gradgradcheck(lambda a: density(a, counts.detach()), (log_rate,))
    # As torch.func sees it, with counts mapped over.
    mapped = torch.func.vmap(torch.func.grad(lambda a, x: density(a, x).sum()), (None, 0))
    expected = counts.detach() - log_rate.detach().exp()
    torch.testing.assert_close(mapped(log_rate.detach(), counts.detach()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("odd", [3.0, 255.0, 256.0, 1e6, 0.5, -7.5, float("nan")])
def test_factorials_looked_up_are_those_computed(dtype, odd):
    counts = torch.arange(8192, dtype=dtype).remainder(200).view(2, -1, 16)
    counts[1, 7, 3] = odd
    expected = torch.lgamma(counts + 1)
    torch.testing.assert_close(log_factorial(counts), expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("counts", [0.0, 1.0, 500.0])
def test_values_and_gradients_stay_finite(dtype, counts):
    extremes = torch.tensor(list(itertools.product([-40.0, 0.0, 40.0], repeat=2)), dtype=dtype)
    x = torch.tensor(counts, dtype=dtype)
    for family in (lambda a, _: LogPoisson(a), NegativeBinomialMean, ZeroInflatedLogPoisson):
        first, second = extremes.clone().requires_grad_().unbind(-1)
        first.retain_grad()
        second.retain_grad()
        value = family(first, second).log_prob(x)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(first.grad).all()
        assert second.grad is None or torch.isfinite(second.grad).all()
        assert torch.isfinite(family(first, second).sample()).all()


def test_mask_removes_values_outside_the_support():
    log_rate = torch.zeros(3, requires_grad=True)
    other = torch.zeros(3, requires_grad=True)
    x = torch.tensor([1.0, -7.5, 2.0])
    kept = torch.tensor([True, False, True])
    for family in (
        lambda a, _: LogPoisson(a, validate_args=False),
        lambda a, b: NegativeBinomialMean(a, b, validate_args=False),
        lambda a, b: ZeroInflatedLogPoisson(a, b, validate_args=False),
    ):
        log_rate.grad = other.grad = None
        filled = torch.where(kept, x, 0.0)
        masked = family(log_rate, other).mask(kept).to_event(1).log_prob(filled)
        torch.testing.assert_close(masked, family(log_rate, other).log_prob(x)[kept].sum())
        masked.backward()
        assert log_rate.grad[1] == 0
        assert torch.isfinite(log_rate.grad).all()


def test_shapes_broadcast_and_expand(family):
    torch.manual_seed(0)
    log_rate = torch.randn(4, 1, 5, dtype=torch.float64)
    distribution = family(log_rate)
    assert distribution.batch_shape == (4, 1, 5)
    assert distribution.mean.shape == distribution.variance.shape == (4, 1, 5)
    assert distribution.sample((2, 3)).shape == (2, 3, 4, 1, 5)
    counts = torch.poisson(torch.ones(3, 5, dtype=torch.float64))
    assert distribution.log_prob(counts).shape == (4, 3, 5)
    wide = distribution.expand((2, 4, 3, 5))
    assert tuple(wide.batch_shape) == (2, 4, 3, 5)
    assert wide.mean.shape == (2, 4, 3, 5)
    draws = wide.sample()
    assert draws.shape == (2, 4, 3, 5)
    assert not torch.equal(draws[0], draws[1])
    expected = distribution.log_prob(draws)
    torch.testing.assert_close(wide.log_prob(draws), expected)
    torch.testing.assert_close(wide.log_prob(counts)[1], distribution.log_prob(counts))


def test_parameters_broadcast_against_each_other():
    log_mean, per_neuron = torch.zeros(2, 1), torch.zeros(3)
    for family in (NegativeBinomialMean, ZeroInflatedLogPoisson):
        distribution = family(log_mean, per_neuron)
        assert distribution.batch_shape == distribution.mean.shape == (2, 3)
        assert distribution.variance.shape == distribution.sample().shape == (2, 3)
        assert distribution.log_prob(torch.zeros(())).shape == (2, 3)


class Elements(TorchFunctionMode):
    """Counts the elements that go through a function of torch."""

    def __init__(self, name):
        self.name, self.calls = name, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == self.name:
            self.calls.append(args[0].numel())
        return function(*args, **(kwargs or {}))


def test_factorials_cost_one_batch_and_the_rate_one_exponential():
    particles, counts = torch.zeros(7, 4, 5), torch.zeros(4, 5)
    for distribution in (
        LogPoisson(particles),
        NegativeBinomialMean(particles, torch.zeros(5)),
        ZeroInflatedLogPoisson(particles, torch.zeros(5)),
    ):
        with Elements("lgamma") as factorials:
            distribution.log_prob(counts)
        assert max(factorials.calls) == counts.numel()
    with Elements("exp") as exponentials:
        poisson = LogPoisson(particles)
        poisson.log_prob(counts)
        assert poisson.mean is poisson.mean
    assert exponentials.calls == [particles.numel()]


@pytest.mark.parametrize("draw_first", [True, False])
def test_gradient_does_not_depend_on_a_draw_before(family, draw_first):
    log_rate = torch.tensor([0.3, 1.0], requires_grad=True)
    distribution = family(log_rate)
    if draw_first:
        distribution.sample()
    distribution.log_prob(torch.tensor([0.0, 2.0])).sum().backward()
    fresh = log_rate.detach().clone().requires_grad_()
    family(fresh).log_prob(torch.tensor([0.0, 2.0])).sum().backward()
    torch.testing.assert_close(log_rate.grad, fresh.grad)


def test_validation_refuses_what_is_no_count():
    for distribution in (
        LogPoisson(torch.zeros(2), validate_args=True),
        NegativeBinomialMean(torch.zeros(2), torch.zeros(2), validate_args=True),
        ZeroInflatedLogPoisson(torch.zeros(2), torch.zeros(2), validate_args=True),
    ):
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(torch.tensor([0.0, 0.5]))


def test_is_a_pyro_site_under_particles(family):
    def program():
        with pyro.plate("trials", 6, dim=-1):
            log_rate = pyro.sample(
                "z", pyro.distributions.Normal(torch.zeros(3, 2), 1.0).to_event(2)
            )
            pyro.sample("x", family(log_rate).to_event(2), obs=torch.ones(6, 3, 2))

    particles = pyro.plate("particles", 5, dim=-2)
    trace = poutine.trace(particles(program)).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (5, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stirling_remainder_is_what_the_leading_terms_leave(dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    small = torch.logspace(-8, 1.5, 200, dtype=dtype)
    z = small.double().numpy()
    leading = (z - 0.5) * np.log(z) - z + 0.5 * np.log(2 * np.pi)
    found = stirling_remainder(small).double()
    np.testing.assert_allclose(found, scipy.special.gammaln(z) - leading, rtol=0, atol=tolerance)
    # Robbins' bounds (Am. Math. Mon. 62:26, 1955), where differences of log Gammas have no digits.
    large = torch.logspace(2, 12, 100, dtype=dtype)
    found, upper = stirling_remainder(large), 1 / (12 * large)
    epsilon = 4 * torch.finfo(dtype).eps
    assert (found <= upper * (1 + epsilon)).all()
    assert (found >= (upper - 1 / (360 * large**3)) * (1 - epsilon)).all()
