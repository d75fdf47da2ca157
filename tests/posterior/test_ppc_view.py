"""The view of a tree for predictive checks: entries, coordinates, panels and statistics."""

import arviz_plots
import numpy as np
import pytest
import torch
import xarray as xr

from pyrodyn.data import recording
from pyrodyn.posterior import for_ppc, statistics, to_datatree

LENGTHS = [8, 8, 5, 8]


@pytest.fixture
def counts() -> xr.Dataset:
    rng = np.random.default_rng(0)
    return recording(
        [rng.poisson(1.5, (length, 3)) for length in LENGTHS],
        bin_width=0.02,
        condition=np.array(list("abba")),
        names={"neuron": ["n/0", "n1", "n2"]},
    )


@pytest.fixture
def tree(counts, make_lfads) -> xr.DataTree:
    torch.manual_seed(0)
    model = make_lfads(counts)
    return to_datatree(model, counts, num_draws=8, num_prior_draws=5, num_chains=2)


def test_every_group_has_the_same_entries(tree, counts):
    view = for_ppc(tree)
    assert set(view.children) == {
        "observed_data",
        "posterior_predictive",
        "prior_predictive",
        "posterior",
        "log_likelihood",
        "constant_data",
    }
    x = view["observed_data"].to_dataset()["x"]
    assert x.sizes["observation"] == 3 * sum(LENGTHS)
    for i in (0, 40, 60):  # each entry is where its coordinates place it
        place = {dim: x[dim].values[i] for dim in ("trial", "time", "neuron")}
        assert x.values[i] == counts["counts"].sel(place).item()
        assert x["condition"].values[i] == counts["condition"].sel(trial=place["trial"]).item()
        for group in ("posterior_predictive", "prior_predictive"):
            np.testing.assert_array_equal(
                view[group]["x"].values[..., i], tree[group]["x"].sel(place).values
            )
        np.testing.assert_array_equal(
            view["posterior"]["rates"].values[..., i], tree["posterior"]["rates"].sel(place).values
        )
        np.testing.assert_array_equal(
            view["log_likelihood"]["x"].values[..., i],
            tree["log_likelihood"]["x"].sel(trial=place["trial"]).values,
        )
    assert view["posterior_predictive"].sizes["chain"] == 2
    assert set(view["constant_data"].data_vars) == {
        f"observation_{name}" for name in ("trial", "time", "neuron", "condition")
    }


def test_panels_have_safe_names_and_share_their_dim(tree, counts):
    view = for_ppc(tree, by="neuron")
    names = ["x_neuron_n_0", "x_neuron_n1", "x_neuron_n2"]
    assert list(view["observed_data"].data_vars) == names
    assert set(view["observed_data"].dims) == {"observation"}
    keep = counts["valid"].values
    for i, name in enumerate(names):
        np.testing.assert_array_equal(
            view["observed_data"][name], counts["counts"].values[keep][:, i]
        )
    # The two steps together: a panel per neuron and a statistic of one's own.
    arviz_plots.plot_ppc_tstat(view, t_stat=statistics.fano_factor, backend="none")
    assert "observation_x_trial_2" in for_ppc(tree, by="trial")["observed_data"].dims


def test_names_that_repeat_stay_apart(tree):
    again = tree.copy()
    for group in again.children:
        if "neuron" in again[group].coords:
            dataset = again[group].to_dataset().assign_coords(neuron=["0", "0", "1"])
            again[group] = xr.DataTree(dataset)
    view = for_ppc(again, by="neuron")
    assert list(view["observed_data"].data_vars) == [
        "x_neuron_0_at_0",
        "x_neuron_0_at_1",
        "x_neuron_1",
    ]


def test_statistics_in_a_view(tree, counts):
    view = for_ppc(tree, statistic=statistics.psth)
    x = view["observed_data"].to_dataset()["x"]
    by_hand = counts["counts"].where(counts["valid"]).groupby(counts["condition"]).mean("trial")
    place = {name: x[name].values[5] for name in ("condition", "time", "neuron")}
    assert x.values[5] == pytest.approx(by_hand.sel(place).item())
    assert view["posterior_predictive"]["x"].shape == (2, 4, x.size)
    panels = for_ppc(tree, by="neuron", statistic=statistics.psth)
    assert set(panels["observed_data"].dims) == {"observation"}
    given_rates = for_ppc(tree, statistic=statistics.dispersion)
    rates = tree["posterior/rates"].mean(("chain", "draw"))
    expected = statistics.dispersion(counts["counts"].where(counts["valid"]), rates)
    np.testing.assert_allclose(given_rates["observed_data/x"], expected, rtol=1e-5)
    arviz_plots.plot_ppc_interval(view, backend="none")


def test_fewer_draws_and_one_group(tree):
    view = for_ppc(tree, num_draws=2, group="prior_predictive")
    assert "posterior_predictive" not in view.children
    assert list(view["prior_predictive"]["draw"].values) == [0, 4]
    assert view["log_likelihood"].sizes["draw"] == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"by": "channel"}, "by='channel' is no dim of the observations"),
        (
            {"by": "time", "statistic": statistics.fano_factor},
            r"by='time' is no dim of the statistic; these are \('neuron',\)",
        ),
        ({"num_draws": 0}, "num_draws=0 must be"),
        ({"statistic": lambda x: x.mean("trial") * np.nan}, "statistic of x is undefined"),
    ],
)
def test_views_that_cannot_be_made(tree, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        for_ppc(tree, **options)
    without_prior = xr.DataTree.from_dict(
        {name: tree[name].to_dataset() for name in tree.children if "prior" not in name}
    )
    with pytest.raises(ValueError, match="'prior_predictive' is not in the tree; draw it with"):
        for_ppc(without_prior, group="prior_predictive")
