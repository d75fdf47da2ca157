"""Priors on parameters: which are accepted, the sites that they become, and their cards."""

import json
from fnmatch import fnmatchcase

import pyro
import pyro.distributions as dist
import pytest
import torch
import zuko.transforms  # noqa: F401 (renames the inverses of transforms)
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch.distributions import AffineTransform, ExpTransform

from pyrodyn.data import Trials
from pyrodyn.infer import ELBO, VSMC, particle_filter
from pyrodyn.infer.traces import latent_sites, paired_traces, traced
from pyrodyn.models import LFADS, LinearDynamics, LowRankRNN, NodeSAE, RnnSAE, ShallowPLRNN, saving
from pyrodyn.models.parameters import parameters_behind

HALF_NORMAL_SCALE = dist.TransformedDistribution(dist.HalfNormal(2.0), [ExpTransform().inv])


@pytest.fixture
def data(make_recording):
    return make_recording(4)


@pytest.fixture
def batch(data):
    return Trials(data).batch()


@pytest.fixture
def make(data):
    def build(**priors):
        named = {name.replace("__", "."): prior for name, prior in priors.items()}
        sizes = {"latent_dim": 2, "num_units": 6, "encoder_bins": 3}
        return LowRankRNN.for_recording(data, seed=0, **sizes, priors=named)

    return build


def sites(trace):
    return {name: tuple(site["value"].shape) for name, site in trace.nodes.items()}


def test_a_parameter_with_a_prior_is_one_site_of_both_programs(make, batch):
    model = make(loading=dist.Normal(0, 2.0))
    for program in (model, model.model, model.guide):
        site = poutine.trace(program).get_trace(batch).nodes["loading"]
        assert site["value"].shape == model.loading.shape
        assert site["fn"].batch_shape == () and site["scale"] == 1
        assert [frame.name for frame in site["cond_indep_stack"]] == []
    q = traced(model.guide, batch).nodes["loading"]["fn"].base_dist
    assert parameters_behind(q.loc) == {model.loading}
    torch.testing.assert_close(q.scale, torch.full_like(q.loc, 0.2))


def test_both_programs_run_at_the_values_drawn(make, batch):
    model = make(loading=dist.Normal(0.0, 1.0), bias=dist.Normal(0.0, 1.0))
    guide_trace, model_trace = paired_traces(model, model.guide, batch, 1)
    nodes = model_trace.nodes
    for name in ("loading", "bias"):
        assert nodes[name]["value"] is guide_trace.nodes[name]["value"]
    read = nodes["z"]["value"] @ nodes["loading"]["value"].mT + nodes["bias"]["value"]
    torch.testing.assert_close(nodes["rates"]["value"], read.exp())


