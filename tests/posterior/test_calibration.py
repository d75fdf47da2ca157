"""Calibration, where the exact posterior is known: a right one passes, a wrong one is found out."""

import arviz_plots
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from extended_lfads import Extended
from linear_gaussian import data, exact_of, joint_posterior, linear_network
from pyro.distributions.transforms import ReshapeTransform
from scipy import stats

import pyrodyn
from pyrodyn.data import held_out, teacher
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE
from pyrodyn.posterior import calibrate, coverage, summarise_calibration
from pyrodyn.posterior.draws import prior_draws

QUIET = {"progress": False, "batch_size": 150}


def exact_guide(model, scale=1.0):
    """The posterior of a linear-Gaussian network, its standard deviation times ``scale``."""

    def guide(batch):
        exact = exact_of(model, batch.as_seen().replace(x=batch.seen))
        moments = [joint_posterior(exact, trial)[:2] for trial in range(batch.num_trials)]
        mean, covariance = (torch.from_numpy(np.stack(each)) for each in zip(*moments, strict=True))
        covariance = scale**2 * (covariance + covariance.mT) / 2
        path = [ReshapeTransform(mean.shape[1:], (batch.num_bins, len(exact.A)))]
        with model.trials(batch):
            of_path = dist.MultivariateNormal(mean, covariance, validate_args=False)
            pyro.sample("z", dist.TransformedDistribution(of_path, path))

    return guide


@pytest.fixture
def incomplete():
    """Lost samples and a hidden channel."""
    return held_out(data(missing=True), neurons=0.25, seed=0)


@pytest.mark.filterwarnings("ignore:draws by method='smoother' are unreliable")
@pytest.mark.parametrize("method", ["guide", "smoother"])
def test_a_right_posterior_is_not_rejected(incomplete, method):
    model = linear_network(incomplete)
    options = {"guide": exact_guide(model)} if method == "guide" else {"num_particles": 300}
    tree = calibrate(
        model,
        incomplete,
        method=method,
        num_simulations=200,
        num_draws=40,
        seed=1,
        **options,
        **QUIET,
    )
    table = summarise_calibration(tree)
    assert set(table.index) == {"z", "rates", "log_likelihood", "log_joint", "mean_rate"}
    assert table.loc["z", "num_entries"] == 12
    assert (table["p_value"] > 0.01).all()
    for level in (50, 90):
        error = table[f"coverage_{level}_error"]
        assert (abs(table[f"coverage_{level}"] - level / 100) < 4 * error).all()
    assert arviz_plots.plot_ecdf_pit(
        tree,
        var_names=["z", "log_joint"],
        coords={"time": tree["prior_sbc/time"][:2]},
        backend="none",
    )


def test_half_the_standard_deviation_is_rejected_and_its_coverage_known():
    recorded = data()
    model = linear_network(recorded)
    guide = exact_guide(model, scale=0.5)
    tree = calibrate(model, recorded, guide=guide, num_simulations=300, **QUIET)
    table = summarise_calibration(tree, levels=(0.8,))
    assert table.loc["z", "p_value"] < 1e-6
    exact = 2 * stats.norm.cdf(0.5 * stats.norm.ppf(0.9)) - 1
    row = table.loc["z"]
    # 100 draws put the quantiles a little off.
    assert row["coverage_80"] == pytest.approx(exact, abs=4 * row["coverage_80_error"] + 0.01)


def test_only_quantities_of_the_data_reject_the_prior():
    """Draws that ignore the data have uniform ranks of z, and too low likelihoods."""
    recorded = data()
    model = linear_network(recorded, proposal="bootstrap")
    tree = calibrate(model, recorded, method="guide", num_simulations=300, **QUIET)
    table = summarise_calibration(tree)
    assert table.loc["z", "p_value"] > 0.01
    assert table.loc["log_likelihood", "p_value"] < 1e-6


