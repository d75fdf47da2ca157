"""The DataTree of counts and a signal: two variables, integers and floats, each with its dims."""

import arviz_plots
import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch.distributions import Normal, Poisson

from pyrodyn.data import Trials, held_out, recording
from pyrodyn.data.schema import blocks, measured
from pyrodyn.models import LowRankRNN
from pyrodyn.posterior import for_ppc, predict, to_datatree
from pyrodyn.posterior.draws import GuideSampler

NUM_TRIALS, NUM_BINS, NUM_NEURONS, NUM_CHANNELS = 5, 8, 3, 2
METHODS = ("guide", "importance", "smoother")


@pytest.fixture
def data() -> xr.Dataset:
    """Ragged trials with gaps in the signal, labels and marks."""
    rng = np.random.default_rng(0)
    lengths = [8, 8, 5, 8, 7]
    signal_valid = rng.random((NUM_TRIALS, NUM_BINS, NUM_CHANNELS)) > 0.2
    data = recording(
        [rng.poisson(1.5, (length, NUM_NEURONS)) for length in lengths],
        signal=[rng.normal(size=(length, NUM_CHANNELS)) for length in lengths],
        signal_valid=signal_valid,
        signal_mean=np.zeros((NUM_TRIALS, NUM_BINS, NUM_CHANNELS)),
        bin_width=0.02,
        names={"neuron": ["n0", "n1", "n2"], "channel": ["c0", "c1"]},
    )
    return held_out(data, neurons=[1], channels=[0])


@pytest.fixture
def model(data) -> LowRankRNN:
    torch.manual_seed(0)
    return LowRankRNN.for_recording(data, latent_dim=2, num_units=5).eval()


def mask(data: xr.Dataset, observed: str) -> np.ndarray:
    (block,) = (block for block in blocks(data) if block.observed == observed)
    return measured(data, block).values


def tree_by(method: str, model, data, **options) -> xr.DataTree:
    particles = {} if method == "guide" else {"num_particles": 50}
    return to_datatree(
        model, data, num_draws=6, batch_size=2, method=method, **particles, **options
    )


@pytest.mark.filterwarnings("ignore:draws by method=")
@pytest.mark.parametrize("method", METHODS)
def test_groups_hold_both(model, data, method):
    tree = tree_by(method, model, data, num_prior_draws=2)
    dims = {"counts": "neuron", "signal": "channel"}
    for group, lead in (
        ("posterior_predictive", ("chain", "draw")),
        ("prior_predictive", ("chain", "draw")),
        ("observed_data", ()),
    ):
        found = tree[group].to_dataset()
        assert set(found.data_vars) == set(dims)
        for name, unit in dims.items():
            assert found[name].dims == (*lead, "trial", "time", unit)
            assert not found[name].values[..., ~mask(data, name)].any()
        assert np.issubdtype(found["counts"].dtype, np.integer)
        assert found["signal"].dtype == np.float32
        assert list(found["neuron"].values) == ["n0", "n1", "n2"]
        assert list(found["channel"].values) == ["c0", "c1"]
    np.testing.assert_array_equal(tree["observed_data/counts"], data["counts"])
    np.testing.assert_array_equal(tree["observed_data/signal"], data["signal"])
    for group in ("posterior", "prior"):
        assert tree[group]["rates"].dims == ("chain", "draw", "trial", "time", "neuron")
        assert tree[group]["signal_mean"].dims == ("chain", "draw", "trial", "time", "channel")
    assert set(tree["constant_data"].data_vars) == {"valid", "signal_valid", "signal_mean"}


