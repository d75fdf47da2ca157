"""`check_guide`: each fault of a guide is named, and a guide without fault passes."""

import contextlib
import functools
import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from lfads_guides import (
    DIM,
    INPUT_DIM,
    NUM_BINS,
    NUM_TRIALS,
    Amortised,
    g0,
    in_plate,
    normal,
    sample,
    trials,
    u,
)
from pyro import poutine
from torch import nn

from pyrodyn import predict, to_datatree
from pyrodyn.data.batch import Batch, Trials
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    RWS,
    GuideError,
    GuideReport,
    check_guide,
    fit,
    importance_sample,
)
from pyrodyn.models import LFADS
from pyrodyn.nn.solvers import DivergenceError

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu"}


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


def in_place(batch: Batch) -> None:
    seen = batch.seen
    seen /= 1 + seen.mean()
    in_plate(g0, u)(batch)


def one_draw_at_a_time(batch: Batch) -> None:
    with trials(batch):
        half = pyro.sample(
            "half", normal(batch.num_trials, 2).to_event(1), infer={"is_auxiliary": True}
        )
        both = torch.cat([half, batch.seen.mean(1)[:, :2]], -1)
        pyro.sample("g0", dist.Delta(both, event_dim=1))
        u(batch)


def weighted(handler: Any, is_auxiliary: bool = False) -> Any:
    """A guide that draws g0, or what it is made from, inside a handler of Pyro's."""

    def draw(batch: Batch) -> None:
        distribution = normal(batch.num_trials, DIM).to_event(1)
        if not is_auxiliary:
            with handler:
                pyro.sample("g0", distribution)
            return
        with handler:
            made = pyro.sample("made", distribution, infer={"is_auxiliary": True})
        pyro.sample("g0", dist.Delta(made, event_dim=1))

    return in_plate(draw, u)


def two_plates(batch: Batch) -> None:
    with trials(batch):
        g0(batch)
    with trials(batch):
        u(batch)


FEW = torch.arange(NUM_TRIALS) < 2


