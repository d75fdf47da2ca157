"""Draws of another sampler as a tree: the same numbers as by the guide, chains kept."""

import numpy as np
import pyro
import pytest
import torch
from extended_lfads import Extended, FollowsTheta
from pyro.infer import MCMC, NUTS

from pyrodyn.posterior import to_datatree


@pytest.fixture
def counts(make_recording):
    return make_recording(5)


@pytest.fixture
def model(make_lfads, counts):
    return make_lfads(counts, inferred_input_dim=1)


def test_given_draws_are_replayed_exactly(model, counts):
    """Draws that a guide made give the same rates and densities when they are given."""
    tree = to_datatree(model, counts, num_draws=6, num_chains=2)
    draws = {name: tree["posterior"][name].values for name in ("g0", "u")}
    given = to_datatree(model, counts, draws=draws, batch_size=2)
    assert given["posterior"].sizes["chain"] == 2 and given["posterior"].sizes["draw"] == 3
    for name in ("g0", "u", "factors", "rates"):
        expected = tree["posterior"][name]
        assert given["posterior"][name].dims == expected.dims
        np.testing.assert_allclose(given["posterior"][name], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(given["sample_stats/lp"], tree["sample_stats/lp"], rtol=1e-5)
    np.testing.assert_allclose(given["log_likelihood/x"], tree["log_likelihood/x"], rtol=1e-5)
    assert given.attrs["method"] == "draws" and "log_q" not in given["sample_stats"]


def test_shared_sites_may_be_given(counts):
    model = Extended.for_recording(
        counts, factor_dim=3, generator_dim=7, initial_condition_dim=4, encoder_dim=5
    )
    tree = to_datatree(model, counts, guide=FollowsTheta(), num_draws=4)
    names = {"theta": "theta", "gain": "gain", "g0": "g0", "own/extra": "own_extra"}
    draws = {site: torch.as_tensor(tree["posterior"][name].values) for site, name in names.items()}
    given = to_datatree(model, counts, draws=draws, batch_size=2)
    for name in ("lp", "lp_shared"):
        np.testing.assert_allclose(
            given["sample_stats"][name], tree["sample_stats"][name], rtol=1e-5
        )
    for name in names.values():
        np.testing.assert_array_equal(given["posterior"][name], tree["posterior"][name])


def test_mcmc_gives_a_tree(make_lfads, counts):
    model = make_lfads(counts)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model, max_tree_depth=2), num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run(model.trials_of(counts).batch())
    tree = to_datatree(model, counts, draws=mcmc.get_samples(group_by_chain=True))
    assert dict(tree["posterior/g0"].sizes) == {
        "chain": 1,
        "draw": 3,
        "trial": 5,
        "initial_condition": 4,
    }
    assert np.isfinite(tree["sample_stats/lp"]).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.pop("u"), "draws holds g0; the latent sites of this LFADS are g0, u"),
        (lambda d: d.update(w=d["g0"]), "draws holds g0, u, w; the latent sites"),
        (lambda d: d.update(g0=d["g0"][0]), r"'g0' have the shape \(3, 5, 4\); they must have"),
        (lambda d: d.update(g0=d["g0"][:, :, :4]), r"must have \(chain, draw, 5, 4\)"),
        (lambda d: d.update(g0=d["g0"][:1]), "'u' have 2 chains of 3; those of 'g0' have 1 of 3"),
        (lambda d: d["u"].__setitem__((1, 2, 3, 0, 0), np.nan), r"finite at \(1, 2, 3, 0, 0\)"),
    ],
)
def test_draws_that_do_not_fit_are_refused(model, counts, change, sentence):
    draws = {"g0": np.zeros((2, 3, 5, 4)), "u": np.zeros((2, 3, 5, 8, 1))}
    change(draws)
    with pytest.raises(ValueError, match=sentence):
        to_datatree(model, counts, draws=draws)


@pytest.mark.parametrize(
    "more", [{"num_draws": 3}, {"method": "guide"}, {"guide": FollowsTheta()}, {"num_chains": 2}]
)
def test_what_has_no_meaning_beside_draws_is_refused(model, counts, more):
    draws = {"g0": np.zeros((2, 3, 5, 4)), "u": np.zeros((2, 3, 5, 8, 1))}
    with pytest.raises(ValueError, match=f"{next(iter(more))}.* no meaning where draws are given"):
        to_datatree(model, counts, draws=draws, **more)
    with pytest.raises(ValueError, match="num_draws=5 is not divisible by num_chains=2"):
        to_datatree(model, counts, num_draws=5, num_chains=2)
