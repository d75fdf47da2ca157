"""Predictive p-values and the randomised PIT, where the right answer is known."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from pyrodyn.posterior import (
    predictive_p_values,
    randomised_pit,
    summarise_p_values,
    to_datatree,
)
from pyrodyn.posterior.statistics import autocorrelation, mean_rate

SHAPE, NUM_DRAWS = (40, 12, 6), 400
DIMS = ("trial", "time", "neuron")


def tree_of(observed, rates, drawn) -> xr.DataTree:
    lead = ("chain", "draw")
    return xr.DataTree.from_dict(
        {
            "observed_data": xr.Dataset({"x": (DIMS, observed)}),
            "constant_data": xr.Dataset(),
            "posterior": xr.Dataset({"rates": ((*lead, *DIMS), rates[None])}),
            "posterior_predictive": xr.Dataset({"x": ((*lead, *DIMS), drawn[None])}),
        }
    )


def world(rng, noise):
    """Rates that vary widely, draws near them, and Poisson predictions of the draws."""
    truth = np.exp(0.8 * rng.normal(size=SHAPE))
    rates = truth * np.exp(0.02 * rng.normal(size=(NUM_DRAWS, *SHAPE)))
    return tree_of(noise(rng, truth), rates, rng.poisson(rates))


def poisson(rng, truth):
    return rng.poisson(truth)


def negative_binomial(rng, truth):
    return rng.poisson(rng.gamma(1.0, truth))


@pytest.mark.parametrize("seed", range(3))
def test_overdispersed_counts_are_flagged_and_poisson_counts_are_not(seed):
    rng = np.random.default_rng(seed)
    wrong = summarise_p_values(predictive_p_values(world(rng, negative_binomial)))
    right = summarise_p_values(predictive_p_values(world(rng, poisson)))
    assert wrong.loc["dispersion", "num_flagged"] == SHAPE[-1]
    assert wrong.loc["zero_fraction", "num_flagged"] == SHAPE[-1]
    assert right.loc["dispersion", "num_flagged"] == 0
    assert right["num_flagged"].max() <= 1  # at a false discovery rate of 5 %
    assert wrong["can_flag"].all()
    assert wrong.loc["dispersion", "num_above"] == SHAPE[-1]
    assert wrong.loc["dispersion", "num_below"] == 0
    assert wrong.loc["dispersion", "chance"] == pytest.approx(0.05 ** SHAPE[-1])
    assert wrong.loc["dispersion", "predicted"] == pytest.approx(1, abs=0.02)
    assert (right["chance"] > 1e-3).all()


def test_p_values_of_draws_of_the_model_are_uniform():
    """Data that are one more draw of a fixed predictive distribution."""
    rng = np.random.default_rng(0)
    rates = np.ones((NUM_DRAWS, 60, 5, 200))
    tree = tree_of(rng.poisson(rates[0]), rates, rng.poisson(rates))
    p = predictive_p_values(tree, {"mean_rate": mean_rate})
    np.testing.assert_allclose(p["mean_rate_observed"], tree["observed_data/x"].mean(DIMS[:2]))
    np.testing.assert_allclose(p["mean_rate_predicted"], 1, atol=0.02)
    table = summarise_p_values(p).loc["mean_rate"]
    outside = table["num_above"] + table["num_below"]
    assert stats.binomtest(int(outside), 200, 0.05).pvalue > 0.01
    assert stats.kstest(p["mean_rate"].values, "uniform").pvalue > 0.01
    error = p["mean_rate_error"].values
    assert (error >= np.sqrt(1 / (NUM_DRAWS + 2) / NUM_DRAWS) * 0.9).all()  # never 0, at p = 0
    assert error.max() == pytest.approx(0.5 / NUM_DRAWS**0.5, rel=0.05)


def test_p_values_keep_the_dims_of_a_statistic():
    tree = world(np.random.default_rng(1), poisson)
    p = predictive_p_values(tree, {"autocorrelation": autocorrelation})
    assert set(p["autocorrelation"].dims) == {"lag", "neuron"} and p.attrs["num_draws"] == 400


def test_one_draw_has_no_p_value(make_recording, make_lfads):
    counts = make_recording(2, 3, 2)
    tree = to_datatree(make_lfads(counts), counts, num_draws=1)
    with pytest.raises(ValueError, match="the tree has 1 draw; it takes at least 2, see num_draws"):
        predictive_p_values(tree)


def test_few_draws_cannot_flag():
    tree = world(np.random.default_rng(1), negative_binomial)
    few = tree.isel(draw=slice(20))
    table = summarise_p_values(predictive_p_values(few))
    assert not table["can_flag"].any()


def test_the_randomised_pit_of_counts_is_uniform():
    """Where the predictions are exactly right, for small counts as well."""
    rng = np.random.default_rng(0)
    truth = np.exp(rng.normal(size=SHAPE) - 1)
    rates = np.broadcast_to(truth, (NUM_DRAWS, *SHAPE))
    pit = randomised_pit(tree_of(rng.poisson(truth), rates, rng.poisson(rates)))
    assert pit.dims == DIMS
    assert stats.kstest(pit.values.ravel(), "uniform").pvalue > 0.01
    wrong = randomised_pit(tree_of(negative_binomial(rng, truth), rates, rng.poisson(rates)))
    assert stats.kstest(wrong.values.ravel(), "uniform").pvalue < 1e-6


def test_what_is_unmeasured_or_absent(make_recording, make_lfads):
    tree = world(np.random.default_rng(0), poisson)
    valid = np.ones(SHAPE[:2], bool)
    valid[3, 5:] = False
    tree["constant_data"] = xr.DataTree(xr.Dataset({"valid": (DIMS[:2], valid)}))
    assert randomised_pit(tree)[3, 5:].isnull().all() and randomised_pit(tree)[3, 0].notnull().all()
    with pytest.raises(ValueError, match="has no group prior_predictive; its groups are"):
        randomised_pit(tree, group="prior_predictive")