def test_the_model_itself_keeps_its_weights(make, batch):
    model = make(**{"m": dist.Normal(0, 1.0)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.guide(batch)
    with poutine.trace():
        model.model(batch)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert dict(model.named_parameters()).keys() == before.keys()


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(0, 1.5),
        torch.distributions.Normal(0.0, 1.5),
        dist.Normal(torch.zeros(6, 2), 1.0).to_event(2),
        dist.Normal(torch.zeros(2), torch.tensor([0.1, 3.0])),
        dist.StudentT(3.0, 0.0, 1.0),
        dist.Cauchy(0.0, 1.0),
        dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [AffineTransform(1.0, 2.0)]),
        HALF_NORMAL_SCALE,
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_a_prior_expands_to_its_parameter_and_survives_a_card(make, prior, tmp_path):
    model = make(m=prior)
    saving.save(model, tmp_path)
    loaded = saving.load(tmp_path)
    value = torch.randn(6, 2)
    wanted = prior.log_prob(value).sum()
    for each in (model, loaded):
        found = each.priors.prior("m", each.m).log_prob(value)
        torch.testing.assert_close(found, wanted)
    assert loaded.priors.cards == model.priors.cards
    assert torch.equal(loaded.priors.log_scale["m"], model.priors.log_scale["m"])
    assert model.priors.log_scale["m"].isfinite().all()


def test_a_log_scale_may_have_the_prior_of_its_scale(make):
    """If s is half-normal, log s has the density p(s) s."""
    model = make(raw_noise=HALF_NORMAL_SCALE)
    log_s = torch.tensor([-0.5, 0.3])
    wanted = (dist.HalfNormal(2.0).log_prob(log_s.exp()) + log_s).sum()
    found = model.priors.prior("raw_noise", model.raw_noise).log_prob(log_s)
    torch.testing.assert_close(found, wanted)


def test_a_pattern_names_a_group_and_the_last_match_counts(data):
    priors = {"phi.*": dist.Normal(0, 1.0), "phi.*.bias": dist.Normal(0, 3.0)}
    model = NodeSAE.for_recording(data, priors=priors, field_depth=2)
    of_phi = ((name, p) for name, p in model.named_parameters() if name.startswith("phi."))
    names = {name for name, parameter in of_phi if parameter.numel()}
    assert set(model.priors.cards) == names
    scales = {name: card["scale"] for name, card in model.priors.cards.items()}
    assert {name for name, scale in scales.items() if scale == 3} == {
        name for name in names if name.endswith(".bias")
    }


def test_a_pattern_leaves_the_guide_out(data):
    model = LFADS.for_recording(data, priors={"*": dist.Normal(0, 1.0)}, inferred_input_dim=1)
    guides = ("encoder", "g0_posterior", "controller", "u_posterior", "proposal")
    assert not any(name.startswith(guides) for name in model.priors.cards)
    assert {"readout.weight", "generator.weight_hh_l0", "g0_mean"} <= set(model.priors.cards)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (LFADS, {"inferred_input_dim": 1, "generator_dim": 5, "encoder_dim": 3}),
        (NodeSAE, {}),
        (RnnSAE, {"process_noise": True}),
        (LowRankRNN, {"num_units": 6}),
        (LinearDynamics, {}),
        (ShallowPLRNN, {}),
    ],
)
def test_what_is_declared_the_guides_is_what_the_model_does_not_depend_on(data, batch, kind, sizes):
    model = kind.for_recording(data, seed=0, **sizes)
    drawn = traced(model.guide, batch)
    for name in latent_sites(drawn):
        drawn.nodes[name]["value"] = drawn.nodes[name]["value"].detach()
    trace = traced(poutine.replay(model, trace=drawn), batch)
    behind = parameters_behind(trace.log_prob_sum())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            is_guides = any(fnmatchcase(name, pattern) for pattern in model.guide_parameters)
            assert is_guides != (parameter in behind), name


