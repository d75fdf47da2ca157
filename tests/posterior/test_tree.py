"""The DataTree contract: groups, names, integer counts, round trips, ArviZ's own tools."""

import arviz_plots
import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal

import pyrodyn
from pyrodyn.data import held_out, recording
from pyrodyn.infer import ELBO
from pyrodyn.models import LFADS
from pyrodyn.posterior import for_ppc, predict, to_datatree
from pyrodyn.posterior.draws import GuideSampler
from pyrodyn.posterior.statistics import fano_factor

NUM_TRIALS, NUM_BINS, NUM_NEURONS = 7, 10, 4
SIZES = {
    "factor_dim": 2,
    "generator_dim": 6,
    "initial_condition_dim": 3,
    "encoder_dim": 4,
    "controller_encoder_dim": 4,
    "controller_dim": 4,
    "inferred_input_dim": 1,
}


@pytest.fixture
def counts() -> xr.Dataset:
    rng = np.random.default_rng(0)
    lengths = np.array([10, 10, 8, 10, 6, 10, 10])
    return recording(
        counts=[rng.poisson(1.5, (length, NUM_NEURONS)) for length in lengths],
        bin_width=0.02,
        start=-0.1,
        condition=np.array(list("aabbabb")),
        names={"neuron": [f"n{i}" for i in range(NUM_NEURONS)], "trial": np.arange(10, 17)},
    )


@pytest.fixture
def model(counts) -> LFADS:
    torch.manual_seed(0)
    return LFADS.for_recording(counts, **SIZES).eval()


def test_groups_dims_and_coordinates(model, counts):
    tree = to_datatree(model, counts, num_draws=5, num_prior_draws=3, batch_size=3)
    assert set(tree.children) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "log_prior",
        "sample_stats",
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
    }
    posterior = tree["posterior"].to_dataset()
    assert posterior["rates"].dims == ("chain", "draw", "trial", "time", "neuron")
    assert posterior["factors"].dims == ("chain", "draw", "trial", "time", "factor")
    assert posterior["g0"].dims == ("chain", "draw", "trial", "initial_condition")
    assert posterior["u"].dims == ("chain", "draw", "trial", "time", "inferred_input")
    assert posterior.sizes["chain"] == 1
    assert posterior.sizes["draw"] == 5
    assert list(posterior["neuron"].values) == ["n0", "n1", "n2", "n3"]
    np.testing.assert_array_equal(posterior["trial"], np.arange(10, 17))
    np.testing.assert_allclose(posterior["time"], counts["time"])
    assert np.issubdtype(tree["posterior_predictive/x"].dtype, np.integer)
    assert tree["prior/rates"].sizes["draw"] == 3
    np.testing.assert_array_equal(tree["observed_data/x"], counts["counts"])
    assert list(tree["constant_data/condition"].values) == list("aabbabb")
    assert tree["sample_stats/lp"].dims == ("chain", "draw", "trial")


def test_nothing_unmeasured_is_predicted(model, counts):
    tree = to_datatree(model, counts, num_draws=5)
    outside = ~counts["valid"].values
    predicted = tree["posterior_predictive/x"].values[0]
    assert outside.any()
    assert not predicted[:, outside].any()


def test_log_likelihood_counts_measured_entries_only(model, counts):
    tree = to_datatree(model, counts, num_draws=4, batch_size=2)
    rates = torch.as_tensor(tree["posterior/rates"].values[0])
    x = torch.as_tensor(counts["counts"].values).float()
    valid = torch.as_tensor(counts["valid"].values)[..., None]
    by_hand = (torch.distributions.Poisson(rates).log_prob(x) * valid).sum((-2, -1))
    np.testing.assert_allclose(tree["log_likelihood/x"].values[0], by_hand, rtol=1e-4, atol=1e-4)


