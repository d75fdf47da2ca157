"""The group of predictions: held-out neurons and channels and forecast bins, and nothing else."""

import arviz_plots
import arviz_stats
import numpy as np
import pytest
import torch
import xarray as xr

from pyrodyn.data import held_out, recording
from pyrodyn.models import LowRankRNN
from pyrodyn.posterior import for_ppc, statistics, to_datatree

GROUPS = {"predictions", "predictions_constant_data"}


@pytest.fixture
def counts() -> xr.Dataset:
    """Trials of unequal length with rates and labels."""
    rng = np.random.default_rng(0)
    lengths = [6, 6, 4, 6]
    rates = [rng.gamma(2.0, size=(length, 4)) for length in lengths]
    return recording(
        [rng.poisson(rate) for rate in rates],
        rates=rates,
        bin_width=0.1,
        condition=["a", "b", "b", "a"],
        names={"neuron": [f"n{i}" for i in range(4)]},
    )


def tree_of(data: xr.Dataset, num_draws: int = 6, **options) -> xr.DataTree:
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(data, latent_dim=2, num_units=5).eval()
    return to_datatree(model, data, num_draws=num_draws, method="guide", **options)


def test_nothing_is_predicted_without_marks(counts):
    tree = tree_of(counts)
    assert not GROUPS & set(tree.children)
    with pytest.raises(ValueError, match=r"group='predictions' is not in the tree; mark held-out"):
        for_ppc(tree, group="predictions")


@pytest.mark.parametrize(
    ("marks", "bins", "neurons"),
    [
        ({"neurons": [1, 3]}, range(6), [1, 3]),
        ({"forecast_bins": 2}, [4, 5], range(4)),
        ({"neurons": [1, 3], "forecast_bins": 2}, range(6), range(4)),
    ],
    ids=["neurons", "bins", "both"],
)
def test_predictions_are_the_entries_hidden_from_the_encoder(counts, marks, bins, neurons):
    data = held_out(counts, **marks)
    tree = tree_of(data, batch_size=3)
    hidden = np.zeros((6, 4), bool)
    hidden[:, marks.get("neurons", [])] = True
    hidden[6 - marks.get("forecast_bins", 0) :] = True
    hidden = (hidden & counts["valid"].values[..., None])[:, bins][..., neurons]
    constant = tree["predictions_constant_data"].to_dataset()
    np.testing.assert_array_equal(constant["valid"], hidden)
    part = counts.isel(time=list(bins), neuron=list(neurons))
    np.testing.assert_array_equal(constant["x"], np.where(hidden, part["counts"], 0))
    np.testing.assert_array_equal(constant["rates"], part["rates"])
    assert constant["condition"].values.tolist() == ["a", "b", "b", "a"]
    drawn = tree["predictions/x"]
    assert drawn.dims == ("chain", "draw", "trial", "time", "neuron")
    assert np.issubdtype(drawn.dtype, np.integer)
    assert drawn["neuron"].values.tolist() == [f"n{i}" for i in neurons]
    every = tree["posterior_predictive/x"].isel(time=list(bins), neuron=list(neurons))
    np.testing.assert_array_equal(drawn, np.where(hidden, every, 0))
    assert (drawn != 0).any()


def test_streaming_and_files_keep_predictions(counts, tmp_path):
    data = held_out(counts, neurons=[1], forecast_bins=1)
    whole = tree_of(data, batch_size=2, log_likelihood="entry")
    streamed = tree_of(data, batch_size=2, log_likelihood="entry", path=tmp_path / "a.zarr")
    whole.to_netcdf(tmp_path / "a.nc")
    with xr.open_datatree(tmp_path / "a.nc") as stored:
        for name in (*GROUPS, "log_likelihood"):
            for other in (streamed, stored):
                xr.testing.assert_equal(whole[name].to_dataset(), other[name].to_dataset().load())


def test_the_view_of_predictions(counts):
    data = held_out(counts, neurons=[1, 3], forecast_bins=2)
    tree = tree_of(data, log_likelihood="entry", num_prior_draws=2)
    view = for_ppc(tree, group="predictions")
    observed = view["observed_data/x"]
    hidden = tree["predictions_constant_data/valid"].values
    assert observed.size == hidden.sum()
    for i in (0, 5, -1):
        place = {dim: observed[dim].values[i] for dim in ("trial", "time", "neuron")}
        entry = {"time": np.isclose(data["time"], place["time"]).argmax()}
        entry |= {dim: data[dim].values.tolist().index(place[dim]) for dim in ("trial", "neuron")}
        assert observed.values[i] == data["counts"].isel(entry)
        for group, name in (("posterior", "rates"), ("log_likelihood", "x")):
            np.testing.assert_array_equal(
                view[group][name][..., i], tree[group][name].isel(entry), err_msg=group
            )
        np.testing.assert_array_equal(
            view["predictions/x"][..., i], tree["posterior_predictive/x"].isel(entry)
        )
        assert view["predictions_constant_data/true_rates"][i] == data["rates"].isel(entry)
    xr.testing.assert_identical(
        view["posterior_predictive"].to_dataset(), view["predictions"].to_dataset()
    )
    panels = for_ppc(tree, group="predictions", by="neuron")["predictions"].to_dataset()
    assert list(panels) == [f"x_neuron_n{i}" for i in range(4)]
    assert [panels[name].shape[-1] for name in panels] == [6, 22, 6, 22]
    rates = for_ppc(tree, group="predictions", statistic=statistics.mean_rate)
    np.testing.assert_allclose(
        rates["observed_data/x"],
        data["counts"].where(tree["predictions_constant_data/valid"]).mean(("trial", "time")),
        rtol=1e-6,
    )


