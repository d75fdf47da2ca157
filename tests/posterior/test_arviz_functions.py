"""Every public function of ArviZ's plots and statistics runs on a tree or its view, or is listed
with the reason why it cannot.
"""

import inspect
import warnings
from collections.abc import Callable

import arviz_plots as azp
import arviz_stats as azs
import numpy as np
import pytest
import torch
import xarray as xr

from pyrodyn.data import held_out, recording
from pyrodyn.models import LFADS, NDT, LinearDynamics, LowRankRNN, NodeSAE, RnnSAE, ShallowPLRNN
from pyrodyn.posterior import elpd, for_ppc, randomised_pit, to_datatree


class Given:
    """A small tree, its view and its evidence."""

    def __init__(self, make_recording, make_lfads) -> None:
        counts = make_recording(4, 5, 2)
        torch.manual_seed(0)
        model = make_lfads(counts)
        self.tree = to_datatree(model, counts, num_draws=120, num_prior_draws=60, num_chains=2)
        self.view = for_ppc(self.tree)
        self.small = for_ppc(self.tree.isel(trial=slice(1)))
        weighted = to_datatree(model, counts, num_draws=20, method="importance", num_particles=400)
        self.elpd = elpd(weighted)
        self.first = {"trial": 0}


@pytest.fixture(scope="module")
def given() -> Given:
    from conftest import SMALL  # the fixtures that make recordings and models are per test

    def make_recording(*shape):
        return recording(1 + np.random.default_rng(0).poisson(1.0, shape), bin_width=0.02)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Given(make_recording, lambda data: LFADS.for_recording(data, **SMALL))


SITE = {"var_names": ["g0"], "coords": {"trial": [0]}}
NONE = {"backend": "none"}
ONE_TRIAL = {
    "prior_coords": {"trial": 0},
    "likelihood_coords": {"trial": 0},
    "prior_var_names": ["latents"],
}


def plot(name: str, where: str = "tree", *arguments, **options) -> Callable[[Given], object]:
    return lambda given: getattr(azp, name)(getattr(given, where), *arguments, **options, **NONE)


def pit_tree(given: Given) -> xr.DataTree:
    pit = randomised_pit(given.tree).stack(draw=("trial", "time", "neuron")).reset_index("draw")
    return xr.DataTree.from_dict(
        {"prior_sbc": xr.Dataset({"x": pit.drop_vars(pit.coords).expand_dims("chain")})}
    )


PLOTS: dict[str, Callable[[Given], object] | str] = {
    "plot_autocorr": plot("plot_autocorr", **SITE),
    "plot_bf": "it compares a scalar parameter with one value; sites have a value per trial",
    "plot_compare": lambda g: azp.plot_compare(azs.compare({"a": g.elpd, "b": g.elpd}), **NONE),
    "plot_convergence_dist": plot("plot_convergence_dist", var_names=["g0"]),
    "plot_dgof": plot("plot_dgof", **SITE),
    "plot_dgof_dist": plot("plot_dgof_dist", **SITE),
    "plot_dist": plot("plot_dist", **SITE),
    "plot_ecdf_pit": lambda g: azp.plot_ecdf_pit(pit_tree(g), **NONE),
    "plot_energy": "it shows the energy of Hamiltonian Monte Carlo",
    "plot_ess": plot("plot_ess", **SITE),
    "plot_ess_evolution": plot("plot_ess_evolution", **SITE),
    "plot_forest": plot("plot_forest", **SITE),
    "plot_khat": lambda g: azp.plot_khat(g.elpd, **NONE),
    "plot_lm": plot("plot_lm", "view", x="observation_time", y="x", y_obs="x"),
    "plot_loo_interval": plot("plot_loo_interval", "small"),
    "plot_loo_pava": plot("plot_loo_pava", "small", data_type="ordinal"),
    "plot_loo_pit": plot("plot_loo_pit", "small"),
    "plot_mcse": plot("plot_mcse", **SITE),
    "plot_pair": plot("plot_pair", **SITE),
    "plot_pair_focus": lambda g: azp.plot_pair_focus(
        g.tree, g.tree["posterior/g0"][..., 0, 0], **SITE, **NONE
    ),
    "plot_parallel": plot("plot_parallel", **SITE),
    "plot_ppc_censored": "it is for survival times",
    "plot_ppc_dist": plot("plot_ppc_dist", "view", kind="ecdf", num_samples=5),
    "plot_ppc_dist_pit": plot("plot_ppc_dist_pit", "view"),
    "plot_ppc_interval": plot("plot_ppc_interval", "small"),
    "plot_ppc_pava": plot("plot_ppc_pava", "view", data_type="ordinal"),
    "plot_ppc_pava_residuals": plot(
        "plot_ppc_pava_residuals", "view", x_var="observation_time", data_type="ordinal"
    ),
    "plot_ppc_pit": plot("plot_ppc_pit", "view"),
    "plot_ppc_rootogram": plot("plot_ppc_rootogram", "view"),
    "plot_ppc_tstat": plot("plot_ppc_tstat", "view", t_stat="mean"),
    "plot_prior_posterior": plot("plot_prior_posterior", **SITE),
    "plot_psense_dist": plot("plot_psense_dist", **SITE, **ONE_TRIAL),
    "plot_psense_quantities": plot("plot_psense_quantities", **SITE, **ONE_TRIAL),
    "plot_rank": plot("plot_rank", **SITE),
    "plot_rank_dist": plot("plot_rank_dist", **SITE),
    "plot_ridge": plot("plot_ridge", **SITE),
    "plot_trace": plot("plot_trace", **SITE),
    "plot_trace_dist": plot("plot_trace_dist", **SITE),
}