def test_densities_estimate_the_elbo(model, counts):
    """The mean of lp - log_q over draws is the ELBO of each trial."""
    stats = to_datatree(model, counts, num_draws=400)["sample_stats"].to_dataset()
    draws = (stats["lp"] - stats["log_q"]).sum("trial").values[0]
    batch = model.trials_of(counts).batch()
    with torch.no_grad():
        losses = np.array([float(ELBO(20)(model, model.guide)(batch)) for _ in range(20)])
    error = np.hypot(draws.std() / np.sqrt(draws.size), losses.std() / np.sqrt(losses.size))
    assert abs(draws.mean() + losses.mean()) < 4 * error


def test_densities_of_an_automatic_guide(model, counts):
    """An AutoNormal's density lies in auxiliary sites; a joint one has none per trial."""
    batch = model.trials_of(counts).batch()
    guide = AutoNormal(model)
    guide(batch)
    stats = to_datatree(model, counts, num_draws=300, guide=guide)["sample_stats"].to_dataset()
    draws = (stats["lp"] - stats["log_q"]).sum("trial").values[0]
    with torch.no_grad():
        losses = np.array([float(ELBO(20)(model, guide)(batch)) for _ in range(20)])
    error = np.hypot(draws.std() / np.sqrt(draws.size), losses.std() / np.sqrt(losses.size))
    assert abs(draws.mean() + losses.mean()) < 4 * error
    joint = AutoLowRankMultivariateNormal(model)
    joint(batch)
    assert to_datatree(model, counts, num_draws=2, guide=joint)["sample_stats/log_q"].isnull().all()


def test_streaming_gives_the_same_tree(model, counts, tmp_path):
    whole = to_datatree(model, counts, num_draws=4, num_prior_draws=2, batch_size=3)
    path = tmp_path / "tree.zarr"
    streamed = to_datatree(model, counts, num_draws=4, num_prior_draws=2, batch_size=3, path=path)
    for group in whole.children:
        xr.testing.assert_equal(whole[group].to_dataset(), streamed[group].to_dataset().compute())
    assert streamed.attrs["model"] == "LFADS"
    assert not path.with_suffix(".zarr.part").exists()


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_round_trips(model, counts, tmp_path, suffix):
    tree = to_datatree(model, counts, num_draws=3)
    path = tmp_path / f"tree.{suffix}"
    if suffix == "nc":
        tree.to_netcdf(path, engine="h5netcdf")
        back = xr.open_datatree(path, engine="h5netcdf")
    else:
        tree.to_zarr(path, consolidated=False)
        back = xr.open_datatree(path, engine="zarr", consolidated=False)
    for group in tree.children:
        xr.testing.assert_equal(tree[group].to_dataset(), back[group].to_dataset().load())
    back.close()


@pytest.mark.filterwarnings("ignore:.*Pareto k.*")
@pytest.mark.filterwarnings("ignore:.*shape parameter of Pareto.*")
def test_loo_leaves_out_trials(model, counts):
    result = arviz_stats.loo(to_datatree(model, counts, num_draws=200), pointwise=True)
    assert result.n_data_points == NUM_TRIALS
    assert np.isfinite(result.elpd)


def test_ppc_plots_run(model, counts):
    tree = to_datatree(model, counts, num_draws=20)
    arviz_plots.plot_ppc_dist(tree, kind="ecdf", num_samples=5)
    view = for_ppc(tree, by="neuron")
    arviz_plots.plot_ppc_rootogram(view, var_names=["x_neuron_n0", "x_neuron_n1"])
    arviz_plots.plot_ppc_tstat(for_ppc(tree), t_stat=fano_factor)
    plt.close("all")


def test_ppc_view_holds_the_measured_entries_in_order(model, counts):
    tree = to_datatree(model, counts, num_draws=3)
    valid = counts["valid"].values
    view = for_ppc(tree)
    np.testing.assert_array_equal(view["observed_data/x"], counts["counts"].values[valid].ravel())
    assert view["posterior_predictive/x"].shape == (1, 3, valid.sum() * NUM_NEURONS)
    by_neuron = for_ppc(tree, by="neuron")
    np.testing.assert_array_equal(
        by_neuron["observed_data/x_neuron_n2"], counts["counts"].values[valid][:, 2]
    )
    np.testing.assert_array_equal(
        by_neuron["posterior_predictive/x_neuron_n2"].values[0],
        tree["posterior_predictive/x"].values[0][:, valid][..., 2],
    )
    with pytest.raises(ValueError, match="by='channel' is no dim of the observations"):
        for_ppc(tree, by="channel")


