"""`check_guide`: each fault of a guide is named, and a guide without fault passes."""

import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodyn.data.batch import Batch, Trials
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
from pyrodyn.models import LFADS

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu"}
NUM_TRIALS, NUM_BINS, DIM, INPUT_DIM = 6, 8, 4, 2


@pytest.fixture
def data(make_recording) -> xr.Dataset:
    return make_recording(NUM_TRIALS)


@pytest.fixture
def model(data, make_lfads) -> LFADS:
    """Its latent sites are g0, of event shape (4,), and u, of event shape (8, 2)."""
    return make_lfads(data, inferred_input_dim=INPUT_DIM)


@pytest.fixture
def batch(data) -> Batch:
    return Trials(data).batch()


def normal(*shape: int) -> dist.Normal:
    return dist.Normal(torch.zeros(shape), 1.0)


def g0(batch: Batch) -> None:
    pyro.sample("g0", normal(batch.num_trials, DIM).to_event(1))


def u(batch: Batch, name: str = "u") -> None:
    pyro.sample(name, normal(batch.num_trials, NUM_BINS, INPUT_DIM).to_event(2))


def trials(batch: Batch, dim: int = -1, name: str = "trials") -> pyro.plate:
    return pyro.plate(name, batch.num_trials, dim=dim)


def in_plate(*parts: Callable[[Batch], None]) -> Callable[[Batch], None]:
    """A guide of parts."""

    def guide(batch: Batch) -> None:
        with trials(batch):
            for part in parts:
                part(batch)

    return guide


def sample(name: str, distribution: Callable[[Batch], Any], **infer: Any) -> Callable[..., None]:
    return lambda batch: pyro.sample(name, distribution(batch), infer=infer)


class WithoutReparameterisation(dist.Normal):
    has_rsample = False