def site(name: str, *arguments, **options) -> Callable[[Given], object]:
    return lambda given: getattr(azs, name)(given.tree["posterior/g0"], *arguments, **options)


def whole(name: str, where: str = "tree", *arguments, **options) -> Callable[[Given], object]:
    return lambda given: getattr(azs, name)(getattr(given, where), *arguments, **options)


STATS: dict[str, Callable[[Given], object] | str] = {
    **{
        name: site(name)
        for name in (
            "ess",
            "eti",
            "hdi",
            "histogram",
            "iqr",
            "kde",
            "mad",
            "mcse",
            "mean",
            "median",
            "mode",
            "qds",
            "rhat",
            "std",
            "thin",
            "var",
            "ecdf",
        )
    },
    "bayes_factor": "it compares a scalar parameter with one value; sites have a value per trial",
    "bayesian_r2": "it takes one residual scale per draw; counts have a variance per entry",
    "bfmi": "it needs the energy of Hamiltonian Monte Carlo",
    "ci_in_rope": lambda g: azs.ci_in_rope(g.tree["posterior"].to_dataset()[["g0"]], rope=(-1, 1)),
    "compare": lambda g: azs.compare({"a": g.elpd, "b": g.elpd}),
    "diagnose": lambda g: azs.diagnose(g.tree, var_names=["g0"]),
    "generate_survival_curves": "it is for survival times",
    "get_function": "a helper that looks up functions by name",
    "get_log_likelihood": whole("get_log_likelihood", var_name="x"),
    "hexbin": "a helper on arrays",
    "histogram2d": "a helper on arrays",
    "kaplan_meier": "it is for survival times",
    "kde2d": "a helper on arrays",
    "kl_divergence": "it compares two trees with 500 draws or more each",
    "lfo_cv": "it refits: it needs a SamplingWrapper",
    "loo": whole("loo"),
    "loo_approximate_posterior": lambda g: azs.loo_approximate_posterior(
        g.tree, g.tree["sample_stats/lp"], g.tree["sample_stats/log_q"]
    ),
    "loo_expectations": whole("loo_expectations", "small"),
    "loo_i": lambda g: azs.loo_i(0, g.tree),
    "loo_influence": whole("loo_influence", "small"),
    "loo_kfold": "it refits: it needs a SamplingWrapper",
    "loo_metrics": whole("loo_metrics", "small"),
    "loo_moment_match": "it needs the density of the model as a function of parameters",
    "loo_pit": whole("loo_pit", "small"),
    "loo_r2": lambda g: azs.loo_r2(g.small, var_name="x"),
    "loo_score": whole("loo_score", "small"),
    "loo_subsample": lambda g: azs.loo_subsample(
        g.tree, observations=3, log_lik_fn=None, var_name="x"
    ),
    "metrics": whole("metrics", "view"),
    "psense": lambda g: azs.psense(
        g.tree,
        var_names=["g0"],
        coords={"trial": [0]},
        group_var_names=["latents"],
        group_coords={"trial": 0},
    ),
    "psense_summary": lambda g: azs.psense_summary(
        g.tree, var_names=["g0"], coords={"trial": [0]}, **ONE_TRIAL
    ),
    "reloo": "it refits: it needs a SamplingWrapper",
    "residual_r2": whole("residual_r2", "view", pred_mean="rates", obs_name="x"),
    "rhat_nested": lambda g: azs.rhat_nested(g.tree["posterior/g0"], superchain_ids=[0, 1]),
    "summary": lambda g: azs.summary(g.tree, var_names=["g0"]),
    "update_subsample": "it continues loo_subsample",
    "wasserstein": "it compares two trees with 500 draws or more each",
    "weight_predictions": lambda g: azs.weight_predictions([g.tree, g.tree], weights=[0.5, 0.5]),
}

QUICK = {
    "plot_ppc_tstat",
    "plot_forest",
    "plot_loo_pit",
    "plot_khat",
    "plot_ecdf_pit",
    "loo_pit",
    "loo_score",
    "summary",
    "psense",
    "rhat",
    "compare",
    "loo",
    "metrics",
    "residual_r2",
}
"""Run by default; the others are slow."""