@pytest.mark.filterwarnings("ignore:draws by method=")
@pytest.mark.parametrize("method", METHODS)
def test_log_likelihoods_are_those_of_the_measured_entries(model, data, method):
    tree = tree_by(method, model, data)
    posterior = tree["posterior"].to_dataset()
    rates, mean = (torch.as_tensor(posterior[name].values[0]) for name in ("rates", "signal_mean"))
    scale = model.observation.singles()[1].scale().detach()
    by_hand = {
        "counts": Poisson(rates).log_prob(torch.as_tensor(data["counts"].values).float()),
        "signal": Normal(mean, scale).log_prob(torch.as_tensor(data["signal"].values)),
    }
    found = tree["log_likelihood"].to_dataset()
    assert set(found.data_vars) == {"counts", "signal", "x"}
    for name, terms in by_hand.items():
        expected = (terms * torch.as_tensor(mask(data, name))).sum((-2, -1))
        np.testing.assert_allclose(found[name].values[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["x"], found["counts"] + found["signal"], rtol=1e-5, atol=1e-4)


def test_streaming_and_files_give_the_same_tree(model, data, tmp_path):
    whole = to_datatree(model, data, num_draws=3, num_prior_draws=2, batch_size=2)
    path = tmp_path / "streamed.zarr"
    trees = [to_datatree(model, data, num_draws=3, num_prior_draws=2, batch_size=2, path=path)]
    whole.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    trees.append(xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf"))
    for tree in trees:
        for group in whole.children:
            xr.testing.assert_equal(whole[group].to_dataset(), tree[group].to_dataset().load())
        tree.close()


@pytest.mark.filterwarnings("ignore:.*Pareto k.*")
@pytest.mark.filterwarnings("ignore:.*shape parameter of Pareto.*")
def test_loo_leaves_out_trials_of_either_or_both(model, data):
    tree = to_datatree(model, data, num_draws=200)
    for name in ("x", "counts", "signal"):
        result = arviz_stats.loo(tree, var_name=name, pointwise=True)
        assert result.n_data_points == NUM_TRIALS
        assert np.isfinite(result.elpd)


def test_checks_keep_both_apart(model, data):
    tree = to_datatree(model, data, num_draws=4)
    view = for_ppc(tree)
    for name, dtype in (("counts", np.integer), ("signal", np.floating)):
        keep = mask(data, name)
        observed, predicted = view["observed_data"][name], view["posterior_predictive"][name]
        np.testing.assert_array_equal(observed, data[name].values[keep])
        np.testing.assert_array_equal(
            predicted.values, tree["posterior_predictive"][name].values[..., keep]
        )
        assert np.issubdtype(observed.dtype, dtype) and np.issubdtype(predicted.dtype, dtype)
    by_channel = for_ppc(tree, by="channel")
    assert set(by_channel["observed_data"].data_vars) == {"signal_channel_c0", "signal_channel_c1"}
    np.testing.assert_array_equal(
        by_channel["observed_data/signal_channel_c1"],
        data["signal"].values[..., 1][mask(data, "signal")[..., 1]],
    )
    by_trial = for_ppc(tree, by="trial")
    assert len(by_trial["observed_data"].data_vars) == 2 * NUM_TRIALS
    arviz_plots.plot_ppc_dist(tree, kind="ecdf", num_samples=3)
    arviz_plots.plot_ppc_rootogram(for_ppc(tree, by="neuron"), var_names=["counts_neuron_n0"])
    plt.close("all")


def test_prediction_is_the_mean_of_draws(model, data):
    predicted = predict(model, data, num_draws=400, batch_size=2)
    assert set(predicted) == {
        f"{name}{sd}" for name in ("z", "rates", "signal_mean") for sd in ("", "_sd")
    }
    torch.manual_seed(1)
    draws = GuideSampler(model, model.guide)(Trials(data).batch(), 400).sites.local["rates"]
    error = (2 * draws.var(0) / 400).sqrt().numpy()
    for name, columns in (("rates", slice(0, NUM_NEURONS)), ("signal_mean", slice(3, None))):
        gap = np.abs(predicted[name].values - draws.mean(0)[..., columns].numpy())
        assert (gap < 5 * error[..., columns] + 1e-6).all()
        np.testing.assert_allclose(
            predicted[f"{name}_sd"], draws.std(0)[..., columns], rtol=0.4, atol=1e-6
        )
    assert predicted["signal_mean"].dims == ("trial", "time", "channel")
    assert list(predicted["channel"].values) == ["c0", "c1"]
