"""Posteriors of models whose parameters have priors: each draw has parameters of its own, the same
for all trials.
"""

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal

import pyrodyn
from pyrodyn.data import Trials
from pyrodyn.infer import ELBO
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE, RnnSAE
from pyrodyn.posterior import calibrate

FIT = {"max_steps": 3, "progress": False, "accelerator": "cpu"}
SIZES = {"latent_dim": 2, "num_units": 6, "encoder_bins": 3}
SMALL_LFADS = {"inferred_input_dim": 1, "generator_dim": 6, "encoder_dim": 4, "factor_dim": 3}
PRIORS = {"loading": dist.Normal(0.0, 1.0), "raw_noise": dist.Normal(-1.0, 0.5)}


@pytest.fixture
def recording(make_recording):
    return make_recording(5, 5)


@pytest.fixture
def model(recording):
    return LowRankRNN.for_recording(recording, seed=0, **SIZES, priors=PRIORS).eval()


def tree_of(model, recording, **options):
    return pyrodyn.to_datatree(model, recording, **{"num_draws": 3, "batch_size": 4, **options})


def read(posterior, recording, model):
    """Rates from the latents and the loading of each draw."""
    z, loading = posterior["z"], posterior["loading"]
    bias = torch.as_tensor(model.bias).detach().numpy()
    return np.exp(np.einsum("cdtbl,cdnl->cdtbn", z, loading) + bias)


@pytest.mark.parametrize("method", ["guide", "importance", "smoother", "pool", "prior"])
@pytest.mark.filterwarnings("ignore:draws by method")
def test_each_draw_has_parameters_of_its_own(model, recording, method):
    options = {} if method in ("guide", "prior") else {"method": method, "num_particles": 100}
    tree = tree_of(model, recording, num_prior_draws=3, **options)
    posterior = tree["prior" if method == "prior" else "posterior"]
    assert posterior["loading"].dims == ("chain", "draw", "predictor", "latent")
    assert posterior["raw_noise"].dims == ("chain", "draw", "latent")
    assert posterior["loading"].std("draw").min() > 0
    np.testing.assert_allclose(posterior["rates"], read(posterior, recording, model), rtol=1e-4)


def test_log_densities_of_the_parameters(model, recording):
    tree = tree_of(model, recording)
    posterior, log_prior, stats = tree["posterior"], tree["log_prior"], tree["sample_stats"]
    total = 0
    for name, prior in PRIORS.items():
        drawn = torch.as_tensor(posterior[name].values)
        wanted = prior.log_prob(drawn).flatten(2).sum(-1)
        np.testing.assert_allclose(log_prior[name], wanted, rtol=1e-4, atol=1e-4)
        total = total + wanted
    assert set(log_prior.data_vars) == {"latents", *PRIORS}
    np.testing.assert_allclose(stats["lp_shared"], total, rtol=1e-4, atol=1e-4)
    log_q = sum(
        q.log_prob(torch.as_tensor(posterior[name].values[0]))
        for name, (q, _) in model.priors.pairs(model).items()
    ).detach()
    np.testing.assert_allclose(stats["log_q_shared"][0], log_q, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        stats["lp"], tree["log_likelihood"]["x"] + log_prior["latents"], rtol=1e-4, atol=1e-3
    )


def test_power_scaling_reads_the_tree(model, recording):
    """`arviz_stats` knows from it how sensitive a parameter is to its prior."""
    tree = tree_of(model, recording, num_draws=30, batch_size=6)
    found = arviz_stats.psense_summary(tree, ["raw_noise"], prior_var_names=["raw_noise"])
    assert len(found) == 2 and np.isfinite(found[["prior", "likelihood"]].to_numpy()).all()


def test_predict_averages_over_the_parameters(model, recording):
    """Mean and deviation of a parameter are those of its guide."""
    found = pyrodyn.predict(model, recording, num_draws=20)
    scale = model.priors.log_scale["loading"].exp().detach().numpy()
    assert found["loading"].dims == ("predictor", "latent")
    error = np.abs(found["loading"] - model.loading.detach().numpy()) / scale
    assert error.max() < 4.5 / np.sqrt(20)
    np.testing.assert_allclose(found["loading_sd"] / scale, 1, atol=0.6)