def functions_of(module, prefix: str = "") -> set[str]:
    return {
        name
        for name in dir(module)
        if name.startswith(prefix or tuple("abcdefghijklmnopqrstuvwxyz"))
        and inspect.isfunction(getattr(module, name))
    }


def test_every_public_function_is_listed():
    """A function that a new version of ArviZ brings is noticed here."""
    assert functions_of(azp, "plot_") == set(PLOTS)
    assert functions_of(azs) == set(STATS)


TABLE = {**PLOTS, **STATS}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, call in TABLE.items()
        if callable(call)
    ],
)
def test_runs(given, name):
    assert TABLE[name](given) is not None


def data_of(kind: str) -> xr.Dataset:
    """Small recordings of each kind that a model may have."""
    rng = np.random.default_rng(0)
    counts = 1 + rng.poisson(1.0, (4, 6, 3))
    signal = rng.normal(size=(4, 6, 2))
    match kind:
        case "gaussian":
            return recording(signal=signal, bin_width=0.02)
        case "both":
            return recording(counts, signal=signal, bin_width=0.02)
        case "ragged":
            return recording([trial[: 6 - i] for i, trial in enumerate(counts)], bin_width=0.02)
        case "held_out":
            return held_out(recording(counts, bin_width=0.02), neurons=[1], forecast_bins=1)
        case _:
            return recording(counts, bin_width=0.02)


MODELS = {
    LFADS: {"factor_dim": 2, "generator_dim": 5, "encoder_dim": 4},
    NodeSAE: {"latent_dim": 2},
    RnnSAE: {"latent_dim": 2},
    LowRankRNN: {"latent_dim": 2, "num_units": 5},
    LinearDynamics: {"latent_dim": 2},
    ShallowPLRNN: {"latent_dim": 2, "num_units": 5},
}
KINDS = ("poisson", "negative_binomial", "gaussian", "both", "ragged", "held_out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_draws_by_dropout_of_every_kind_of_data(kind):
    data = data_of(kind)
    observation = {"observation": kind} if kind == "negative_binomial" else {}
    sizes = {"model_dim": 8, "num_layers": 2, "ffn_dim": 6, "dropout": 0.4}
    model = NDT.for_recording(data, seed=0, **sizes, **observation).eval()
    tree = to_datatree(model, data, num_draws=60, num_chains=2)
    rates = {"var_names": ["rates" if "rates" in tree["posterior"] else "signal_mean"]}
    summary = azs.summary(tree, **rates)
    assert len(summary) and (summary["sd"].astype(float) > 0).any()
    unit = tree["posterior"][rates["var_names"][0]].dims[-1]
    first = {"trial": [0], "time": tree["posterior/time"].values[:1], unit: [0]}
    assert azp.plot_rank(tree, coords=first, **rates, **NONE)
    whole = for_ppc(tree)
    assert azp.plot_ppc_dist(whole, kind="ecdf", num_samples=3, **NONE)
    for name in whole["observed_data"].data_vars:
        assert azp.plot_ppc_tstat(whole, t_stat="mean", var_names=name, **NONE)
        assert azs.loo_pit(whole, var_names=name)[name].size


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["guide", "importance", "smoother", "pool"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_class", MODELS, ids=lambda kind: kind.__name__)
def test_every_model_and_kind_of_data(model_class, kind, method):
    """One function of each family, on the tree and on the view."""
    data = data_of(kind)
    observation = {"observation": kind} if kind == "negative_binomial" else {}
    torch.manual_seed(0)
    model = model_class.for_recording(data, **MODELS[model_class], **observation).eval()
    particles = {} if method == "guide" else {"num_particles": 100}
    tree = to_datatree(
        model, data, num_draws=60, num_chains=2, num_prior_draws=4, method=method, **particles
    )
    names = {"var_names": ["factors" if "factors" in tree["posterior"] else "z"]}
    assert len(azs.summary(tree, **names)) and azp.plot_rank(
        tree, coords={"trial": [0], "time": tree["posterior/time"].values[:1]}, **names, **NONE
    )
    views = {"posterior_predictive": for_ppc(tree), "prior_predictive": for_ppc(tree)}
    if kind == "held_out":
        views["predictions"] = for_ppc(tree, group="predictions")
    for group, view in views.items():
        options = {"group": group, **NONE}
        assert azp.plot_ppc_dist(view, kind="ecdf", num_samples=3, **options)
        assert azp.plot_ppc_interval(view, **options)
    whole = views["posterior_predictive"]
    for name in whole["observed_data"].data_vars:
        assert azp.plot_ppc_tstat(whole, t_stat="mean", var_names=name, **NONE)
        if method == "guide":  # others repeat draws, and PSIS refuses tails of equal values
            found = azs.loo_pit(whole, var_names=name)[name]
            assert found.size == whole["observed_data"][name].size
    if method == "guide":
        assert azs.loo(tree, var_name="x").n_data_points == 4