@pytest.mark.parametrize("kind", [LFADS, NodeSAE, LowRankRNN])
def test_an_untrained_guide_is_rejected(kind, make_recording):
    counts = make_recording(10, 6, 4)
    sizes = {"factor_dim": 2, "generator_dim": 6, "encoder_dim": 4, "inferred_input_dim": 1}
    torch.manual_seed(0)
    model = kind.for_recording(counts, **(sizes if kind is LFADS else {"latent_dim": 2}))
    tree = calibrate(model, counts, method="guide", num_simulations=150, **QUIET)
    assert summarise_calibration(tree)["p_value"].min() < 1e-4
    assert tree.attrs["model"] == kind.__name__ and tree.attrs["num_simulations"] == 150


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:draws by method='smoother' are unreliable")
def test_a_guide_fitted_for_few_steps_is_rejected_and_the_smoother_is_not():
    """The data are simulated from the fitted model, so that its parameters are the true ones."""
    recorded = teacher("limit_cycle", 40, 8, 8, observation="poisson", seed=0)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=6)
    fitted = pyrodyn.fit(model, recorded, max_steps=20, progress=False)
    options = {"num_simulations": 150, "num_draws": 60, "seed": 1, **QUIET}
    of_guide = summarise_calibration(calibrate(fitted, recorded, method="guide", **options))
    assert of_guide["p_value"].min() < 0.01 / len(of_guide)
    smoothed = calibrate(fitted, recorded, method="smoother", num_particles=600, **options)
    of_smoother = summarise_calibration(smoothed)
    assert of_smoother["p_value"].min() > 0.01 / len(of_smoother)


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    recorded = data()
    model = linear_network(recorded)
    options = {"method": "smoother", "num_particles": 20, "num_simulations": 25, "num_draws": 5}
    options |= {"batch_size": 10, "progress": False}
    with pytest.warns(UserWarning, match="in .* of 25 trials"):
        whole = calibrate(model, recorded, **options)
    path = tmp_path / "sbc.zarr"
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return prior_draws(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pyrodyn.posterior.calibration.prior_draws", interrupted)
        calibrate(model, recorded, path=path, **options)
    kept = sorted((tmp_path / "sbc.zarr.parts").glob("*.nc"))
    assert len(kept) == 2 and not path.exists()
    first = kept[0].stat().st_mtime_ns
    with pytest.raises(ValueError, match="parts of a run with another num_draws; remove it"):
        calibrate(model, recorded, path=path, **{**options, "num_draws": 6})
    assert kept[0].stat().st_mtime_ns == first
    with pytest.warns(UserWarning, match="in .* of 25 trials"):
        continued = calibrate(model, recorded, path=path, **options)
    xr.testing.assert_equal(continued.load(), whole)
    assert continued.attrs == whole.attrs
    assert [each.name for each in tmp_path.iterdir()] == ["sbc.zarr"]
    with pytest.raises(ValueError, match="exists already"):
        calibrate(model, recorded, path=path, **options)


def test_what_cannot_be_simulated_is_refused(make_recording, make_lfads):
    counts = make_recording()
    with pytest.raises(ValueError, match="the first 2 bins set the initial state of this LFADS"):
        calibrate(make_lfads(counts, initial_condition_bins=2), counts)

    class Also(LFADS):
        def model(self, batch):
            super().model(batch)
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    sizes = {"factor_dim": 2, "generator_dim": 4, "encoder_dim": 4}
    with pytest.raises(ValueError, match="the observations 'y' of this Also cannot be simulated"):
        calibrate(Also.for_recording(counts, **sizes), counts)
    sizes |= {"factor_dim": 3, "initial_condition_dim": 4}
    with pytest.raises(ValueError, match="all trials share 'theta', 'gain' of this Extended"):
        calibrate(Extended.for_recording(counts, **sizes), counts)


LEAD, DIMS = ("chain", "draw"), ("trial", "time", "neuron")


def known_tree(scale: float, seed: int = 0) -> xr.DataTree:
    """A tree whose rates and latents (in other coordinates) have normal posteriors of standard
    deviation 1, drawn from with ``scale``.
    """
    rng = np.random.default_rng(seed)
    shape, num_draws = (200, 5, 3), 199
    means = {name: 5 * rng.normal(size=shape) for name in ("rates", "z")}
    truth = {name: mean + rng.normal(size=shape) for name, mean in means.items()}
    draws = {
        name: mean + scale * rng.normal(size=(1, num_draws, *shape)) for name, mean in means.items()
    }
    turn = rng.normal(size=(3, 2))
    valid = np.ones(shape[:2], bool)
    valid[::2, 3:] = False
    truth["rates"] = np.where(valid[..., None], truth["rates"], 0)
    latents = np.where(valid[..., None], truth["z"] @ turn + 3, 0)
    return xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(
                {
                    "rates": ((*LEAD, *DIMS), draws["rates"]),
                    "z": ((*LEAD, *DIMS[:2], "latent"), draws["z"]),
                }
            ),
            "observed_data": xr.Dataset({"x": (DIMS, np.zeros(shape))}),
            "constant_data": xr.Dataset(
                {
                    "rates": (DIMS, truth["rates"]),
                    "latents": ((*DIMS[:2], "latent"), latents),
                    "valid": (DIMS[:2], valid),
                }
            ),
        }
    )


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_coverage_of_known_truth(scale):
    found = coverage(known_tree(scale), levels=(0.5, 0.9))
    for level in (0.5, 0.9):
        exact = 2 * stats.norm.cdf(scale * stats.norm.ppf(0.5 + level / 2)) - 1
        for name in ("rates", "latents"):
            at = found.sel(level=level)
            # The draws' own quantiles are off by little, and entries here are independent.
            assert float(at[name]) == pytest.approx(exact, abs=4 * float(at[f"{name}_error"]))
            num = 200 * 4 * (3 if name == "rates" else 2)
            expected = (exact * (1 - exact) / num) ** 0.5
            assert float(at[f"{name}_error"]) == pytest.approx(expected, rel=0.25)


def test_coverage_asks_for_a_truth(make_recording, make_lfads):
    tree = known_tree(1.0)
    one = coverage(tree.isel(trial=slice(1)))
    assert np.isnan(one["rates_error"]).all() and (one["rates"] > 0).all()
    with pytest.raises(ValueError, match=r"levels must lie between 0 and 1, unlike \[1.0\]"):
        coverage(tree, levels=(0.5, 1.0))
    tree["constant_data"] = xr.DataTree(tree["constant_data"].to_dataset()[["valid"]])
    with pytest.raises(ValueError, match="coverage needs known truth"):
        coverage(tree)
    with pytest.raises(ValueError, match="no group prior_sbc; make it by"):
        summarise_calibration(tree)
