"""Which model, guide and method draws come from, and warnings of unreliable weights."""

import json
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal

from pyrodyn import fit, load, predict, save, to_datatree
from pyrodyn.data import held_out, recording
from pyrodyn.infer import ELBO, VSMC, Fit, SmoothedScore
from pyrodyn.models import LinearDynamics, LowRankRNN
from pyrodyn.models.state_space import Bootstrap
from pyrodyn.posterior import calibrate, check
from pyrodyn.posterior.reliability import Reliability
from pyrodyn.posterior.source import source


def draw(model, counts, **options):
    return to_datatree(model, counts, num_draws=3, batch_size=20, **options)


def means(model, counts, **options):
    return predict(model, counts, num_draws=3, **options)


@pytest.fixture
def counts(make_recording):
    return make_recording(6)


def fitted_by(objective, model, counts, guide=None):
    return fit(model, counts, objective=objective, guide=guide, max_epochs=1, progress=False)


def test_a_fit_brings_its_guide(make_lfads, counts, tmp_path):
    model = make_lfads(counts)
    fitted = fitted_by(ELBO(), model, counts, guide=AutoNormal(model))
    assert isinstance(fitted, Fit)
    tree = draw(fitted, counts)
    assert tree.attrs["guide"] == "AutoNormal" and tree.attrs["method"] == "guide"
    xr.testing.assert_equal(
        tree["posterior"].to_dataset(),
        draw(model, counts, guide=fitted.guide)["posterior"].to_dataset(),
    )
    xr.testing.assert_equal(means(fitted, counts), means(model, counts, guide=fitted.guide))
    save(model, tmp_path)
    for ask in (draw, means):
        for alone in (model, load(tmp_path)):
            with pytest.raises(ValueError, match="fitted with the guide AutoNormal, so that its"):
                ask(alone, counts)
        assert ask(model, counts, method="pool", num_particles=2000) is not None


def test_seen_trials_and_the_making_are_recorded(make_lfads, make_recording):
    everything = make_recording(9)
    train, valid = everything.isel(trial=slice(4)), everything.isel(trial=slice(4, 7))
    model = make_lfads(train)
    fit(model, train, valid, max_epochs=1, progress=False, seed=3)
    tree = draw(model, everything.isel(trial=slice(None, None, -1)), seed=5)
    expected = ["unseen"] * 2 + ["validated"] * 3 + ["trained"] * 4
    assert list(tree["constant_data/role_in_fit"].values) == expected
    assert json.loads(tree.attrs["objective"])["name"] == "ELBO"
    assert json.loads(tree.attrs["training"])["seed"] == 3
    assert tree.attrs["seed"] == 5 and "torch_version" in tree.attrs
    changed = everything.copy(deep=True)
    changed["counts"][2, 0, 0] += 1
    assert draw(model, changed)["constant_data/role_in_fit"].values[2] == "unseen"
    model.record = {}
    assert "role_in_fit" not in draw(model, everything)["constant_data"]


@pytest.mark.filterwarnings("ignore:draws by method=")
@pytest.mark.parametrize(
    ("objective", "method"),
    [
        (ELBO(), "guide"),
        (VSMC(16), "smoother"),
        (SmoothedScore(16, 4), "smoother"),
    ],
)
def test_the_method_follows_the_objective(counts, objective, method):
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(counts, latent_dim=2, num_units=5)
    fitted = fitted_by(objective, model, counts)
    assert source(fitted, None, None).method == method
    particles = {} if method == "guide" else {"num_particles": 200}
    assert draw(model, counts, **particles).attrs["method"] == method
    assert means(model, counts, **particles).attrs["method"] == method
    assert draw(model, counts, method="guide").attrs["method"] == "guide"


def test_what_a_method_has_no_use_for_is_refused(make_lfads, counts, tmp_path):
    model = make_lfads(counts)
    for ask in (draw, means):
        with pytest.raises(ValueError, match=r"num_particles=9 has no meaning for method='guide';"):
            ask(model, counts, num_particles=9)
        with pytest.raises(ValueError, match=r"num_warmup=9 has no meaning .*; it is for 'mcmc'"):
            ask(model, counts, method="importance", num_warmup=9)
        with pytest.raises(ValueError, match="guide=AutoNormal is not used by method='pool'"):
            ask(model, counts, method="pool", guide=AutoNormal(model))
    with pytest.raises(ValueError, match="num_particles=9 has no meaning for method='guide'"):
        calibrate(model, counts, num_particles=9, num_simulations=4)
    given = {"g0": np.zeros((1, 2, 6, 6))}
    with pytest.raises(ValueError, match="num_particles=9 has no meaning where draws are given"):
        to_datatree(model, counts, draws=given, num_particles=9)
    kalman = fit(LinearDynamics.for_recording(signal(), latent_dim=1), signal(), max_epochs=1)
    with pytest.raises(ValueError, match="num_particles=9 has no meaning for method='exact'"):
        check(kalman, signal(), num_particles=9)