SITES = {
    "observed": (
        in_plate(
            lambda b: pyro.sample("g0", normal(6, DIM).to_event(1), obs=torch.zeros(6, DIM)), u
        ),
        "the guide observes 'g0' (obs=), but a guide draws: leave obs= out",
    ),
    "observes x": (
        in_plate(g0, u, lambda b: pyro.sample("x", normal(*b.seen.shape).to_event(2), obs=b.seen)),
        "the guide has the site 'x', the model's observations",
    ),
    "draws x": (
        in_plate(g0, u, sample("x", lambda b: normal(*b.seen.shape).to_event(2))),
        "the guide has the site 'x', the model's observations",
    ),
    "scaled": (
        weighted(poutine.scale(scale=0.5)),
        "site 'g0' is scaled by 0.5 in the guide (by poutine.scale or the size of a plate), which",
    ),
    "scaled auxiliary": (
        weighted(poutine.scale(scale=torch.tensor(2.0)), True),
        "site 'made' is scaled by 2 in the guide",
    ),
    "masked": (
        weighted(poutine.mask(mask=FEW)),
        "site 'g0' is masked in the guide and not in the model",
    ),
    "masked auxiliary": (
        weighted(poutine.mask(mask=FEW), True),
        "site 'made' is masked in the guide and not in the model",
    ),
    "in place": (in_place, "the guide changes batch.seen in place, and so the recording itself"),
    "one draw at a time": (
        one_draw_at_a_time,
        "when it makes several draws per trial at once; draws and what is computed from them then",
    ),
    "two plates": (two_plates, "make a plate once, as plate = pyro.plate(...), and enter it as"),
    "a layer": (
        nn.Sequential(nn.Linear(5, DIM)),
        "the guide ends in TypeError (linear(): argument 'input' (position 1) must be Tensor, not",
    ),
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


def test_handlers_that_change_no_density_are_accepted(model, data):
    part = Trials(data).batch(slice(0, 3))

    def rows_of_recording(batch: Batch) -> None:
        with pyro.plate("trials", NUM_TRIALS, subsample=batch.trial, dim=-1):  # scales by 2
            g0(batch)
            u(batch)

    everything = poutine.mask(mask=torch.ones(3, dtype=torch.bool))
    for guide in (rows_of_recording, weighted(everything), weighted(poutine.scale(scale=1.0))):
        report = check_guide(model, guide, part, objective=ELBO())
        assert report == GuideReport(), report


def test_a_model_that_scales_or_masks_its_own_site_lets_the_guide_do_so(data):
    class Weighted(LFADS):
        def model(self, batch: Batch) -> None:
            with poutine.scale(scale=0.5), poutine.mask(mask=batch.trial < 2):
                super().model(batch)

    torch.manual_seed(0)
    sizes = {"factor_dim": 2, "generator_dim": 4, "encoder_dim": 4, "initial_condition_dim": DIM}
    model, batch = Weighted.for_recording(data, **sizes), Trials(data).batch()
    for handler in (poutine.scale(scale=0.5), poutine.mask(mask=FEW)):

        def guide(batch: Batch, handler: Any = handler) -> None:
            with trials(batch), handler:
                g0(batch)

        assert check_guide(model, guide, batch) == GuideReport()


def test_the_check_leaves_the_batch_as_it_is(model, batch):
    before = batch.seen.clone()
    check_guide(model, in_place, batch)
    assert torch.equal(batch.seen, before)


def test_a_model_is_no_guide_of_itself(model, data, batch):
    for ask in (
        lambda: fit(model, data, guide=model, max_epochs=1, **QUIET),
        lambda: predict(model, data, guide=model),
        lambda: importance_sample(model, model, batch, 40),
    ):
        with pytest.raises(GuideError, match=r"the guide is the model itself; pass model.guide"):
            ask()


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

    batch = small_batch()
    assert check_guide(program, guide, batch, objective=ELBO()) == GuideReport()
    wrong = check_guide(program, lambda batch: guide(batch, dist.Normal), batch)
    assert "site 'rate' is drawn from Normal, whose support is not" in wrong.problems[0]


def small_batch() -> Batch:
    one = torch.ones(4, 3, 5)
    return Batch(one, one, one > 0, one > 0, one[..., :0], torch.arange(4), 3)


def test_a_shared_site_lies_in_the_plates_of_the_model():
    def program(batch: Batch, has_plate: bool = True) -> None:
        with pyro.plate("entries", 3) if has_plate else contextlib.nullcontext():
            pyro.sample("gain", dist.Normal(0.0, 1.0))
        with trials(batch):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert check_guide(program, lambda batch: program(batch), small_batch()) == GuideReport()
    report = check_guide(program, lambda batch: program(batch, False), small_batch())
    assert "site 'gain', which all trials share, has batch shape () in the guide and (3,)" in str(
        report
    )
    assert len(report.problems) == 1


def test_a_support_of_vectors_is_compared():
    def program(batch: Batch, kind: Any = dist.Dirichlet) -> None:
        with trials(batch):
            pyro.sample("weights", kind(torch.ones(3)))

    def real(mean: torch.Tensor) -> dist.Independent:
        return dist.Normal(mean, 1.0).to_event(1)

    assert check_guide(program, lambda batch: program(batch), small_batch()) == GuideReport()
    report = check_guide(program, lambda batch: program(batch, real), small_batch())
    assert "'weights' is drawn from Normal, whose support is not that of the model's Dir" in str(
        report
    )


def test_auxiliary_draws_of_all_trials_jointly(model, batch):
    def guide(batch: Batch) -> None:
        both = pyro.sample(
            "all", normal(batch.num_trials, DIM).to_event(2), infer={"is_auxiliary": True}
        )
        both = both.squeeze(-3) if both.dim() > 2 else both
        in_plate(lambda b: pyro.sample("g0", dist.Delta(both, event_dim=1)), u)(batch)

    assert check_guide(model, guide, batch, objective=ELBO(), num_trials=6) == GuideReport()
    part = check_guide(model, guide, batch.take(slice(0, 3)), objective=ELBO(), num_trials=6)
    assert "draws all trials jointly (site 'all')" in str(part)
    assert "cannot be trained on minibatches; set batch_size=6" in str(part)
    weighted_by_trial = check_guide(model, guide, batch, objective=IWELBO(4))
    assert "draws all trials jointly, in 'all' outside the plate 'trials'" in str(weighted_by_trial)


def test_trajectories_that_diverge():
    """From draws of the prior the model is run on draws of the guide; of the guide's own draws the
    error is the user's to see."""

    def program(batch: Batch) -> None:
        with trials(batch):
            z = pyro.sample("z", dist.Normal(100.0, 1.0))
        if z.max() > 50:
            raise DivergenceError(0, 0.0, 1.0, ValueError("the model"))

    def guide(batch: Batch, mean: float = 0.0, most_dims: int = 9) -> None:
        with trials(batch):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
        if z.max() > 50 or z.dim() > most_dims:
            raise DivergenceError(0, 0.0, 1.0, ValueError("the guide"))

    assert check_guide(program, guide, small_batch()) == GuideReport()
    for options in ({"mean": 100.0}, {"most_dims": 1}):
        with pytest.raises(DivergenceError, match="the guide"):
            check_guide(program, functools.partial(guide, **options), small_batch())


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
    with pytest.raises(
        GuideError, match=r"reads batch.trial, so it has parameters per trial.*valid="
    ):
        fit(model, data, data, guide=by_position, max_epochs=1, **QUIET)
    fitted = fit(model, data, guide=by_position, max_epochs=1, batch_size=4, **QUIET)
    predict(fitted, data, num_draws=2)
    predict(fitted, data.isel(trial=slice(0, 3)), num_draws=2)
    for others in (data.isel(trial=[1, 0, 2, 3, 4, 5]), data.isel(trial=slice(3, 6))):
        for read in (predict, to_datatree):
            with pytest.raises(GuideError, match="none for other trials; give it that recording"):
                read(fitted, others, num_draws=2)


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
    assert runs == {"guide": 3, "model": 1}