class Amortised(nn.Module):
    """A guide without fault."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2 * DIM)

    def forward(self, batch: Batch) -> None:
        mean, log_scale = self.head(batch.seen.mean(1)).chunk(2, -1)
        with trials(batch):
            pyro.sample("g0", dist.Normal(mean, log_scale.exp()).to_event(1))
            u(batch)

    def by_method(self, batch: Batch) -> None:
        self(batch)


# ------------------------------------------------------------------ sites


def joint(batch: Batch) -> None:
    pyro.sample("g0", normal(batch.num_trials, DIM).to_event(2))
    with trials(batch):
        u(batch)


def without_plate(batch: Batch) -> None:
    g0(batch)
    with trials(batch):
        u(batch)


def other_plate(batch: Batch) -> None:
    with trials(batch, name="rows"):
        g0(batch)
        u(batch)


def other_dim(batch: Batch) -> None:
    with trials(batch, dim=-2):
        pyro.sample("g0", normal(batch.num_trials, 1, DIM).to_event(1))
        pyro.sample("u", normal(batch.num_trials, 1, NUM_BINS, INPUT_DIM).to_event(2))


def more_plates(batch: Batch) -> None:
    with trials(batch):
        g0(batch)
        with pyro.plate("bins", 1, dim=-2):
            u(batch)


def other_size(batch: Batch) -> None:
    with pyro.plate("trials", 1, dim=-1):
        pyro.sample("g0", normal(1, DIM).to_event(1))
        pyro.sample("u", normal(1, NUM_BINS, INPUT_DIM).to_event(2))


def reads_x(batch: Batch) -> None:
    mean = batch.x.mean((1, 2))[:, None]
    with trials(batch):
        pyro.sample("g0", dist.Normal(mean.expand(-1, DIM), 1.0).to_event(1))
        u(batch)


def of_one_size(batch: Batch) -> None:
    with pyro.plate("trials", 4, dim=-1):
        pyro.sample("g0", normal(4, DIM).to_event(1))
        u(batch)


SITES = {
    "missing": (
        in_plate(g0),
        "does not draw 'u' (the model's latent sites are g0, u), which would come from the prior",
    ),
    "misspelt": (
        in_plate(sample("g_0", lambda b: normal(b.num_trials, DIM).to_event(1)), u),
        "draws 'g_0', which is no site of this model (the model's latent sites are g0, u); rename"
        " it 'g0'",
    ),
    "extra": (
        in_plate(g0, u, sample("offset", lambda b: normal(b.num_trials))),
        "draws 'offset', which is no site of this model (the model's latent sites are g0, u);"
        " remove it, or mark it",
    ),
    "per bin": (
        in_plate(
            g0,
            *(
                sample(f"u_{t}", lambda b: normal(b.num_trials, INPUT_DIM).to_event(1))
                for t in range(NUM_BINS)
            ),
        ),
        "draws 'u_0', which is no site of this model: all bins of the latent path are the one site"
        " 'u' of event shape (8, 2)",
    ),
    "auxiliary": (
        in_plate(
            sample("g0", lambda b: normal(b.num_trials, DIM).to_event(1), is_auxiliary=True), u
        ),
        "site 'g0' is marked as auxiliary in the guide, but is a latent site of the model",
    ),
    "nothing": (lambda batch: None, "does not draw 'g0', 'u'"),
    "joint": (
        joint,
        "site 'g0' is one joint distribution over all 6 trials (event shape (6, 4)); draw it with"
        " event shape (4,), by .to_event(1)",
    ),
    "no plate": (without_plate, "site 'g0' lies in no plate"),
    "other plate": (other_plate, "site 'g0' lies in the plate 'rows'"),
    "other dim": (other_dim, "the guide's plate 'trials' is at dim -2; declare it with dim=-1"),
    "more plates": (more_plates, "site 'u' lies in the plate 'bins'; only the plate over trials"),
    "other size": (other_size, "the guide's plate 'trials' has 1 trials for a batch of 6"),
    "event shape": (
        in_plate(g0, sample("u", lambda b: normal(b.num_trials, 1, INPUT_DIM).to_event(2))),
        "site 'u' has event shape (1, 2) in the guide and (8, 2) in the model",
    ),
    "event dims": (
        in_plate(sample("g0", lambda b: normal(b.num_trials, 1, DIM).to_event(2)), u),
        "site 'g0' has event shape (1, 4) in the guide and (4,) in the model",
    ),
    "broadcast": (
        in_plate(sample("g0", lambda b: normal(3, b.num_trials, DIM).to_event(1)), u),
        "site 'g0' has batch shape (3, 6) in the guide; it must be (6,)",
    ),
    "support": (
        in_plate(sample("g0", lambda b: dist.LogNormal(torch.zeros(6, DIM), 1.0).to_event(1)), u),
        "site 'g0' is drawn from LogNormal, whose support is not that of the model's Normal",
    ),
    "precision": (
        in_plate(
            sample("g0", lambda b: dist.Normal(normal(6, DIM).loc.double(), 1.0).to_event(1)), u
        ),
        "site 'g0' is drawn as torch.float64, the model's as torch.float32",
    ),
    "discrete": (
        in_plate(sample("g0", lambda b: dist.Poisson(torch.ones(6, DIM)).to_event(1)), u),
        "site 'g0' is drawn from Poisson, whose support",
    ),
    "reads x": (reads_x, "it reads batch.x, which guides are not given"),
    "other trials": (of_one_size, "must run on any batch and draw, inside `with pyro.plate("),
    "an error": (
        lambda batch: [][1],
        "the guide ends in IndexError (list index out of range); it must run on any batch",
    ),
    "a class": (Amortised, "the guide is the class Amortised; pass an instance of it"),
}


@pytest.mark.parametrize("kind", SITES)
def test_a_guide_that_draws_otherwise_than_its_model(model, batch, data, kind):
    guide, sentence = SITES[kind]
    state = torch.get_rng_state()
    for training in (True, False):
        report = check_guide(model, guide, batch, training=training)
        assert len(report.problems) == (2 if kind == "other plate" else 1), report
        assert sentence in report.problems[0]
        assert sentence in str(report)
    assert torch.equal(torch.get_rng_state(), state)
    before = model.state_dict()["readout.bias"].clone()
    with pytest.raises(GuideError, match=re.escape(sentence)):
        fit(model, data, guide=guide, max_epochs=1, **QUIET)
    assert torch.equal(model.state_dict()["readout.bias"], before)


def test_all_problems_are_reported_together(model, batch):
    report = check_guide(model, in_plate(sample("v", lambda b: normal(b.num_trials))), batch)
    with pytest.raises(GuideError) as caught:
        report.require()
    assert "'v'" in str(caught.value) and "'g0', 'u'" in str(caught.value)


@pytest.mark.parametrize("objective", [None, ELBO(), IWELBO(4), RWS(4)])
def test_guides_without_fault(model, batch, objective):
    amortised = Amortised()
    for guide in (
        model.guide,
        lambda batch: model.guide(batch),
        lambda batch: model.guide(batch.replace(visible=batch.visible)),
        in_plate(g0, u),
        amortised,
        amortised.by_method,
    ):
        report = check_guide(
            model, guide, batch.take(slice(0, 3)), objective=objective, num_trials=NUM_TRIALS,
            sees_other_trials=True,
        )  # fmt: skip
        assert report == GuideReport(), report
    assert str(report) == "the guide fits the model"


def test_a_markov_guide_of_auxiliary_sites_per_bin(model, batch):
    def guide(batch: Batch) -> None:
        with trials(batch):
            g0(batch)
            path = [
                pyro.sample(
                    f"u_{t}",
                    normal(batch.num_trials, INPUT_DIM).to_event(1),
                    infer={"is_auxiliary": True},
                )
                for t in range(NUM_BINS)
            ]
            pyro.sample("u", dist.Delta(torch.stack(path, -2), event_dim=2))

    assert check_guide(model, guide, batch, objective=ELBO()) == GuideReport()


def test_a_program_with_another_support_and_a_shared_site():
    def program(batch: Batch) -> None:
        gain = pyro.sample("gain", dist.Gamma(2.0, 1.0))
        with trials(batch):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0).expand([5]).to_event(1))
            x = None if batch.x is None else batch.x.sum(1)
            pyro.sample("x", dist.Poisson(gain * rate).to_event(1), obs=x)

    def guide(batch: Batch, kind: Any = dist.LogNormal) -> None:
        pyro.sample("gain", dist.LogNormal(0.0, 1.0))
        with trials(batch):
            pyro.sample("rate", kind(torch.zeros(5), 1.0).to_event(1))

    one = torch.ones(4, 3, 5)
    batch = Batch(one, one, one > 0, one > 0, one[..., :0], torch.arange(4), 3)
    assert check_guide(program, guide, batch, objective=ELBO()) == GuideReport()
    wrong = check_guide(program, lambda batch: guide(batch, dist.Normal), batch)
    assert "site 'rate' is drawn from Normal, whose support is not" in wrong.problems[0]


# ------------------------------------------------------------------ gradients and parameters


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


class RowsOf(nn.Module):
    """Parameters per trial, looked up by the trials' positions, or not."""

    def __init__(self, num_trials: int, by_position: bool) -> None:
        super().__init__()
        self.loc, self.by_position = nn.Parameter(torch.zeros(num_trials, DIM)), by_position

    def forward(self, batch: Batch) -> None:
        loc = self.loc[batch.trial] if self.by_position else self.loc
        with trials(batch):
            pyro.sample("g0", dist.Normal(loc, 1.0).to_event(1))
            u(batch)


