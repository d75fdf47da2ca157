"""Amplitudes against scipy, quadrature over the mixed measure, and their own samples."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from pyrodyn.distributions.gamma import MeanGamma, ZeroInflatedGamma


def tensor(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


DISTRIBUTIONS = {
    "peaked": lambda mean: MeanGamma(mean, tensor(6.0)),
    "exponential": lambda mean: MeanGamma(mean, tensor(1.0)),
    "spiky": lambda mean: MeanGamma(mean, tensor(0.4)),
    "zero_inflated": lambda mean: ZeroInflatedGamma(mean, tensor(2.5), tensor(0.8)),
    "zero_inflated_spiky": lambda mean: ZeroInflatedGamma(mean, tensor(0.6), tensor(-1.0)),
}


@pytest.fixture(params=DISTRIBUTIONS)
def name(request):
    return request.param


@pytest.fixture(params=[-1.5, 0.0, 2.0])
def log_mean(request):
    return tensor(request.param)


def expectation(distribution, function):
    """E[function(x)] by the trapezoid rule in log x, plus the point mass at 0."""
    log_x = torch.linspace(-90, 8, 200_001, dtype=torch.float64)
    x = log_x.exp()
    density = (distribution.log_prob(x) + log_x).exp()
    total = torch.trapezoid(density * function(x), log_x)
    if isinstance(distribution, ZeroInflatedGamma):
        zero = torch.zeros((), dtype=torch.float64)
        total = total + distribution.log_prob(zero).exp() * function(zero)
    return total


def test_density_and_moments_integrate(name, log_mean):
    distribution = DISTRIBUTIONS[name](log_mean)
    total = expectation(distribution, torch.ones_like)
    torch.testing.assert_close(total, tensor(1.0), rtol=0, atol=1e-8)
    mean = expectation(distribution, lambda x: x)
    torch.testing.assert_close(distribution.mean, mean, rtol=1e-7, atol=0)
    variance = expectation(distribution, lambda x: (x - mean) ** 2)
    torch.testing.assert_close(distribution.variance, variance, rtol=1e-6, atol=0)


def test_samples_follow_the_density(name, log_mean):
    torch.manual_seed(0)
    num_draws = 20_000
    distribution = DISTRIBUTIONS[name](log_mean)
    draws = distribution.sample((num_draws,))
    error = (distribution.variance / num_draws).sqrt()
    assert (draws.mean() - distribution.mean).abs() < 4 * error
    zeros = (draws == 0).double().mean()
    if isinstance(distribution, ZeroInflatedGamma):
        gate = distribution.log_prob(torch.zeros((), dtype=torch.float64)).exp()
        assert (zeros - gate).abs() < 4 * (gate * (1 - gate) / num_draws).sqrt()
    else:
        assert zeros == 0
    shape = distribution.concentration.item()
    nonzero = draws[draws > 0].numpy()
    reference = scipy.stats.gamma(shape, scale=log_mean.exp().item() / shape)
    assert scipy.stats.kstest(nonzero, reference.cdf).pvalue > 6e-5  # two-sided z < 4


def test_agrees_with_scipy():
    x = np.array([1e-3, 0.5, 1.0, 30.0])
    reference = scipy.stats.gamma(2.3, scale=np.exp(0.7) / 2.3).logpdf(x)
    gate = 1 / (1 + np.exp(-0.9))
    found = MeanGamma(tensor(0.7), tensor(2.3)).log_prob(tensor(x))
    np.testing.assert_allclose(found, reference, rtol=1e-11)
    mixed = ZeroInflatedGamma(tensor(0.7), tensor(2.3), tensor(0.9))
    np.testing.assert_allclose(mixed.log_prob(tensor(x)), np.log1p(-gate) + reference, rtol=1e-11)
    np.testing.assert_allclose(mixed.log_prob(tensor(0.0)), np.log(gate), rtol=1e-12)


@pytest.mark.parametrize("log_concentration", np.linspace(-4, 14, 10))
def test_keeps_its_digits_in_float32(log_concentration):
    k = np.float64(np.float32(np.exp(log_concentration)))
    # Values within two standard deviations of the mean, where the density matters.
    x = np.exp(0.5) * np.array([1.0, 1 + 2 / np.sqrt(k), max(0.1, 1 - 2 / np.sqrt(k))])
    single = torch.tensor(x, dtype=torch.float32)
    exact = scipy.stats.gamma(k, scale=np.exp(0.5) / k).logpdf(single.double().numpy())
    found = MeanGamma(tensor(0.5, torch.float32), tensor(k, torch.float32)).log_prob(single)
    # A float32 step in x itself moves the log density by about sqrt(k) * 1e-7 * 2 there.
    np.testing.assert_allclose(found.double(), exact, rtol=1e-5, atol=2e-5 + 3e-6 * np.sqrt(k))


def test_gradients_are_those_of_the_density():
    x = tensor([[0.2], [1.0], [7.0]]).requires_grad_()
    log_mean = tensor([-1.0, 0.4, 1.5]).requires_grad_()
    concentration = tensor([0.5, 1.0, 9.5]).requires_grad_()
    gate_logits = tensor([-2.0, 0.0, 1.0]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, m, k: MeanGamma(m, k).log_prob(x), (x, log_mean, concentration)
    )
    assert torch.autograd.gradcheck(
        lambda x, m, k, g: ZeroInflatedGamma(m, k, g).log_prob(x),
        (x, log_mean, concentration, gate_logits),
    )
    at_zero = torch.zeros(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda m, k, g: ZeroInflatedGamma(m, k, g).log_prob(at_zero),
        (log_mean, concentration, gate_logits),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_values_and_gradients_stay_finite(dtype, x):
    extremes = torch.tensor(list(itertools.product([-40.0, 0.0, 40.0], repeat=3)), dtype=dtype)
    parameters = [part.clone().requires_grad_() for part in extremes.unbind(-1)]
    value = tensor(x, dtype).requires_grad_()
    log_mean, log_concentration, gate_logits = parameters
    k = (0.2 * log_concentration).exp()
    gamma = MeanGamma(log_mean, k).log_prob(value)
    mixed = ZeroInflatedGamma(log_mean, k, gate_logits).log_prob(value)
    assert torch.isfinite(gamma).all()
    assert torch.isfinite(mixed).all()
    (gamma.sum() + mixed.sum()).backward()
    for each in (*parameters, value):
        assert torch.isfinite(each.grad).all()


@pytest.mark.parametrize("family", [MeanGamma, ZeroInflatedGamma])
@pytest.mark.parametrize("x", [1e4, 1e12, 1e30])
def test_far_out_values_and_gradients_are_finite_and_point_back(family, x):
    log_mean = tensor([-80.0, -300.0], torch.float32).requires_grad_()
    k = tensor(2.0, torch.float32).requires_grad_()
    value = tensor(x, torch.float32).requires_grad_()
    rest = (tensor(0.3, torch.float32),) if family is ZeroInflatedGamma else ()
    log_prob = family(log_mean, k, *rest).log_prob(value)
    assert log_prob.isfinite().all()
    assert (log_prob < -1e20).all()
    gradients = torch.autograd.grad(log_prob.sum(), (log_mean, k, value))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0] > 1e20).all()


@pytest.mark.parametrize("zero_inflated", [False, True])
def test_masked_zeros_leave_no_trace(zero_inflated):
    log_mean = torch.zeros(3, requires_grad=True)
    k = torch.full((3,), 0.7, requires_grad=True)
    gate = (torch.zeros(3),) if zero_inflated else ()
    family = ZeroInflatedGamma if zero_inflated else MeanGamma
    kept = torch.tensor([True, False, True])
    x = torch.tensor([0.4, 0.0, 1.3])
    total = family(log_mean, k, *gate).mask(kept).to_event(1).log_prob(x)
    expected = family(log_mean[kept], k[kept], *(g[kept] for g in gate)).log_prob(x[kept]).sum()
    torch.testing.assert_close(total, expected)
    total.backward()
    for parameter in (log_mean, k):
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad[1] == 0
        assert parameter.grad[0] != 0


def test_reparameterised_draws_carry_the_gradient_of_the_moments():
    torch.manual_seed(0)
    log_mean, k = tensor(0.3).requires_grad_(), tensor(2.0).requires_grad_()
    assert MeanGamma(log_mean, k).has_rsample
    assert not ZeroInflatedGamma(log_mean, k, tensor(0.0)).has_rsample
    draws = MeanGamma(log_mean, k).rsample((40_000,))
    assert (draws > 0).all()
    # d E[x] / d log_mean = m, and d E[x^2] / dk = -m^2 / k^2
    (by_mean,) = torch.autograd.grad(draws.mean(), log_mean, retain_graph=True)
    mean = log_mean.exp().item()
    deviation = mean / np.sqrt(2.0)
    assert abs(by_mean - mean) < 4 * deviation / np.sqrt(40_000)
    parts = [torch.autograd.grad((p**2).mean(), k, retain_graph=True)[0] for p in draws.split(1000)]
    parts = torch.stack(parts)
    assert (parts.mean() + mean**2 / 4).abs() < 4 * parts.std() / len(parts) ** 0.5


def test_shapes_broadcast_and_expand():
    torch.manual_seed(0)
    log_mean, per_neuron = torch.randn(4, 1, 1), torch.tensor([0.5, 1.0, 3.0])
    for distribution in (
        MeanGamma(log_mean, per_neuron),
        ZeroInflatedGamma(log_mean, per_neuron, torch.zeros(2, 1)),
    ):
        shape = (4, 1, 3) if isinstance(distribution, MeanGamma) else (4, 2, 3)
        assert distribution.batch_shape == distribution.mean.shape == shape
        assert distribution.variance.shape == shape
        assert distribution.sample((6,)).shape == (6, *shape)
        x = torch.rand(2, 3)
        assert distribution.log_prob(x).shape == (4, 2, 3)
        wide = distribution.expand((5, 4, 2, 3))
        assert tuple(wide.batch_shape) == wide.mean.shape == (5, 4, 2, 3)
        draws = wide.sample()
        assert not torch.equal(draws[0], draws[1])
        torch.testing.assert_close(wide.log_prob(draws), distribution.log_prob(draws))


def test_validation_refuses_negative_amplitudes():
    one = torch.ones(2)
    for distribution in (
        MeanGamma(one, one, validate_args=True),
        ZeroInflatedGamma(one, one, one, validate_args=True),
    ):
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(torch.tensor([0.0, -0.5]))
    with pytest.raises(ValueError, match="concentration"):
        MeanGamma(one, -one, validate_args=True)
