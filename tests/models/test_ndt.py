"""The NDT: its equations, what its rates depend on, its draws, and what it refuses."""

import re

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyrodyn
from pyrodyn import analysis
from pyrodyn.data import CoordinatedDropout, MaskedModelling, Trials, held_out, recording
from pyrodyn.data.transforms import Forecast, HoldOutNeurons
from pyrodyn.infer import RWS, VSMC, RefinedGuide, importance_sample, path_pool
from pyrodyn.infer.traces import traced
from pyrodyn.models import LFADS, NDT
from pyrodyn.posterior import calibrate, samplers

TINY = {"model_dim": 8, "num_layers": 2, "ffn_dim": 6}
QUIET = {"progress": False, "accelerator": "cpu"}


def counts(num_trials: int = 6, num_bins: int = 12, num_neurons: int = 5) -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = (num_trials, num_bins, num_neurons)
    return recording(rng.poisson(1.5, shape), bin_width=0.02)


def tiny(data: xr.Dataset | None = None, **more: object) -> NDT:
    return NDT.for_recording(counts() if data is None else data, seed=0, **TINY, **more).eval()


# ------------------------------------------------------------------ equations


@pytest.mark.parametrize(("back", "forward"), [(None, None), (2, 1), (3, 0)])
def test_the_network_is_torchs_own_encoder(back, forward):
    """With torch's layers given the same weights, and positions and mask written out."""
    ndt = tiny(context_back=back, context_forward=forward).double()
    num_bins, dim = 12, TINY["model_dim"]
    seen = torch.randn(3, num_bins, 6, dtype=torch.double)
    codes = torch.zeros(num_bins, dim, dtype=torch.double)
    for t in range(num_bins):
        for channel in range(0, dim, 2):
            angle = t / 10_000 ** (channel / dim)
            codes[t, channel], codes[t, channel + 1] = np.sin(angle), np.cos(angle)
    is_outside = torch.tensor(
        [
            [
                (back is not None and k < q - back) or (forward is not None and k > q + forward)
                for k in range(num_bins)
            ]
            for q in range(num_bins)
        ]
    )
    hidden = dim**0.5 * seen @ ndt.embedding.weight.T + codes
    for layer in ndt.layers:
        theirs = nn.TransformerEncoderLayer(
            dim, 2, TINY["ffn_dim"], norm_first=True, batch_first=True, dtype=torch.double
        ).eval()
        with torch.no_grad():
            theirs.self_attn.in_proj_bias.zero_()
            theirs.self_attn.in_proj_weight.copy_(layer.queries_keys_values.weight)
        for own, part in (
            (theirs.self_attn.out_proj, layer.attended),
            (theirs.linear1, layer.ffn_in),
            (theirs.linear2, layer.ffn_out),
            (theirs.norm1, layer.attention_norm),
            (theirs.norm2, layer.ffn_norm),
        ):
            own.load_state_dict(part.state_dict())
        hidden = theirs(hidden, src_mask=is_outside)
    torch.testing.assert_close(ndt.predictors(seen), ndt.readout(ndt.norm(hidden)))


def test_the_density_is_that_of_the_scored_entries():
    ndt, batch = tiny(), Trials(counts()).batch()
    batch = MaskedModelling(0.4)(batch).replace(weight=3.0)
    trace = traced(ndt.model, batch)
    rates = trace.nodes["rates"]["value"]
    expected = torch.distributions.Poisson(rates).log_prob(batch.x)[batch.scored].sum()
    torch.testing.assert_close(trace.log_prob_sum(), 3.0 / 0.4 * expected)
    assert not [name for name in traced(ndt.guide, batch).nodes if name[0] != "_"]


def test_rates_start_at_the_means():
    data = counts(20)
    rates = traced(tiny(data).model, Trials(data).batch()).nodes["rates"]["value"]
    means = torch.as_tensor(data["counts"].values).float().mean((0, 1))
    torch.testing.assert_close(rates.mean((0, 1)), means, rtol=0.1, atol=0.0)


def test_extra_left_dims_are_independent():
    ndt = tiny(context_forward=1)
    seen = torch.randn(4, 2, 3, 12, 6)
    one_by_one = torch.stack([ndt.predictors(each) for each in seen.flatten(0, 1)])
    torch.testing.assert_close(ndt.predictors(seen), one_by_one.unflatten(0, (4, 2)))