def test_prediction_is_the_mean_of_draws(model, counts):
    predicted = predict(model, counts, num_draws=400, batch_size=3)
    with torch.no_grad():
        draws = GuideSampler(model, model.guide)(model.trials_of(counts).batch(), 400)
    rates = draws.sites.local["rates"]
    error = (2 * rates.var(0) / 400).sqrt().numpy()
    gap = np.abs(predicted["rates"].values - rates.mean(0).numpy())
    assert (gap < 5 * error + 1e-6).all()
    np.testing.assert_allclose(predicted["rates_sd"], rates.std(0), rtol=0.4)
    assert predicted["factors"].dims == ("trial", "time", "factor")
    assert set(predicted) >= {"g0", "u", "rates", "factors", "u_sd"}


def test_initial_condition_window_shortens_time(counts):
    marked = held_out(counts, neurons=[1], forecast_bins=2)
    model = LFADS.for_recording(marked, **{**SIZES, "initial_condition_bins": 3}).eval()
    tree = to_datatree(model, marked, num_draws=2)
    np.testing.assert_allclose(tree["posterior"]["time"], counts["time"][3:])
    np.testing.assert_allclose(tree["observed_data"]["time"], counts["time"][3:])
    assert predict(model, marked, num_draws=2)["rates"].sizes["time"] == NUM_BINS - 3


def test_same_seed_same_draws_and_the_models_mode_is_kept(model, counts):
    model.train()
    trees = [to_datatree(model, counts, num_draws=2, seed=4) for _ in range(2)]
    xr.testing.assert_equal(trees[0]["posterior"].to_dataset(), trees[1]["posterior"].to_dataset())
    assert model.training


def test_signals_are_predicted_as_floats_on_channels():
    rng = np.random.default_rng(0)
    signal = recording(signal=rng.normal(size=(3, 6, 2)), bin_width=0.01)
    model = pyrodyn.models.LFADS.for_recording(signal, **SIZES)
    tree = to_datatree(model, signal, num_draws=2)
    assert tree["posterior_predictive/x"].dims == ("chain", "draw", "trial", "time", "channel")
    assert tree["posterior_predictive/x"].dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_draws": 0}, "num_draws=0 must be an integer of at least 1"),
        ({"path": "tree.nc"}, r"tree.nc must end in .zarr"),
    ],
)
def test_bad_arguments(model, counts, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        to_datatree(model, counts, **arguments)


def test_other_neurons_are_refused(model):
    other = recording(counts=np.ones((2, 10, 9), int), bin_width=0.02)
    for use in (to_datatree, predict):
        with pytest.raises(ValueError, match="has 9 neurons; this model was made for 4"):
            use(model, other)


def test_an_existing_tree_is_not_overwritten(model, counts, tmp_path):
    (tmp_path / "tree.zarr").mkdir()
    with pytest.raises(ValueError, match=r"tree.zarr exists already"):
        to_datatree(model, counts, num_draws=1, path=tmp_path / "tree.zarr")


def test_a_single_draw_is_a_draw(model, counts):
    tree = to_datatree(model, counts, num_draws=1)
    assert tree["posterior_predictive"]["x"].sizes["draw"] == 1
    assert tree["posterior_predictive"]["x"].shape == tree["posterior"]["rates"].shape


@pytest.mark.parametrize("ask", [predict, to_datatree])
def test_after_an_error_the_model_is_in_the_mode_it_was_in(model, counts, ask):
    model.train()
    with torch.no_grad():
        model.readout.bias.fill_(1e4)
    with pytest.raises(ArithmeticError, match="not finite"):
        ask(model, counts, num_draws=2)
    assert model.training


def test_a_model_in_double_precision_predicts(model, counts):
    exact = predict(model.double(), counts, num_draws=2)
    assert exact["rates"].notnull().all()
    assert to_datatree(model, counts, num_draws=2)["posterior"]["u"].dtype == np.float64
