"""Sites and guides of a user's own: in the tree under their names, with the right densities."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from extended_lfads import Extended, FollowsTheta
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from torch import nn

from pyrodyn.posterior import predict, to_datatree

NUM_TRIALS = 5


@pytest.fixture
def counts(make_recording):
    return make_recording(NUM_TRIALS)


@pytest.fixture
def model(counts):
    torch.manual_seed(0)
    return Extended.for_recording(
        counts, factor_dim=3, generator_dim=7, initial_condition_dim=4, encoder_dim=5
    )


@pytest.mark.parametrize("num_draws", [1, 6])
def test_shared_and_own_sites_have_their_dims(model, counts, num_draws):
    tree = to_datatree(
        model,
        counts,
        guide=FollowsTheta(),
        num_draws=num_draws,
        num_prior_draws=num_draws,
        batch_size=2,
    )
    for group in ("posterior", "prior"):
        sites = tree[group].to_dataset()
        assert sites["theta"].dims == ("chain", "draw")
        assert sites["gain"].dims == ("chain", "draw", "gain_dim_0", "gain_dim_1")
        assert sites["gain"].shape == (1, num_draws, 3, 2)
        assert sites["own_extra"].dims == ("chain", "draw", "trial")
        np.testing.assert_allclose(sites["twice"], 2 * sites["own_extra"], rtol=1e-6)
    # One joint draw over all batches: what follows theta follows the same theta in every trial.
    difference = tree["posterior/g0"] - tree["posterior/theta"]
    assert float(abs(difference).max()) < 0.01
    assert float(tree["posterior/theta"].std()) > 0.1 or num_draws == 1
    assert tree["log_likelihood/reaction_time"].dims == ("chain", "draw", "trial")


def test_densities_of_shared_and_local_sites_add_up_to_the_joint(model, counts, tmp_path):
    guide = FollowsTheta()
    path = tmp_path / "tree.zarr"
    tree = to_datatree(model, counts, guide=guide, num_draws=4, batch_size=2, path=path).load()
    sites, stats = tree["posterior"], tree["sample_stats"]
    for draw in range(4):
        data = {
            name: torch.as_tensor(sites[variable].values[0, draw])
            for name, variable in {
                "theta": "theta",
                "gain": "gain",
                "g0": "g0",
                "own/extra": "own_extra",
            }.items()
        }
        batch = model.trials_of(counts).batch()
        with torch.no_grad():
            for name, program in {"lp": model, "log_q": guide}.items():
                trace = poutine.trace(poutine.condition(program, data=data)).get_trace(batch)
                total = stats[name].values[0, draw].sum() + stats[f"{name}_shared"].values[0, draw]
                assert total == pytest.approx(float(trace.log_prob_sum()), rel=1e-4)


def test_prediction_of_shared_sites(model, counts):
    found = predict(model, counts, guide=FollowsTheta(), num_draws=400, batch_size=2)
    assert found["theta"].dims == ()
    assert float(found["theta"]) == pytest.approx(2, abs=5 * 0.5 / 400**0.5)
    assert float(found["theta_sd"]) == pytest.approx(0.5, rel=0.2)
    assert found["gain"].dims == ("gain_dim_0", "gain_dim_1")
    assert found["own_extra"].dims == ("trial",)


@pytest.mark.parametrize("method", ["importance", "smoother", "pool"])
def test_methods_that_draw_trial_by_trial_refuse_shared_sites(model, counts, method):
    refusal = r"take method='guide'|draws all trials jointly|is not used by method="
    with pytest.raises(ValueError, match=refusal):
        to_datatree(model, counts, guide=FollowsTheta(), method=method, num_draws=3)


def test_a_guide_without_a_site_is_refused(model, counts):
    with pytest.raises(ValueError, match=r"'g0'|'theta'"):
        to_datatree(model, counts, guide=lambda batch: None, num_draws=3)


@pytest.mark.parametrize("point", [AutoDelta, AutoLaplaceApproximation])
def test_point_guides_can_be_read_out(make_lfads, counts, point):
    model = make_lfads(counts)
    guide = point(model)
    guide(model.trials_of(counts).batch())
    tree = to_datatree(model, counts, guide=guide, num_draws=3)
    assert (tree["posterior/g0"].std("draw") < 1e-6).all()
    assert "log_q" not in tree["sample_stats"]  # a point estimate has no density
    assert (predict(model, counts, guide=guide, num_draws=3)["g0_sd"] < 1e-5).all()


def test_an_automatic_guide_of_shared_sites(model, counts):
    guide = AutoNormal(model)
    guide(model.trials_of(counts).batch())
    tree = to_datatree(model, counts, guide=guide, num_draws=3)
    stats = tree["sample_stats"]
    assert stats["log_q"].notnull().all() and stats["log_q_shared"].notnull().all()
    assert not any("unconstrained" in str(name) for name in tree["posterior"].data_vars)


class Noisy(nn.Module):
    """A guide with dropout and batch normalisation, both of which differ between modes."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm1d(5), nn.BatchNorm1d(5).eval()
        self.dropout, self.out = nn.Dropout(0.5), nn.Linear(5, 8)

    def forward(self, batch):
        features = self.frozen(self.norm(batch.seen.mean(1)))
        mean, scale = self.dropout(self.out(features)).chunk(2, -1)
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("g0", dist.Normal(mean, 1e-4 * scale.exp()).to_event(1))

    def bound(self, batch):
        self(batch)


@pytest.mark.parametrize("as_method", [False, True])
def test_guides_are_in_evaluation_mode_while_they_draw(make_lfads, counts, as_method):
    model, module = make_lfads(counts), Noisy()
    module.norm.train(), model.train()
    before = module.norm.running_mean.clone()
    guide = module.bound if as_method else module
    first, second = (predict(model, counts, guide=guide, num_draws=4, seed=s) for s in (0, 1))
    np.testing.assert_allclose(first["g0"], second["g0"], atol=0.01)
    assert torch.equal(module.norm.running_mean, before)
    assert module.training and module.norm.training and not module.frozen.training
    assert model.training