# ------------------------------------------------------------------ what rates depend on


def sensitive_bins(ndt: NDT, t: int) -> list[int]:
    """The bins whose observations the rates of bin t depend on."""
    batch = Trials(counts()).batch()
    seen = batch.seen.clone().requires_grad_()
    ndt.predictive(batch.replace(seen=seen)).mean[:, t].sum().backward()
    assert seen.grad is not None
    return seen.grad.abs().amax((0, 2)).nonzero().flatten().tolist()


def test_context_bounds_what_rates_depend_on():
    assert sensitive_bins(tiny(), 6) == [*range(12)]
    assert sensitive_bins(tiny(context_forward=0), 6) == [*range(7)]
    two_layers_of = tiny(context_back=2, context_forward=1)
    assert sensitive_bins(two_layers_of, 6) == [*range(6 - 2 * 2, 6 + 2 * 1 + 1)]


def test_rates_of_a_causal_model_do_not_depend_on_the_length_of_a_trial():
    ndt, data = tiny(context_back=4, context_forward=0), counts()
    whole = ndt.predictive(Trials(data).batch()).mean
    part = ndt.predictive(Trials(data.isel(time=slice(7))).batch()).mean
    torch.testing.assert_close(part, whole[:, :7])


def test_hidden_entries_do_not_inform_rates_but_are_scored():
    ndt = tiny()
    marked = held_out(counts(), neurons=[1], forecast_bins=3)
    other = marked.copy(deep=True)
    other["counts"].values[:, :, 1] += 5
    other["counts"].values[:, -3:] += 5
    one, changed = (traced(ndt.model, Trials(data).batch()) for data in (marked, other))
    assert torch.equal(one.nodes["rates"]["value"], changed.nodes["rates"]["value"])
    assert one.log_prob_sum() != changed.log_prob_sum()
    shown = Trials(counts()).batch()
    for transform in (HoldOutNeurons([1]), Forecast(3)):
        assert not torch.equal(ndt.predictive(transform(shown)).mean, ndt.predictive(shown).mean)


def test_a_bin_that_was_not_measured_is_not_a_silent_one():
    values = counts()["counts"].values.copy()
    values[0, 5] = 0
    valid = np.ones(values.shape, bool)
    valid[0, 5] = False
    silent, missing = (
        recording(values, bin_width=0.02, **given) for given in ({}, {"valid": valid})
    )
    ndt = tiny(silent)
    rates = [ndt.predictive(Trials(data).batch()).mean for data in (silent, missing)]
    assert not torch.allclose(rates[0][0], rates[1][0])
    assert torch.equal(rates[0][1:], rates[1][1:])


# ------------------------------------------------------------------ draws


def test_draws_differ_by_their_dropout_masks():
    data = counts()
    ndt = tiny(data, dropout=0.4)
    tree = pyrodyn.to_datatree(ndt, data, num_draws=6, batch_size=4)
    assert tree.attrs["method"] == "dropout"
    assert tree.attrs["posterior"] == "Monte Carlo dropout"
    assert (tree["posterior"]["rates"].std("draw") > 0).all()
    assert "log_q" not in tree["sample_stats"]
    log_likelihood = tree["log_likelihood"]["x"]
    entries = pyrodyn.to_datatree(ndt, data, num_draws=6, batch_size=4, log_likelihood="entry")[
        "log_likelihood"
    ]["x"]
    np.testing.assert_allclose(entries.sum(("time", "neuron")), log_likelihood, rtol=1e-5)
    assert not any(module.training for module in ndt.modules())
    identical = pyrodyn.to_datatree(ndt, data, num_draws=6, method="guide")
    assert "posterior" not in identical.attrs
    rates = identical["posterior"]["rates"]
    assert (rates == rates.isel(draw=0)).all()
    assert (identical["posterior_predictive"]["x"].std("draw") > 0).any()


