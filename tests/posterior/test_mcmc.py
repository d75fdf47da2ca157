"""Hamiltonian Monte Carlo on the latents: exact posteriors, chains in the tree, and refusals."""

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from exact_posteriors import Bow, quadrature, standing
from exact_posteriors import data as counts_of_bow
from linear_gaussian import NUM_TRIALS, batch_of, by_recursion, data, exact_of, linear_network
from pyro.distributions import Delta, Gamma, Normal, Poisson

from pyrodyn import predict, to_datatree
from pyrodyn.data import held_out
from pyrodyn.infer.mcmc import mcmc_sample
from pyrodyn.infer.mcmc.hamiltonian import hamiltonian_monte_carlo
from pyrodyn.models import LowRankRNN


def assert_moments(draws, mean, sd, num_effective):
    """Mean and standard deviation of ``(draw, ...)`` within five standard errors."""
    assert (np.abs(draws.mean(0) - mean) < 5 * sd / num_effective**0.5).all()
    assert (np.abs(draws.std(0) / sd - 1) < 5 / (2 * num_effective) ** 0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("hides", [False, True])
def test_a_linear_gaussian_posterior_is_exact(hides):
    recorded = data(missing=True)
    if hides:
        recorded = held_out(recorded, neurons=[1, 3], forecast_bins=2)
    model = linear_network(recorded)
    tree = to_datatree(model, recorded, method="mcmc", num_draws=2000, seed=1)
    exact = exact_of(model, batch_of(recorded).as_seen())
    for trial in range(NUM_TRIALS):
        truth = by_recursion(exact, trial)
        sd = np.sqrt(np.diagonal(truth.covariance, axis1=1, axis2=2))
        z = tree["posterior/z"].values[:, :, trial].reshape(-1, *sd.shape)
        assert_moments(z, truth.mean, sd, num_effective=400)
        lag = np.mean((z - z.mean(0))[:, 1:, :, None] * (z - z.mean(0))[:, :-1, None], 0)
        error = 5 * sd[1:, :, None] * sd[:-1, None] / 400**0.5
        assert (np.abs(lag - truth.lag_one) < error).all()
    stats = tree["sample_stats"]
    assert (stats["r_hat"] < 1.05).all() and (stats["effective_sample_size"] > 100).all()
    assert ((stats["acceptance"] > 0.6) & (stats["acceptance"] < 0.97)).all()
    assert (stats["divergences"] == 0).all()


@pytest.mark.slow
def test_a_bent_posterior_is_exact():
    recorded = counts_of_bow()
    model = standing(recorded, Bow())
    batch = model.trials_of(recorded).batch()
    exact = quadrature(model, batch, 101)
    torch.manual_seed(0)
    sampled = mcmc_sample(model, model.guide, batch, 1000)
    z = sampled.sites["z0"].flatten(0, 1).double()
    sd = (exact.square - exact.mean**2).sqrt()
    assert ((z.mean(0) - exact.mean).abs() < 5 * sd / 400**0.5).all()
    assert ((z.square().mean(0) - exact.square).abs() < 0.3 * exact.square).all()


class WithGain(LowRankRNN):
    """A positive site of every trial, with an observation and a conjugate posterior of its own."""

    def record_deterministic(self, states):
        gain = pyro.sample("gain", Gamma(torch.tensor(2.0), torch.tensor(1.0)))
        pyro.sample("events", Poisson(gain), obs=torch.tensor(5.0))

    def guide(self, batch):
        with self.trials(batch):
            pyro.sample("z", Normal(torch.zeros(NUM_TRIALS, 6, 2), 1.0).to_event(2))
            pyro.sample("gain", Gamma(torch.tensor(2.0), torch.tensor(1.0)))


class WithShared(LowRankRNN):
    """A site that all trials share."""

    def model(self, batch):
        pyro.sample("scale", Gamma(torch.tensor(1.0), torch.tensor(1.0)))
        super().model(batch)


class WithCount(LowRankRNN):
    """A discrete site."""

    def record_deterministic(self, states):
        pyro.sample("k", Poisson(torch.tensor(1.0)))


@pytest.mark.slow
def test_constrained_sites_and_observations_of_a_users_own():
    recorded = data()
    model = linear_network(recorded).float()
    model.__class__ = WithGain
    batch = model.trials_of(recorded).batch()
    torch.manual_seed(0)
    gain = (
        mcmc_sample(model, model.guide, batch, 60, num_warmup=40)
        .sites["gain"]
        .flatten(0, 1)
        .numpy()
    )
    posterior = torch.distributions.Gamma(7.0, 2.0)
    assert_moments(gain, float(posterior.mean), float(posterior.stddev), num_effective=60)


@pytest.mark.slow
def test_a_point_guide_only_starts_the_chains():
    recorded = data()
    model = linear_network(recorded)
    batch = batch_of(recorded)

    def point(batch):
        with model.trials(batch):
            pyro.sample("z", Delta(torch.zeros(NUM_TRIALS, 6, 2).double()).to_event(2))

    torch.manual_seed(0)
    z = mcmc_sample(model, point, batch, 60, num_warmup=40).sites["z"].flatten(0, 1).numpy()
    truth = by_recursion(exact_of(model, batch), 0)
    sd = np.sqrt(np.diagonal(truth.covariance, axis1=1, axis2=2))
    assert_moments(z[:, 0], truth.mean, sd, num_effective=80)


def test_a_trial_that_diverges_harms_no_other():
    """The density of the first trial is finite at its start only; the second is a normal."""

    def log_density(y):
        at_start = (y == 0.5).all(-1)
        log_p = -0.5 * y.square().sum(-1)
        is_first = torch.tensor([True, False])
        return torch.where(is_first & ~at_start, torch.nan, log_p)

    torch.manual_seed(0)
    start = torch.full((4, 2, 3), 0.5)
    scale = torch.ones(2, 3)
    options = {"num_draws": 300, "num_warmup": 60, "num_leapfrog": 4}
    chains = hamiltonian_monte_carlo(log_density, start, scale, **options)
    assert (chains.positions[:, :, 0] == 0.5).all()
    assert chains.divergences[0] > 0 and chains.divergences[1] == 0
    assert_moments(chains.positions[:, :, 1].flatten(0, 1).numpy(), 0.0, 1.0, num_effective=500)


@pytest.fixture
def short(make_recording) -> tuple[LowRankRNN, xr.Dataset]:
    counts = make_recording(5)
    return LowRankRNN.for_recording(counts, latent_dim=2, num_units=5), counts


@pytest.mark.filterwarnings("ignore:draws by method=")
def test_held_out_channels_are_not_conditioned_on():
    """A short run of the exact test above."""
    torch.manual_seed(0)
    recorded = held_out(data(), neurons=[1, 3], forecast_bins=2)
    model = linear_network(recorded)
    options = {"method": "mcmc", "num_draws": 80, "num_warmup": 30}
    z = to_datatree(model, recorded, **options)["posterior/z"].values
    exact = exact_of(model, batch_of(recorded).as_seen())
    for trial in range(NUM_TRIALS):
        truth = by_recursion(exact, trial)
        sd = np.sqrt(np.diagonal(truth.covariance, axis1=1, axis2=2))
        assert_moments(z[:, :, trial].reshape(-1, *sd.shape), truth.mean, sd, num_effective=40)


@pytest.mark.filterwarnings("ignore:draws by method=")
@pytest.mark.parametrize("kind", ["low_rank", "lfads"])
def test_chains_and_diagnostics_are_in_the_tree(kind, short, make_lfads, tmp_path):
    model, counts = short
    if kind == "lfads":
        model = make_lfads(counts, inferred_input_dim=1)
    options = {"method": "mcmc", "num_draws": 16, "num_warmup": 4, "batch_size": 3}
    tree = to_datatree(model, counts, **options)
    assert tree["posterior/rates"].dims == ("chain", "draw", "trial", "time", "neuron")
    assert tree["posterior/rates"].shape[:3] == (4, 4, 5)
    expected = {"r_hat", "effective_sample_size", "acceptance", "divergences", "step_size", "lp"}
    assert set(tree["sample_stats"].data_vars) == expected
    assert tree.attrs["num_warmup"] == 4
    streamed = to_datatree(model, counts, **options, path=tmp_path / "tree.zarr")
    xr.testing.assert_allclose(streamed.load(), tree)
    predicted = predict(model, counts, **options)
    names = ["rates", "rates_sd", "r_hat", "divergences"]
    assert all(np.isfinite(predicted[name]).all() for name in names[:2] + names[3:])


def test_chains_that_did_not_mix_are_warned_of(short):
    model, counts = short
    with pytest.warns(UserWarning, match=r"R-hat is above 1.05 in \d of 5 trials; take more draws"):
        to_datatree(model, counts, method="mcmc", num_draws=16, num_warmup=2)


def test_what_mcmc_cannot_draw_is_refused(short):
    model, counts = short
    with pytest.raises(ValueError, match="num_draws=10 is not divisible by num_chains=4"):
        to_datatree(model, counts, method="mcmc", num_draws=10)
    with pytest.raises(ValueError, match="num_draws=10 is not divisible by num_chains=4"):
        predict(model, counts, method="mcmc", num_draws=10)
    with pytest.raises(ValueError, match="num_chains=1 must be an integer of at least 2"):
        to_datatree(model, counts, method="mcmc", num_chains=1)
    with pytest.raises(ValueError, match="num_warmup=0 must be an integer of at least 2"):
        to_datatree(model, counts, method="mcmc", num_warmup=0)
    batch = model.trials_of(counts).batch()

    with pytest.raises(ValueError, match="the guide does not draw 'z' of the model"):
        mcmc_sample(model, lambda batch: None, batch)
    model.__class__ = WithShared
    with pytest.raises(ValueError, match="'scale' of the model, which all trials share"):
        mcmc_sample(model, model.guide, batch)
    model.__class__ = WithCount
    with pytest.raises(ValueError, match="'k' is discrete"):
        mcmc_sample(model, model.guide, batch)
