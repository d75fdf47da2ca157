"""Parameters belong to their modules in pyrodyn's own runs, and are registered under Pyro's
engines.
"""

import copy
import gc
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn

import pyrodyn
from pyrodyn.data import Trials
from pyrodyn.infer import ELBO, IWELBO, VSMC, importance_sample, path_pool
from pyrodyn.infer.smc.particle_filter import particle_filter
from pyrodyn.infer.smc.particle_smoother import particle_smoother
from pyrodyn.models import LFADS, LowRankRNN
from pyrodyn.models.parameters import local_parameters

FIT = {"max_epochs": 1, "progress": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def data(make_recording):
    return make_recording(6)


@pytest.fixture
def batch(data):
    return Trials(data).batch()


@pytest.fixture
def low_rank(data):
    torch.manual_seed(0)
    return LowRankRNN.for_recording(data, latent_dim=2, num_units=5)


@pytest.fixture
def lfads(data, make_lfads):
    return make_lfads(data, inferred_input_dim=1).eval()


def svi(model) -> SVI:
    return SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def moved(model, before) -> list[bool]:
    return [not torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True)]


# ------------------------------------------------------------------ pyrodyn's own runs


def test_import_and_runs_leave_pyro_as_it_is(data, batch, low_rank):
    settings = pyro.settings.get()
    assert settings["module_local_params"] is False
    for objective in (ELBO(), IWELBO(2, "dreg"), VSMC(4)):
        pyrodyn.fit(low_rank, data, objective=objective, **FIT)
    pyrodyn.predict(low_rank, data, num_draws=2)
    importance_sample(low_rank, low_rank.guide, batch, 30)
    path_pool(low_rank, batch, 2, num_particles=64)
    particle_smoother(low_rank, batch, 2, num_particles=8)
    assert pyro.settings.get() == settings
    assert not pyro.get_param_store().keys()


def test_the_context_can_be_nested_and_ends_with_an_error():
    def is_local() -> bool:
        return pyro.settings.get("module_local_params")

    with local_parameters():
        with local_parameters():
            assert is_local()
        assert is_local()
    assert not is_local()
    with pytest.raises(RuntimeError, match="stop"), local_parameters():
        raise RuntimeError("stop")
    assert not is_local()
    with pyro.settings.context(module_local_params=True), local_parameters():
        pass
    assert not is_local()


def test_a_pyro_module_with_a_param_statement_goes_on_working(data, low_rank):
    class Guide(PyroModule):
        def forward(self):
            loc = pyro.param("loc", torch.tensor(0.0))
            pyro.sample("z", dist.Normal(loc, 1.0))

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    guide = Guide()
    engine = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(2):
        engine.step()
        pyrodyn.fit(low_rank, data, **FIT)
    assert float(pyro.param("loc").detach()) != 0


def test_guides_of_one_class_share_nothing_in_a_fit(data, low_rank):
    guides = AutoNormal(low_rank), AutoNormal(low_rank)
    for guide in guides:
        pyrodyn.fit(low_rank, data, guide=guide, **FIT)
    one, other = (dict(guide.named_parameters()) for guide in guides)
    assert one.keys() == other.keys() != set()
    assert all(one[name] is not other[name] for name in one)
    assert not pyro.get_param_store().keys()


def test_modules_inside_a_proposal_stay_out_of_the_store(batch, low_rank):
    """Also in the filter, which runs no Pyro program."""
    encoder = low_rank.proposal
    encoder.net = PyroModule[nn.Linear](1, 1)
    encode = type(encoder).encode

    class WithPyroModule(type(encoder)):
        def encode(self, model, batch):
            self.net(torch.zeros(1, 1))
            return encode(self, model, batch)

    encoder.__class__ = WithPyroModule
    particle_filter(low_rank, batch, 4)
    VSMC(4)(low_rank, low_rank.guide)(batch)
    assert not pyro.get_param_store().keys()
    low_rank.guide(batch)
    assert pyro.get_param_store().keys()


# ------------------------------------------------------------------ Pyro's engines


def test_models_of_one_class_and_copies_train_their_own_tensors(batch, lfads):
    models = [lfads, copy.deepcopy(lfads)]
    svi(models[0]).step(batch)
    models.append(copy.deepcopy(models[0]))
    for model in models:
        before = [weights(m) for m in models]
        svi(model).step(batch)
        for m, its in zip(models, before, strict=True):
            assert all(moved(m, its)) if m is model else not any(moved(m, its))
    store = pyro.get_param_store()
    # A number follows the class for each model that is alive, those of other tests included.
    names = {name.split("$$$")[0] for name in store}
    assert len(names) == 3 and all(re.fullmatch(r"LFADS(_\d+)?", name) for name in names)
    held = {store.param_name(p) for model in models for p in model.parameters()}
    assert held == set(store.keys())


def test_a_model_that_is_no_more_leaves_the_store(data, batch, make_lfads, low_rank):
    first = make_lfads(data)
    svi(first).step(batch)
    svi(low_rank).step(batch)
    del first
    gc.collect()
    (left,) = {name.split("$$$")[0] for name in pyro.get_param_store()}
    assert re.fullmatch(r"LowRankRNN(_\d+)?", left)
    new = make_lfads(data, inferred_input_dim=1)
    before = weights(new)
    svi(new).step(batch)
    assert all(moved(new, before))
    assert any(
        re.fullmatch(r"LFADS(_\d+)?\$\$\$readout\.bias", name) for name in pyro.get_param_store()
    )


