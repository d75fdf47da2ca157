"""Parameters of guides: those that no optimiser would train, or would corrupt, are named."""

import functools
import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from lfads_guides import DIM, Amortised, in_plate, sample, trials, u
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodyn.data.batch import Batch
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    RWS,
    GuideError,
    GuideReport,
    Objective,
    check_guide,
    fit,
)

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu"}


class WithoutReparameterisation(dist.Normal):
    has_rsample = False


@pytest.mark.parametrize(
    ("objective", "is_refused"), [(ELBO(), True), (IWELBO(4), True), (RWS(4), False), (None, False)]
)
def test_draws_without_reparameterisation(
    model, batch, objective: Objective | None, is_refused: bool
):
    holder = Holder(loc=torch.zeros(DIM), kind=WithoutReparameterisation)
    report = check_guide(model, holder, batch, objective=objective)
    assert bool(report.problems) == is_refused
    if is_refused:
        assert "site 'g0' is drawn from WithoutReparameterisation, which has no" in str(report)
        assert "fit by RWS" in str(report)
    # A distribution that has nothing to be trained needs no gradient.
    fixed = in_plate(
        sample("g0", lambda b: WithoutReparameterisation(0.0, 1.0).expand([6, DIM]).to_event(1)), u
    )
    assert check_guide(model, fixed, batch, objective=objective) == GuideReport()


class Holder(nn.Module):
    def __init__(self, kind: type[dist.Normal] = dist.Normal, **parameters: Tensor) -> None:
        super().__init__()
        self.kind = kind
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, batch: Batch) -> None:
        loc = sum(parameter.expand(1, DIM) for parameter in self.parameters())
        with trials(batch):
            pyro.sample("g0", self.kind(loc, 1.0).to_event(1))
            u(batch)


def by_store(batch: Batch) -> None:
    loc = pyro.param("loc", torch.zeros(DIM))
    scale = pyro.param("scale", torch.ones(DIM), constraint=constraints.positive)
    with trials(batch):
        pyro.sample("g0", dist.Normal(loc, scale).to_event(1))
        u(batch)


LOOSE = torch.zeros(DIM, requires_grad=True)


def by_tensor(batch: Batch) -> None:
    with trials(batch):
        pyro.sample("g0", dist.Normal(0.0, LOOSE.exp()).to_event(1))
        u(batch)


def test_parameters_that_no_optimiser_would_hold(model, batch, data):
    module = Amortised()
    try:
        for guide, sentence in {
            by_store: "pyro.param keeps loc, scale in Pyro's global store",
            by_tensor: "depend on tensors of shape (4,) that need a gradient",
            lambda batch: module(batch): "draws by module, a Amortised that fit does not train",
        }.items():
            report = check_guide(model, guide, batch)
            assert len(report.problems) == 1, report
            assert sentence in report.problems[0]
            assert check_guide(model, guide, batch, training=False) == GuideReport()
            with pytest.raises(GuideError, match=re.escape(sentence)):
                fit(model, data, guide=guide, objective=RWS(4), max_epochs=1, **QUIET)
    finally:
        pyro.clear_param_store()


def draws_by(head: nn.Module, batch: Batch) -> None:
    with trials(batch):
        pyro.sample("g0", dist.Normal(head(batch.seen.mean(1)), 1.0).to_event(1))
        u(batch)


