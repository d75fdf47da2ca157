"""Evidence of trials as ArviZ's ELPD."""

import arviz_plots
import arviz_stats
import numpy as np
import pytest
import xarray as xr
from linear_gaussian import NUM_TRIALS, batch_of, by_recursion, data, exact_of, linear_network

from pyrodyn.data.trial_hashes import trial_hashes
from pyrodyn.posterior import elpd, kfold, to_datatree


def test_the_exact_evidence_is_within_its_error():
    recorded = data()
    model = linear_network(recorded).float()
    tree = to_datatree(model, recorded, num_draws=20, method="importance", num_particles=4000)
    found = elpd(tree)
    exact = exact_of(model.double(), batch_of(recorded))
    truth = [by_recursion(exact, trial).log_evidence for trial in range(NUM_TRIALS)]
    assert abs(found.elpd - sum(truth)) < 5 * found.monte_carlo_se
    assert found.n_data_points == NUM_TRIALS and found.elpd_i.dims == ("trial",)
    assert found.se == pytest.approx(np.sqrt(NUM_TRIALS) * np.std(found.elpd_i.values), rel=1e-5)
    assert found.num_trained is None and found.n_samples == 4000
    assert "elpd_evidence" in repr(found)


def tree_of(evidence, role=None, **more) -> xr.DataTree:
    stats = xr.Dataset(
        {
            "log_evidence": ("trial", evidence),
            "log_evidence_error": ("trial", np.full(len(evidence), 0.1)),
            **more,
        },
        coords={"draw": np.arange(3)},
    )
    constant = xr.Dataset() if role is None else xr.Dataset({"role_in_fit": ("trial", role)})
    return xr.DataTree.from_dict({"sample_stats": stats, "constant_data": constant})


def test_arviz_compares():
    rng = np.random.default_rng(0)
    good = rng.normal(-100, 5, 120)
    k = ("trial", np.full(120, 0.3))
    worse = good - rng.gamma(4.0, 0.5, 120)
    trees = {"good": tree_of(good, pareto_k=k), "worse": tree_of(worse)}
    table = arviz_stats.compare({name: elpd(tree) for name, tree in trees.items()})
    assert list(table.index) == ["good", "worse"]
    assert table.loc["worse", "elpd_diff"] == pytest.approx((worse - good).sum(), rel=0.02)
    arviz_plots.plot_compare(table, backend="none")
    arviz_plots.plot_khat(elpd(trees["good"]), backend="none")


def test_scores_in_sample_are_called_so():
    tree = tree_of(np.zeros(4), ["trained", "unseen", "validated", "trained"])
    with pytest.warns(UserWarning, match="2 of 4 trials were in the training set of the fit"):
        found = elpd(tree)
    assert (found.num_trained, found.num_validated) == (2, 1)
    assert elpd(tree_of(np.zeros(2), ["unseen", "unseen"])).num_trained == 0


def test_a_tree_of_the_guide_has_no_evidence(make_recording, make_lfads):
    counts = make_recording(4)
    with pytest.raises(ValueError, match="no log_evidence: draw it by to_datatree"):
        elpd(to_datatree(make_lfads(counts), counts, num_draws=3))


@pytest.mark.filterwarnings("ignore:draws by method")
def test_folds_leave_each_trial_out_once_and_keep_the_order():
    """Evidence of each trial under the model that was fitted without it."""
    recorded = data()
    five = xr.concat([recorded, recorded + 0.1], dim="trial").isel(trial=slice(5))
    five = five.assign_coords(trial=list("abcde")).assign_attrs(recorded.attrs)
    left_out = []

    def fit(train):
        assert train.attrs["bin_width"] == recorded.attrs["bin_width"]
        left_out.append(sorted(set("abcde") - set(train["trial"].values.tolist())))
        model = linear_network(five, seed=len(left_out) - 1)
        model.record = {"training": {"trials": {"train": trial_hashes(train), "valid": []}}}
        return model

    found = kfold(fit, five, num_folds=2, method="smoother", num_particles=2000, seed=3)
    assert sorted(map(len, left_out)) == [2, 3] and sorted(left_out[0] + left_out[1]) == list(
        "abcde"
    )
    assert found.elpd_i["trial"].values.tolist() == list("abcde") and found.num_trained == 0
    exact = [exact_of(linear_network(five, seed=seed), batch_of(five)) for seed in (0, 1)]
    for position, label in enumerate("abcde"):
        fold = int(label in left_out[1])
        assert int(found.elpd_i["fold"][position]) == fold
        truth = by_recursion(exact[fold], position).log_evidence
        assert float(found.elpd_i[position]) == pytest.approx(truth, abs=0.3)
    assert found.elpd == pytest.approx(float(found.elpd_i.sum()))
    arviz_stats.compare({"one": found, "other": found})


def test_folds_that_leak_are_refused(make_recording, make_lfads):
    counts = make_recording(6)
    lfads = make_lfads(counts)
    lfads.record = {"training": {"trials": {"train": trial_hashes(counts), "valid": []}}}
    with pytest.raises(ValueError, match="fit of fold 0 has used 3 of the 3 trials that it was to"):
        kfold(lambda train: lfads, counts, num_folds=2, num_particles=10)
    with pytest.raises(ValueError, match="num_folds=7 exceeds the 6 trials"):
        kfold(lambda train: lfads, counts, num_folds=7)
    for method in ("guide", "mcmc"):
        with pytest.raises(ValueError, match=f"method='{method}' gives no evidence"):
            kfold(lambda train: lfads, counts, method=method)