@pytest.mark.parametrize(
    ("kind", "sizes", "name", "dims"),
    [
        (LFADS, SMALL_LFADS, "readout.weight", ("predictor", "factor")),
        (NodeSAE, {}, "readout.0.bias", ("predictor",)),
        (RnnSAE, {"process_noise": True}, "log_noise", ("latent",)),
        (LowRankRNN, SIZES, "observation.log_dispersion", ("neuron",)),
    ],
)
def test_fit_tree_and_file_of_every_model(recording, tmp_path, kind, sizes, name, dims):
    priors = {name: dist.Normal(0.0, 1.0)}
    observation = "negative_binomial" if "observation" in name else "poisson"
    model = kind.for_recording(recording, seed=0, **sizes, priors=priors, observation=observation)
    fitted = pyrodyn.fit(model, recording, objective=ELBO(), batch_size=4, **FIT)
    assert f"kl_{name}" in fitted.history
    pyrodyn.save(fitted, tmp_path)
    loaded = pyrodyn.load(tmp_path)
    trees = [tree_of(each, recording) for each in (fitted, loaded)]
    for tree in trees:
        assert tree["posterior"][name].dims == ("chain", "draw", *dims)
    assert trees[0]["posterior"][name].identical(trees[1]["posterior"][name])


def test_a_parameter_per_channel_of_a_signal_is_named_so(make_recording):
    rng = np.random.default_rng(0)
    signal = pyrodyn.data.recording(signal=rng.normal(size=(4, 6, 3)), bin_width=0.01)
    priors = {"observation.log_scale": dist.Normal(0.0, 1.0)}
    model = LowRankRNN.for_recording(signal, seed=0, **SIZES, priors=priors)
    posterior = tree_of(model, signal)["posterior"]
    assert posterior["observation.log_scale"].dims == ("chain", "draw", "channel")


def test_calibration_asks_for_one_value(model, recording):
    with pytest.raises(ValueError, match=r"share 'loading', 'raw_noise'.*pass model\.at\(\)"):
        calibrate(model, recording, num_simulations=2)
    ranks = calibrate(model.at(), recording, num_simulations=2, num_draws=3, progress=False)
    assert "z" in ranks["prior_sbc"]


@pytest.mark.filterwarnings("ignore:draws by method")
def test_methods_with_a_guide_of_ones_own(model, recording):
    guide = AutoNormal(model)
    fitted = pyrodyn.fit(model, recording, guide=guide, **FIT)
    scale = guide.scales.loading_unconstrained.detach().numpy()
    drawn = tree_of(fitted, recording, method="pool", num_particles=200)["posterior"]["loading"]
    off = (drawn - guide.locs.loading_unconstrained.detach().numpy()) / scale
    assert abs(off).max() < 5  # from this guide, not the model's
    with pytest.raises(ValueError, match=r"which only model\.guide makes; take method='guide'"):
        tree_of(fitted, recording, method="importance")


def test_draws_of_nuts_become_a_tree(model, recording):
    pyro.set_rng_seed(0)
    kernel = NUTS(model.model, max_tree_depth=2)
    mcmc = MCMC(kernel, num_samples=3, warmup_steps=1, disable_progbar=True)
    mcmc.run(Trials(recording).batch())
    drawn = mcmc.get_samples(group_by_chain=True)
    tree = pyrodyn.to_datatree(model, recording, draws=drawn, batch_size=4)
    posterior = tree["posterior"]
    np.testing.assert_array_equal(posterior["loading"], drawn["loading"])
    np.testing.assert_allclose(posterior["rates"], read(posterior, recording, model), rtol=1e-4)
    del drawn["loading"]
    with pytest.raises(ValueError, match="latent sites of this LowRankRNN are loading"):
        pyrodyn.to_datatree(model, recording, draws=drawn)


@pytest.mark.filterwarnings("ignore:draws by method")
def test_the_log_evidence_is_the_mean_over_the_parameters(model, recording):
    tree = tree_of(model, recording, method="pool", num_particles=200, num_draws=3)
    stats, runs = tree["sample_stats"], []
    assert stats["log_evidence"].dims == ("trial",)
    for draw in range(3):
        drawn = tree["posterior"].dataset.isel(chain=0, draw=draw)
        at = model.at({name: torch.as_tensor(drawn[name].values) for name in PRIORS})
        runs.append(tree_of(at, recording, method="pool", num_particles=2000, num_draws=1))
    wanted = np.mean([run["sample_stats"]["log_evidence"] for run in runs], 0)
    error = stats["log_evidence_error"]
    assert (abs(stats["log_evidence"] - wanted) < 5 * error + 0.1).all()
