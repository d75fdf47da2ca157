"""Pyro's engines run, or are refused, as the table of docs/pyro.md has it."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    HMC,
    MCMC,
    NUTS,
    SVGD,
    SVI,
    EnergyDistance,
    Importance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    MHResampler,
    Predictive,
    RandomWalkKernel,
    RBFSteinKernel,
    RenyiELBO,
    ReweightedWakeSleep,
    SMCFilter,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
    WeighedPredictive,
)
from pyro.infer.autoguide import AutoDiagonalNormal, AutoStructured
from pyro.infer.csis import CSIS
from pyro.infer.inspect import get_dependencies
from pyro.infer.mcmc import StreamingMCMC
from pyro.infer.reparam import AutoReparam, LocScaleReparam, NeuTraReparam, StructuredReparam

from pyrodyn.data import Batch, Trials
from pyrodyn.models import LFADS

PAGE = Path(__file__).parents[2] / "docs" / "pyro.md"
Engine = Callable[[LFADS, Batch], Any]
TWO = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def data(make_recording):
    return make_recording(4, 6)


def adam() -> pyro.optim.PyroOptim:
    return pyro.optim.Adam({"lr": 1e-2})


def svi(loss: Callable[[], Any]) -> Engine:
    def run(model: LFADS, batch: Batch) -> None:
        before = [p.detach().clone() for p in model.parameters()]
        engine = SVI(model.model, model.guide, adam(), loss())
        for _ in range(2):
            engine.step(batch)
        assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))

    return run


def mcmc(kernel: Callable[[LFADS], Any]) -> Engine:
    def run(model: LFADS, batch: Batch) -> None:
        sampler = MCMC(kernel(model), num_samples=2, warmup_steps=1, disable_progbar=True)
        sampler.run(batch)
        assert set(sampler.get_samples()) == {"g0", "u"}

    return run


def streaming(model: LFADS, batch: Batch) -> None:
    kernel = NUTS(model, max_tree_depth=2)
    sampler = StreamingMCMC(kernel, num_samples=2, warmup_steps=1, disable_progbar=True)
    sampler.run(batch)
    assert {name for _, name in sampler.get_statistics()} == {"g0", "u"}


def stein(model: LFADS, batch: Batch) -> None:
    engine = SVGD(model.model, RBFSteinKernel(), adam(), num_particles=2, max_plate_nesting=1)
    engine.step(batch)
    assert engine.get_named_particles()["u"].shape == (2, 4, 6, 1)


def predictive(model: LFADS, batch: Batch) -> None:
    engine = Predictive(model, guide=model.guide, num_samples=3, parallel=True)
    assert engine(batch.unobserved())["x"].shape == (3, 4, 6, 5)


def weighted(model: LFADS, batch: Batch) -> None:
    engine = WeighedPredictive(model, guide=model.guide, num_samples=3, parallel=True)
    assert engine(batch.unobserved(), model_guide=model.model).log_weights.shape == (3,)


def resampled(model: LFADS, batch: Batch) -> None:
    source = WeighedPredictive(model, guide=model.guide, num_samples=3, parallel=True)
    kept = slice(0)
    engine = MHResampler(source, source_samples_slice=kept, stored_samples_slice=kept)
    assert engine(batch.unobserved(), model_guide=model.model).log_weights.shape == (3,)


def by_guide(reparam: type[Any], guide_class: type[Any]) -> Engine:
    def run(model: LFADS, batch: Batch) -> None:
        guide = guide_class(model.model)
        guide(batch)
        trace = poutine.trace(reparam(guide).reparam(model.model)).get_trace(batch)
        assert torch.isfinite(trace.log_prob_sum())

    return run


def conditioned(model: LFADS, batch: Batch) -> None:
    value = torch.zeros(4, 4)
    for handler in (poutine.condition, poutine.do):
        trace = poutine.trace(handler(model.model, data={"g0": value})).get_trace(batch)
        assert torch.isfinite(trace.log_prob_sum())
    drawn = poutine.trace(model.guide).get_trace(batch)
    for program in (
        poutine.block(model.model, hide=["rates"]),
        poutine.mask(model.model, mask=torch.ones(4, dtype=torch.bool)),
        poutine.scale(model.model, scale=0.5),
        poutine.replay(model.model, trace=drawn),
        poutine.uncondition(model.model),
    ):
        assert torch.isfinite(poutine.trace(program).get_trace(batch).log_prob_sum())


def lifted(model: LFADS, batch: Batch) -> None:
    program = poutine.lift(model.model, prior=dist.Normal(0.0, 0.1))
    sites = poutine.trace(program).get_trace(batch).stochastic_nodes
    assert len(sites) == len(list(model.parameters())) + 3


def reparameterised(site: str) -> Engine:
    def run(model: LFADS, batch: Batch) -> None:
        program = poutine.reparam(model.model, config={site: LocScaleReparam(0.0)})
        assert f"{site}_decentered" in poutine.trace(program).get_trace(batch)

    return run


def automatically_reparameterised(model: LFADS, batch: Batch) -> None:
    sites = poutine.trace(AutoReparam()(model.model)).get_trace(batch).stochastic_nodes
    assert set(sites) == {"trials", "g0_decentered", "u"}


ENGINES: dict[str, Engine] = {
    "Trace_ELBO": svi(Trace_ELBO),
    "TraceMeanField_ELBO": svi(TraceMeanField_ELBO),
    "TraceGraph_ELBO": svi(TraceGraph_ELBO),
    "TraceTailAdaptive_ELBO": svi(lambda: TraceTailAdaptive_ELBO(**TWO)),
    "RenyiELBO": svi(lambda: RenyiELBO(**TWO)),
    "ReweightedWakeSleep": svi(lambda: ReweightedWakeSleep(**TWO)),
    "ReweightedWakeSleep(insomnia=0.5)": svi(lambda: ReweightedWakeSleep(insomnia=0.5, **TWO)),
    "TraceEnum_ELBO": svi(lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "TraceTMC_ELBO": svi(lambda: TraceTMC_ELBO(max_plate_nesting=1)),
    "JitTrace_ELBO": svi(JitTrace_ELBO),
    "JitTraceMeanField_ELBO": svi(JitTraceMeanField_ELBO),
    "JitTraceGraph_ELBO": svi(JitTraceGraph_ELBO),
    "JitTraceEnum_ELBO": svi(lambda: JitTraceEnum_ELBO(max_plate_nesting=1)),
    "EnergyDistance": svi(EnergyDistance),
    "Trace_MMD": svi(lambda: Trace_MMD(kernel=RBF(5))),
    "CSIS": lambda model, batch: CSIS(model.model, model.guide, adam()).step(batch),
    "SVGD": stein,
    "NUTS": mcmc(lambda model: NUTS(model, max_tree_depth=2)),
    "HMC": mcmc(lambda model: HMC(model, num_steps=2)),
    "RandomWalkKernel": mcmc(RandomWalkKernel),
    "StreamingMCMC": streaming,
    "NUTS(jit_compile=True)": mcmc(lambda model: NUTS(model, jit_compile=True)),
    "Predictive(parallel=True)": predictive,
    "WeighedPredictive": weighted,
    "MHResampler": resampled,
    "Importance": lambda model, batch: Importance(model.model, model.guide, 3).run(batch),
    "SMCFilter": lambda model, batch: SMCFilter(model, model, 4, max_plate_nesting=1).init(),
    "poutine.condition": conditioned,
    "poutine.lift": lifted,
    "LocScaleReparam": reparameterised("u"),
    "AutoReparam": automatically_reparameterised,
    "StructuredReparam": by_guide(StructuredReparam, AutoStructured),
    "NeuTraReparam": by_guide(NeuTraReparam, AutoDiagonalNormal),
    "pyro.render_model": lambda model, batch: pyro.render_model(model.model, (batch,)),
    "get_dependencies": lambda model, batch: get_dependencies(model.model, (batch,)),
}
TABLE = dict(re.findall(r"^\| `([^`]+)` \| (runs|refused) \|", PAGE.read_text(), re.MULTILINE))


PARTS = {
    "SVI", "MCMC", "ELBO", "RBFSteinKernel", "IMQSteinKernel",  # of engines in the table
    "TracePosterior", "TracePredictive", "EmpiricalMarginal",  # of draws of Importance
    "config_enumerate", "infer_discrete",  # for discrete sites
    "enable_validation", "is_validation_enabled",
}  # fmt: skip
"""Public names of `pyro.infer` that are no engines of their own for these models."""


def test_the_table_lists_what_is_tested_and_all_engines_of_pyro():
    assert list(TABLE) == list(ENGINES)
    assert set(pyro.infer.__all__) - PARTS <= {name.partition("(")[0] for name in TABLE}


@pytest.mark.parametrize("name", ENGINES)
def test_engines_run_or_are_refused_as_the_page_has_it(name, data, make_lfads):
    torch.manual_seed(0)
    model = make_lfads(data, inferred_input_dim=1).eval()
    batch = Trials(data).batch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of engines about themselves
        if TABLE[name] == "runs":
            ENGINES[name](model, batch)
            return
        with pytest.raises((TypeError, RuntimeError, AttributeError, ValueError)):
            ENGINES[name](model, batch)


def test_initial_conditions_can_be_decentred(data, make_lfads):
    reparameterised("g0")(make_lfads(data, inferred_input_dim=1), Trials(data).batch())


def test_engines_that_simulate_data_run_with_the_guide_of_the_page(data, make_lfads):
    model, batch = make_lfads(data, inferred_input_dim=1).eval(), Trials(data).batch()
    code = PAGE.read_text().split("```python\ndef guide")[1].split("```")[0]
    namespace = {"torch": torch, "model": model}
    exec("def guide" + code, namespace)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    CSIS(model.model, namespace["guide"], adam(), training_batch_size=2).step(batch)
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert "g0_posterior.weight" not in still
    assert "readout.weight" in still  # the generative part of the model is not trained by it
    sleep = ReweightedWakeSleep(insomnia=0.5, vectorize_particles=False, num_sleep_particles=1)
    SVI(model.model, namespace["guide"], adam(), sleep).step(batch)
    assert not torch.equal(model.readout.weight, before["readout.weight"])