def test_the_densities_of_a_draw_are_those_at_its_rates(monkeypatch):
    data = counts(5)
    ndt = tiny(data, dropout=0.4)
    monkeypatch.setattr(samplers, "TRIALS_AT_ONCE", 12)  # two draws at once, then one
    tree = pyrodyn.to_datatree(ndt, data, num_draws=5, log_likelihood="entry")
    rates, x = (
        torch.as_tensor(tree[name].values) for name in ("posterior/rates", "observed_data/x")
    )
    expected = torch.distributions.Poisson(rates).log_prob(x.float())
    np.testing.assert_allclose(tree["log_likelihood"]["x"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        tree["sample_stats"]["lp"], expected.sum((-1, -2)), rtol=1e-4, atol=1e-4
    )
    assert len(rates[0].flatten(1).unique(dim=0)) == 5


def test_predictions_average_over_dropout_masks():
    data = counts()
    ndt = tiny(data, dropout=0.4)
    one, again = (pyrodyn.predict(ndt, data, num_draws=30, seed=1) for _ in range(2))
    assert one.attrs["method"] == "dropout" and one.equals(again)
    assert (one["rates_sd"] > 0).all()
    fixed = pyrodyn.predict(ndt, data, method="guide", num_draws=2)
    assert (fixed["rates_sd"] == 0).all()
    rates = ndt.predictive(Trials(data).batch()).mean.detach()
    np.testing.assert_allclose(fixed["rates"], rates, rtol=1e-5)


def test_a_model_without_dropout_takes_the_guide():
    data = counts()
    ndt = tiny(data, dropout=0.0)
    assert pyrodyn.predict(ndt, data, num_draws=2).attrs["method"] == "guide"
    with pytest.raises(ValueError, match=r"this NDT has no dropout by which draws could differ"):
        pyrodyn.predict(ndt, data, method="dropout")


def test_priors_on_parameters_are_drawn():
    data = counts()
    priors = {"readout.bias": pyro.distributions.Normal(0.0, 1.0)}
    ndt = tiny(data, priors=priors)
    fitted = pyrodyn.fit(ndt, data, max_steps=2, **QUIET)
    assert fitted.history["kl_readout.bias"][-1] > 0
    for method in ("guide", "dropout"):
        tree = pyrodyn.to_datatree(ndt, data, num_draws=3, method=method)
        assert tree["posterior"]["readout.bias"].dims == ("chain", "draw", "predictor")
        assert (tree["posterior"]["rates"].std("draw") > 0).all()


def test_saved_and_loaded(tmp_path):
    data = counts()
    ndt = tiny(data, positions="learned", context_forward=0, dropout=0.2)
    pyrodyn.save(ndt, tmp_path)
    loaded = pyrodyn.load(tmp_path)
    assert isinstance(loaded, NDT) and loaded.config == ndt.config
    assert pyrodyn.predict(loaded, data).equals(pyrodyn.predict(ndt, data))


# ------------------------------------------------------------------ fits


def test_masked_modelling_learns_what_neurons_share():
    """Neurons driven by one slow signal; held-out neurons of new trials against their mean."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (48, 1, 1))
    signal = np.sin(2 * np.pi * np.arange(30)[:, None] / 30 + phase)
    values = rng.poisson(np.exp(0.5 + signal * np.linspace(-1.2, 1.2, 8)))
    data = held_out(recording(values, bin_width=0.02), neurons=[0, 6])
    train, valid, test = (data.isel(trial=part) for part in np.split(np.arange(48), [32, 40]))
    ndt = NDT.for_recording(train, seed=0, model_dim=16, num_layers=2, ffn_dim=16, dropout=0.1)
    masked = [MaskedModelling(0.25, (1, 3), zeroed=0.8, randomised=0.1, ramp_steps=40)]
    hidden = [MaskedModelling(0.25)]
    fitted = pyrodyn.fit(
        ndt, train, valid, transforms=masked, valid_transforms=hidden, max_steps=150,
        learning_rate=1e-2, **QUIET,
    )  # fmt: skip
    assert not ndt.diagnose(Trials(train).batch())
    rates = pyrodyn.predict(fitted, test, method="guide", num_draws=1)["rates"]
    hidden = {"neuron": [0, 6]}
    score = analysis.bits_per_spike(rates.isel(hidden).values, test["counts"].isel(hidden).values)
    assert score > 0.15


def test_predictions_no_better_than_the_mean_are_warned_of():
    data = counts()
    ndt = tiny(data)
    batch = Trials(data).batch()
    with torch.no_grad():
        ndt.readout.bias += 0.3
    assert ndt.diagnose(batch) == []  # it has not been fitted
    ndt.record = {"training": {"num_steps": 500}}
    (sentence,) = ndt.diagnose(batch)
    assert re.search(r"hidden from it no better than each neuron's mean does \(-\d", sentence)


def test_a_fit_validates_on_masked_trials():
    data = counts(12)
    recipe = pyrodyn.recommended(tiny(data), data)
    (hidden,) = recipe.valid_transforms
    assert isinstance(hidden, CoordinatedDropout) and recipe.transforms == (hidden,)
    assert recipe.schedule.decay == "cosine" and recipe.schedule.warmup_steps > 0
    fits = [
        pyrodyn.fit(tiny(data), data, counts(4), max_steps=2, **given, **QUIET).history
        for given in ({}, {"valid_transforms": [hidden]}, {"valid_transforms": []})
    ]
    assert fits[0].equals(fits[1])
    assert not fits[0]["valid_loss"].equals(fits[2]["valid_loss"])


# ------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"model_dim": 7}, r"model_dim=7 is not divisible by num_heads=2"),
        ({"num_heads": 0}, r"num_heads=0 must be an integer of at least 1"),
        ({"num_layers": 0}, r"num_layers=0 must be an integer of at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be a probability below 1"),
        ({"context_back": -1}, r"context_back=-1 must be an integer of at least 0"),
        ({"positions": "rotary"}, r"positions='rotary' is unknown; it is one of sinusoidal, learn"),
        ({"num_bins": 9}, r"learned positions need num_bins, and only these have any"),
    ],
)
def test_sizes_that_do_not_fit(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        NDT(4, **sizes)


def test_learned_positions_have_a_longest_trial():
    ndt = tiny(counts(num_bins=12), positions="learned")
    assert ndt.config["num_bins"] == 12
    ndt.check(counts(num_bins=9))
    with pytest.raises(ValueError, match=r"trials have 13 bins; this NDT has learned positions fo"):
        ndt.check(counts(num_bins=13))


def test_what_needs_latents_is_refused_in_one_sentence(make_lfads):
    data = counts()
    ndt, batch = tiny(data), Trials(data).batch()
    for run, subject in (
        (lambda: pyrodyn.to_datatree(ndt, data, method="importance"), "method='importance'"),
        (lambda: pyrodyn.to_datatree(ndt, data, method="pool"), "method='pool'"),
        (lambda: pyrodyn.predict(ndt, data, method="smoother"), "method='smoother'"),
        (lambda: pyrodyn.predict(ndt, data, method="exact"), "method='exact'"),
        (lambda: pyrodyn.predict(ndt, data, method="mcmc"), "method='mcmc'"),
        (lambda: pyrodyn.to_datatree(ndt, data, num_prior_draws=2), "a prior, num_prior_draws="),
        (lambda: pyrodyn.to_datatree(ndt, data, draws={}), "draws="),
        (lambda: calibrate(ndt, data), "simulation-based calibration"),
        (lambda: path_pool(ndt, batch), "a pool of trajectories"),
        (lambda: importance_sample(ndt, ndt.guide, batch), "importance sampling"),
        (lambda: RefinedGuide(ndt), "RefinedGuide"),
        (lambda: pyrodyn.fit(ndt, data, objective=RWS(2), **QUIET), "RWS"),
    ):
        with pytest.raises(ValueError, match=rf"^{re.escape(subject)} needs latent sites, and NDT"):
            run()
    for run, sentence in (
        (lambda: pyrodyn.fit(ndt, data, objective=VSMC(2), **QUIET), r"needs a StateSpaceModel"),
        (lambda: pyrodyn.fit(ndt, data, guide=AutoNormal(ndt), **QUIET), r"NDT has no latent site"),
        (lambda: pyrodyn.predict(ndt, data, guide=AutoNormal(ndt)), r"NDT has no latent site for"),
        (lambda: analysis.fixed_points(ndt), r"NDT has no dynamics of its own to analyse"),
        (lambda: analysis.free_run(ndt, 2, 3), r"NDT has no dynamics of its own to analyse"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run()
    lfads = make_lfads(data, dropout=0.1)
    assert isinstance(lfads, LFADS)
    with pytest.raises(ValueError, match=r"method='dropout' is for models without latent sites"):
        pyrodyn.predict(lfads, data, method="dropout")
