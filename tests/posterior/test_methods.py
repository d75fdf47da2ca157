"""Draws by importance weights, the particle smoother and a pool of paths, in the DataTree."""

import numpy as np
import pytest
import torch
import xarray as xr
from linear_gaussian import NUM_TRIALS, batch_of, by_recursion, data, exact_of, linear_network

from pyrodyn import predict, to_datatree
from pyrodyn.data import held_out
from pyrodyn.infer import FilterResult
from pyrodyn.models import LowRankRNN
from pyrodyn.posterior.draws import _roots


@pytest.fixture
def recorded() -> xr.Dataset:
    return data()


@pytest.fixture
def model(recorded) -> LowRankRNN:
    return linear_network(recorded).float()


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("method", ["importance", pytest.param("smoother", marks=pytest.mark.slow)])
def test_the_posterior_is_exact(model, recorded, method, hides):
    """The posterior is conditioned on what the encoder may see, not on held-out channels and
    forecast bins, whose likelihood is in the tree nonetheless.
    """
    if hides:
        recorded = held_out(recorded, neurons=[1, 3], forecast_bins=2)
    tree = to_datatree(model, recorded, num_draws=4000, method=method, num_particles=4000)
    exact = exact_of(model.double(), batch_of(recorded).as_seen())
    assert exact.scored.all() != hides
    stats = tree["sample_stats"]
    for trial in range(NUM_TRIALS):
        truth = by_recursion(exact, trial)
        z = tree["posterior"]["z"].values[0, :, trial]
        spread = np.sqrt(np.diagonal(truth.covariance, axis1=1, axis2=2))
        relative_error = max(float(stats["log_evidence_error"][trial]), 4000**-0.5)
        assert (np.abs(z.mean(0) - truth.mean) < 5 * spread * relative_error).all()
        evidence = float(stats["log_evidence"][trial])
        assert abs(evidence - truth.log_evidence) < 5 * float(stats["log_evidence_error"][trial])
    rates = tree["posterior"]["rates"].values[0]
    wrong = (recorded["signal"].values - rates) / np.sqrt(np.diagonal(exact.R))
    each = -0.5 * (wrong**2 + np.log(2 * np.pi * np.diagonal(exact.R)))
    likelihood = tree["log_likelihood"]["x"].values[0]
    np.testing.assert_allclose(likelihood, each.sum((-2, -1)), rtol=1e-4)


@pytest.mark.parametrize("method", ["importance", "smoother"])
@pytest.mark.slow
def test_predicted_moments_are_exact(model, recorded, method):
    predicted = predict(model, recorded, method=method, num_draws=2000, num_particles=4000)
    exact = exact_of(model.double(), batch_of(recorded))
    for trial in range(NUM_TRIALS):
        truth = by_recursion(exact, trial)
        spread = np.sqrt(np.diagonal(truth.covariance, axis1=1, axis2=2))
        z, sd = predicted["z"].values[trial], predicted["z_sd"].values[trial]
        # Importance weights leave a few hundred of the draws.
        assert (np.abs(z - truth.mean) < 0.25 * spread).all()
        np.testing.assert_allclose(sd, spread, rtol=0.3)


@pytest.mark.filterwarnings("ignore:draws by method=")
@pytest.mark.parametrize("method", ["guide", "importance", "smoother", "pool"])
@pytest.mark.parametrize("kind", ["low_rank", "lfads"])
def test_every_method_fills_every_group(kind, method, make_lfads, make_recording, tmp_path):
    counts = make_recording(5)
    model = (
        LowRankRNN.for_recording(counts, latent_dim=2, num_units=5)
        if kind == "low_rank"
        else make_lfads(counts, inferred_input_dim=1)
    )
    options = {"num_draws": 40, "method": method, "batch_size": 3}
    if method != "guide":
        options["num_particles"] = 40
    tree = to_datatree(model, counts, **options)
    for group in ("posterior", "posterior_predictive", "log_likelihood", "sample_stats"):
        for name, values in tree[group].data_vars.items():
            assert np.isfinite(values).all(), name
            assert values.sizes["trial"] == 5, name
    assert tree["posterior"]["rates"].dims == ("chain", "draw", "trial", "time", "neuron")
    stats = set(tree["sample_stats"].data_vars)
    expected = {
        "guide": {"lp", "log_q"},
        "importance": {
            "lp",
            "pareto_k",
            "distinct_draws",
            "effective_sample_size",
            "log_evidence",
            "log_evidence_error",
        },
        "smoother": {
            "lp",
            "log_evidence",
            "log_evidence_error",
            "effective_sample_size",
            "effective_sample_size_by_bin",
        }
        | ({"first_particles_with_descendants"} if kind == "lfads" else set()),
        "pool": {
            "lp",
            "pareto_k",
            "effective_sample_size",
            "log_evidence",
            "log_evidence_error",
        },
    }
    assert stats == expected[method]
    if method == "importance":
        log_p = tree["sample_stats"]["lp"].values[0]
        num_distinct = [len(np.unique(trial)) for trial in log_p.T]
        np.testing.assert_array_equal(tree["sample_stats"]["distinct_draws"], num_distinct)
    streamed = to_datatree(model, counts, **options, path=tmp_path / "tree.zarr")
    xr.testing.assert_allclose(streamed.load(), tree)


@pytest.mark.filterwarnings("ignore:draws by method=")
def test_the_replayed_rates_belong_to_the_paths(model, recorded):
    tree = to_datatree(model, recorded, num_draws=3, method="smoother", num_particles=50)
    z = torch.from_numpy(tree["posterior"]["z"].values[0])
    with torch.no_grad():
        states = model.states(None, z, torch.from_numpy(recorded["inputs"].values).float())
        rates = model.emission(states).mean
    np.testing.assert_allclose(tree["posterior"]["rates"].values[0], rates, rtol=1e-5, atol=1e-6)


def test_requests_that_make_no_draws_are_refused(model, recorded):
    with pytest.raises(ValueError, match="method='gibbs' is unknown; it is one of guide"):
        to_datatree(model, recorded, method="gibbs")
    with pytest.raises(ValueError, match="num_particles=1 must be an integer of at least 2"):
        to_datatree(model, recorded, method="smoother", num_particles=1)
    with pytest.raises(ValueError, match="num_particles=24; smoothing"):
        to_datatree(model, recorded, method="importance", num_particles=24)


def test_descendants_are_counted_from_the_first_bin_on():
    """Two of three initial particles have descendants at bin 1, one at the end."""
    ancestors = torch.tensor([[0, 1, 2], [0, 0, 2], [1, 1, 0]])[..., None]
    empty = torch.zeros(3, 1)
    filtered = FilterResult(
        starts=None,
        paths=torch.zeros(3, 3, 1, 1),
        states=None,
        ancestors=ancestors,
        log_weights=torch.zeros(3, 3, 1),
        effective_sample_size=empty,
        resampled=empty > 0,
        log_evidence=empty,
        log_evidence_variance=empty[0],
    )
    assert _roots(filtered)[:, 0].tolist() == [0, 0, 0]