@pytest.mark.parametrize(
    ("name", "prior", "sentence"),
    [
        ("loadin", dist.Normal(0, 1.0), "no parameter 'loadin'.*did you mean 'loading'"),
        ("zz*", dist.Normal(0, 1.0), "no parameter 'zz\\*'.*it has log_rate, m, n"),
        ("proposal.*", dist.Normal(0, 1.0), "of the guide of LowRankRNN alone"),
        ("loading", dist.Normal(torch.zeros(3), 1.0), r"shape \(3,\).*parameter's, \(5, 2\)"),
        ("loading", dist.Normal(torch.zeros(4, 5, 2), 1.0), r"shape \(4, 5, 2\)"),
        ("bias", dist.MultivariateNormal(torch.zeros(1), torch.eye(1)), r"shape \(1,\)"),
        ("raw_noise", dist.HalfNormal(1.0), "HalfNormal, whose support is not the real line"),
        ("loading", dist.Uniform(-1.0, 1.0), "Uniform, whose support"),
        ("loading", dist.Delta(torch.zeros(())), "Delta, which a model's card cannot name"),
        (
            "loading",
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)
            ),
            "MixtureSameFamily, which a model's card cannot name",
        ),
        ("loading", 1.0, "is a float; give a distribution"),
        ("loading", {"class": "Nothing"}, "names no prior"),
    ],
)
def test_priors_that_do_not_fit_are_refused(make, name, prior, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make(**{name: prior})
    assert "\n" not in str(caught.value)


def test_a_fixed_parameter_has_no_prior(make):
    model = make()
    model.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'bias' has no use.*fixed"):
        model.set_priors({"bias": dist.Normal(0, 1.0)})


def test_an_empty_mapping_takes_priors_away(make, batch):
    model = make(loading=dist.Normal(0, 1.0))
    names = set(make().state_dict())
    model.set_priors({})
    assert model.priors is None and set(model.state_dict()) == names
    assert "loading" not in traced(model, batch).nodes


def test_values_of_parameters_make_a_copy_without_priors(make, batch):
    model = make(loading=dist.Normal(0, 1.0))
    value = torch.randn_like(model.loading)
    at = model.at({"loading": value})
    assert at.priors is None and torch.equal(at.loading, value)
    assert at.m is model.m and at.proposal is model.proposal
    assert "loading" not in traced(at, batch).nodes
    assert torch.equal(model.at().loading, model.loading) and model.priors is not None
    with pytest.raises(ValueError, match=r"no parameter 'loading' of the shape \(2, 2\)"):
        model.at({"loading": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="no parameter 'x'"):
        model.at({"x": torch.zeros(2)})


def test_a_model_at_values_is_saved_and_converted_like_any(make, tmp_path):
    at = make(loading=dist.Normal(0, 1.0)).at({"loading": torch.randn(5, 2)})
    saving.save(at, tmp_path)
    loaded = saving.load(tmp_path)
    assert loaded.priors is None and torch.equal(loaded.loading, at.loading)
    assert torch.equal(at.double().loading, loaded.loading.double())


def test_a_copy_made_while_weights_are_cached_has_its_own(make):
    model = make(raw_noise=dist.Normal(0, 1.0))
    with model.hoisting():
        before = model.process_noise()[1].matrix
        at = model.at({"raw_noise": model.raw_noise.detach() + 1})
        with at.hoisting():
            assert (at.process_noise()[1].matrix.diagonal() > before.diagonal()).all()


def test_a_damaged_card_is_refused(make, tmp_path):
    saving.save(make(loading=dist.Normal(0, 1.0)), tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    for wrong in ({"loading": {"class": "Normal", "loc": 0.0}}, {"loadin": {"class": "Normal"}}):
        (tmp_path / "card.json").write_text(json.dumps({**card, "priors": wrong}))
        with pytest.raises(ValueError, match="priors that do not fit"):
            saving.load(tmp_path)


def test_the_summary_names_the_priors(make):
    assert "priors     loading\n" in repr(make(loading=dist.Normal(0, 1.0)))


# ------------------------------------------------------------------ Pyro's own engines


def test_pyro_trains_the_guide_of_the_parameters(make, batch):
    model = make(loading=dist.Normal(0, 1.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(batch)
    kept = [n for n, p in model.named_parameters() if p.numel() and torch.equal(p, before[n])]
    assert kept == []


def test_pyros_elbo_is_ours(make, batch):
    model = make(loading=dist.Normal(0, 1.0), raw_noise=dist.Normal(0.0, 1.0))
    torch.manual_seed(1)
    value = TraceMeanField_ELBO().loss_and_grads(model.model, model.guide, batch)
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    loss = ELBO()(model, model.guide)(batch)
    loss.backward()
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    for parameter, its in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(its, parameter.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_vectorised_particles_are_refused(make, batch):
    model = make(loading=dist.Normal(0, 1.0))
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match="run particles one by one"):
        elbo.loss(model.model, model.guide, batch)
    with pytest.raises(ValueError, match="parallel=False"):
        Predictive(model.model, num_samples=3, parallel=True)(batch)
    drawn = Predictive(model.model, num_samples=3)(batch)
    assert drawn["loading"].shape == (3, 1, *model.loading.shape)


@pytest.mark.parametrize("where", ["bias", "observation.log_dispersion"])
@pytest.mark.parametrize("call", ["model", "guide", "forward"])
def test_pyro_sample_is_refused_with_what_to_do(data, batch, where, call):
    sizes = {"latent_dim": 2, "num_units": 6, "encoder_bins": 3}
    model = LowRankRNN.for_recording(data, observation="negative_binomial", **sizes)
    to_pyro_module_(model)
    *path, name = where.split(".")
    setattr(model.get_submodule(".".join(path)), name, PyroSample(dist.Normal(0.0, 1.0)))
    refused = f"'{where}' is a PyroSample.*priors="
    with pytest.raises(ValueError, match=refused):
        getattr(model, call)(batch)
    with pytest.raises(ValueError, match=refused):
        VSMC(4)(model, model.guide)
    with pytest.raises(ValueError, match=refused):
        particle_filter(model, batch, 4)