class WithLists(nn.Module):
    """A guide whose layers are hidden from torch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = nn.Identity()
        where = self.inner if kind == "inner" else self
        where.layers = {"head": nn.Linear(5, DIM)} if kind == "dict" else [nn.Linear(5, DIM)]

    def forward(self, batch: Batch) -> None:
        layers = getattr(self, "layers", None) or self.inner.layers
        draws_by(layers["head"] if isinstance(layers, dict) else layers[0], batch)


class NoModule:
    def __init__(self) -> None:
        self.head = nn.Linear(5, DIM)

    def __call__(self, batch: Batch) -> None:
        draws_by(self.head, batch)

    def method(self, batch: Batch) -> None:
        draws_by(self.head, batch)


def test_modules_that_are_no_part_of_the_guide_are_named(model, batch):
    layer = nn.Linear(5, DIM)
    layers, by_name = [nn.Identity(), layer], {"head": layer}
    keep, module = "keep it as an attribute, in an nn.ModuleList", "pass the module itself"
    for guide, name, remedy in (
        (WithLists("list"), "self.layers[0]", keep),
        (WithLists("dict"), "self.layers['head']", keep),
        (WithLists("inner"), "self.inner.layers[0]", keep),
        (WithLists("list").forward, "self.layers[0]", keep),
        (NoModule(), "self.head", "make the guide's class a torch.nn.Module"),
        (NoModule().method, "self.head", "make the guide's class a torch.nn.Module"),
        (lambda batch: draws_by(layers[1], batch), "layers[1]", module),
        (lambda batch: draws_by(by_name["head"], batch), "by_name['head']", module),
        (functools.partial(draws_by, layer), "its arguments[0]", module),
        (functools.partial(Amortised().forward), "its function", module),
    ):
        report = check_guide(model, guide, batch)
        assert len(report.problems) == 1, report
        assert f"the guide draws by {name}, a " in report.problems[0]
        assert remedy in report.problems[0]
        assert check_guide(model, guide, batch, training=False) == GuideReport()


class StoresParameters(PyroModule):
    def forward(self, batch: Batch) -> None:
        by_store(batch)


def test_a_pyro_module_that_calls_pyro_param(model, batch):
    report = check_guide(model, StoresParameters(), batch)
    assert "give the PyroModule an nn.Parameter or a PyroParam for each" in str(report)


class Renews(nn.Module):
    def __init__(self, is_once: bool) -> None:
        super().__init__()
        self.is_once = is_once

    def forward(self, batch: Batch) -> None:
        if not (self.is_once and hasattr(self, "loc")):
            self.loc = nn.Parameter(torch.zeros(DIM))
        with trials(batch):
            pyro.sample("g0", dist.Normal(self.loc, 1.0).to_event(1))
            u(batch)


def test_parameters_that_every_run_makes_anew(model, batch, data):
    assert check_guide(model, Renews(True), batch) == GuideReport()
    sentence = "every run of the guide makes its parameters loc anew"
    report = check_guide(model, Renews(False), batch)
    assert len(report.problems) == 1 and sentence in report.problems[0]
    with pytest.raises(GuideError, match=sentence):
        fit(model, data, guide=Renews(False), max_epochs=1, **QUIET)


def test_parameters_that_share_memory(model, batch):
    shared = torch.zeros(2 * DIM)
    for guide, names in {
        Holder(loc=torch.zeros(1).expand(DIM)): "loc",
        Holder(one=shared[:DIM], other=shared[2 : 2 + DIM]): "one, other",
    }.items():
        assert f"parameters {names} share memory" in str(check_guide(model, guide, batch))
    apart = Holder(one=shared[:DIM], other=shared[DIM:])
    assert check_guide(model, apart, batch) == GuideReport()
    of_model = Holder(loc=torch.zeros(DIM))
    own = next(p for p in model.parameters() if p.numel() == DIM)
    of_model.loc.data = own.data
    assert "parameters loc share memory" in str(check_guide(model, of_model, batch))


class Lazy(nn.Module):
    def __init__(self, is_run: bool) -> None:
        super().__init__()
        self.head, self.is_run = nn.LazyLinear(DIM), is_run

    def forward(self, batch: Batch) -> None:
        loc = self.head(batch.seen.mean(1)) if self.is_run else torch.zeros(DIM)
        with trials(batch):
            pyro.sample("g0", dist.Normal(loc, 1.0).to_event(1))
            u(batch)


def test_parameters_that_the_first_run_does_not_build(model, batch):
    assert check_guide(model, Lazy(True), batch) == GuideReport()
    report = check_guide(model, Lazy(False), batch)
    assert "first run has not built its parameters head.weight, head.bias" in str(report)


class Idle(Amortised):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Parameter(torch.zeros(3))


def test_parameters_that_no_draw_depends_on_are_warned_of(model, batch, data):
    report = check_guide(model, Idle(), batch)
    assert report.problems == ()
    assert "no draw of the guide depends on its parameters forgotten" in report.warnings[0]
    with pytest.warns(UserWarning, match="parameters forgotten"):
        fit(model, data, guide=Idle(), max_epochs=1, **QUIET)


class KeepsTensors(Amortised):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.index, self._cached = torch.zeros(DIM), torch.arange(DIM), torch.ones(2)
        self.register_buffer("constant", torch.ones(DIM))
        self.head.scale = torch.ones(DIM)

    def forward(self, batch: Batch) -> None:
        super().forward(batch)
        self.last = batch.seen.mean(1)


def test_plain_tensors_are_warned_of(model, batch):
    report = check_guide(model, KeepsTensors(), batch)
    assert report.problems == ()
    (warning,) = report.warnings
    assert "the guide keeps offset, head.scale as plain tensors, which are neither" in warning
    assert check_guide(model, KeepsTensors(), batch, training=False) == GuideReport()