@pytest.mark.filterwarnings("ignore")
def test_arviz_takes_the_group(counts):
    view = for_ppc(tree_of(held_out(counts, neurons=[1, 3])), group="predictions")
    options = {"group": "predictions", "backend": "none"}
    for name, own in {
        "plot_ppc_rootogram": {},
        "plot_ppc_interval": {},
        "plot_ppc_dist": {"kind": "ecdf", "num_samples": 5},
        "plot_lm": {"x": "observation_time", "y": "x", "y_obs": "x"},
    }.items():
        assert getattr(arviz_plots, name)(view, **own, **options) is not None
    assert arviz_plots.plot_ppc_tstat(view, t_stat="mean", backend="none") is not None
    error = abs(view["predictions/x"].mean(("chain", "draw")) - view["observed_data/x"]).mean()
    assert arviz_stats.metrics(view, kind="mae", round_to="none").mean == pytest.approx(
        float(error)
    )


def test_predictions_of_one_of_two_variables():
    rng = np.random.default_rng(0)
    signal_valid = rng.random((3, 5, 2)) > 0.3
    data = recording(
        rng.poisson(1.0, (3, 5, 2)),
        signal=rng.normal(size=(3, 5, 2)),
        signal_valid=signal_valid,
        bin_width=0.1,
    )
    tree = tree_of(held_out(data, channels=[1]), log_likelihood="entry")
    assert set(tree["predictions"].data_vars) == {"signal"}
    constant = tree["predictions_constant_data"].to_dataset()
    np.testing.assert_array_equal(constant["signal_valid"], signal_valid[..., 1:])
    view = for_ppc(tree, group="predictions")
    np.testing.assert_array_equal(
        view["observed_data/signal"], data["signal"].values[..., 1][signal_valid[..., 1]]
    )
    assert set(view["log_likelihood"].data_vars) == {"signal"}
    both = tree_of(held_out(data, channels=[1], forecast_bins=1))
    assert both["predictions/counts"].shape == (1, 6, 3, 5, 2)
    marks = both["predictions_constant_data"].to_dataset()
    assert marks["valid"].sum("time").values.tolist() == [[1, 1]] * 3
    assert both["predictions/signal"].shape == (1, 6, 3, 5, 2)


@pytest.mark.parametrize("kind", ["counts", "both"])
def test_log_likelihoods_of_entries_add_up_to_those_of_trials(counts, kind):
    data = counts.drop_vars("rates")
    if kind == "both":
        rng = np.random.default_rng(1)
        signal = rng.normal(size=(4, 6, 2))
        data = recording(
            data["counts"],
            signal=signal,
            valid=data["valid"].broadcast_like(data["counts"]).values,
            signal_valid=rng.random(signal.shape) > 0.2,
            bin_width=0.1,
        )
    data = held_out(data, neurons=[1])
    per_trial = tree_of(data, batch_size=2)["log_likelihood"].to_dataset()
    tree = tree_of(data, batch_size=2, log_likelihood="entry")
    entries = tree["log_likelihood"].to_dataset()
    for name, unit in {
        "counts": {"x": "neuron"},
        "both": {"counts": "neuron", "signal": "channel"},
    }[kind].items():
        assert entries[name].dims == ("chain", "draw", "trial", "time", unit)
        where = data["signal_valid"] if unit == "channel" else data["valid"]
        unmeasured = entries[name].isnull().all(("chain", "draw"))
        np.testing.assert_array_equal(unmeasured, ~where.broadcast_like(unmeasured))
        np.testing.assert_allclose(
            entries[name].sum(("time", unit)), per_trial[name], rtol=1e-4, atol=1e-4
        )
    if kind == "both":
        np.testing.assert_allclose(entries["x"], per_trial["x"], rtol=1e-5)
        return
    rates, x = tree["posterior/rates"], tree["observed_data/x"]
    by_hand = torch.distributions.Poisson(torch.as_tensor(rates.values)).log_prob(
        torch.as_tensor(x.values).float()
    )
    known = ~np.isnan(entries["x"].values)
    np.testing.assert_allclose(entries["x"].values[known], by_hand.numpy()[known], rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_arviz_leaves_out_entries(counts):
    """With the log likelihood of entries the view's leave-one-out is of entries."""
    view = for_ppc(tree_of(counts, 100, log_likelihood="entry"))
    num_entries = int(counts["valid"].sum()) * counts.sizes["neuron"]
    found = arviz_stats.loo(view, pointwise=True)
    assert found.elpd_i.size == num_entries and np.isfinite(found.elpd_i).all()
    assert arviz_stats.loo_pit(view)["x"].size == num_entries


def test_what_a_view_and_a_log_likelihood_cannot_be(counts):
    with pytest.raises(ValueError, match="log_likelihood='bin' is unknown; it is 'trial' or 'entr"):
        tree_of(counts, log_likelihood="bin")
    tree = tree_of(counts)
    bare = xr.DataTree.from_dict({"posterior": tree["posterior"].to_dataset()})
    with pytest.raises(
        ValueError, match="has no group observed_data and constant_data; its groups"
    ):
        for_ppc(bare)