def signal():
    """A recording of a signal, whose linear dynamics are exact."""
    values = np.random.default_rng(0).standard_normal((6, 9, 3))
    return recording(signal=values, bin_width=0.01)


def test_predictions_report_weights_and_warn(counts):
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(counts, latent_dim=2, num_units=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = means(model, counts, method="importance", num_particles=300)
    assert found["pareto_k"].dims == found["effective_sample_size"].dims == ("trial",)
    assert (found["effective_sample_size"] <= 300).all()
    tree_warning = r"of 6 trials; take method='mcmc'"
    with pytest.warns(UserWarning, match=tree_warning):
        means(model, counts, method="smoother", num_particles=10)
    with pytest.warns(UserWarning, match=tree_warning):
        draw(model, counts, method="smoother", num_particles=10)


def test_the_warning_counts_trials():
    reliability = Reliability()
    reliability.add({})  # of a guide
    reliability.warn("guide")
    for k, effective in (([0.2, 0.9], [400.0, 400.0]), ([np.inf, 0.1], [2.0, 300.0])):
        reliability.add(
            {"pareto_k": torch.tensor(k), "effective_sample_size": torch.tensor(effective)}
        )
    with pytest.warns(
        UserWarning, match=r"k-hat is above 0.7 in 2 and there are fewer than 20 .* in 1 of 4 trial"
    ):
        reliability.warn("pool")


@pytest.mark.filterwarnings("ignore::pyrodyn.infer.training.diagnostics.FitWarning")
def test_neurons_that_the_encoder_never_read_must_stay_hidden(make_recording, make_lfads, tmp_path):
    """A neuron that was held out during the fit has no trained weights in the encoder."""
    recorded = make_recording()
    marked = held_out(recorded, neurons=[1, 2])
    model = make_lfads(recorded)
    fit(model, marked, objective=ELBO(), max_epochs=1, progress=False)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    for read in (predict, to_datatree):
        with pytest.warns(UserWarning, match=r"2 neurons were held out .*neurons=\[1, 2\]\)"):
            read(loaded, recorded, num_draws=2)
        with pytest.warns(UserWarning, match=r"1 neurons were held out .*neurons=\[2\]\)"):
            read(loaded, held_out(recorded, neurons=[1]), num_draws=2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*were in the training set of the fit")
            read(loaded, marked, num_draws=2)
            read(loaded, held_out(recorded, neurons=[0, 1, 2]), num_draws=2)


@pytest.mark.filterwarnings("ignore::pyrodyn.infer.training.diagnostics.FitWarning")
def test_a_model_without_an_encoder_may_read_all_neurons(make_recording):
    recorded = make_recording()
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=8, seed=0)
    model.proposal = Bootstrap()
    fit(model, held_out(recorded, neurons=[1]), max_epochs=1, progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="draws by method=")
        predict(model, recorded, num_draws=2, num_particles=8)


def test_the_card_lists_held_out_neurons(make_recording, make_lfads, tmp_path):
    recorded = held_out(make_recording(), neurons=[1, 2])
    fitted = fit(make_lfads(recorded), recorded, max_epochs=1, progress=False)
    save(fitted, tmp_path / "model")
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["record"]["data"]["held_out"] == [1, 2]


def test_the_warning_names_chains_and_survivors():
    effective = torch.tensor([100.0, 5.0, 100.0])
    chains = Reliability()
    chains.add({"effective_sample_size": effective, "r_hat": torch.tensor([1.0, 1.2, torch.inf])})
    expected = (
        "fewer than 20 effective draws in 1 and R-hat is above 1.05 in 2 of 3 trials; take more"
    )
    with pytest.warns(UserWarning, match=expected):
        chains.warn("mcmc")
    survivors = torch.tensor([40, 19, 2])
    smoother = Reliability()
    smoother.add(
        {
            "effective_sample_size": effective + 20,
            "first_particles_with_descendants": survivors,
        }
    )
    expected = "fewer than 20 initial particles have descendants in 2 of 3 trials; take method='mc"
    with pytest.warns(UserWarning, match=expected):
        smoother.warn("smoother")