def test_a_cleared_store_is_filled_anew(batch, lfads):
    engine = svi(lfads)
    engine.step(batch)
    pyro.clear_param_store()
    before = weights(lfads)
    engine.step(batch)
    assert all(moved(lfads, before))


def test_a_layer_put_in_place_of_another_is_trained(batch, lfads):
    engine = svi(lfads)
    engine.step(batch)
    old = lfads.readout
    lfads.readout = copy.deepcopy(old)
    before, kept = weights(lfads), old.weight.detach().clone()
    engine.step(batch)
    assert all(moved(lfads, before))
    assert torch.equal(old.weight, kept)


def test_a_tensor_of_somebody_else_under_the_models_name_is_refused(batch, lfads):
    svi(lfads).step(batch)
    pyro.clear_param_store()
    pyro.param("LFADS$$$readout.bias", torch.zeros(5))
    with pytest.raises(ValueError, match=r"holds another tensor as 'LFADS\$\$\$readout.bias'"):
        svi(lfads).step(batch)


def test_parameters_that_are_not_contiguous_are_trained(batch, lfads):
    parameter = lfads.readout.weight
    parameter.data = parameter.data.mT.contiguous().mT
    assert not parameter.is_contiguous()
    before = weights(lfads)
    svi(lfads).step(batch)
    assert all(moved(lfads, before))


def test_frozen_parameters_stay_and_raise_no_warning(batch, lfads):
    lfads.readout.requires_grad_(False)
    before = weights(lfads)
    svi(lfads.train()).step(batch)
    names = [name for name, _ in lfads.named_parameters()]
    still = {n for n, is_moved in zip(names, moved(lfads, before), strict=True) if not is_moved}
    assert still == {name for name in names if name.startswith("readout.")}


def test_a_subclass_with_a_guide_of_its_own_is_trained(data, batch):
    class Shifted(LFADS):
        def __init__(self, *args, **sizes):
            super().__init__(*args, **sizes)
            self.shift = nn.Parameter(torch.zeros(()))

        def guide(self, batch):
            super().guide(batch.replace(seen=batch.seen + self.shift))

    model = Shifted.for_recording(data)
    svi(model).step(batch)
    assert float(model.shift.detach()) != 0


def test_a_model_can_be_pickled_and_copied_after_a_run(batch, lfads):
    svi(lfads).step(batch)
    for copied in (pickle.loads(pickle.dumps(lfads)), copy.deepcopy(lfads)):
        assert not any(moved(copied, weights(lfads)))


# ------------------------------------------------------------------ lifted parameters


@pytest.mark.parametrize("program", ["model", "guide"])
def test_lifted_values_are_the_weights_of_draws_and_densities(program, batch, lfads):
    model = lfads
    before = weights(model)
    prior = {
        name: dist.Normal(p.detach(), 0.3).to_event(p.ndim) for name, p in model.named_parameters()
    }
    trace = poutine.trace(poutine.lift(getattr(model, program), prior=prior)).get_trace(batch)
    trace.compute_log_prob()
    drawn = {
        name.split("$$$")[1]: site["value"] for name, site in trace.nodes.items() if "$$$" in name
    }
    assert drawn.keys() == prior.keys()
    assert not any(moved(model, before))
    by_hand = copy.deepcopy(model)
    by_hand.load_state_dict(drawn, strict=False)
    latents = {name: trace.nodes[name]["value"] for name in ("g0", "u")}
    conditioned = poutine.condition(getattr(by_hand, program), data=latents)
    expected = poutine.trace(conditioned).get_trace(batch)
    expected.compute_log_prob()
    for name in ("g0", "u", "x") if program == "model" else ("g0", "u"):
        torch.testing.assert_close(
            trace.nodes[name]["log_prob"], expected.nodes[name]["log_prob"], rtol=1e-4, atol=1e-4
        )


def test_svi_trains_a_guide_of_weights_that_have_a_prior(batch, low_rank):
    weight = low_rank.loading
    prior = {"loading": dist.Normal(torch.zeros_like(weight), 1.0).to_event(weight.ndim)}
    program = poutine.lift(low_rank.model, prior=prior)
    guide, before = AutoNormal(program), weights(low_rank)
    engine = SVI(program, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    engine.step(batch)
    site = next(name for name in guide() if name.endswith("loading"))
    first = getattr(guide.locs, site).detach().clone()
    engine.step(batch)
    assert first.shape == weight.shape and not torch.equal(getattr(guide.locs, site), first)
    named = dict(low_rank.named_parameters())
    still = {
        name
        for (name, p), is_moved in zip(named.items(), moved(low_rank, before), strict=True)
        if p.numel() and not is_moved
    }
    assert still == {"loading"} | {name for name in named if name.startswith("proposal.")}


def test_a_lifted_value_of_another_shape_is_refused(batch, lfads):
    lifted = poutine.lift(lfads.model, prior=dist.Normal(torch.zeros(7, 3), 1.0).to_event(2))
    with pytest.raises(ValueError, match=r"the value drawn for .* has the shape \(7, 3\)"):
        poutine.trace(lifted).get_trace(batch)
    everything = poutine.lift(lfads.model, prior=dist.Normal(0.0, 0.1))
    sites = poutine.trace(everything).get_trace(batch).stochastic_nodes
    assert len([name for name in sites if "$$$" in name]) == len(weights(lfads))
