"""AR(1) paths against the joint Gaussian, against scipy bin by bin, and against their own draws."""

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro import poutine

from pyrodyn.distributions.autoregressive import Autoregressive

ALPHA = torch.tensor([0.0, 0.6, 0.97], dtype=torch.float64)
SCALE = torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)
DF = torch.tensor([3.0, 5.0, 30.0], dtype=torch.float64)
NUM_BINS = 6


@pytest.fixture(params=["normal", "student_t"])
def df(request):
    return None if request.param == "normal" else DF


def some_path(*left, num_bins=NUM_BINS):
    generator = torch.Generator().manual_seed(0)
    shape = (*left, num_bins, 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 1.5


def covariance(alpha, scale, num_bins):
    lags = np.abs(np.subtract.outer(np.arange(num_bins), np.arange(num_bins)))
    return scale**2 * alpha**lags / (1 - alpha**2)


def test_normal_paths_have_the_joint_gaussian_density():
    path = some_path(4)
    expected = sum(
        scipy.stats.multivariate_normal.logpdf(
            path[..., dim].numpy(), np.zeros(NUM_BINS), covariance(alpha, scale, NUM_BINS)
        )
        for dim, (alpha, scale) in enumerate(zip(ALPHA.tolist(), SCALE.tolist(), strict=True))
    )
    found = Autoregressive(ALPHA, SCALE, NUM_BINS).log_prob(path)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("previous", [None, torch.tensor([2.0, -1.0, 4.0], dtype=torch.float64)])
def test_student_t_increments_are_centred_on_the_bin_before(previous):
    path = some_path()
    alpha, scale, df = ALPHA.numpy(), SCALE.numpy(), DF.numpy()
    expected = np.zeros(NUM_BINS)
    for t in range(NUM_BINS):
        if t > 0:
            centre, width = alpha * path[t - 1].numpy(), scale
        elif previous is not None:
            centre, width = alpha * previous.numpy(), scale
        else:
            centre, width = 0.0, scale / np.sqrt(1 - alpha**2)
        expected[t] = scipy.stats.t.logpdf(path[t].numpy(), df, loc=centre, scale=width).sum()
    base = Autoregressive(ALPHA, SCALE, NUM_BINS, df=DF, previous=previous)
    np.testing.assert_allclose(base.log_prob_steps(path), expected, rtol=1e-11)
    np.testing.assert_allclose(base.log_prob(path), expected.sum(), rtol=1e-11)


@pytest.mark.parametrize("previous", [None, torch.tensor([1.3], dtype=torch.float64)])
def test_density_integrates_to_one(df, previous):
    df = None if df is None else torch.tensor([4.0], dtype=torch.float64)
    alpha, scale = torch.tensor([0.7]).double(), torch.tensor([0.4]).double()
    # The line as x = sinh(grid), on which heavy tails fade.
    grid = torch.linspace(-12, 12, 1501, dtype=torch.float64)
    x, stretch = torch.sinh(grid), torch.cosh(grid)
    one = Autoregressive(alpha, scale, 1, df=df, previous=previous)
    assert one.log_prob_steps(x[:, None, None]).shape == (len(x), 1)
    mass = torch.trapezoid(one.log_prob(x[:, None, None]).exp() * stretch, grid)
    assert abs(mass - 1) < 1e-8
    two = Autoregressive(alpha, scale, 2, df=df, previous=previous)
    pairs = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)[..., None]
    density = two.log_prob(pairs).exp() * stretch * stretch[:, None]
    assert abs(torch.trapezoid(torch.trapezoid(density, grid), grid) - 1) < 1e-4


def test_alpha_zero_is_white_noise(df):
    path = some_path(2)
    zero = torch.zeros_like(ALPHA)
    if df is None:
        white = torch.distributions.Normal(zero, SCALE)
    else:
        white = torch.distributions.StudentT(df, zero, SCALE)
    found = Autoregressive(zero, SCALE, NUM_BINS, df=df).log_prob_steps(path)
    torch.testing.assert_close(found, white.log_prob(path).sum(-1))


@pytest.mark.parametrize("continued", [False, True])
def test_draws_have_the_moments_of_the_process(df, continued):
    torch.manual_seed(0)
    num_draws, num_bins = 40_000, 5
    df = None if df is None else torch.tensor([9.0, 10.0, 30.0], dtype=torch.float64)
    previous = torch.tensor([2.0, -1.0, 4.0], dtype=torch.float64) if continued else None
    base = Autoregressive(ALPHA, SCALE, num_bins, df=df, previous=previous)
    paths = base.rsample((num_draws,))
    assert paths.shape == (num_draws, num_bins, 3)
    widening = 1 if df is None else df / (df - 2)
    lags = torch.arange(1, num_bins + 1, dtype=torch.float64)[:, None]
    variance = (SCALE**2 * widening / (1 - ALPHA**2)).expand(num_bins, -1)
    mean = torch.zeros_like(variance)
    if previous is not None:
        variance = variance * (1 - ALPHA ** (2 * lags))
        mean = ALPHA**lags * previous
    centred = paths - mean
    assert (centred.mean(0).abs() < 4 * (variance / num_draws).sqrt()).all()
    # Var[u_t] and Cov[u_t, u_t+2] = alpha^2 Var[u_t], with errors from the draws themselves.
    for products, expected in (
        (centred**2, variance),
        (centred[:, :-2] * centred[:, 2:], ALPHA**2 * variance[:-2]),
    ):
        error = products.std(0) / num_draws**0.5
        assert ((products.mean(0) - expected).abs() < 4 * error).all()