def test_parameters_per_trial(model, batch, data):
    by_position, by_row = RowsOf(NUM_TRIALS, True), RowsOf(NUM_TRIALS, False)
    part = batch.take(slice(0, 3))
    for guide in (by_position, by_row):
        assert check_guide(model, guide, batch) == GuideReport()
    assert check_guide(model, by_position, part, num_trials=NUM_TRIALS) == GuideReport()
    for guide in (by_row, RowsOf(3, False)):
        report = check_guide(model, guide, part, num_trials=NUM_TRIALS)
        assert "needs the rows of batch.trial, or all trials in one batch (batch_size=6)" in str(
            report
        )
    with pytest.raises(GuideError, match=r"reads batch.trial, so it has parameters per trial"):
        fit(model, data, data, guide=by_position, max_epochs=1, **QUIET)
    fit(model, data, guide=by_position, max_epochs=1, batch_size=4, **QUIET)


# ------------------------------------------------------------------ what guides are shown


def test_guides_are_not_shown_observations_but_the_encoders_view(model, data):
    shown = []

    def guide(batch: Batch) -> None:
        shown.append(batch.x)
        in_plate(g0, u)(batch)

    for objective in (ELBO(), ELBO(2), IWELBO(4), IWELBO(4, "dreg"), RWS(4)):
        if isinstance(objective, IWELBO) and objective.gradient == "dreg":
            continue  # of modules alone
        fit(model, data, guide=guide, objective=objective, max_epochs=1, **QUIET)
    assert len(shown) > 8 and shown == [None] * len(shown)


def test_the_check_costs_few_runs(model, batch, data):
    runs = {"guide": 0, "model": 0}

    def guide(batch: Batch) -> None:
        runs["guide"] += 1
        model.guide(batch)

    def counted(batch: Batch) -> None:
        runs["model"] += 1
        model.model(batch)

    check_guide(counted, guide, batch.take(slice(0, 3)), num_trials=NUM_TRIALS)
    assert runs == {"guide": 2, "model": 1}