def test_increments_of_draws_follow_their_law(df):
    torch.manual_seed(1)
    paths = Autoregressive(ALPHA, SCALE, 4, df=df).rsample((5_000,))
    increments = (paths[:, 1:] - ALPHA * paths[:, :-1]) / SCALE
    for dim in range(3):
        reference = scipy.stats.norm if df is None else scipy.stats.t(DF[dim].item())
        sample = increments[..., dim].flatten().numpy()
        assert scipy.stats.kstest(sample, reference.cdf).pvalue > 6e-5  # two-sided z < 4
    first = paths[:, 0] / (SCALE / (1 - ALPHA**2).sqrt())
    assert scipy.stats.kstest(first[:, 2].numpy(), reference.cdf).pvalue > 6e-5


def test_gradients_are_those_of_the_density(df):
    alpha = ALPHA[1:].clone().requires_grad_()
    scale = SCALE[1:].clone().requires_grad_()
    path = some_path(2)[..., 1:].clone().requires_grad_()
    previous = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    freedom = () if df is None else (DF[1:].clone().requires_grad_(),)

    def log_prob(path, alpha, scale, previous, *freedom):
        df = freedom[0] if freedom else None
        start = Autoregressive(alpha, scale, NUM_BINS, df=df)
        later = Autoregressive(alpha, scale, NUM_BINS, df=df, previous=previous)
        return start.log_prob(path), later.log_prob(path)

    assert torch.autograd.gradcheck(log_prob, (path, alpha, scale, previous, *freedom))


def test_draws_are_differentiable_in_the_parameters():
    def draw(alpha, scale, previous):
        torch.manual_seed(0)
        start = Autoregressive(alpha, scale, 4).rsample()
        return start, Autoregressive(alpha, scale, 4, previous=previous).rsample((2,))

    inputs = [ALPHA[1:].clone(), SCALE[1:].clone(), torch.tensor([0.3, -1.0]).double()]
    assert torch.autograd.gradcheck(draw, [each.requires_grad_() for each in inputs])


def test_continuing_a_path_is_scoring_the_whole(df):
    path = some_path(4, 2, num_bins=9)
    whole = Autoregressive(ALPHA, SCALE, 9, df=df)
    past = Autoregressive(ALPHA, SCALE, 6, df=df)
    future = past.continue_from(path[..., 5, :], 3)
    assert future.batch_shape == (4, 2)
    assert future.event_shape == (3, 3)
    torch.testing.assert_close(
        whole.log_prob_steps(path),
        torch.cat(
            [past.log_prob_steps(path[..., :6, :]), future.log_prob_steps(path[..., 6:, :])], -1
        ),
    )


@pytest.mark.parametrize("continued", [False, True])
def test_shapes_broadcast_and_expand(df, continued):
    torch.manual_seed(0)
    previous = torch.randn(5, 3, dtype=torch.float64) if continued else None
    base = Autoregressive(ALPHA, SCALE, NUM_BINS, df=df, previous=previous, batch_shape=(5,))
    assert base.batch_shape == (5,)
    assert base.event_shape == (NUM_BINS, 3)
    assert base.rsample((2,)).shape == (2, 5, NUM_BINS, 3)
    assert base.sample().shape == (5, NUM_BINS, 3)
    assert base.log_prob_steps(some_path()).shape == (5, NUM_BINS)
    assert base.log_prob_steps(some_path(4, 1)).shape == (4, 5, NUM_BINS)
    wide = base.expand((4, 5))
    assert isinstance(wide, Autoregressive)
    paths = wide.rsample()
    assert paths.shape == (4, 5, NUM_BINS, 3)
    assert not torch.equal(paths[0], paths[1])
    torch.testing.assert_close(wide.log_prob(paths), base.log_prob(paths))
    assert wide.log_prob_steps(paths).shape == (4, 5, NUM_BINS)


def test_is_one_pyro_site_under_particles_and_masks(df):
    def program():
        with pyro.plate("trials", 5, dim=-1):
            kept = torch.tensor([True, True, False, True, True])
            base = Autoregressive(ALPHA, SCALE, NUM_BINS, df=df)
            return pyro.sample("u", base.mask(kept))

    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["u"]
    assert site["value"].shape == (4, 5, NUM_BINS, 3)
    assert site["log_prob"].shape == (4, 5)
    assert (site["log_prob"][:, 2] == 0).all()
    base = Autoregressive(ALPHA, SCALE, NUM_BINS, df=df)
    torch.testing.assert_close(site["log_prob"][:, 0], base.log_prob(site["value"][:, 0]))
